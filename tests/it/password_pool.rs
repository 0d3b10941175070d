//! The pool of password workers: what cannot be hashed in time is refused at once, and nothing else waits for hashing.

use std::time::{Duration, Instant};

use serde_json::json;
use sqlx::PgPool;
use tokio::task::JoinHandle;

use crate::support::{Answer, PASSWORD, TestApp, count, pair, together};

/// One worker, and hashes that take it about a second each.
const SLOW: [&str; 3] =
    ["--password-hash-concurrency=1", "--password-argon2-memory-kib=65536", "--password-argon2-passes=10"];

/// A service whose hashes are slow, with a customer who registered while they were not.
async fn slow(pool: PgPool, flags: &[&str]) -> TestApp {
    let quick = TestApp::new(pool);
    quick.register("cust@example.com", "customer").await;
    let flags: Vec<&str> = SLOW.iter().chain(flags).copied().collect();
    TestApp::with_clock(quick.db.clone(), &flags, quick.clock.clone())
}

fn depth(app: &TestApp) -> i64 {
    app.app.metrics.hash_queue_depth.get()
}

/// Starts logins of an unknown account, which cost a hash each, and returns when all are admitted.
async fn crowd(app: &TestApp, size: i64) -> Vec<JoinHandle<Answer>> {
    let before = depth(app);
    let logins = (0..size)
        .map(|_| {
            let app = app.clone();
            tokio::spawn(async move { app.try_login("nobody@example.com", PASSWORD).await })
        })
        .collect();
    let started = Instant::now();
    while depth(app) < before + size {
        assert!(started.elapsed() < Duration::from_secs(30), "not all were admitted");
        tokio::task::yield_now().await;
    }
    logins
}

