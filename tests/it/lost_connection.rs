//! The connection to the database breaks behind a commit: what was done is found out, and the answer says so. Connections that
//! were dropped without a word are found, and cost one slow answer.

use std::time::{Duration, Instant};

use axum::http::Method;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::task::JoinHandle;

use crate::forwarder::Forwarder;
use crate::support::{Answer, PASSWORD, Pair, TestApp, claims, count, pair, together};

const REFUSED: &str = "Refresh token not valid";
const NEW_PASSWORD: &str = "another password";
/// A request is given up after a second.
const IMPATIENT: [&str; 1] = ["--request-timeout-seconds=1"];

async fn line(pool: &PgPool) -> Forwarder {
    let options = pool.connect_options();
    Forwarder::to(options.get_host(), options.get_port()).await
}

/// A customer and an administrator of a service behind a line.
struct Scene {
    line: Forwarder,
    app: TestApp,
    customer: Pair,
    admin: Pair,
    user: i64,
}

impl Scene {
    async fn new(pool: PgPool, flags: &[&str]) -> Self {
        let line = line(&pool).await;
        let app = TestApp::behind(&line, pool, flags);
        app.register("admin@example.com", "admin").await;
        let customer = app.customer("cust@example.com").await;
        let admin = app.login("admin@example.com").await;
        let user = app.user_id("cust@example.com").await;
        Self { line, app, customer, admin, user }
    }

    /// Sends a request, and cuts the connection behind the statement that has `bytes` among its parameters, or is them.
    async fn cut_behind(&self, bytes: &str, request: impl Future<Output = Answer>) -> Answer {
        let mut cut = self.line.cut_behind(bytes.as_bytes());
        let answer = request.await;
        assert!(*cut.borrow_and_update(), "the connection was not cut");
        answer
    }

    async fn as_admin(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        self.app.request_as(method, path, &self.admin.access, body).await
    }

    fn start_refresh(&self) -> JoinHandle<Answer> {
        let (app, token) = (self.app.clone(), self.customer.refresh.clone());
        tokio::spawn(async move { app.refresh(&token).await })
    }

    fn outcomes(&self, outcome: &str) -> u64 {
        self.app.app.metrics.refreshes.with_label_values(&[outcome]).get()
    }

    async fn live_sessions(&self) -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM sessions WHERE user_id = $1 AND ended_at IS NULL")
            .bind(self.user)
            .fetch_one(&self.app.db)
            .await
            .unwrap()
    }

    async fn tokens(&self) -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM refresh_tokens WHERE user_id = $1")
            .bind(self.user)
            .fetch_one(&self.app.db)
            .await
            .unwrap()
    }

    /// Returns when what nobody was told of is settled, as far as the database has done it.
    async fn settle(&self) {
        self.app.app.unanswered_refreshes.settle().await.unwrap();
        self.app.app.unanswered_logins.settle().await.unwrap();
    }
}

/// Opens as many connections as the pool may have, and returns when all of them are idle.
async fn fill(pool: &PgPool) {
    let mut taken = Vec::new();
    for _ in 0..pool.options().get_max_connections() {
        taken.push(pool.acquire().await.unwrap());
    }
    let open = taken.len();
    drop(taken);
    until("they are still in use", async || pool.num_idle() == open).await;
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < Duration::from_secs(10), "{what}");
        tokio::task::yield_now().await;
    }
}

