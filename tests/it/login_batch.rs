//! Concurrent logins share statements: the outcome of one depends on no other in its batch.
//!
//! Some first logins, whose rows are locked, keep all workers busy; those that come meanwhile are in the next batch.

use sqlx::postgres::PgPoolOptions;
use sqlx::{PgPool, PgTransaction};
use tokio::task::JoinHandle;

use crate::recorder::Recorder;
use crate::support::{Answer, PASSWORD, TestApp, count, pair, together};

const CHEAP: [&str; 2] = ["--password-argon2-memory-kib=64", "--password-argon2-passes=1"];
const WORKERS: usize = 4;

/// A service with connections enough, and as many customers.
async fn with_customers(pool: PgPool, count: usize) -> TestApp {
    // And without a limit on the wait for a lock, so that no machine is too slow for what follows.
    let connections = PgPoolOptions::new().max_connections(12);
    let app = TestApp::with(connections.connect_lazy_with((*pool.connect_options()).clone()), &CHEAP);
    for index in 0..WORKERS {
        app.register(&format!("first{index}@example.com"), "customer").await;
    }
    for index in 0..count {
        app.register(&user(index), "customer").await;
    }
    app
}

fn user(index: usize) -> String {
    format!("user{index}@example.com")
}

fn start(app: &TestApp, email: &str, password: &str) -> JoinHandle<Answer> {
    let (app, email, password) = (app.clone(), email.to_owned(), password.to_owned());
    tokio::spawn(async move { app.try_login(&email, &password).await })
}

struct Busy {
    holder: PgTransaction<'static>,
    first: Vec<JoinHandle<Answer>>,
}

/// Keeps all workers of the batcher busy whose statement needs what `lock` locks.
async fn keep_busy(app: &TestApp, lock: &'static str) -> Busy {
    let mut holder = app.db.begin().await.unwrap();
    sqlx::query(lock).execute(&mut *holder).await.unwrap();
    let mut first = Vec::new();
    for index in 0..WORKERS {
        first.push(start(app, &format!("first{index}@example.com"), PASSWORD));
        app.until_blocked(i64::try_from(index + 1).unwrap()).await;
    }
    Busy { holder, first }
}

impl Busy {
    async fn release(self) {
        self.holder.commit().await.unwrap();
        for login in self.first {
            pair(&login.await.unwrap());
        }
    }
}

const USER_ROWS: &str = "SELECT FROM users WHERE email LIKE 'first%' FOR UPDATE";

fn hashes(app: &TestApp) -> u64 {
    app.app.metrics.hash_seconds.get_sample_count()
}