#[track_caller]
fn assert_shed(answer: &Answer) {
    answer.assert_detail(503, "Service busy, try again later");
    assert!((1..=10).contains(&answer.retry_after()), "{}", answer.retry_after());
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_caller_that_would_wait_too_long_is_refused_at_once(pool: PgPool) {
    // An unmeasured hash is taken for 25 ms: the fifth would wait more than 90.
    let app = slow(pool, &["--password-hash-max-wait-ms=90"]).await;
    let logins = crowd(&app, 4).await;
    let before = app.rows().await;
    let shed = app.app.metrics.hash_shed.get();
    let started = Instant::now();
    assert_shed(&app.try_login("cust@example.com", PASSWORD).await);
    assert_shed(&app.post("/auth/register", json!({"email": "new@example.com", "password": PASSWORD})).await);
    assert!(depth(&app) > 0, "the queue was not full any more, after {:?}", started.elapsed());
    assert_eq!(app.app.metrics.hash_shed.get(), shed + 2);
    assert_eq!(app.rows().await, before);
    // The estimate was far too low. Jobs that waited much longer than promised are dropped, too.
    let answers = together(logins.into_iter().map(|login| async { login.await.unwrap() })).await;
    assert_eq!((count(&answers, 401), count(&answers, 503)), (1, 3));
    for answer in answers.iter().filter(|answer| answer.status == 503) {
        assert_shed(answer);
    }
    assert_eq!(depth(&app), 0);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_request_takes_no_place_until_it_is_known_to_need_a_hash(pool: PgPool) {
    // Room for one.
    let app = TestApp::with(pool, &["--password-hash-max-wait-ms=1"]);
    let mut holder = app.db.begin().await.unwrap();
    sqlx::query("LOCK TABLE users IN ACCESS EXCLUSIVE MODE").execute(&mut *holder).await.unwrap();
    let body = json!({"email": "cust@example.com", "password": PASSWORD});
    let requests = ["/auth/login", "/auth/register"].map(|path| {
        let (app, body) = (app.clone(), body.clone());
        tokio::spawn(async move { app.post(path, body).await })
    });
    app.until_blocked(1).await;
    // Others would be refused while throttled attempts, which cost nothing, are looked up.
    let slot = app.app.hasher.acquire().await.expect("what is looked up holds a place");
    holder.commit().await.unwrap();
    for request in requests {
        assert_shed(&request.await.unwrap());
    }
    drop(slot);
    let counted = sqlx::query_scalar("SELECT count(*) FROM auth_throttle WHERE tat > $1").bind(app.now());
    let counted: i64 = counted.fetch_one(&app.db).await.unwrap();
    assert_eq!(counted, 0, "what was refused counts as an attempt");
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_crowd_is_answered_or_shed_and_never_hangs(pool: PgPool) {
    let app = TestApp::with(pool, &["--password-hash-max-wait-ms=200", "--throttle=off"]);
    app.register("cust@example.com", "customer").await;
    let answers = together((0..100).map(|_| {
        let app = app.clone();
        async move { app.try_login("cust@example.com", PASSWORD).await }
    }))
    .await;
    assert_eq!(count(&answers, 200) + count(&answers, 503), 100);
    assert!(count(&answers, 200) > 0 && count(&answers, 503) > 0, "{}", count(&answers, 200));
    for answer in answers.iter().filter(|answer| answer.status == 503) {
        assert_shed(answer);
    }
    let sessions: i64 = app.value("SELECT count(*) FROM sessions").await;
    assert_eq!(usize::try_from(sessions).unwrap(), count(&answers, 200));
    assert_eq!(depth(&app), 0);
    app.login("cust@example.com").await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_caller_that_goes_away_leaves_the_queue(pool: PgPool) {
    let app = slow(pool, &["--password-hash-max-wait-ms=60000"]).await;
    let mut logins = crowd(&app, 8).await;
    for gone in logins.drain(..) {
        gone.abort();
        assert!(gone.await.unwrap_err().is_cancelled());
    }
    // The worker finishes the job it has begun; nothing else is left.
    assert!(depth(&app) <= 1, "{}", depth(&app));
    let login = crowd(&app, 1).await.remove(0).await.unwrap();
    assert_eq!(login.status, 401);
    assert_eq!(depth(&app), 0);
    assert!(app.app.metrics.hash_seconds.get_sample_count() <= 2, "hashes were computed for callers that had gone");
    assert_eq!(
        app.value::<i64>("SELECT count(*) FROM auth_throttle").await,
        4,
        "one registration, and what counts logins"
    );
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn everything_else_is_answered_while_the_queue_is_full(pool: PgPool) {
    let app = slow(pool, &["--password-hash-max-wait-ms=60000"]).await;
    let quick = TestApp::with_clock(app.db.clone(), &["--password-rehash=off"], app.clock.clone());
    let tokens = quick.login("cust@example.com").await;
    let logins = crowd(&app, 3).await;
    for path in ["/auth/health", "/health", "/auth/ready", "/users/", "/auth/metrics", "/v1/_info"] {
        assert_eq!(app.get(path).await.status, 200, "{path}");
    }
    let tokens = pair(&app.refresh(&tokens.refresh).await);
    assert_eq!(app.get_as("/users/me", &tokens.access).await.status, 200);
    assert_eq!(app.logout(&tokens.refresh).await.status, 200);
    assert!(depth(&app) >= 2, "hashing was not slow enough to show anything");
    for login in logins {
        assert_eq!(login.await.unwrap().status, 401);
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn no_connection_is_held_while_hashing_or_queueing(pool: PgPool) {
    let app = slow(pool, &["--password-hash-max-wait-ms=60000"]).await;
    let one_connection = auth::db::pool(&app.db.connect_options(), 1);
    let flags: Vec<&str> = SLOW.iter().chain(&["--password-hash-max-wait-ms=60000"]).copied().collect();
    let app = TestApp::with_clock(one_connection, &flags, app.clock.clone());
    let logins = crowd(&app, 3).await;
    assert_eq!(app.get("/auth/ready").await.status, 200);
    assert!(depth(&app) >= 2, "hashing was not slow enough to show anything");
    for login in logins {
        login.abort();
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_refusal_takes_as_long_as_the_dearest_hash_that_is_left(pool: PgPool) {
    let dear = TestApp::with(pool, &["--password-argon2-memory-kib=65536", "--password-argon2-passes=3"]);
    dear.register("cust@example.com", "customer").await;
    let cheap = ["--password-argon2-memory-kib=64", "--password-argon2-passes=1"];
    let app = TestApp::with_clock(dear.db.clone(), &cheap, dear.clock.clone());
    app.register("other@example.com", "customer").await;
    auth::service::cleanup::look_for_foreign_hashes(&app.app).await;
    let started = Instant::now();
    assert_eq!(app.try_login("cust@example.com", "not the password").await.status, 401);
    let dear = started.elapsed();
    for email in ["nobody@example.com", "other@example.com"] {
        let started = Instant::now();
        assert_eq!(app.try_login(email, "not the password").await.status, 401);
        // The dear one itself may have been held up.
        assert!(started.elapsed() > dear / 3, "{email}: {:?} instead of {dear:?}", started.elapsed());
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn each_kind_of_hash_is_found_once(pool: PgPool) {
    let app = TestApp::new(pool);
    for (number, hash) in [
        "$2b$12$AToaJW/vWh2zQWC7Y6wtaOydfsLgRPdabeYPjiMiiQiEosDnyVGEC",
        "$2y$04$AToaJW/vWh2zQWC7Y6wtaOydfsLgRPdabeYPjiMiiQiEosDnyVGEC",
        "$argon2id$v=19$m=7168,t=2,p=1$c29tZXNhbHQ$9sTbSlTio3Biev89thdrlKKiCaYsjjYVJxGAL3swxpQ",
        "$argon2i$m=16,t=10,p=12$c29tZXNhbHQ$9sTbSlTio3Biev89thdrlKKiCaYsjjYVJxGAL3swxpQ",
        "",
        "pbkdf2_sha256$1000$salt$hash",
        "$2b$",
    ]
    .iter()
    .enumerate()
    {
        for copy in 0..2 {
            sqlx::query("INSERT INTO users (email, password_hash) VALUES ($1, $2)")
                .bind(format!("user{number}{copy}@example.com"))
                .bind(hash)
                .execute(&app.db)
                .await
                .unwrap();
        }
    }
    let found = auth::db::users::hash_parameters(&app.db).await.unwrap();
    let mut expected = ["$2b$12", "$2y$04", "$argon2i$m=16,t=10,p=12", "$argon2id$v=19$m=7168,t=2,p=1"].to_vec();
    expected.sort_unstable();
    assert_eq!(found, expected);
}
