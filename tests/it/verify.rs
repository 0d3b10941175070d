//! `/auth/verify`: what a gateway is told about a request.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use auth::app::App;
use auth::clock::Clock;
use auth::service::revocations::Feed;
use auth::{db, http};
use axum::body::{Body, Bytes, HttpBody};
use axum::http::Request;
use axum::http::request::Builder;
use hyper::body::Frame;
use serde_json::json;
use sqlx::PgPool;
use tower::ServiceExt;
use uuid::Uuid;

use crate::recorder::Recorder;
use crate::support::{Answer, Pair, SECRET, TestApp, claims, config, session_of, sign};

const IDENTITY: [&str; 4] = ["x-auth-email", "x-auth-role", "x-auth-session", "x-auth-expires"];

/// A body of which nothing ever comes.
struct Endless;

impl HttpBody for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Pending
    }
}

async fn ask(app: &TestApp, request: Builder) -> Answer {
    app.send(request.body(Body::empty()).unwrap()).await
}

async fn verify(app: &TestApp, path: &str, access: &str) -> Answer {
    app.get_as(path, access).await
}

#[track_caller]
fn assert_identity(answer: &Answer, expected: [&str; 4]) {
    assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, ""));
    assert_eq!(IDENTITY.map(|name| answer.header(name).unwrap()), expected);
}

#[track_caller]
fn assert_no_identity(answer: &Answer) {
    assert!(IDENTITY.iter().all(|name| !answer.headers.contains_key(*name)), "{:?}", answer.headers);
}

