//! `POST /auth/email/verify` and what depends on it.

use auth::domain::mail::Template;
use axum::http::Method;
use serde_json::json;
use sqlx::PgPool;

use crate::mailbox::{templates, token_of};
use crate::support::{PASSWORD, TestApp, pair};

const CUST: &str = "cust@example.com";
const DAY: i64 = 86_400;

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_registration_sends_a_mail_whose_token_verifies_the_address(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register("admin@example.com", "admin").await;
    let admin = app.login("admin@example.com").await;
    app.deliver().await;
    app.register(CUST, "customer").await;
    let path = format!("/users/{}", app.user_id(CUST).await);
    assert_eq!(app.get_as(&path, &admin.access).await.json()["email_verified"], json!(false));
    let messages = app.deliver().await;
    assert_eq!((templates(&messages), messages[0].to.as_str()), (vec!["verify_email"], CUST));
    let token = token_of(&messages, Template::VerifyEmail);
    let answer = app.verify_email(&token).await;
    assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, r#"{"status":"ok"}"#));
    assert_eq!(app.get_as(&path, &admin.access).await.json()["email_verified"], json!(true));
    // A second click is no mistake, until the token expires.
    let before = app.rows().await;
    app.advance(DAY - 1);
    assert_eq!(app.verify_email(&token).await.status, 200);
    assert_eq!(app.rows().await["users"], before["users"]);
    app.advance(1);
    app.verify_email(&token).await.assert_detail(400, "Invalid or expired token");
    // Nobody is written to who did not register.
    let again = app.post("/auth/register", json!({"email": CUST, "password": PASSWORD})).await;
    assert_eq!(again.status, 409);
    assert!(app.deliver().await.is_empty());
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_token_verifies_only_the_address_that_it_was_sent_to(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register(CUST, "customer").await;
    let token = token_of(&app.deliver().await, Template::VerifyEmail);
    app.execute("UPDATE users SET email = 'other@example.com'").await;
    app.verify_email(&token).await.assert_detail(400, "Invalid or expired token");
    let verified: i64 = app.value("SELECT count(*) FROM users WHERE email_verified_at IS NOT NULL").await;
    assert_eq!(verified, 0);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn the_bearer_can_have_the_mail_sent_again_until_the_address_is_verified(pool: PgPool) {
    let app = TestApp::new(pool);
    let tokens = app.customer(CUST).await;
    let first = token_of(&app.deliver().await, Template::VerifyEmail);
    let resend = async || app.request_as(Method::POST, "/auth/email/verify/resend", &tokens.access, None).await;
    let answer = resend().await;
    assert_eq!((answer.status.as_u16(), answer.body.as_str()), (202, r#"{"status":"accepted"}"#));
    let second = token_of(&app.deliver().await, Template::VerifyEmail);
    app.verify_email(&first).await.assert_detail(400, "Invalid or expired token");
    assert_eq!(app.verify_email(&second).await.status, 200);
    assert_eq!(resend().await.status, 202);
    assert!(app.deliver().await.is_empty());
    assert_eq!(resend().await.status, 202);
    resend().await.assert_detail(429, "Too many attempts, try again later");
    // What was asked for by somebody else does not count.
    assert_eq!(app.forgot(CUST).await.status, 202);
    app.post("/auth/email/verify/resend", json!({})).await.assert_detail(401, "Not authenticated");
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_login_may_have_to_wait_until_the_address_is_verified(pool: PgPool) {
    let app = TestApp::with(pool, &["--login-requires-verified-email=on"]);
    app.register(CUST, "customer").await;
    // Only who has the password learns of it.
    app.try_login(CUST, "not the password").await.assert_detail(401, "Invalid credentials");
    app.try_login("nobody@example.com", PASSWORD).await.assert_detail(401, "Invalid credentials");
    app.try_login(CUST, PASSWORD).await.assert_detail(403, "Email not verified");
    assert_eq!(app.value::<i64>("SELECT count(*) FROM sessions").await, 0);
    assert_eq!(app.app.metrics.logins.with_label_values(&["unverified"]).get(), 1);
    let token = token_of(&app.deliver().await, Template::VerifyEmail);
    assert_eq!(app.verify_email(&token).await.status, 200);
    app.login(CUST).await;
    // A reset serves just as well, and is the way for who has lost the mail.
    app.register("late@example.com", "customer").await;
    app.deliver().await;
    let token = app.reset_token("late@example.com").await;
    assert_eq!(app.reset_password(&token, "another password").await.status, 200);
    pair(&app.try_login("late@example.com", "another password").await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_right_password_is_no_failed_login_though_the_address_is_not_verified(pool: PgPool) {
    let app = TestApp::with(pool, &["--login-requires-verified-email=on"]);
    app.register(CUST, "customer").await;
    for _ in 0..25 {
        app.try_login(CUST, PASSWORD).await.assert_detail(403, "Email not verified");
    }
    // Wrong ones count, and then the right one is not looked at.
    for _ in 0..20 {
        app.try_login(CUST, "not the password").await.assert_detail(401, "Invalid credentials");
    }
    app.try_login(CUST, PASSWORD).await.assert_detail(429, "Too many attempts, try again later");
}
