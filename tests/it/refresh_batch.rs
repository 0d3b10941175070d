//! Concurrent refreshes share statements: the outcome of one depends on no other in its batch.
//!
//! With one connection there is one batch at a time. A first refresh, whose row is locked, keeps it busy; all that come
//! meanwhile are in the next batch.

use auth::clock::Clock;
use auth::db::batch::BatchedCall;
use auth::db::refresh_tokens::{Decision, Rotation};
use auth::domain::client::ClientInfo;
use auth::domain::mail::Locale;
use sqlx::{PgPool, PgTransaction};
use tokio::task::JoinHandle;

use crate::recorder::Recorder;
use crate::support::{Answer, Pair, TestApp, pair};

const REFUSED: &str = "Refresh token not valid";

/// A service with one batch of refreshes at a time.
fn one_connection(pool: PgPool, flags: &[&str]) -> TestApp {
    TestApp::with_refresh_connections(pool, flags, Clock::system(), 1)
}

/// A refresh that waits for its row, and what holds the row.
struct Busy {
    holder: PgTransaction<'static>,
    first: JoinHandle<Answer>,
}

async fn keep_busy(app: &TestApp) -> Busy {
    let tokens = app.customer("first@example.com").await;
    let mut holder = app.db.begin().await.unwrap();
    sqlx::query("SELECT FROM refresh_tokens WHERE session_id = $1 FOR UPDATE")
        .bind(tokens.session())
        .execute(&mut *holder)
        .await
        .unwrap();
    let first = start(app, &tokens.refresh);
    app.until_blocked(1).await;
    Busy { holder, first }
}

impl Busy {
    /// Once all refreshes that were started wait in the queue.
    async fn release(self, app: &TestApp) {
        // A round trip to the database, during which every task that can goes on.
        assert_eq!(app.get("/auth/ready").await.status, 200);
        self.holder.commit().await.unwrap();
        assert_eq!(self.first.await.unwrap().status, 200);
    }
}

fn start(app: &TestApp, token: &str) -> JoinHandle<Answer> {
    let (app, token) = (app.clone(), token.to_owned());
    tokio::spawn(async move { app.refresh(&token).await })
}

/// As many customers, each signed in once.
async fn customers(app: &TestApp, count: usize) -> Vec<Pair> {
    let mut pairs = Vec::new();
    for index in 0..count {
        pairs.push(app.customer(&format!("user{index}@example.com")).await);
    }
    pairs
}

/// The second of some customers.
const POISONED: i64 = 2;

/// Makes every statement fail that gives a token to [`POISONED`].
async fn poison(app: &TestApp) {
    app.execute("CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''poison''; END'").await;
    app.execute(
        "CREATE TRIGGER poison BEFORE INSERT ON refresh_tokens FOR EACH ROW
         WHEN (NEW.user_id = 2) EXECUTE FUNCTION poison()",
    )
    .await;
}

