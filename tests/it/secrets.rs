//! A password or token that was sent never comes back, however it was sent.

use axum::http::Method;
use serde_json::json;
use sqlx::PgPool;

use crate::support::{CLOSED, PASSWORD, TestApp};

/// What a client may make of a secret, under a name that is right or wrong: bodies with their content types.
fn bodies(name: &str, secret: &str) -> Vec<(Option<&'static str>, String)> {
    let object = json!({name: secret}).to_string();
    let form = format!("{name}={secret}");
    let mut bodies = Vec::new();
    for body in [
        object.clone(),
        json!({name: [secret]}).to_string(),
        json!({"payload": {name: {"value": secret}}}).to_string(),
        json!({"payload": object}).to_string(),
        json!({"payload": json!({"payload": object}).to_string()}).to_string(),
        json!({"fields": [{"name": name, "value": secret}]}).to_string(),
        json!([name, secret]).to_string(),
        json!([{name: secret}]).to_string(),
        json!(form).to_string(),
        object[1..].to_owned(),
        object[..object.len() - 1].to_owned(),
    ] {
        bodies.push((Some("application/json"), body));
    }
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b", "x"] {
        bodies.push((Some(content_type), form.clone()));
        bodies.push((Some(content_type), object.clone()));
        bodies.push((Some(content_type), object.replace('"', "%22")));
    }
    bodies
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_secret_that_was_sent_never_comes_back(pool: PgPool) {
    let app = TestApp::with(pool, &["--throttle=off"]);
    let tokens = app.customer("cust@example.com").await;
    // A signed part of it is as telling as all of it.
    let signature = |token: &str| token.rsplit('.').next().unwrap().to_owned();
    let mut refused = 0;
    for (names, secret, part) in [
        (
            ["password", "Password", "passwd", "new_password", "pwd", "pw", "pin", "credential"].as_slice(),
            PASSWORD,
            PASSWORD.to_owned(),
        ),
        (&["refreshToken", "token", "email", "role", "x", "scope"], &tokens.refresh, signature(&tokens.refresh)),
        (&["access_token", "email", "refresh"], &tokens.access, signature(&tokens.access)),
    ] {
        for name in names {
            for (content_type, body) in bodies(name, secret) {
                for path in ["/auth/register", "/auth/login", "/auth/refresh", "/auth/logout"] {
                    let answer = app.post_raw(path, content_type, body.clone()).await;
                    assert!(!answer.body.contains(&part), "{path} {content_type:?} {body}: {}", answer.body);
                    refused += usize::from(answer.status == 422);
                }
            }
        }
    }
    assert!(refused > 1000, "only {refused} were 422");
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_token_in_a_path_or_query_does_not_come_back_either(pool: PgPool) {
    let app = TestApp::with(pool, &CLOSED);
    app.execute("INSERT INTO users (email, password_hash, role) VALUES ('unused@example.com', 'x', 'admin')").await;
    let token = app.customer("cust@example.com").await.access;
    app.execute("UPDATE users SET role = 'admin'").await;
    for (method, path) in [
        (Method::GET, format!("/users/?limit={token}")),
        (Method::GET, format!("/users/?after=refresh_token%20{token}")),
        (Method::GET, format!("/users/{token}")),
        (Method::GET, format!("/users/{token}/sessions")),
        (Method::DELETE, format!("/users/{token}/sessions")),
        (Method::DELETE, format!("/users/{token}")),
    ] {
        let answer = app.request_as(method, &path, &token, None).await;
        assert_eq!(answer.status, 422, "{path}");
        assert_eq!(answer.json()["detail"][0]["input"], "**********", "{path}");
        assert!(!answer.body.contains(&token), "{path}");
    }
}
