//! `/auth/health`, `/health`, `/auth/ready`, `/v1/_info`.

use serde_json::json;
use sqlx::PgPool;

use crate::support::TestApp;

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn health_and_readiness_answer(pool: PgPool) {
    let app = TestApp::new(pool);
    for path in ["/auth/health", "/health", "/auth/ready", "/auth/health/", "/health/"] {
        let answer = app.get(path).await;
        assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, r#"{"status":"ok"}"#), "{path}");
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn without_a_database_the_service_is_up_but_not_ready(pool: PgPool) {
    let app = TestApp::new(pool);
    app.db.close().await;
    assert_eq!(app.get("/auth/health").await.status, 200);
    let answer = app.get("/auth/ready").await;
    answer.assert_detail(503, "Service unavailable, try again later");
    assert_eq!(answer.header("retry-after"), Some("2"));
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn with_a_database_that_accepts_no_writes_the_service_is_not_ready(pool: PgPool) {
    let read_only = (*pool.connect_options()).clone().options([("default_transaction_read_only", "on")]);
    let app = TestApp::new(auth::db::pool(&read_only, 1));
    assert_eq!(app.get("/auth/health").await.status, 200);
    app.get("/auth/ready").await.assert_detail(503, "Service unavailable, try again later");
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn info_names_service_and_version(pool: PgPool) {
    let info = TestApp::new(pool).get("/v1/_info").await.json();
    assert_eq!(info, json!({"service": "auth", "version": env!("CARGO_PKG_VERSION")}));
}

/// The server process behind the one connection of the pool.
async fn backend(pool: &PgPool) -> i32 {
    sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(pool).await.unwrap()
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_connection_that_turned_read_only_is_given_up(pool: PgPool) {
    let one = auth::db::pool(&pool.connect_options(), 1);
    let first = backend(&one).await;
    sqlx::query("SET default_transaction_read_only = on").execute(&one).await.unwrap();
    let started = std::time::Instant::now();
    while backend(&one).await == first {
        assert!(started.elapsed().as_secs() < 5, "it is still in use");
    }
    sqlx::query("DELETE FROM auth_throttle").execute(&one).await.unwrap();
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn one_connection_that_failed_tells_of_all_older_ones(pool: PgPool) {
    let three = auth::db::pool(&pool.connect_options(), 3);
    let mut taken = Vec::new();
    let mut first = Vec::new();
    for _ in 0..3 {
        let mut connection = three.acquire().await.unwrap();
        first.push(sqlx::query_scalar::<_, i32>("SELECT pg_backend_pid()").fetch_one(&mut *connection).await.unwrap());
        taken.push(connection);
    }
    // Only one of them is seen to be read-only.
    sqlx::query("SET default_transaction_read_only = on").execute(&mut *taken[0]).await.unwrap();
    drop(taken);
    let started = std::time::Instant::now();
    while sqlx::query_scalar::<_, bool>("SELECT pg_backend_pid() = ANY ($1)")
        .bind(&first)
        .fetch_one(&three)
        .await
        .unwrap()
    {
        assert!(started.elapsed().as_secs() < 10, "they are still in use");
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn commits_are_never_less_than_synchronous(pool: PgPool) {
    let name: String = sqlx::query_scalar("SELECT current_database()").fetch_one(&pool).await.unwrap();
    for (set, held) in
        [("off", "on"), ("local", "on"), ("remote_write", "on"), ("on", "on"), ("remote_apply", "remote_apply")]
    {
        let alter = format!(r#"ALTER DATABASE "{name}" SET synchronous_commit = {set}"#);
        sqlx::query(sqlx::AssertSqlSafe(alter)).execute(&pool).await.unwrap();
        let fresh = auth::db::pool(&pool.connect_options(), 1);
        let level: String = sqlx::query_scalar("SHOW synchronous_commit").fetch_one(&fresh).await.unwrap();
        assert_eq!(level, held, "{set}");
        let mut connection = auth::db::migrations::connect(&pool.connect_options()).await.unwrap();
        let level = auth::db::server::describe(&mut connection).await.unwrap().synchronous_commit;
        assert_eq!((level.as_str(), auth::db::server::is_low_synchronous_commit(&level)), (set, set != held));
    }
}