/// Returns when this many more passwords were verified than `before`, and the callers went on.
async fn until_verified(app: &TestApp, before: u64, passwords: usize) {
    let started = std::time::Instant::now();
    while hashes(app) < before + u64::try_from(passwords).unwrap() {
        assert!(started.elapsed().as_secs() < 30, "the passwords were not verified");
        tokio::task::yield_now().await;
    }
    for _ in 0..2 {
        // A round trip to the database, during which every task that can goes on.
        assert_eq!(app.get("/auth/ready").await.status, 200);
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn sessions_are_opened_together_and_each_for_its_own_user(pool: PgPool) {
    let app = with_customers(pool, 5).await;
    let recorder = Recorder::start();
    let busy = keep_busy(&app, USER_ROWS).await;
    let before = hashes(&app);
    // The first of them twice.
    let logins: Vec<_> = [0, 0, 1, 2, 3, 4].map(|index| start(&app, &user(index), PASSWORD)).into();
    until_verified(&app, before, 6).await;
    // One who changes the password between its verification and the opening must sign in with the new one.
    app.execute("UPDATE users SET password_hash = '' WHERE email = 'user3@example.com'").await;
    busy.release().await;
    let answers = together(logins.into_iter().map(|login| async { login.await.unwrap() })).await;
    assert_eq!((answers[4].status.as_u16(), count(&answers, 200)), (401, 5));
    for (answer, index) in answers.iter().zip([0, 0, 1, 2]).chain([(&answers[5], 4)]) {
        let tokens = pair(answer);
        let owner: String =
            sqlx::query_scalar("SELECT email FROM users JOIN sessions ON user_id = users.id WHERE sessions.id = $1")
                .bind(tokens.session())
                .fetch_one(&app.db)
                .await
                .unwrap();
        assert_eq!(owner, user(index));
        assert_eq!(app.unrevoked(tokens.session()).await, 1);
        pair(&app.refresh(&tokens.refresh).await);
    }
    let sessions: i64 = app.value("SELECT count(*) FROM sessions").await;
    assert_eq!(usize::try_from(sessions).unwrap(), WORKERS + 5);
    let inserts = recorder.take().iter().filter(|statement| statement.contains("INSERT INTO sessions")).count();
    // Rotations open no session here, though their statement could.
    assert_eq!(inserts, WORKERS + 1 + 5, "the first ones, one batch, and the refreshes");
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_batch_tells_a_user_of_ten_sign_ins_at_most(pool: PgPool) {
    let app = with_customers(pool, 1).await;
    app.execute("UPDATE users SET created_at = created_at - interval '2 days'").await;
    let busy = keep_busy(&app, USER_ROWS).await;
    let before = hashes(&app);
    let logins: Vec<_> = (0..14).map(|_| start(&app, &user(0), PASSWORD)).collect();
    until_verified(&app, before, logins.len()).await;
    busy.release().await;
    for login in logins {
        pair(&login.await.unwrap());
    }
    let told: i64 = app
        .value("SELECT count(*) FROM mail_outbox JOIN users ON users.id = user_id WHERE users.email LIKE 'user%' AND template = 'new_sign_in'")
        .await;
    assert_eq!(told, 10);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_poisoned_login_fails_alone(pool: PgPool) {
    let app = with_customers(pool, 3).await;
    app.execute("CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''poison''; END'").await;
    app.execute(
        "CREATE TRIGGER poison BEFORE INSERT ON sessions FOR EACH ROW WHEN (NEW.user_id = 6) EXECUTE FUNCTION poison()",
    )
    .await;
    assert_eq!(app.user_id(&user(1)).await, 6);
    let busy = keep_busy(&app, USER_ROWS).await;
    let before = hashes(&app);
    let logins: Vec<_> = (0..3).map(|index| start(&app, &user(index), PASSWORD)).collect();
    until_verified(&app, before, 3).await;
    busy.release().await;
    for (index, login) in logins.into_iter().enumerate() {
        let answer = login.await.unwrap();
        if index == 1 {
            answer.assert_detail(503, "Service unavailable, try again later");
        } else {
            pair(&answer);
        }
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn accounts_looked_up_in_one_batch_get_their_own_answers(pool: PgPool) {
    let app = with_customers(pool, 2).await;
    for _ in 0..20 {
        assert_eq!(app.try_login(&user(1), "not the password").await.status, 401);
    }
    let recorder = Recorder::start();
    let busy = keep_busy(&app, "LOCK TABLE auth_throttle").await;
    let logins = [
        start(&app, &user(0), PASSWORD),
        start(&app, &user(1), PASSWORD),
        start(&app, "nobody@example.com", PASSWORD),
        start(&app, "USER0@example.com", PASSWORD),
        start(&app, &user(0), "not the password"),
    ];
    assert_eq!(app.get("/auth/ready").await.status, 200);
    busy.release().await;
    let answers = together(logins.map(|login| async { login.await.unwrap() })).await;
    let statuses: Vec<u16> = answers.iter().map(|answer| answer.status.as_u16()).collect();
    assert_eq!(statuses, [200, 429, 401, 200, 401]);
    let lookups = recorder.take().iter().filter(|statement| statement.contains("AS asked (email")).count();
    assert_eq!(lookups, WORKERS + 1, "the first ones and one batch");
}