#[track_caller]
fn assert_allowed(answer: &Answer, tokens: &Pair, role: &str) {
    let (session, exp) = (tokens.session().to_string(), claims(&tokens.access)["exp"].to_string());
    assert_identity(answer, ["cust@example.com", role, &session, &exp]);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_good_token_is_allowed_with_any_method_and_says_whose_it_is(pool: PgPool) {
    let app = TestApp::new(pool);
    let tokens = app.customer("cust@example.com").await;
    let bearer = format!("Bearer {}", tokens.access);
    for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"] {
        for path in ["/auth/verify", "/auth/verify/", "/auth/verify/cart", "/auth/verify/a/b%ff/?optional=1&x"] {
            let request = Request::builder().method(method).uri(path).header("authorization", &bearer);
            assert_allowed(&ask(&app, request).await, &tokens, "customer");
        }
    }
    assert_allowed(&verify(&app, "/auth/verify?role=customer", &tokens.access).await, &tokens, "customer");
    assert_allowed(&verify(&app, "/auth/verify?optional=1", &tokens.access).await, &tokens, "customer");
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_refusal_says_why_and_names_nobody(pool: PgPool) {
    let app = TestApp::new(pool);
    let tokens = app.customer("cust@example.com").await;
    let other = app.login("cust@example.com").await;
    for (query, optional) in [("", false), ("?role=customer", false), ("?optional=1", true)] {
        let path = &format!("/auth/verify{query}");
        let answer = app.get(path).await;
        if optional {
            assert_identity(&answer, [""; 4]);
        } else {
            answer.assert_refused("Not authenticated", Some("missing"));
            assert_no_identity(&answer);
        }
        for token in ["rubbish", &tokens.refresh, &sign(&json!({"sub": "x"}), "another secret")] {
            verify(&app, path, token).await.assert_refused("Invalid access token", Some("invalid"));
        }
    }
    assert_eq!(app.logout(&other.refresh).await.status, 200);
    let answer = verify(&app, "/auth/verify?optional=1", &other.access).await;
    answer.assert_refused("Invalid access token", Some("ended"));
    assert_no_identity(&answer);
    app.advance(901);
    let answer = verify(&app, "/auth/verify/cart", &tokens.access).await;
    answer.assert_refused("Invalid access token", Some("expired"));
    assert_no_identity(&answer);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn our_own_routes_give_the_same_reasons(pool: PgPool) {
    let app = TestApp::new(pool);
    let tokens = app.customer("cust@example.com").await;
    app.get("/users/me").await.assert_refused("Not authenticated", Some("missing"));
    app.get_as("/users/me", "rubbish").await.assert_refused("Invalid access token", Some("invalid"));
    app.logout(&tokens.refresh).await;
    let recorder = Recorder::start();
    app.get_as("/users/me", &tokens.access).await.assert_refused("Invalid access token", Some("ended"));
    assert_eq!(recorder.take(), [""; 0]);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_route_for_administrators_is_forbidden_to_others(pool: PgPool) {
    let app = TestApp::new(pool);
    let customer = app.customer("cust@example.com").await;
    let answer = verify(&app, "/auth/verify?role=admin", &customer.access).await;
    answer.assert_detail(403, "Not permitted");
    assert_no_identity(&answer);
    // The token says what it said when it was issued.
    app.execute("UPDATE users SET role = 'admin'").await;
    assert_eq!(verify(&app, "/auth/verify?role=admin", &customer.access).await.status, 403);
    let admin = app.login("cust@example.com").await;
    assert_allowed(&verify(&app, "/auth/verify?role=admin", &admin.access).await, &admin, "admin");
    assert_eq!(app.get("/auth/verify?role=admin").await.status, 401);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_query_that_is_not_understood_opens_nothing(pool: PgPool) {
    let app = TestApp::new(pool);
    let tokens = app.customer("cust@example.com").await;
    for query in [
        "rolle=admin", "role=", "role=admin&role=customer", "role=customer&x", "optional=0", "optional",
        "optional=1&optional=1", "x=1",
    ] {
        let path = &format!("/auth/verify?{query}");
        app.get(path).await.assert_problems(&[("value_error", json!(["query", "*"]))]);
        verify(&app, path, &tokens.access).await.assert_problems(&[("value_error", json!(["query", "*"]))]);
    }
    assert_eq!(verify(&app, "/auth/verify?", &tokens.access).await.status, 200);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_client_cannot_ask_in_the_place_of_its_gateway(pool: PgPool) {
    let app = TestApp::new(pool);
    // The path behind ours is the client's, and so is its query.
    assert_eq!(app.get("/auth/verify/orders?optional=1").await.status, 401);
    // The path may be `/`.
    let tokens = app.customer("cust@example.com").await;
    for path in ["/auth/verify/", "/auth/verify//"] {
        assert_eq!(app.get(&format!("{path}?optional=1")).await.status, 401, "{path}");
        assert_eq!(verify(&app, &format!("{path}?role=admin"), &tokens.access).await.status, 200, "{path}");
    }
    let handed_on =
        |query: &str, uri: &str| Request::get(format!("/auth/verify{query}")).header("x-forwarded-uri", uri);
    let answer = ask(&app, handed_on("?optional=1", "/orders?optional=1")).await;
    answer.assert_problems(&[("value_error", json!(["query", "*"]))]);
    let answer = ask(&app, handed_on("?optional=1", "/orders?page=2")).await;
    assert_identity(&answer, [""; 4]);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn what_cannot_stand_in_a_header_is_percent_encoded(pool: PgPool) {
    let app = TestApp::new(pool);
    let session = Uuid::now_v7().to_string();
    let exp = app.now().and_utc().timestamp() + 900;
    let claims = json!({
        "sub": "jörg+50%\r\nx@exämple.com", "role": "caf\u{e9} staff", "exp": exp, "type": "access", "sid": session,
    });
    assert_identity(
        &verify(&app, "/auth/verify", &sign(&claims, SECRET)).await,
        ["j%C3%B6rg+50%25%0D%0Ax@ex%C3%A4mple.com", "caf%C3%A9%20staff", &session, &exp.to_string()],
    );
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_request_is_judged_by_its_token_alone(pool: PgPool) {
    let app = TestApp::with(pool, &["--cors-allowed-origins=https://shop.example"]);
    let tokens = app.customer("cust@example.com").await;
    let bearer = format!("Bearer {}", tokens.access);
    // Neither a page of another site, nor a body that never ends.
    let request = Request::post("/auth/verify")
        .header("authorization", &bearer)
        .header("origin", "https://elsewhere.example")
        .header("sec-fetch-site", "cross-site");
    assert_allowed(&app.send(request.body(Body::new(Endless)).unwrap()).await, &tokens, "customer");
    let preflight = Request::options("/auth/verify")
        .header("origin", "https://shop.example")
        .header("access-control-request-method", "PUT");
    let answer = ask(&app, preflight).await;
    answer.assert_refused("Not authenticated", Some("missing"));
    assert_eq!(answer.header("access-control-allow-origin"), None);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn it_is_decided_without_a_statement_and_without_a_database(pool: PgPool) {
    let app = TestApp::new(pool);
    let tokens = app.customer("cust@example.com").await;
    let ended = app.login("cust@example.com").await;
    app.logout(&ended.refresh).await;
    let recorder = Recorder::start();
    let all = async || {
        assert_allowed(&verify(&app, "/auth/verify", &tokens.access).await, &tokens, "customer");
        assert_eq!(verify(&app, "/auth/verify", &ended.access).await.status, 401);
        assert_eq!(verify(&app, "/auth/verify", "rubbish").await.status, 401);
        assert_eq!(app.get("/auth/verify?optional=1").await.status, 200);
        assert_eq!(verify(&app, "/auth/verify?role=admin", &tokens.access).await.status, 403);
    };
    all().await;
    assert_eq!(recorder.take(), [""; 0]);
    app.db.close().await;
    app.refresh_db.close().await;
    all().await;
    let metrics = app.get("/auth/metrics").await.body;
    for (outcome, times) in [("allowed", 2), ("ended", 2), ("invalid", 2), ("anonymous", 2), ("forbidden", 2)] {
        let line = format!("auth_verifications_total{{outcome=\"{outcome}\"}} {times}\n");
        assert!(metrics.contains(&line), "{line}");
    }
    assert!(metrics.contains("auth_revocation_entries 1\n"));
    assert!(metrics.contains("auth_revocation_age_seconds "));
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn before_the_first_reading_nothing_is_decided(pool: PgPool) {
    let refresh_db = db::refresh_pool(&pool.connect_options(), 1);
    let app = App::with_pools(config(&[]), Clock::system(), pool, &refresh_db).unwrap();
    let service = http::build(app.clone());
    let ask = async |path| service.clone().oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
    for path in ["/auth/verify", "/auth/verify?optional=1", "/auth/verify/cart", "/auth/ready"] {
        let answer = ask(path).await;
        assert_eq!(answer.status(), 503, "{path}");
        assert_eq!(answer.headers()["retry-after"], "1");
    }
    assert_eq!(ask("/auth/health").await.status(), 200);
    Feed::default().read(&app).await.unwrap();
    assert_eq!(ask("/auth/verify").await.status(), 401);
    assert_eq!(ask("/auth/ready").await.status(), 200);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_user_that_signs_in_again_is_somebody_else(pool: PgPool) {
    let app = TestApp::new(pool);
    let first = app.customer("cust@example.com").await;
    app.logout(&first.refresh).await;
    let second = app.login("cust@example.com").await;
    assert_ne!(session_of(&first.access), session_of(&second.access));
    assert_eq!(verify(&app, "/auth/verify", &first.access).await.status, 401);
    assert_allowed(&verify(&app, "/auth/verify", &second.access).await, &second, "customer");
}
