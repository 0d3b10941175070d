//! A session that has ended is refused: at once where it was ended, and within a second everywhere else.

use std::time::{Duration, Instant};

use auth::clock::Clock;
use auth::db::revocations::read;
use auth::domain::ids::{SessionId, UserId};
use auth::domain::mail::Locale;
use auth::domain::password::PasswordHash;
use auth::service::audit::Actor;
use auth::service::revocations::{Feed, Revocations, follow};
use auth::service::{cleanup, password, sessions, users};
use axum::http::Method;
use chrono::TimeDelta;
use serde_json::json;
use sqlx::PgPool;

use crate::forwarder::Forwarder;
use crate::support::{PASSWORD, Pair, TestApp, pair};

/// Two replicas: one that ends sessions, and another one that reads which.
struct Scene {
    app: TestApp,
    other: TestApp,
    feed: Feed,
    admin: Pair,
}

impl Scene {
    async fn new(pool: PgPool, flags: &[&str]) -> Self {
        let app = TestApp::with(pool.clone(), flags);
        let other = TestApp::with_clock(pool, flags, app.clock.clone());
        app.register("admin@example.com", "admin").await;
        app.register("cust@example.com", "customer").await;
        let admin = app.login("admin@example.com").await;
        let mut scene = Self { app, other, feed: Feed::default(), admin };
        scene.read().await;
        scene
    }

    async fn read(&mut self) {
        self.feed.read(&self.other.app).await.unwrap();
    }

    async fn login(&self) -> Pair {
        self.app.login("cust@example.com").await
    }

    async fn as_admin(&self, method: Method, path: &str) -> u16 {
        self.app.request_as(method, path, &self.admin.access, None).await.status.as_u16()
    }

    /// Asserts that the replica that has ended these sessions refuses them, and the other one does so once it has read.
    async fn assert_ended(&mut self, way: &str, ended: &[&Pair], alive: &[&Pair]) {
        for pair in ended {
            assert!(is_refused(&self.app, pair).await, "{way}");
            assert!(!is_refused(&self.other, pair).await, "{way}: nobody has told it");
        }
        self.read().await;
        for pair in ended {
            assert!(is_refused(&self.other, pair).await, "{way}");
        }
        for pair in alive {
            assert!(!is_refused(&self.app, pair).await && !is_refused(&self.other, pair).await, "{way}");
        }
    }
}

async fn is_refused(app: &TestApp, pair: &Pair) -> bool {
    let answer = app.get_as("/auth/verify", &pair.access).await;
    match answer.status.as_u16() {
        200 => false,
        401 => {
            assert_eq!(answer.header("x-auth-reason"), Some("ended"));
            true
        }
        other => panic!("{other}"),
    }
}

async fn line(pool: &PgPool) -> Forwarder {
    let options = pool.connect_options();
    Forwarder::to(options.get_host(), options.get_port()).await
}

