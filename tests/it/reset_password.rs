//! `POST /auth/password/reset`: a token from a mail is good for one new password, and for nothing after any change of it.

use auth::domain::ids::UserId;
use auth::domain::mail::{Locale, Template};
use auth::domain::password::PasswordHash;
use auth::mail::SendError;
use auth::service::audit::Actor;
use auth::service::mail;
use auth::service::password::set_password;
use axum::http::Method;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::mailbox::{templates, token_of};
use crate::recorder::Recorder;
use crate::support::{Answer, MAIL_OFF, PASSWORD, TestApp, config, count, pair, together};

const CUST: &str = "cust@example.com";
const NEW: &str = "a new password";

#[track_caller]
fn assert_invalid(answer: &Answer) {
    answer.assert_detail(400, "Invalid or expired token");
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_reset_changes_the_password_ends_every_session_and_verifies_the_address(pool: PgPool) {
    let app = TestApp::new(pool);
    let stranger = app.customer("stranger@example.com").await;
    let tokens = app.customer(CUST).await;
    let sessionless = app.python_token(CUST, "4b1c").await;
    let verify = token_of(&app.deliver().await[1..], Template::VerifyEmail);
    let token = app.reset_token(CUST).await;
    let answer = app.reset_password(&token, NEW).await;
    assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, r#"{"status":"ok"}"#));
    assert_eq!(app.end_reason(tokens.session()).await.as_deref(), Some("password_reset"));
    assert_eq!(app.unrevoked(tokens.session()).await, 0);
    app.refresh(&tokens.refresh).await.assert_refused("Refresh token not valid", Some("password_reset"));
    app.refresh(&sessionless).await.assert_refused("Refresh token not valid", None);
    app.get_as("/users/me", &tokens.access).await.assert_detail(401, "Invalid access token");
    pair(&app.refresh(&stranger.refresh).await);
    app.try_login(CUST, PASSWORD).await.assert_detail(401, "Invalid credentials");
    pair(&app.try_login(CUST, NEW).await);
    let verified: Vec<String> = sqlx::query_scalar("SELECT email FROM users WHERE email_verified_at IS NOT NULL")
        .fetch_all(&app.db)
        .await
        .unwrap();
    assert_eq!(verified, [CUST]);
    // All of the user's tokens are void.
    assert_invalid(&app.reset_password(&token, NEW).await);
    assert_invalid(&app.verify_email(&verify).await);
    let messages = app.deliver().await;
    assert_eq!((templates(&messages), messages[0].to.as_str()), (vec!["password_reset"], CUST));
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn of_fifty_resets_with_one_token_one_succeeds(pool: PgPool) {
    let app = TestApp::with(pool, &["--password-hash-max-wait-ms=60000", "--request-timeout-seconds=120"]);
    app.customer(CUST).await;
    app.deliver().await;
    let token = app.reset_token(CUST).await;
    let answers = together((0..50).map(|n| {
        let (app, token) = (app.clone(), token.clone());
        async move { app.reset_password(&token, &format!("password {n}")).await }
    }))
    .await;
    assert_eq!((count(&answers, 200), count(&answers, 400)), (1, 49));
    let winner = answers.iter().position(|answer| answer.status == 200).unwrap();
    pair(&app.try_login(CUST, &format!("password {winner}")).await);
    assert_eq!(templates(&app.deliver().await), ["password_reset"]);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_token_is_void_after_any_change_of_the_password(pool: PgPool) {
    let app = TestApp::with(pool, &["--throttle=off"]);
    let tokens = app.customer(CUST).await;
    app.deliver().await;
    let token = app.reset_token(CUST).await;
    let body = json!({"current_password": PASSWORD, "new_password": NEW});
    assert_eq!(app.request_as(Method::POST, "/auth/password", &tokens.access, Some(body)).await.status, 200);
    assert_invalid(&app.reset_password(&token, "stolen password").await);
    assert_eq!(templates(&app.deliver().await), ["password_changed"]);

    // Also where mail is off, on the replica or the command line that changes it.
    let token = app.reset_token(CUST).await;
    let id = UserId(app.user_id(CUST).await);
    let hash: String = app.value("SELECT password_hash FROM users").await;
    let (hash, off) = (PasswordHash::from_stored(hash), config(&MAIL_OFF).mail);
    set_password(&app.db, Actor::CommandLine, id, &hash, &off, Locale::En, app.clock.now()).await.unwrap();
    assert_invalid(&app.reset_password(&token, "stolen password").await);
    pair(&app.try_login(CUST, NEW).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_token_is_void_when_its_address_is_not_the_users_any_more(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register(CUST, "customer").await;
    app.deliver().await;
    let token = app.reset_token(CUST).await;
    // As an operator may do it, because somebody else reads the mailbox.
    app.execute("UPDATE users SET email = 'other@example.com'").await;
    let before = app.rows().await;
    assert_invalid(&app.reset_password(&token, NEW).await);
    assert_eq!(app.rows().await, before);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_token_that_is_not_good_costs_no_hash_and_changes_nothing(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register(CUST, "customer").await;
    let verify = token_of(&app.deliver().await, Template::VerifyEmail);
    let token = app.reset_token(CUST).await;
    let before = app.rows().await;
    let hashes = app.app.metrics.hash_seconds.get_sample_count();
    // Of the other purpose, changed, cut, empty.
    let other = token.replace(&token[..1], if token.starts_with('A') { "B" } else { "A" });
    for wrong in [verify.as_str(), &other, &token[..42], &format!("{token}="), "", "\0"] {
        assert_invalid(&app.reset_password(wrong, NEW).await);
    }
    assert_invalid(&app.verify_email(&token).await);
    app.advance(1800);
    assert_invalid(&app.reset_password(&token, NEW).await);
    assert_eq!(app.rows().await, before);
    assert_eq!(app.app.metrics.hash_seconds.get_sample_count(), hashes);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_password_is_judged_before_the_token_is_spent(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register(CUST, "customer").await;
    app.deliver().await;
    let token = app.reset_token(CUST).await;
    app.reset_password(&token, "short").await.assert_problems(&[("string_too_short", json!(["body", "new_password"]))]);
    // Nor is it spent by a request that is refused because the service is busy.
    let busy = TestApp::with_clock(
        app.db.clone(),
        &["--password-hash-max-wait-ms=1", "--password-hash-concurrency=1"],
        app.clock.clone(),
    );
    let slot = busy.app.hasher.acquire().await.unwrap();
    assert_eq!(busy.reset_password(&token, NEW).await.status, 503);
    // One that is not good waits for no hash: otherwise anybody could keep the queue full, and pay nothing for it.
    assert_invalid(&busy.reset_password(&format!("{token}x"), NEW).await);
    drop(slot);
    app.advance(1799);
    assert_eq!(app.reset_password(&token, NEW).await.status, 200);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn get_and_head_consume_nothing(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register(CUST, "customer").await;
    let verify = token_of(&app.deliver().await, Template::VerifyEmail);
    let reset = app.reset_token(CUST).await;
    let before = app.rows().await;
    for (path, token) in [("/auth/email/verify", &verify), ("/auth/password/reset", &reset)] {
        for method in [Method::GET, Method::HEAD] {
            for _ in 0..100 {
                let path = format!("{path}?token={token}&new_password={NEW}").replace(' ', "+");
                assert_eq!(app.request_as(method.clone(), &path, token, None).await.status, 405);
            }
        }
    }
    assert_eq!(app.rows().await, before);
    assert_eq!(app.verify_email(&verify).await.status, 200);
    assert_eq!(app.reset_password(&reset, NEW).await.status, 200);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn the_tables_hold_no_token_that_could_be_used(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register(CUST, "customer").await;
    let verify = token_of(&app.deliver().await, Template::VerifyEmail);
    let reset = app.reset_token(CUST).await;
    let rows = app.rows().await;
    assert_eq!(rows["mail_tokens"].as_array().unwrap().len(), 2);
    let (mut found, mut hashes) = (Vec::new(), Vec::new());
    collect(&rows, &mut |text| {
        found.push(text.to_owned());
        // In whatever form a thief may try it.
        hashes.extend(text.strip_prefix("\\x").map(str::to_owned));
    });
    for token in [verify, reset] {
        let text = found.join("\n");
        assert!(!text.contains(&token) && !text.contains(&token[..20]), "{text}");
        let hex = token.bytes().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
        assert!(!text.contains(&hex[..40]), "{text}");
    }
    for hash in found.into_iter().chain(hashes) {
        assert_eq!(app.reset_password(&hash, NEW).await.status, 400);
        assert_eq!(app.verify_email(&hash).await.status, 400);
    }
}

fn collect(value: &Value, text: &mut impl FnMut(&str)) {
    match value {
        Value::String(found) => text(found),
        Value::Array(values) => values.iter().for_each(|value| collect(value, text)),
        Value::Object(members) => members.values().for_each(|value| collect(value, text)),
        _ => {}
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn failed_logins_do_not_count_any_more(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register(CUST, "customer").await;
    app.deliver().await;
    for _ in 0..20 {
        assert_eq!(app.try_login(CUST, "not the password").await.status, 401);
    }
    assert_eq!(app.try_login(CUST, PASSWORD).await.status, 429);
    let token = app.reset_token(CUST).await;
    assert_eq!(app.reset_password(&token, NEW).await.status, 200);
    pair(&app.try_login(CUST, NEW).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn after_attempts_of_unknown_outcome_the_last_two_tokens_are_good(pool: PgPool) {
    let app = TestApp::new(pool);
    app.verified_customer(CUST).await;
    assert_eq!(app.forgot(CUST).await.status, 202);
    let mut tokens = Vec::new();
    let mut ids = Vec::new();
    for _ in 0..3 {
        let unknown = Err(SendError::Failed("the line broke".to_owned()));
        let messages = app.try_to_deliver(&unknown).await;
        tokens.push(token_of(&messages, Template::ResetPassword));
        ids.push(messages[0].id);
        app.advance(60);
    }
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_invalid(&app.reset_password(&tokens[0], NEW).await);
    assert_eq!(app.reset_password(&tokens[1], NEW).await.status, 200);
    assert_invalid(&app.reset_password(&tokens[2], NEW).await);
    assert!(mail::next(&app.app).await.unwrap().is_some());
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_reset_is_a_look_and_a_transaction_of_six_statements_and_a_refusal_a_look(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register(CUST, "customer").await;
    app.deliver().await;
    let token = app.reset_token(CUST).await;
    let recorder = Recorder::start();
    assert_invalid(&app.reset_password("unknown", NEW).await);
    assert_eq!(recorder.take().len(), 1);
    assert_eq!(app.reset_password(&token, NEW).await.status, 200);
    let sent = recorder.take();
    assert!(sent[0].starts_with("SELECT users.id") && sent[7] == "COMMIT", "{sent:#?}");
    assert_eq!(sent.len(), 8, "{sent:#?}");
}
