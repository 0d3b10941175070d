//! Requests with a body that a page of another site made a browser send.

use std::net::SocketAddr;

use auth::http::Peer;
use axum::body::Body;
use axum::http::{Method, Request};
use serde_json::json;
use sqlx::PgPool;

use crate::support::{Answer, TestApp};

const REFUSED: &str = "Cross-site request refused";

/// Logs in with headers that a browser adds.
async fn login(app: &TestApp, headers: &[(&str, &str)]) -> Answer {
    let body = json!({"email": "cust@example.com", "password": "wrong"}).to_string();
    send(app, Method::POST, "/auth/login", headers, body).await
}

async fn send(app: &TestApp, method: Method, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
    let peer = Peer(SocketAddr::from(([10, 0, 0, 1], 4711)));
    let request = headers.iter().fold(Request::builder(), |request, &(name, value)| request.header(name, value));
    app.send(request.method(method).uri(path).extension(peer).body(body.into()).unwrap()).await
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_page_of_another_site_cannot_send_a_body(pool: PgPool) {
    let app = TestApp::new(pool);
    let before = app.rows().await;
    for headers in [
        [("host", "shop.example"), ("sec-fetch-site", "cross-site")].as_slice(),
        &[("host", "shop.example"), ("sec-fetch-site", "cross-site"), ("origin", "https://shop.example")],
        &[("host", "shop.example"), ("origin", "https://evil.example")],
        &[("host", "shop.example"), ("origin", "https://shop.example.evil.example")],
        &[("host", "shop.example"), ("origin", "https://evil.shop.example"), ("sec-fetch-site", "same-site")],
        &[("host", "shop.example"), ("origin", "https://shop.example:8443")],
        &[("host", "shop.example:8080"), ("origin", "http://shop.example")],
        &[("host", "shop.example:80"), ("origin", "https://shop.example")],
        &[("host", "shop.example"), ("sec-fetch-site", "same-site")],
        &[("host", "shop.example"), ("sec-fetch-site", "same-origin, cross-site")],
        &[("host", "shop.example"), ("sec-fetch-site", "same-origin"), ("sec-fetch-site", "same-site")],
        &[("host", "shop.example"), ("origin", "https://user@shop.example")],
        &[("host", "user@shop.example"), ("origin", "https://user@shop.example")],
        &[("host", "shop.example"), ("origin", "https://shop.example/path")],
        &[("host", "shop.example"), ("origin", "null")],
        &[("host", "null"), ("origin", "null")],
        &[("host", "shop.example"), ("origin", "")],
        &[("host", "shop.example"), ("origin", "shop.example")],
        &[("host", "shop.example"), ("origin", "file://shop.example")],
        &[("host", "shop.example"), ("origin", "https://shop.example"), ("origin", "https://evil.example")],
        &[("host", "shop.example"), ("x-forwarded-host", "evil.example"), ("origin", "https://evil.example")],
        &[("origin", "https://shop.example")],
    ] {
        let answer = login(&app, headers).await;
        assert_eq!(answer.status, 403, "{headers:?}");
        answer.assert_detail(403, REFUSED);
    }
    let headers = [("host", "shop.example"), ("sec-fetch-site", "cross-site")];
    for (method, path) in [
        (Method::POST, "/auth/register"),
        (Method::POST, "/auth/refresh"),
        (Method::POST, "/auth/logout"),
        (Method::POST, "/auth/password"),
        (Method::PATCH, "/users/1"),
        (Method::POST, "/auth/login/"),
    ] {
        send(&app, method, path, &headers, "x").await.assert_detail(403, REFUSED);
    }
    assert_eq!(app.rows().await, before);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn other_clients_can(pool: PgPool) {
    let app = TestApp::new(pool);
    for headers in [
        [].as_slice(),
        &[("host", "shop.example")],
        &[("host", "shop.example"), ("sec-fetch-site", "none")],
        &[("host", "shop.example"), ("sec-fetch-site", "same-site"), ("origin", "https://shop.example")],
        &[("host", "shop.example"), ("sec-fetch-site", "same-origin")],
        &[("host", "shop.example"), ("sec-fetch-site", "same-origin"), ("origin", "https://shop.example")],
        &[("host", "auth:8000"), ("sec-fetch-site", "same-origin"), ("origin", "https://shop.example")],
        &[("host", "shop.example"), ("origin", "http://shop.example")],
        &[("host", "SHOP.example"), ("origin", "HTTPS://shop.EXAMPLE")],
        &[("host", "shop.example:443"), ("origin", "https://shop.example")],
        &[("host", "shop.example"), ("origin", "http://shop.example:80")],
        &[("host", "localhost:8080"), ("origin", "http://localhost:8080")],
        &[("host", "[::1]:8000"), ("origin", "http://[::1]:8000")],
    ] {
        assert_eq!(login(&app, headers).await.status, 401, "{headers:?}");
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_request_that_carries_nothing_is_not_asked_where_it_comes_from(pool: PgPool) {
    let app = TestApp::new(pool);
    let headers = [("origin", "https://evil.example"), ("sec-fetch-site", "cross-site")];
    for method in [Method::GET, Method::HEAD] {
        assert_eq!(send(&app, method.clone(), "/auth/health", &headers, "").await.status, 200);
        assert_eq!(send(&app, method, "/auth/health", &headers, "x").await.status, 200);
    }
    assert_eq!(send(&app, Method::OPTIONS, "/auth/login", &headers, "x").await.status, 405);
    assert_eq!(send(&app, Method::POST, "/auth/login", &headers, "").await.status, 422);
    assert_eq!(send(&app, Method::DELETE, "/users/1", &headers, "").await.status, 401);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn an_origin_that_is_allowed_may_be_of_another_site(pool: PgPool) {
    let listed = TestApp::with(pool, &["--cors-allowed-origins=https://shop.example,https://app.example"]);
    let any = TestApp::with_clock(listed.db.clone(), &["--cors-allowed-origins=*"], listed.clock.clone());
    let from = |origin: &'static str| [("host", "auth.example"), ("sec-fetch-site", "cross-site"), ("origin", origin)];
    assert_eq!(login(&listed, &from("https://shop.example")).await.status, 401);
    assert_eq!(login(&any, &from("https://evil.example")).await.status, 401);
    assert_eq!(login(&any, &from("null")).await.status, 401);
    for origin in ["https://evil.example", "http://shop.example", "https://shop.example:8443", "null"] {
        login(&listed, &from(origin)).await.assert_detail(403, REFUSED);
    }
    let both = [("host", "auth.example"), ("origin", "https://shop.example"), ("origin", "https://app.example")];
    assert_eq!(login(&listed, &both).await.status, 401);
    let one = [("host", "auth.example"), ("origin", "https://shop.example"), ("origin", "https://evil.example")];
    login(&listed, &one).await.assert_detail(403, REFUSED);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_trusted_proxy_may_name_the_host(pool: PgPool) {
    let app = TestApp::with(pool, &["--trusted-proxies=10.0.0.0/8"]);
    let from = |origin: &'static str| {
        [("host", "auth:8000"), ("x-forwarded-host", "shop.example, gateway.internal"), ("origin", origin)]
    };
    assert_eq!(login(&app, &from("https://shop.example")).await.status, 401);
    login(&app, &from("https://evil.example")).await.assert_detail(403, REFUSED);
}