fn rotations(recorder: &Recorder) -> usize {
    recorder.take().iter().filter(|statement| statement.starts_with("WITH presented")).count()
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn calls_that_wait_are_one_batch_and_each_gets_its_own_answer(pool: PgPool) {
    let app = one_connection(pool, &[]);
    let tokens = customers(&app, 8).await;
    assert_eq!(app.logout(&tokens[3].refresh).await.status, 200);
    let recorder = Recorder::start();
    let busy = keep_busy(&app).await;
    let refreshes: Vec<_> = tokens.iter().map(|tokens| start(&app, &tokens.refresh)).collect();
    busy.release(&app).await;
    for (index, (refresh, tokens)) in refreshes.into_iter().zip(&tokens).enumerate() {
        let answer = refresh.await.unwrap();
        if index == 3 {
            answer.assert_refused(REFUSED, Some("logout"));
        } else {
            assert_eq!(pair(&answer).session(), tokens.session());
        }
    }
    assert_eq!(rotations(&recorder), 2, "the first one and one batch");
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_poisoned_refresh_fails_alone(pool: PgPool) {
    let app = one_connection(pool, &[]);
    let tokens = customers(&app, 8).await;
    poison(&app).await;
    assert_eq!(app.user_id("user1@example.com").await, POISONED);
    let recorder = Recorder::start();
    let busy = keep_busy(&app).await;
    let refreshes: Vec<_> = tokens.iter().map(|tokens| start(&app, &tokens.refresh)).collect();
    busy.release(&app).await;
    for (index, refresh) in refreshes.into_iter().enumerate() {
        let answer = refresh.await.unwrap();
        if index == 1 {
            answer.assert_detail(503, "Service unavailable, try again later");
        } else {
            pair(&app.refresh(&pair(&answer).refresh).await);
        }
    }
    assert_eq!(rotations(&recorder), 1 + 1 + 8 + 7, "the first, the batch, each of it alone, and the successors");
    // Nothing of it stuck.
    app.execute("DROP TRIGGER poison ON refresh_tokens").await;
    pair(&app.refresh(&tokens[1].refresh).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn one_token_fifty_times_is_one_call(pool: PgPool) {
    let app = one_connection(pool, &[]);
    let tokens = app.customer("cust@example.com").await;
    let bystander = app.login("cust@example.com").await;
    let recorder = Recorder::start();
    let busy = keep_busy(&app).await;
    let refreshes: Vec<_> = (0..50).map(|_| start(&app, &tokens.refresh)).collect();
    let beside = start(&app, &bystander.refresh);
    busy.release(&app).await;
    pair(&beside.await.unwrap());
    let mut successors = std::collections::HashSet::new();
    for refresh in refreshes {
        successors.insert(pair(&refresh.await.unwrap()).refresh);
    }
    let looks = recorder.take().iter().filter(|statement| statement.contains("AS always")).count();
    assert_eq!((successors.len(), looks, app.unrevoked(tokens.session()).await), (1, 0, 1));
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_caller_that_went_away_is_left_out_and_takes_nobody_with_it(pool: PgPool) {
    let app = one_connection(pool, &[]);
    let tokens = customers(&app, 6).await;
    let busy = keep_busy(&app).await;
    let mut refreshes: Vec<_> = tokens.iter().map(|tokens| start(&app, &tokens.refresh)).collect();
    assert_eq!(app.get("/auth/ready").await.status, 200);
    for index in [4, 1] {
        let gone = refreshes.remove(index);
        gone.abort();
        assert!(gone.await.unwrap_err().is_cancelled());
    }
    busy.release(&app).await;
    for refresh in refreshes {
        pair(&refresh.await.unwrap());
    }
    // Their tokens were not used up.
    for index in [1, 4] {
        pair(&app.refresh(&tokens[index].refresh).await);
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_caller_that_went_away_too_late_finds_the_successor_by_a_retry(pool: PgPool) {
    let app = one_connection(pool, &[]);
    let tokens = customers(&app, 2).await;
    let mut holder = app.db.begin().await.unwrap();
    sqlx::query("SELECT FROM refresh_tokens FOR UPDATE").execute(&mut *holder).await.unwrap();
    let gone = start(&app, &tokens[0].refresh);
    app.until_blocked(1).await;
    let stays = start(&app, &tokens[1].refresh);
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    holder.commit().await.unwrap();
    pair(&stays.await.unwrap());
    let successor = pair(&app.refresh(&tokens[0].refresh).await);
    pair(&app.refresh(&successor.refresh).await);
    assert_eq!(app.unrevoked(successor.session()).await, 1);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_batch_whose_connection_breaks_is_executed_on_another_one(pool: PgPool) {
    let app = one_connection(pool, &[]);
    let tokens = app.customer("cust@example.com").await;
    let mut holder = app.db.begin().await.unwrap();
    sqlx::query("SELECT FROM refresh_tokens FOR UPDATE").execute(&mut *holder).await.unwrap();
    let refresh = start(&app, &tokens.refresh);
    app.until_blocked(1).await;
    let ended: bool = app
        .value(
            "SELECT bool_and(pg_terminate_backend(pid)) FROM pg_stat_activity
             WHERE datname = current_database() AND wait_event_type = 'Lock'",
        )
        .await;
    assert!(ended);
    holder.commit().await.unwrap();
    let successor = pair(&refresh.await.unwrap());
    pair(&app.refresh(&successor.refresh).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn every_caller_with_a_poisoned_token_gets_503(pool: PgPool) {
    let app = one_connection(pool, &[]);
    let tokens = customers(&app, 2).await;
    poison(&app).await;
    let busy = keep_busy(&app).await;
    let poisoned: Vec<_> = (0..3).map(|_| start(&app, &tokens[1].refresh)).collect();
    let other = start(&app, &tokens[0].refresh);
    busy.release(&app).await;
    // Never a 401, upon which a client throws its session away.
    for refresh in poisoned {
        refresh.await.unwrap().assert_detail(503, "Service unavailable, try again later");
    }
    pair(&other.await.unwrap());
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_row_that_somebody_keeps_locked_holds_up_nobody_else(pool: PgPool) {
    let app = TestApp::new(pool);
    let tokens = app.customer("cust@example.com").await;
    let busy = keep_busy(&app).await;
    pair(&app.refresh(&tokens.refresh).await);
    assert!(!busy.first.is_finished(), "the other one waited for it");
    // It is given up in the end, and may be tried again.
    let first = busy.first.await.unwrap();
    first.assert_detail(503, "Service unavailable, try again later");
    busy.holder.commit().await.unwrap();
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_server_that_goes_down_has_refused_nothing_and_the_batch_is_sent_again(pool: PgPool) {
    let app = one_connection(pool, &[]);
    let tokens = customers(&app, 3).await;
    let busy = keep_busy(&app).await;
    let refreshes: Vec<_> = tokens.iter().map(|tokens| start(&app, &tokens.refresh)).collect();
    // The batch behind the first one waits for its rows, too, and is told to go away while it does.
    let mut holder = app.db.begin().await.unwrap();
    let lock = "SELECT FROM refresh_tokens WHERE session_id = $1 FOR UPDATE";
    sqlx::query(lock).bind(tokens[0].session()).execute(&mut *holder).await.unwrap();
    busy.release(&app).await;
    app.until_blocked(1).await;
    let recorder = Recorder::start();
    app.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")
        .await;
    holder.commit().await.unwrap();
    for refresh in refreshes {
        pair(&app.refresh(&pair(&refresh.await.unwrap()).refresh).await);
    }
    // The calls were not split.
    assert_eq!(rotations(&recorder), 2 + 3, "twice, and the successors");
}

/// What a request with this token submits.
fn rotation(app: &TestApp, token: &str) -> Rotation {
    let now = app.clock.now();
    let presented = app.app.tokens.verify_refresh(token, now).claims.unwrap();
    let session_id = presented.session_id.unwrap();
    let (_, next) = app.app.tokens.issue_refresh(&presented.subject, session_id, now);
    let client = ClientInfo::new(None, [127, 0, 0, 1].into(), Locale::default());
    let revocations = app.app.revocations.clone();
    Rotation { presented, session_id, next, client, max_sessions: 100, revocations, limit: None, now }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn only_a_token_that_the_batch_exchanges_is_one_that_overlapped(pool: PgPool) {
    let app = TestApp::new(pool);
    let first = app.customer("cust@example.com").await;
    let second = pair(&app.refresh(&first.refresh).await);
    let rotations = [&first, &second, &first, &second].map(|tokens| rotation(&app, &tokens.refresh));
    let mut connection = app.db.acquire().await.unwrap();
    let decisions = Rotation::execute(&mut connection, &rotations.each_ref()).await.unwrap();
    let outcomes: Vec<_> = decisions
        .iter()
        .map(|decision| match decision {
            Decision::Rotated(_) => "rotated",
            Decision::Refused { overlapped: true } => "overlapped",
            Decision::Refused { overlapped: false } => "used before",
        })
        .collect();
    // An overlap would give the successor to whoever stole the token that was used before.
    assert_eq!(outcomes, ["used before", "rotated", "used before", "overlapped"]);
}