/// Until it holds; fails after so long.
async fn until(seconds: u64, what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < Duration::from_secs(seconds), "{what}");
        tokio::task::yield_now().await;
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn whatever_a_request_ends_is_refused_at_once_here_and_after_a_reading_elsewhere(pool: PgPool) {
    let mut scene = Scene::new(pool, &["--max-sessions-per-user=3"]).await;
    let user = scene.app.user_id("cust@example.com").await;

    let (one, two) = (scene.login().await, scene.login().await);
    scene.app.logout(&one.refresh).await;
    scene.assert_ended("log-out", &[&one], &[&two]).await;

    let three = scene.login().await;
    scene.app.post("/auth/logout", json!({"refresh_token": three.refresh, "scope": "others"})).await;
    scene.assert_ended("log-out of the others", &[&two], &[&three]).await;

    let four = scene.login().await;
    scene.app.post("/auth/logout", json!({"refresh_token": four.refresh, "scope": "all"})).await;
    scene.assert_ended("log-out of all", &[&three, &four], &[]).await;

    let (five, six) = (scene.login().await, scene.login().await);
    let path = format!("/auth/sessions/{}", five.session());
    assert_eq!(scene.app.request_as(Method::DELETE, &path, &six.access, None).await.status, 204);
    scene.assert_ended("another session", &[&five], &[&six]).await;

    let body = json!({"current_password": PASSWORD, "new_password": PASSWORD});
    let seven = pair(&scene.app.request_as(Method::POST, "/auth/password", &six.access, Some(body)).await);
    scene.assert_ended("a change of the password", &[&six], &[&seven]).await;

    assert_eq!(scene.as_admin(Method::DELETE, &format!("/users/{user}/sessions")).await, 200);
    scene.assert_ended("an administrator", &[&seven], &[]).await;

    let eight = scene.login().await;
    scene.app.refresh(&eight.refresh).await;
    scene.app.advance(70);
    assert_eq!(scene.app.refresh(&eight.refresh).await.status, 401);
    scene.assert_ended("a token that came back", &[&eight], &[]).await;

    let crowd = [scene.login().await, scene.login().await, scene.login().await, scene.login().await];
    scene.assert_ended("the limit of sessions", &[&crowd[0]], &[&crowd[1], &crowd[2], &crowd[3]]).await;

    assert_eq!(scene.as_admin(Method::DELETE, &format!("/users/{user}")).await, 204);
    scene.assert_ended("deletion of the user", &[&crowd[1], &crowd[2], &crowd[3]], &[]).await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn whatever_a_command_or_a_statement_ends_is_refused_after_a_reading(pool: PgPool) {
    let mut scene = Scene::new(pool, &[]).await;
    let user = UserId(scene.app.user_id("cust@example.com").await);
    let (db, actor, now) = (scene.app.db.clone(), Actor::CommandLine, scene.app.clock.now());
    let command = Revocations::default();

    let (one, two, three) = (scene.login().await, scene.login().await, scene.login().await);
    sessions::end_of(&db, &command, actor, user, Some(SessionId(one.session())), now).await.unwrap();
    scene.read().await;
    assert!(is_refused(&scene.other, &one).await && !is_refused(&scene.other, &two).await);

    sqlx::query("UPDATE sessions SET ended_at = '2000-01-01', end_reason = 'by_admin' WHERE id = $1")
        .bind(two.session())
        .execute(&db)
        .await
        .unwrap();
    scene.read().await;
    assert!(is_refused(&scene.other, &two).await && !is_refused(&scene.other, &three).await);

    let hash = PasswordHash::from_stored(scene.app.value("SELECT password_hash FROM users LIMIT 1").await);
    let mail = &scene.app.app.config.mail;
    password::set_password(&db, actor, user, &hash, mail, Locale::En, now).await.unwrap();
    scene.read().await;
    assert!(is_refused(&scene.other, &three).await);

    let four = scene.login().await;
    users::delete(&db, &command, actor, user, now).await.unwrap();
    scene.read().await;
    assert!(is_refused(&scene.other, &four).await);

    // As the Python service, or a person, would delete a user. A replica that starts afterwards knows it, too.
    let five = scene.app.customer("other@example.com").await;
    scene.app.execute("DELETE FROM users WHERE email = 'other@example.com'").await;
    scene.read().await;
    assert!(is_refused(&scene.other, &five).await);
    let fresh = TestApp::with_clock(db.clone(), &[], scene.app.clock.clone());
    Feed::default().read(&fresh.app).await.unwrap();
    assert!(is_refused(&fresh, &five).await && is_refused(&fresh, &four).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn no_open_transaction_hides_an_end(pool: PgPool) {
    let mut scene = Scene::new(pool.clone(), &[]).await;
    let (first, second) = (scene.login().await, scene.login().await);
    let end = "UPDATE sessions SET ended_at = '2026-01-01', end_reason = 'by_admin' WHERE id = $1";
    let mut open = pool.begin().await.unwrap();
    sqlx::query(end).bind(first.session()).execute(&mut *open).await.unwrap();
    // Others end and are read meanwhile, and the clock goes on.
    for _ in 0..3 {
        let other = scene.login().await;
        scene.app.logout(&other.refresh).await;
        scene.assert_ended("beside an open transaction", &[&other], &[&first, &second]).await;
        scene.app.advance(120);
    }
    open.commit().await.unwrap();
    let mut open = pool.begin().await.unwrap();
    sqlx::query(end).bind(second.session()).execute(&mut *open).await.unwrap();
    scene.read().await;
    assert!(is_refused(&scene.other, &first).await && !is_refused(&scene.other, &second).await);
    open.rollback().await.unwrap();
    scene.read().await;
    assert!(!is_refused(&scene.other, &second).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn what_was_undone_is_not_refused(pool: PgPool) {
    let mut scene = Scene::new(pool, &[]).await;
    // Its sessions end in the transaction that finds the user to be the last administrator.
    let admin = scene.app.user_id("admin@example.com").await;
    assert_eq!(scene.as_admin(Method::DELETE, &format!("/users/{admin}")).await, 409);
    scene.read().await;
    let still_there = scene.admin.clone();
    scene.assert_ended("nothing", &[], &[&still_there]).await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_replica_that_starts_reads_what_matters(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register("cust@example.com", "customer").await;
    let old = app.login("cust@example.com").await;
    app.logout(&old.refresh).await;
    let expired = app.login("cust@example.com").await;
    app.advance(31 * 24 * 60 * 60);
    let mut feed = Feed::default();
    let other = TestApp::with_clock(app.db.clone(), &[], app.clock.clone());
    feed.read(&other.app).await.unwrap();
    cleanup::clean_up(&app.db, app.clock.now(), TimeDelta::days(365), cleanup::Depth::Full).await.unwrap();
    assert_eq!(app.end_reason(expired.session()).await.as_deref(), Some("expired"));
    feed.read(&other.app).await.unwrap();
    // Neither what ended long ago, nor what has expired by itself: no access token of it is left.
    assert_eq!(other.app.revocations.count(), 0);
    let tokens = app.login("cust@example.com").await;
    app.logout(&tokens.refresh).await;
    let fresh = TestApp::with_clock(app.db.clone(), &[], app.clock.clone());
    Feed::default().read(&fresh.app).await.unwrap();
    assert_eq!(fresh.app.revocations.count(), 1);
    assert!(is_refused(&fresh, &tokens).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn each_end_is_read_once(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register("cust@example.com", "customer").await;
    let connection = &mut *app.db.acquire().await.unwrap();
    let since = app.clock.now() - TimeDelta::minutes(1);
    let mut mark = read(connection, None, since).await.unwrap().mark;
    // One that is open all the time keeps nothing that others do from being read, nor has it read again.
    let mut open = app.db.begin().await.unwrap();
    sqlx::query("DELETE FROM auth_throttle").execute(&mut *open).await.unwrap();
    let mut all = Vec::new();
    for _ in 0..3 {
        let session = app.login("cust@example.com").await;
        app.logout(&session.refresh).await;
        all.push(SessionId(session.session()));
        let reading = read(connection, Some(&mark), since).await.unwrap();
        assert_eq!(reading.ended, all[all.len() - 1..]);
        mark = reading.mark;
        let reading = read(connection, Some(&mark), since).await.unwrap();
        assert_eq!(reading.ended, []);
        mark = reading.mark;
    }
    open.rollback().await.unwrap();
    assert_eq!(read(connection, Some(&mark), since).await.unwrap().ended, []);
    let mut again = read(connection, None, since).await.unwrap().ended;
    again.sort_by_key(|id| id.0);
    assert_eq!(again, all);
}

/// After a crash the server may give the numbers of transactions once more that it had given.
#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn after_a_lost_connection_everything_is_read_anew(pool: PgPool) {
    let app = TestApp::new(pool);
    let session = SessionId(app.customer("cust@example.com").await.session());
    let mut feed = Feed::default();
    feed.read(&app.app).await.unwrap();
    app.execute("UPDATE sessions SET ended_at = now() AT TIME ZONE 'utc', end_reason = 'logout'").await;
    app.execute("UPDATE sessions SET ended_xid = '3'").await;
    feed.read(&app.app).await.unwrap();
    assert!(!app.app.revocations.contains(session));

    app.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND query LIKE '%pg_visible_in_snapshot%' AND pid <> pg_backend_pid()",
    )
    .await;
    feed.read(&app.app).await.unwrap_err();
    feed.read(&app.app).await.unwrap();
    assert!(app.app.revocations.contains(session));
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_session_is_refused_everywhere_within_a_second(pool: PgPool) {
    let app = TestApp::new(pool.clone());
    let others: Vec<TestApp> = (0..3).map(|_| TestApp::with_clock(pool.clone(), &[], Clock::system())).collect();
    for other in &others {
        tokio::spawn(follow(other.app.clone(), Feed::default()));
    }
    app.register("cust@example.com", "customer").await;
    for _ in 0..3 {
        let tokens = app.login("cust@example.com").await;
        app.logout(&tokens.refresh).await;
        let ended = Instant::now();
        for other in &others {
            until(5, "it is not refused", async || is_refused(other, &tokens).await).await;
        }
        assert!(ended.elapsed() < Duration::from_secs(1), "{:?}", ended.elapsed());
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn where_nothing_can_be_read_the_age_grows_and_the_setting_decides(pool: PgPool) {
    let line = line(&pool).await;
    for (flag, status) in [("--forward-auth-stale=serve", 200), ("--forward-auth-stale=refuse", 503)] {
        let app = TestApp::behind(&line, pool.clone(), &[flag]);
        let reader = tokio::spawn(follow(app.app.clone(), Feed::default()));
        let tokens = TestApp::new(pool.clone()).customer(&format!("{status}@example.com")).await;
        let age = || app.app.revocations.age();
        let status_of = async |path: &str| app.get_as(path, &tokens.access).await.status.as_u16();
        line.freeze().await;
        until(10, "it does not get older", async || age() > Duration::from_millis(2100)).await;
        assert_eq!(status_of("/auth/verify").await, status);
        assert_eq!(app.get("/auth/verify").await.status, if status == 200 { 401 } else { 503 });
        let metrics = app.get("/auth/metrics").await.body;
        let shown = metrics.lines().find_map(|line| line.strip_prefix("auth_revocation_age_seconds ")).unwrap();
        assert!(shown.parse::<f64>().unwrap() > 2.0, "{shown}");
        line.mend().await;
        until(10, "it is not read again", async || age() < Duration::from_secs(1)).await;
        assert_eq!(status_of("/auth/verify").await, 200);
        reader.abort();
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn what_ends_while_the_line_is_cut_is_read_afterwards(pool: PgPool) {
    let line = line(&pool).await;
    let app = TestApp::new(pool.clone());
    let other = TestApp::behind(&line, pool, &[]);
    app.register("cust@example.com", "customer").await;
    let mut feed = Feed::default();
    feed.read(&other.app).await.unwrap();
    let tokens = app.login("cust@example.com").await;
    line.cut().await;
    assert!(feed.read(&other.app).await.is_err());
    app.logout(&tokens.refresh).await;
    assert!(feed.read(&other.app).await.is_err());
    line.mend().await;
    feed.read(&other.app).await.unwrap();
    assert!(is_refused(&other, &tokens).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn what_ended_behind_a_lost_connection_is_refused_at_once(pool: PgPool) {
    let line = line(&pool).await;
    let app = TestApp::behind(&line, pool, &[]);
    app.register("admin@example.com", "admin").await;
    let admin = app.login("admin@example.com").await;
    let customer = app.customer("cust@example.com").await;
    let user = app.user_id("cust@example.com").await;
    let mut cut = line.cut_behind(b"COMMIT");
    let path = format!("/users/{user}/sessions");
    assert_eq!(app.request_as(Method::DELETE, &path, &admin.access, None).await.status, 200);
    assert!(*cut.borrow_and_update(), "the connection was not cut");
    assert!(is_refused(&app, &customer).await);

    let (one, two) = (app.login("cust@example.com").await, app.login("cust@example.com").await);
    let mut cut = line.cut_behind(one.session().as_bytes());
    let path = format!("/auth/sessions/{}", one.session());
    assert_eq!(app.request_as(Method::DELETE, &path, &two.access, None).await.status, 204);
    assert!(*cut.borrow_and_update(), "the connection was not cut");
    assert!(is_refused(&app, &one).await && !is_refused(&app, &two).await);
}
