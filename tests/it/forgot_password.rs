//! `POST /auth/password/forgot`: nothing tells whether an address has an account, and nobody's mailbox is flooded.

use auth::domain::mail::{Locale, Template};
use auth::mail::SendError;
use axum::http::{Method, Request, header};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::mailbox::token_of;
use crate::recorder::Recorder;
use crate::support::{Answer, MAIL_OFF, PASSWORD, TestApp, count, together};

fn assert_throttled(answer: &Answer) {
    answer.assert_detail(429, "Too many attempts, try again later");
}

/// The rows of the outbox and the throttle without what differs from one request to the next.
async fn rows(app: &TestApp) -> Value {
    let mails: Value = app
        .value(
            "SELECT coalesce(jsonb_agg(to_jsonb(mail) - '{id,email,created_at,due_at,give_up_at}'::text[]
                || jsonb_build_object(
                    'length', length(mail.email), 'due', mail.due_at - mail.created_at,
                    'give_up', mail.give_up_at - mail.created_at
                ) ORDER BY id), '[]')
             FROM mail_outbox AS mail WHERE finished_at IS NULL",
        )
        .await;
    let buckets: i64 = app.value("SELECT count(*) FROM auth_throttle").await;
    let tokens: i64 = app.value("SELECT count(*) FROM mail_tokens").await;
    json!([mails, buckets, tokens])
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn known_and_unknown_addresses_get_the_same_answer_and_leave_the_same_rows(pool: PgPool) {
    let app = TestApp::new(pool);
    app.verified_customer("known@example.com").await;
    let mut seen = Vec::new();
    for email in ["known@example.com", "never@example.com"] {
        app.execute("DELETE FROM auth_throttle").await;
        app.execute("DELETE FROM mail_outbox").await;
        let recorder = Recorder::start();
        let mut answer = app.forgot(email).await;
        let statements = recorder.take();
        assert_eq!((answer.status.as_u16(), answer.body.as_str()), (202, r#"{"status":"accepted"}"#));
        assert_eq!(statements.len(), 1, "{statements:#?}");
        assert!(!statements[0].contains("users"), "{statements:#?}");
        answer.headers.remove("x-request-id").unwrap();
        seen.push((answer.headers, statements, rows(&app).await));
    }
    assert_eq!(seen[0], seen[1]);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_mail_goes_to_the_address_that_the_account_has(pool: PgPool) {
    let app = TestApp::new(pool);
    app.verified_customer("cust@example.com").await;
    app.insert_user("Old.Spelling@example.com", "no hash").await;
    for (asked, to) in [
        ("CUST@Example.com", "cust@example.com"),
        ("Anybody <cust@example.com>", "cust@example.com"),
        ("old.spelling@example.com", "Old.Spelling@example.com"),
    ] {
        assert_eq!(app.forgot(asked).await.status, 202);
        let messages = app.deliver().await;
        assert_eq!(messages.iter().map(|message| message.to.as_str()).collect::<Vec<_>>(), [to], "{asked}");
        token_of(&messages, Template::ResetPassword);
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn nobody_gets_a_mail_who_has_no_account_and_nothing_is_kept_of_it(pool: PgPool) {
    let app = TestApp::new(pool);
    assert_eq!(app.forgot("nobody@example.com").await.status, 202);
    assert!(app.deliver().await.is_empty());
    assert!(app.outbox().await.is_empty());
    assert_eq!(app.app.metrics.mails.with_label_values(&["dropped", "reset_password"]).get(), 1);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn an_address_gets_three_mails_and_then_one_an_hour_whether_it_is_known_or_not(pool: PgPool) {
    let app = TestApp::new(pool);
    app.verified_customer("known@example.com").await;
    for email in ["known@example.com", "never@example.com"] {
        // From wherever it is asked.
        for ip in ["198.51.100.1", "198.51.100.2", "2001:db8::1"] {
            assert_eq!(app.forgot_from(ip, email).await.status, 202);
        }
        let before = (rows(&app).await, app.rows().await);
        let refused = app.forgot_from("198.51.100.3", &email.to_uppercase()).await;
        assert_throttled(&refused);
        assert!((3590..=3600).contains(&refused.retry_after()), "{}", refused.retry_after());
        assert_eq!((rows(&app).await, app.rows().await), before, "a refused request was counted");
        app.advance(refused.retry_after());
        assert_eq!(app.forgot_from("198.51.100.3", email).await.status, 202);
        assert_throttled(&app.forgot_from("198.51.100.3", email).await);
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_network_asks_for_ten_mails_and_then_six_an_hour(pool: PgPool) {
    let app = TestApp::new(pool);
    for n in 0..10 {
        assert_eq!(app.forgot_from("198.51.100.7", &format!("c{n}@example.com")).await.status, 202);
    }
    let refused = app.forgot_from("198.51.100.7", "next@example.com").await;
    assert_throttled(&refused);
    assert!((590..=600).contains(&refused.retry_after()), "{}", refused.retry_after());
    assert_eq!(app.forgot_from("198.51.100.8", "next@example.com").await.status, 202);
    app.advance(600);
    assert_eq!(app.forgot_from("198.51.100.7", "next@example.com").await.status, 202);
    assert_throttled(&app.forgot_from("198.51.100.7", "last@example.com").await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn of_many_requests_at_once_no_more_are_accepted_than_fit(pool: PgPool) {
    let app = TestApp::new(pool);
    let answers = together((0..30).map(|_| {
        let app = app.clone();
        async move { app.forgot("cust@example.com").await }
    }))
    .await;
    assert_eq!((count(&answers, 202), count(&answers, 429)), (3, 27));
    assert_eq!(app.outbox().await.len(), 3);
    let off = TestApp::with_clock(app.db.clone(), &["--throttle=off"], app.clock.clone());
    assert_eq!(off.forgot("cust@example.com").await.status, 202);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn the_language_is_that_of_the_request_then_of_the_browser_then_english(pool: PgPool) {
    let app = TestApp::with(pool, &["--throttle=off"]);
    app.verified_customer("cust@example.com").await;
    for (locale, browser, expected) in [
        (json!("de-AT"), "en", Locale::De),
        (json!("EN"), "de", Locale::En),
        (json!("fr"), "de-DE,de;q=0.9,en;q=0.8", Locale::De),
        (json!(" en_GB"), "de", Locale::En),
        (json!("deu"), "de", Locale::De),
        (Value::Null, "fr, de;q=0.5", Locale::De),
        (Value::Null, "fr, en;q=0.2, de;q=0.5", Locale::De),
        (Value::Null, "de, en", Locale::De),
        (Value::Null, "de;q=0, en;q=0.1", Locale::En),
        (Value::Null, "de;q=x, fr, *", Locale::En),
        (Value::Null, "fr", Locale::En),
    ] {
        let request = Request::post("/auth/password/forgot").header(header::ACCEPT_LANGUAGE, browser);
        let body = json!({"email": "cust@example.com", "locale": locale}).to_string();
        assert_eq!(app.send(request.body(body.into()).unwrap()).await.status, 202);
        let messages = app.deliver().await;
        assert_eq!(messages.iter().map(|message| message.locale).collect::<Vec<_>>(), [expected], "{locale} {browser}");
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_body_that_is_not_what_was_asked_for_is_a_422_and_no_token_comes_back(pool: PgPool) {
    let app = TestApp::new(pool);
    for (path, body, problems) in [
        ("/auth/password/forgot", json!({}), vec![("missing", json!(["body", "email"]))]),
        (
            "/auth/password/forgot",
            json!({"email": "x", "locale": 1}),
            vec![("value_error", json!(["body", "email"])), ("string_type", json!(["body", "locale"]))],
        ),
        (
            "/auth/password/reset",
            json!({"token": 1, "new_password": "short"}),
            vec![("string_type", json!(["body", "token"])), ("string_too_short", json!(["body", "new_password"]))],
        ),
        ("/auth/password/reset", json!({"token": "hidden"}), vec![("missing", json!(["body", "new_password"]))]),
        ("/auth/email/verify", json!({}), vec![("missing", json!(["body", "token"]))]),
    ] {
        let answer = app.post(path, body).await;
        answer.assert_problems(&problems);
        assert!(!answer.body.contains("hidden"), "{}", answer.body);
    }
    assert!(app.outbox().await.is_empty());
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn where_mail_is_off_its_routes_are_404_and_nothing_is_written(pool: PgPool) {
    let app = TestApp::with(pool, &MAIL_OFF);
    let tokens = app.customer("cust@example.com").await;
    for path in ["/auth/password/forgot", "/auth/password/reset", "/auth/email/verify", "/auth/email/verify/resend"] {
        app.post(path, json!({"email": "cust@example.com", "token": "x", "new_password": PASSWORD}))
            .await
            .assert_detail(404, "Not Found");
        app.get_as(path, &tokens.access).await.assert_detail(404, "Not Found");
    }
    let body = json!({"current_password": PASSWORD, "new_password": "another password"});
    assert_eq!(app.request_as(Method::POST, "/auth/password", &tokens.access, Some(body)).await.status, 200);
    assert!(app.outbox().await.is_empty());
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_later_mail_takes_the_place_of_those_before_it(pool: PgPool) {
    let app = TestApp::with(pool, &["--throttle=off"]);
    app.verified_customer("cust@example.com").await;
    let first = app.reset_token("cust@example.com").await;
    let second = app.reset_token("cust@example.com").await;
    app.reset_password(&first, "another password").await.assert_detail(400, "Invalid or expired token");
    assert_eq!(app.reset_password(&second, "another password").await.status, 200);

    app.deliver().await;
    // One that failed, and would be tried again after a later one was sent, must not make that one's token void.
    assert_eq!(app.forgot("cust@example.com").await.status, 202);
    assert_eq!(app.try_to_deliver(&Err(SendError::Failed("450".to_owned()))).await.len(), 1);
    app.execute("UPDATE mail_outbox SET due_at = due_at + interval '5 minutes' WHERE finished_at IS NULL").await;
    let token = app.reset_token("cust@example.com").await;
    app.advance(600);
    assert!(app.deliver().await.is_empty());
    assert_eq!(app.reset_password(&token, "another password").await.status, 200);
}
