//! `GET /users/me`, and what an access token must be to speak for its user.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{Method, Request, header};
use hyper::body::Frame;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::{CLOSED, TestApp, pair};

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn the_bearer_is_told_who_the_token_speaks_for(pool: PgPool) {
    let app = TestApp::with(pool, &CLOSED);
    app.register("other@example.com", "customer").await;
    let tokens = app.customer("cust@example.com").await;
    let answer = app.get_as("/users/me", &tokens.access).await;
    assert_eq!(
        (answer.status.as_u16(), answer.body.as_str()),
        (200, r#"{"id":2,"email":"cust@example.com","role":"customer"}"#)
    );
    app.execute("UPDATE users SET role = 'support'").await;
    assert_eq!(app.get_as("/users/me", &tokens.access).await.json()["role"], "support");
    app.get("/users/me").await.assert_detail(401, "Not authenticated");
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn an_access_token_is_good_for_fifteen_minutes_of_a_living_session(pool: PgPool) {
    let app = TestApp::new(pool);
    let tokens = app.customer("cust@example.com").await;
    app.advance(890);
    assert_eq!(app.get_as("/users/me", &tokens.access).await.status, 200);
    app.advance(10);
    app.get_as("/users/me", &tokens.access).await.assert_detail(401, "Invalid access token");
    let tokens = pair(&app.refresh(&tokens.refresh).await);
    assert_eq!(app.get_as("/users/me", &tokens.access).await.status, 200);
    app.execute("UPDATE sessions SET ended_at = created_at, end_reason = 'by_admin'").await;
    app.get_as("/users/me", &tokens.access).await.assert_detail(401, "Invalid access token");
    let tokens = app.login("cust@example.com").await;
    app.execute("UPDATE users SET email = 'moved@example.com'").await;
    app.get_as("/users/me", &tokens.access).await.assert_detail(401, "Invalid access token");
    app.execute("UPDATE users SET email = 'cust@example.com'").await;
    app.execute("DELETE FROM sessions").await;
    app.get_as("/users/me", &tokens.access).await.assert_detail(401, "Invalid access token");
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn the_authorization_header_is_read_strictly(pool: PgPool) {
    let app = TestApp::new(pool);
    let token = app.customer("cust@example.com").await.access;
    let me = async |values: &[String]| {
        let mut request = Request::get("/users/me");
        for value in values {
            request = request.header(header::AUTHORIZATION, value);
        }
        app.send(request.body(Body::empty()).unwrap()).await
    };
    for scheme in ["Bearer ", "bearer ", "BEARER ", "Bearer  ", "Bearer     "] {
        assert_eq!(me(&[format!("{scheme}{token}")]).await.status, 200, "{scheme:?}");
    }
    for value in [
        String::new(),
        token.clone(),
        "Bearer".to_owned(),
        "Bearer ".to_owned(),
        format!("Bearer{token}"),
        "Bearer   ".to_owned(),
        format!("Bearer\t{token}"),
        format!("Bearer {token} "),
        format!("Bearer {token}, Bearer {token}"),
        format!("Bearer \"{token}\""),
        format!("Basic {token}"),
        format!("Token {token}"),
        format!("JWT {token}"),
    ] {
        let answer = me(std::slice::from_ref(&value)).await;
        answer.assert_detail(401, "Not authenticated");
    }
    let good = format!("Bearer {token}");
    me(&[good.clone(), good.clone()]).await.assert_detail(401, "Not authenticated");
    me(&[good, "Basic eDp5".to_owned()]).await.assert_detail(401, "Not authenticated");
    // A token in the address stays in logs; it is not looked for there.
    app.get(&format!("/users/me?access_token={token}")).await.assert_detail(401, "Not authenticated");
}

/// A body that never comes.
struct Silent;

impl HttpBody for Silent {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Pending
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn who_may_not_call_is_told_so_before_the_body_is_read(pool: PgPool) {
    let app = TestApp::with(pool, &CLOSED);
    let tokens = app.customer("cust@example.com").await;
    for (method, path, token, status, sentence) in [
        (Method::POST, "/auth/password", "", 401, "Not authenticated"),
        (Method::POST, "/auth/password", "rubbish", 401, "Invalid access token"),
        (Method::PATCH, "/users/1", "", 401, "Not authenticated"),
        (Method::PATCH, "/users/1", "rubbish", 401, "Invalid access token"),
        (Method::PATCH, "/users/1", tokens.access.as_str(), 403, "Not permitted"),
        (Method::PATCH, "/users/x", tokens.access.as_str(), 403, "Not permitted"),
    ] {
        let request = Request::builder().method(method).uri(path);
        let request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        app.send(request.body(Body::new(Silent)).unwrap()).await.assert_detail(status, sentence);
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn who_may_not_list_is_told_so_before_the_query_is_judged(pool: PgPool) {
    let app = TestApp::with(pool, &CLOSED);
    let tokens = app.customer("cust@example.com").await;
    app.get("/users/?limit=x").await.assert_detail(401, "Not authenticated");
    app.get_as("/users/?limit=x", &tokens.access).await.assert_detail(403, "Not permitted");
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn without_its_database_the_service_is_unavailable_and_not_unfriendly(pool: PgPool) {
    let app = TestApp::with(pool, &CLOSED);
    let tokens = app.customer("cust@example.com").await;
    app.db.close().await;
    let bodies: [(Method, &str, Option<Value>); 5] = [
        (Method::GET, "/users/", None),
        (Method::GET, "/users/me", None),
        (Method::GET, "/auth/sessions", None),
        (Method::PATCH, "/users/1", Some(json!({"role": "admin"}))),
        (Method::DELETE, "/users/1", None),
    ];
    for (method, path, body) in bodies {
        let answer = app.request_as(method, path, &tokens.access, body).await;
        answer.assert_detail(503, "Service unavailable, try again later");
    }
}
