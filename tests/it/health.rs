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