fn jti(token: &str) -> String {
    claims(token)["jti"].as_str().unwrap().to_owned()
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_refresh_is_answered_with_the_successor_that_was_committed(pool: PgPool) {
    let scene = Scene::new(pool, &[]).await;
    let token = &scene.customer.refresh;
    let answer = scene.cut_behind(&jti(token), scene.app.refresh(token)).await;
    let successor = pair(&answer);
    assert_eq!((scene.outcomes("rotated"), scene.tokens().await), (1, 2));
    scene.app.refresh(token).await.assert_refused(REFUSED, None);
    pair(&scene.app.refresh(&successor.refresh).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_batch_of_refreshes_is_answered_call_by_call(pool: PgPool) {
    let scene = Scene::new(pool, &[]).await;
    let others = [scene.app.login("cust@example.com").await, scene.app.login("cust@example.com").await];
    assert_eq!(scene.app.logout(&others[1].refresh).await.status, 200);
    let token = &scene.customer.refresh;
    let request = async {
        let all = tokio::join!(
            scene.app.refresh(token),
            scene.app.refresh(token),
            scene.app.refresh(&others[0].refresh),
            scene.app.refresh(&others[1].refresh),
        );
        assert_eq!(pair(&all.0).refresh, pair(&all.1).refresh);
        pair(&all.2);
        all.3.assert_refused(REFUSED, Some("logout"));
        all.0
    };
    let answer = scene.cut_behind(&jti(token), request).await;
    pair(&scene.app.refresh(&pair(&answer).refresh).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_login_opens_one_session(pool: PgPool) {
    let scene = Scene::new(pool, &[]).await;
    let answer = scene.cut_behind("$argon2id$", scene.app.try_login("cust@example.com", PASSWORD)).await;
    pair(&scene.app.refresh(&pair(&answer).refresh).await);
    assert_eq!(scene.live_sessions().await, 2);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_registration_is_no_conflict_with_itself(pool: PgPool) {
    let scene = Scene::new(pool, &[]).await;
    let body = json!({"email": "new@example.com", "password": PASSWORD});
    let answer = scene.cut_behind("$argon2id$", scene.app.post("/auth/register", body.clone())).await;
    assert_eq!((answer.status.as_u16(), answer.body.as_str()), (201, r#"{"status":"created"}"#));
    scene.app.login("new@example.com").await;
    // But with another one.
    scene.app.post("/auth/register", body).await.assert_detail(409, "Email already registered");
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_change_of_the_password_is_no_wrong_password_to_itself(pool: PgPool) {
    let scene = Scene::new(pool, &[]).await;
    let body = json!({"current_password": PASSWORD, "new_password": NEW_PASSWORD});
    let change = scene.app.request_as(Method::POST, "/auth/password", &scene.customer.access, Some(body));
    let answer = scene.cut_behind("COMMIT", change).await;
    pair(&scene.app.refresh(&pair(&answer).refresh).await);
    assert_eq!(scene.live_sessions().await, 1);
    pair(&scene.app.try_login("cust@example.com", NEW_PASSWORD).await);
    scene.app.refresh(&scene.customer.refresh).await.assert_refused(REFUSED, Some("password_changed"));
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_log_out_ends_what_it_was_to_end(pool: PgPool) {
    let scene = Scene::new(pool, &[]).await;
    for (scope, bytes) in
        [("this", jti(&scene.customer.refresh)), ("others", "COMMIT".into()), ("all", "COMMIT".into())]
    {
        let (own, other) = match scope {
            "this" => (scene.customer.clone(), scene.customer.clone()),
            _ => (scene.app.login("cust@example.com").await, scene.app.login("cust@example.com").await),
        };
        let body = json!({"refresh_token": own.refresh, "scope": scope});
        let answer = scene.cut_behind(&bytes, scene.app.post("/auth/logout", body)).await;
        assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, r#"{"status":"ok"}"#), "{scope}");
        assert_eq!(scene.live_sessions().await, i64::from(scope == "others"), "{scope}");
        let reason = if scope == "this" { "logout" } else { "logged_out_elsewhere" };
        assert_eq!(scene.app.end_reason(other.session()).await.as_deref(), Some(reason));
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_session_that_was_ended_is_not_missing(pool: PgPool) {
    let scene = Scene::new(pool, &[]).await;
    let path = format!("/auth/sessions/{}", scene.app.login("cust@example.com").await.session());
    let end = || scene.app.request_as(Method::DELETE, &path, &scene.customer.access, None);
    assert_eq!(scene.cut_behind("logged_out_elsewhere", end()).await.status, 204);
    assert_eq!(scene.live_sessions().await, 1);
    // But one that had ended before is.
    end().await.assert_detail(404, "Not Found");
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn what_an_administrator_did_is_answered_as_done(pool: PgPool) {
    let scene = Scene::new(pool, &[]).await;
    scene.app.login("cust@example.com").await;
    let path = format!("/users/{}", scene.user);
    let role = scene.as_admin(Method::PATCH, &path, Some(json!({"role": "packer"})));
    let answer = scene.cut_behind("packer", role).await;
    assert_eq!((answer.status.as_u16(), answer.json()["role"].as_str()), (200, Some("packer")));
    let sessions = format!("{path}/sessions");
    let answer = scene.cut_behind("COMMIT", scene.as_admin(Method::DELETE, &sessions, None)).await;
    assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, r#"{"ended":2}"#));
    assert_eq!(scene.live_sessions().await, 0);
    let answer = scene.cut_behind("COMMIT", scene.as_admin(Method::DELETE, &path, None)).await;
    assert_eq!(answer.status, 204);
    scene.as_admin(Method::DELETE, &path, None).await.assert_detail(404, "Not Found");
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_refresh_whose_client_was_told_503_gives_the_same_successor_to_its_retry(pool: PgPool) {
    let scene = Scene::new(pool, &IMPATIENT).await;
    let replica = TestApp::with_clock(scene.app.db.clone(), &[], scene.app.clock.clone());
    let token = &scene.customer.refresh;
    let cut = scene.line.cut_behind(jti(token).as_bytes());
    let refresh = scene.start_refresh();
    cut.clone().wait_for(|cut| *cut).await.unwrap();
    scene.line.cut().await;
    let answer = refresh.await.unwrap();
    assert_eq!(answer.status, 503);
    assert!(answer.retry_after() >= 1);
    assert_eq!(scene.tokens().await, 2, "it was committed");
    scene.line.mend().await;

    // At once on this replica, and on all of them when it is settled; a minute and an hour later; and all the same one.
    let successor = pair(&scene.app.refresh(token).await).refresh;
    scene.settle().await;
    for seconds in [0, 90, 3600] {
        replica.advance(seconds);
        for app in [&scene.app, &replica] {
            assert_eq!(pair(&app.refresh(token).await).refresh, successor);
        }
    }
    assert_eq!((scene.outcomes("recovered"), scene.tokens().await), (4, 2));
    // Once the successor is used the token is, too.
    let last = pair(&replica.refresh(&successor).await);
    for app in [&scene.app, &replica] {
        app.refresh(token).await.assert_refused(REFUSED, None);
    }
    replica.advance(60);
    replica.refresh(token).await.assert_refused(REFUSED, Some("replay_detected"));
    replica.refresh(&last.refresh).await.assert_refused(REFUSED, Some("replay_detected"));
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn so_does_one_that_was_still_under_way_when_its_client_was_told_503(pool: PgPool) {
    let scene = Scene::new(pool, &IMPATIENT).await;
    let token = &scene.customer.refresh;
    let mut holder = scene.app.db.begin().await.unwrap();
    sqlx::query("SELECT FROM refresh_tokens FOR UPDATE").execute(&mut *holder).await.unwrap();
    let refresh = scene.start_refresh();
    scene.app.until_blocked(1).await;
    // The server has the statement, and waits for the row; nobody will hear what becomes of it.
    scene.line.cut().await;
    assert_eq!(refresh.await.unwrap().status, 503);
    scene.line.mend().await;
    scene.settle().await;
    assert_eq!(scene.tokens().await, 1);
    holder.commit().await.unwrap();
    scene.app.until_blocked(0).await;
    while scene.tokens().await == 1 {}
    let successor = pair(&scene.app.refresh(token).await);
    assert_eq!((scene.outcomes("recovered"), scene.tokens().await), (1, 2));
    pair(&scene.app.refresh(&successor.refresh).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_token_that_nobody_was_told_of_can_still_log_its_session_out(pool: PgPool) {
    for scope in ["this", "all"] {
        sqlx::query("DELETE FROM users").execute(&pool).await.unwrap();
        let scene = Scene::new(pool.clone(), &IMPATIENT).await;
        let token = &scene.customer.refresh;
        let cut = scene.line.cut_behind(jti(token).as_bytes());
        let refresh = scene.start_refresh();
        cut.clone().wait_for(|cut| *cut).await.unwrap();
        scene.line.cut().await;
        assert_eq!(refresh.await.unwrap().status, 503);
        scene.line.mend().await;
        scene.settle().await;
        let body = json!({"refresh_token": token, "scope": scope});
        assert_eq!(scene.app.post("/auth/logout", body).await.status, 200, "{scope}");
        assert_eq!(scene.live_sessions().await, 0);
        scene.app.refresh(token).await.assert_refused(REFUSED, Some("logout"));
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_client_that_goes_away_before_its_answer_keeps_its_session(pool: PgPool) {
    let scene = Scene::new(pool, &[]).await;
    let mut holder = scene.app.db.begin().await.unwrap();
    sqlx::query("SELECT FROM refresh_tokens FOR UPDATE").execute(&mut *holder).await.unwrap();
    let refresh = scene.start_refresh();
    scene.app.until_blocked(1).await;
    refresh.abort();
    assert!(refresh.await.unwrap_err().is_cancelled());
    holder.commit().await.unwrap();
    while scene.tokens().await == 1 {}
    // Else it could go on refreshing with a token that it has broken off, and no replay would be detected.
    scene.app.app.unanswered_refreshes.settle().await.unwrap();
    assert_eq!(scene.app.value::<i64>("SELECT count(*) FROM refresh_tokens WHERE used_at IS NOT NULL").await, 1);
    let successor = pair(&scene.app.refresh(&scene.customer.refresh).await);
    assert_eq!((scene.outcomes("recovered"), scene.tokens().await), (1, 2));
    pair(&scene.app.refresh(&successor.refresh).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_login_whose_client_was_told_503_leaves_no_session(pool: PgPool) {
    let scene = Scene::new(pool, &IMPATIENT).await;
    let cut = scene.line.cut_behind(b"$argon2id$");
    let (app, email) = (scene.app.clone(), "cust@example.com");
    let login = tokio::spawn(async move { app.try_login(email, PASSWORD).await });
    cut.clone().wait_for(|cut| *cut).await.unwrap();
    scene.line.cut().await;
    assert_eq!(login.await.unwrap().status, 503);
    assert_eq!(scene.live_sessions().await, 2, "it was committed");
    scene.line.mend().await;
    scene.settle().await;
    assert_eq!((scene.live_sessions().await, scene.tokens().await), (1, 1));
    pair(&scene.app.refresh(&scene.customer.refresh).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn what_was_never_sent_fails_within_seconds_and_harms_nothing(pool: PgPool) {
    let scene = Scene::new(pool, &[]).await;
    // Connections are opened anew, and there is no server.
    scene.line.cut().await;
    let refused = scene.app.refresh(&scene.customer.refresh).await;
    refused.assert_detail(503, "Service unavailable, try again later");
    scene.line.mend().await;
    pair(&scene.app.refresh(&scene.customer.refresh).await);
    assert_eq!((scene.outcomes("failed"), scene.outcomes("rotated")), (1, 1));
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_mail_that_was_asked_for_is_counted_and_inserted_once(pool: PgPool) {
    let scene = Scene::new(pool, &[]).await;
    let answer = scene.cut_behind("reset_password", scene.app.forgot("cust@example.com")).await;
    assert_eq!(answer.status, 202);
    let mails = "SELECT count(*) FROM mail_outbox WHERE template = 'reset_password'";
    assert_eq!(scene.app.value::<i64>(mails).await, 1);
    for status in [202, 202, 429] {
        assert_eq!(scene.app.forgot("cust@example.com").await.status, status);
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_reset_that_was_committed_is_answered_as_done(pool: PgPool) {
    let scene = Scene::new(pool, &[]).await;
    scene.app.deliver().await;
    let token = scene.app.reset_token("cust@example.com").await;
    let answer = scene.cut_behind("COMMIT", scene.app.reset_password(&token, NEW_PASSWORD)).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    scene.app.reset_password(&token, NEW_PASSWORD).await.assert_detail(400, "Invalid or expired token");
    pair(&scene.app.try_login("cust@example.com", NEW_PASSWORD).await);
    let notices = "SELECT count(*) FROM mail_outbox WHERE template = 'password_reset'";
    assert_eq!(scene.app.value::<i64>(notices).await, 1);
    assert_eq!(scene.app.end_reason(scene.customer.session()).await.as_deref(), Some("password_reset"));
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn connections_that_were_dropped_while_idle_cost_one_slow_answer(pool: PgPool) {
    let scene = Scene::new(pool, &[]).await;
    let mut token = scene.customer.refresh.clone();
    fill(&scene.app.app.db).await;
    fill(&scene.app.refresh_db).await;
    // A check that was passed counts for a quarter of a second.
    let recent =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'auth'
                  AND state_change > clock_timestamp() - interval '300 ms'";
    until("they are still in use", async || scene.app.value::<i64>(recent).await == 0).await;
    scene.line.drop_open();
    let started = Instant::now();
    for _ in 0..4 {
        assert_eq!(scene.app.get_as("/users/me", &scene.customer.access).await.status, 200);
        token = pair(&scene.app.refresh(&token).await).refresh;
    }
    // Each pool has waited for one of its connections, for a second.
    assert_eq!(scene.line.kept_back(), 2);
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn connections_that_were_dropped_in_use_leave_the_pool(pool: PgPool) {
    let scene = Scene::new(pool, &["--request-timeout-seconds=2"]).await;
    let db = &scene.app.app.db;
    fill(db).await;
    let look = || {
        let (app, access) = (scene.app.clone(), scene.customer.access.clone());
        async move { app.get_as("/users/me", &access).await }
    };
    let mut holder = scene.app.db.begin().await.unwrap();
    sqlx::query("LOCK TABLE users").execute(&mut *holder).await.unwrap();
    let looks = tokio::spawn(together([look(), look(), look(), look()]));
    scene.app.until_blocked(4).await;
    scene.line.drop_open();
    holder.rollback().await.unwrap();
    assert_eq!(count(&looks.await.unwrap(), 503), 4);
    until("some are still waited for", async || db.size() == 0).await;
    assert_eq!(count(&together([look(), look(), look(), look()]).await, 200), 4);
}
