//! How many statements the busy paths cost. One more is a regression, however little it costs alone.

use axum::http::Method;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::recorder::Recorder;
use crate::support::{MAIL_OFF, PASSWORD, TestApp, pair, sign};

/// Asserts what was sent since the last call, by how each statement begins.
#[track_caller]
fn assert_sent(recorder: &Recorder, expected: &[&str]) {
    let sent = recorder.take();
    let fits = sent.len() == expected.len() && sent.iter().zip(expected).all(|(sent, begin)| sent.starts_with(begin));
    assert!(fits, "expected {expected:?}, sent {sent:#?}");
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_registration_is_a_look_and_a_write(pool: PgPool) {
    let app = TestApp::new(pool);
    let recorder = Recorder::start();
    app.register("cust@example.com", "customer").await;
    assert_sent(&recorder, &["WITH asked", "WITH inserted AS ( INSERT INTO users"]);
    let again = app.post("/auth/register", json!({"email": "cust@example.com", "password": PASSWORD})).await;
    assert_eq!(again.status, 409);
    assert_sent(&recorder, &["WITH asked"]);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_login_is_a_look_and_a_write_and_a_refusal_a_look(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register("cust@example.com", "customer").await;
    let recorder = Recorder::start();
    app.login("cust@example.com").await;
    let sent = recorder.take();
    assert_eq!(sent.len(), 2, "{sent:#?}");
    assert!(sent[0].starts_with("WITH asked") && sent[1].contains("INSERT INTO sessions"), "{sent:#?}");
    for email in ["cust@example.com", "nobody@example.com"] {
        assert_eq!(app.try_login(email, "not the password").await.status, 401);
        assert_sent(&recorder, &["WITH asked"]);
    }
    app.execute("UPDATE auth_throttle SET tat = tat + interval '1 day'").await;
    recorder.take();
    assert_eq!(app.try_login("cust@example.com", PASSWORD).await.status, 429);
    assert_sent(&recorder, &["WITH asked"]);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_login_that_replaces_a_hash_costs_no_statement_more(pool: PgPool) {
    let cheap = TestApp::with(pool, &["--password-argon2-memory-kib=64", "--password-argon2-passes=1"]);
    cheap.register("cust@example.com", "customer").await;
    let app = TestApp::with_clock(cheap.db.clone(), &[], cheap.clock.clone());
    let recorder = Recorder::start();
    app.login("cust@example.com").await;
    assert_eq!(recorder.take().len(), 2);
    let replaced: bool = app.value("SELECT password_hash LIKE '%m=7168,t=5%' FROM users").await;
    assert!(replaced);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_refresh_is_one_statement_and_a_refusal_one_more(pool: PgPool) {
    let app = TestApp::with(pool, &["--refresh-grace-seconds=10"]);
    let first = app.customer("cust@example.com").await;
    let recorder = Recorder::start();
    let second = pair(&app.refresh(&first.refresh).await);
    assert_sent(&recorder, &["WITH presented"]);
    pair(&app.refresh(&first.refresh).await);
    assert_sent(&recorder, &["WITH presented", "SELECT"]);
    assert_eq!(app.logout(&second.refresh).await.status, 200);
    recorder.take();
    assert_eq!(app.refresh(&second.refresh).await.status, 401);
    assert_sent(&recorder, &["WITH presented", "SELECT"]);
    let token = app.python_token("cust@example.com", "4b1c").await;
    recorder.take();
    pair(&app.refresh(&token).await);
    assert_sent(&recorder, &["WITH presented"]);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_log_out_and_a_look_at_oneself_are_one_statement_each(pool: PgPool) {
    let app = TestApp::new(pool);
    let tokens = app.customer("cust@example.com").await;
    let recorder = Recorder::start();
    assert_eq!(app.get_as("/users/me", &tokens.access).await.status, 200);
    assert_sent(&recorder, &["SELECT"]);
    assert_eq!(app.get_as("/auth/sessions", &tokens.access).await.status, 200);
    assert_sent(&recorder, &["SELECT", "SELECT"]);
    assert_eq!(app.get("/users/").await.status, 200);
    assert_sent(&recorder, &["SELECT"]);
    assert_eq!(app.logout(&tokens.refresh).await.status, 200);
    assert_sent(&recorder, &["WITH presented"]);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn what_is_refused_by_its_form_costs_no_statement(pool: PgPool) {
    let app = TestApp::new(pool);
    let tokens = app.customer("cust@example.com").await;
    let forged = sign(&json!({"sub": "cust@example.com", "jti": "x", "exp": i64::MAX, "type": "refresh"}), "forged");
    let recorder = Recorder::start();
    for token in [tokens.access.as_str(), &forged, "rubbish", ""] {
        assert_eq!(app.refresh(token).await.status, 401);
        assert_eq!(app.logout(token).await.status, 401);
    }
    for token in [tokens.refresh.as_str(), &forged, "rubbish"] {
        assert_eq!(app.get_as("/users/me", token).await.status, 401);
    }
    let bodies: [Value; 3] = [json!(null), json!({"email": "x"}), json!({"email": "x@example.com", "password": 1})];
    for body in bodies {
        for path in ["/auth/register", "/auth/login", "/auth/refresh", "/auth/logout"] {
            assert_eq!(app.post(path, body.clone()).await.status, 422);
        }
    }
    for path in ["/auth/health", "/health", "/v1/_info", "/auth/metrics", "/nowhere"] {
        app.get(path).await;
    }
    app.request_as(Method::PUT, "/users/me", &tokens.access, None).await;
    assert_sent(&recorder, &[]);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn mail_costs_a_registration_a_login_and_a_refresh_no_statement(pool: PgPool) {
    for (flags, of_a_change) in [(&MAIL_OFF[..], 8), (&[], 9)] {
        let app = TestApp::with(pool.clone(), flags);
        app.execute("DELETE FROM users").await;
        let recorder = Recorder::start();
        app.register("cust@example.com", "customer").await;
        assert_eq!(recorder.take().len(), 2);
        let tokens = app.login("cust@example.com").await;
        assert_eq!(recorder.take().len(), 2);
        pair(&app.refresh(&tokens.refresh).await);
        assert_eq!(recorder.take().len(), 1);
        let body = json!({"current_password": PASSWORD, "new_password": "another password"});
        pair(&app.request_as(Method::POST, "/auth/password", &tokens.access, Some(body)).await);
        // The notice.
        assert_eq!(recorder.take().len(), of_a_change);
    }
}
