//! `POST /auth/password`: what a change needs, and what it ends.

use axum::http::Method;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::{Answer, PASSWORD, Pair, TestApp, pair};

const NEW: &str = "a new password";
const REFUSED: &str = "Refresh token not valid";

async fn change(app: &TestApp, tokens: &Pair, body: Value) -> Answer {
    app.request_as(Method::POST, "/auth/password", &tokens.access, Some(body)).await
}

fn body(current: &str, new: &str) -> Value {
    json!({"current_password": current, "new_password": new})
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_change_gives_a_fresh_pair_and_ends_every_other_session(pool: PgPool) {
    let app = TestApp::new(pool);
    let stranger = app.customer("stranger@example.com").await;
    let own = app.customer("cust@example.com").await;
    let other = app.login("cust@example.com").await;
    let sessionless = app.python_token("cust@example.com", "4b1c").await;
    let since = app.now();
    let answer = change(&app, &own, body(PASSWORD, NEW)).await;
    let fresh = pair(&answer);
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_ne!(fresh.session(), own.session());
    for old in [&own, &other] {
        assert_eq!(app.end_reason(old.session()).await.as_deref(), Some("password_changed"));
        assert_eq!(app.unrevoked(old.session()).await, 0);
        app.refresh(&old.refresh).await.assert_refused(REFUSED, Some("password_changed"));
        app.get_as("/users/me", &old.access).await.assert_detail(401, "Invalid access token");
    }
    app.refresh(&sessionless).await.assert_refused(REFUSED, None);
    assert_eq!(app.get_as("/users/me", &fresh.access).await.status, 200);
    pair(&app.refresh(&fresh.refresh).await);
    pair(&app.refresh(&stranger.refresh).await);
    app.try_login("cust@example.com", PASSWORD).await.assert_refused("Invalid credentials", None);
    pair(&app.try_login("cust@example.com", NEW).await);
    app.login("stranger@example.com").await;
    let (hash, updated): (String, chrono::NaiveDateTime) =
        sqlx::query_as("SELECT password_hash, updated_at FROM users WHERE email = 'cust@example.com'")
            .fetch_one(&app.db)
            .await
            .unwrap();
    assert!(hash.starts_with("$argon2id$v=19$m=7168,t=5,p=1$"), "{hash}");
    assert!(updated >= since && updated <= app.now());
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_wrong_current_password_changes_nothing_and_counts_as_a_failed_login(pool: PgPool) {
    let app = TestApp::new(pool);
    let own = app.customer("cust@example.com").await;
    let state = async || {
        let rows = app.rows().await;
        (rows["users"].clone(), rows["sessions"].clone(), rows["refresh_tokens"].clone())
    };
    let before = state().await;
    for _ in 0..20 {
        change(&app, &own, body("not the password", NEW)).await.assert_refused("Invalid credentials", None);
    }
    assert_eq!(state().await, before);
    change(&app, &own, body(PASSWORD, NEW)).await.assert_detail(429, "Too many attempts, try again later");
    assert_eq!(app.try_login("cust@example.com", PASSWORD).await.status, 429);
    pair(&app.refresh(&own.refresh).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn the_new_password_obeys_the_rules_and_neither_comes_back(pool: PgPool) {
    let app = TestApp::new(pool);
    let own = app.customer("cust@example.com").await;
    let before = app.rows().await;
    let new = json!(["body", "new_password"]);
    for (password, kind) in [
        (json!("seven77"), "string_too_short"),
        (json!("x".repeat(1025)), "string_too_long"),
        (json!("12345678\0"), "value_error"),
        (json!(null), "string_type"),
        (json!(["hunter2-hunter2"]), "string_type"),
    ] {
        let answer = change(&app, &own, json!({"current_password": "hunter2-hunter2", "new_password": password})).await;
        answer.assert_problems(&[(kind, new.clone())]);
        assert!(!answer.body.contains("hunter2"), "{}", answer.body);
    }
    let answer = change(&app, &own, json!({"current_password": 1, "password": "hunter2-hunter2"})).await;
    answer.assert_problems(&[("string_type", json!(["body", "current_password"])), ("missing", new)]);
    assert!(!answer.body.contains("hunter2"), "{}", answer.body);
    assert_eq!(app.rows().await, before);
    // Any text may have been a password before.
    change(&app, &own, body("", NEW)).await.assert_refused("Invalid credentials", None);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn it_takes_an_access_token_of_a_living_session(pool: PgPool) {
    let app = TestApp::new(pool);
    let ended = app.customer("cust@example.com").await;
    let own = app.login("cust@example.com").await;
    assert_eq!(app.logout(&ended.refresh).await.status, 200);
    let before = app.rows().await;
    app.post("/auth/password", body(PASSWORD, NEW)).await.assert_detail(401, "Not authenticated");
    for access in [&ended.access, &own.refresh, &"rubbish".to_owned()] {
        let tokens = Pair { access: access.clone(), refresh: String::new() };
        change(&app, &tokens, body(PASSWORD, NEW)).await.assert_detail(401, "Invalid access token");
    }
    assert_eq!(app.rows().await, before);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn an_account_of_another_spelling_is_not_changed_in_its_stead(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register("ann@example.com", "customer").await;
    let hash: String = app.value("SELECT password_hash FROM users").await;
    let twin = app.insert_user("Ann@example.com", &hash).await;
    let tokens = pair(&app.try_login("Ann@example.com", PASSWORD).await);
    pair(&change(&app, &tokens, body(PASSWORD, NEW)).await);
    let changed: Vec<i64> = sqlx::query_scalar("SELECT id FROM users WHERE password_hash <> $1")
        .bind(&hash)
        .fetch_all(&app.db)
        .await
        .unwrap();
    assert_eq!(changed, [twin]);
    app.login("ann@example.com").await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn without_its_database_the_service_is_unavailable_and_nothing_is_half_done(pool: PgPool) {
    let app = TestApp::new(pool);
    let tokens = app.customer("cust@example.com").await;
    // But for the throttle: an attempt is counted before its password is verified.
    let rows = async || {
        let mut rows = app.rows().await;
        rows.as_object_mut().unwrap().remove("auth_throttle");
        rows
    };
    let before = rows().await;
    // The hash and the new session are written, the others cannot be ended.
    app.execute("CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''refused''; END'").await;
    app.execute("CREATE TRIGGER refuse BEFORE UPDATE ON sessions FOR EACH ROW EXECUTE FUNCTION refuse()").await;
    let answer = change(&app, &tokens, body(PASSWORD, NEW)).await;
    answer.assert_detail(503, "Service unavailable, try again later");
    assert_eq!(rows().await, before);
    app.execute("DROP TRIGGER refuse ON sessions").await;
    pair(&change(&app, &tokens, body(PASSWORD, NEW)).await);
}
