//! What holds for every request: paths, methods, limits, headers, ids.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Method, Request};
use futures_util::{StreamExt, stream};
use hyper::body::Frame;
use serde_json::json;
use sqlx::PgPool;
use tokio::task::JoinSet;

use crate::recorder::Recorder;
use crate::support::{Answer, PASSWORD, TestApp};

async fn send(app: &TestApp, method: &str, path: &str) -> Answer {
    app.send(Request::builder().method(method).uri(path).body(Body::empty()).unwrap()).await
}

#[track_caller]
fn assert_has_the_headers_of_every_answer(answer: &Answer) {
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
        ("cache-control", "no-store"),
        ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
    ] {
        assert_eq!(answer.header(name), Some(value), "{name}");
    }
    assert!(answer.header("x-request-id").is_some_and(|id| id.len() == 36), "{:?}", answer.header("x-request-id"));
    assert_eq!(answer.header("access-control-allow-origin"), None);
    assert_eq!(answer.header("server"), None);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn an_unknown_path_is_404_whatever_the_method(pool: PgPool) {
    let app = TestApp::new(pool);
    for method in ["GET", "POST", "DELETE", "OPTIONS", "HEAD", "BREW"] {
        for path in
            ["/", "/nowhere", "/auth", "/auth/", "/auth/login/x", "/users/1/x", "/AUTH/login", "/auth//login", "//"]
        {
            let answer = send(&app, method, path).await;
            assert_eq!(answer.status, 404, "{method} {path}");
            assert_has_the_headers_of_every_answer(&answer);
            if method != "HEAD" {
                answer.assert_detail(404, "Not Found");
            }
        }
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_path_that_is_no_text_names_nothing(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register("admin@example.com", "admin").await;
    let admin = app.login("admin@example.com").await;
    for (method, path) in [
        (Method::GET, "/users/%ff/sessions"),
        (Method::DELETE, "/users/%ff/sessions"),
        (Method::GET, "/users/%ff"),
        (Method::DELETE, "/users/%ff"),
        (Method::PATCH, "/users/%ff"),
        (Method::DELETE, "/auth/sessions/%c3%28"),
        (Method::GET, "/auth/docs/%ff"),
    ] {
        app.request_as(method, path, &admin.access, None).await.assert_detail(404, "Not Found");
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_wrong_method_is_405_and_names_the_right_ones(pool: PgPool) {
    let app = TestApp::new(pool);
    for (path, allow) in [
        ("/auth/register", "POST"),
        ("/auth/login", "POST"),
        ("/auth/refresh", "POST"),
        ("/auth/logout", "POST"),
        ("/auth/password", "POST"),
        ("/auth/password/forgot", "POST"),
        ("/auth/password/reset", "POST"),
        ("/auth/email/verify", "POST"),
        ("/auth/email/verify/resend", "POST"),
        ("/auth/sessions", "GET, HEAD"),
        ("/auth/sessions/x", "DELETE"),
        ("/users/", "GET, HEAD"),
        ("/users/me", "GET, HEAD"),
        ("/auth/health", "GET, HEAD"),
        ("/health", "GET, HEAD"),
        ("/auth/ready", "GET, HEAD"),
        ("/v1/_info", "GET, HEAD"),
        ("/auth/.well-known/jwks.json", "GET, HEAD"),
    ] {
        for method in ["PUT", "BREW", "OPTIONS", "TRACE", "get"] {
            let answer = send(&app, method, path).await;
            assert_eq!(answer.header("allow"), Some(allow), "{method} {path}");
            answer.assert_detail(405, "Method Not Allowed");
            assert_has_the_headers_of_every_answer(&answer);
        }
    }
    let answer = send(&app, "PUT", "/users/1").await;
    answer.assert_detail(405, "Method Not Allowed");
    let mut allow: Vec<_> = answer.header("allow").unwrap().split(", ").collect();
    allow.sort_unstable();
    assert_eq!(allow, ["DELETE", "GET", "HEAD", "PATCH"]);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_trailing_slash_more_or_less_makes_no_difference(pool: PgPool) {
    let app = TestApp::new(pool);
    let tokens = app.customer("cust@example.com").await;
    for (path, other) in [
        ("/users/", "/users"),
        ("/users/?limit=1", "/users?limit=1"),
        ("/auth/health", "/auth/health/"),
        ("/users/", "/users//"),
    ] {
        let (one, two) = (app.get(path).await, app.get(other).await);
        assert_eq!((one.status.as_u16(), &one.body), (200, &two.body), "{other}");
        assert_eq!(two.status, 200, "{other}");
    }
    assert_eq!(app.get_as("/users/me/", &tokens.access).await.status, 200);
    assert_eq!(app.get_as("/auth/sessions/", &tokens.access).await.status, 200);
    let body = json!({"email": "cust@example.com", "password": PASSWORD});
    assert_eq!(app.post("/auth/login/", body.clone()).await.status, 200);
    assert_eq!(app.post("/auth/register/", body).await.status, 409);
    assert_eq!(app.post("/auth/refresh/", json!({"refresh_token": "x"})).await.status, 401);
    app.get("/auth/login/").await.assert_detail(405, "Method Not Allowed");
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn head_is_get_without_the_body(pool: PgPool) {
    let app = TestApp::new(pool);
    for path in
        ["/auth/health", "/health", "/auth/ready", "/users/", "/users", "/v1/_info", "/auth/.well-known/jwks.json"]
    {
        let (get, head) = (send(&app, "GET", path).await, send(&app, "HEAD", path).await);
        assert_eq!((head.status, head.body.as_str()), (get.status, ""), "{path}");
        assert_eq!(head.header("content-type"), get.header("content-type"), "{path}");
        if let Some(length) = head.header("content-length") {
            assert_eq!(length, get.body.len().to_string());
        }
    }
    assert_eq!(send(&app, "HEAD", "/users/me").await.status, 401);
    assert_eq!(send(&app, "HEAD", "/auth/login").await.status, 405);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_body_has_at_most_64_kib(pool: PgPool) {
    let app = TestApp::new(pool);
    let before = app.rows().await;
    let body = |size: usize| {
        let frame = json!({"refresh_token": ""}).to_string().len();
        json!({"refresh_token": "x".repeat(size - frame)}).to_string()
    };
    assert_eq!(body(65_536).len(), 65_536);
    assert_eq!(app.post_raw("/auth/refresh", None, body(65_536)).await.status, 401);
    for path in ["/auth/refresh", "/auth/login", "/auth/register", "/auth/logout"] {
        app.post_raw(path, None, body(65_537)).await.assert_detail(413, "Request body too large");
        app.post_raw(path, Some("text/plain"), "x".repeat(2_000_000))
            .await
            .assert_detail(413, "Request body too large");
    }
    // Announced, and not even sent; and the other way round, in pieces of unknown number.
    let announced = Request::post("/auth/login").header("content-length", "1000000000");
    app.send(announced.body(Body::empty()).unwrap()).await.assert_detail(413, "Request body too large");
    let endless = Pieces(Box::new(|| Some(Ok(Bytes::from(vec![b' '; 10_000])))));
    let endless = Request::post("/auth/login").body(Body::new(endless)).unwrap();
    app.send(endless).await.assert_detail(413, "Request body too large");
    assert_eq!(app.rows().await, before);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn of_many_large_bodies_that_do_not_end_few_are_held(pool: PgPool) {
    let app = TestApp::new(pool);
    let mut large = JoinSet::new();
    for _ in 0..200 {
        let app = app.clone();
        let begun = stream::iter([Ok::<_, std::io::Error>(Bytes::from(vec![b' '; 10_000]))]);
        let body = Body::from_stream(begun.chain(stream::pending()));
        large.spawn(async move { app.send(Request::post("/auth/login").body(body).unwrap()).await });
    }
    for _ in 128..200 {
        let answer = large.join_next().await.unwrap().unwrap();
        answer.assert_detail(503, "Service busy, try again later");
    }
    // They are in nobody's way.
    assert_eq!(app.try_login("nobody@example.com", "not the password").await.status, 401);
    large.shutdown().await;
    let complete = format!("{}{}", " ".repeat(60_000), json!({"refresh_token": "x"}));
    assert_eq!(app.post_raw("/auth/refresh", None, complete).await.status, 401);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_body_that_breaks_off_is_no_failure_of_ours(pool: PgPool) {
    let app = TestApp::new(pool);
    let mut pieces =
        vec![Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset)), Ok(Bytes::from_static(b"{\"email\":"))];
    let broken = Pieces(Box::new(move || pieces.pop()));
    let request = Request::post("/auth/login").body(Body::new(broken)).unwrap();
    app.send(request).await.assert_detail(400, "There was an error parsing the body");
}

type Piece = Result<Bytes, std::io::Error>;

/// A body that comes in pieces, as long as there are any.
struct Pieces(Box<dyn FnMut() -> Option<Piece> + Send>);

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        Poll::Ready((self.0)().map(|piece| piece.map(Frame::data)))
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_request_id_comes_back_if_it_can_stand_in_a_log(pool: PgPool) {
    let app = TestApp::new(pool);
    let ask = async |id: HeaderValue| {
        let request = Request::get("/auth/health").header("x-request-id", id).body(Body::empty()).unwrap();
        app.send(request).await.header("x-request-id").unwrap().to_owned()
    };
    let longest = "x".repeat(128);
    for id in
        ["1", "req-4711", "0198c0de-0000-7000-8000-000000000000", "Root=1-67891233-abcdef012345678912345678", &longest]
    {
        assert_eq!(ask(HeaderValue::from_str(id).unwrap()).await, id);
    }
    let mut fresh = std::collections::HashSet::new();
    let too_long = "x".repeat(129);
    for rubbish in [
        b"".as_slice(),
        b"a b",
        b"\"x\"",
        b"x\ty",
        b"{\"id\":1}",
        b"<script>",
        b"\xff\xfe",
        b"a,b",
        too_long.as_bytes(),
    ] {
        let id = ask(HeaderValue::from_bytes(rubbish).unwrap()).await;
        assert!(id.len() == 36 && id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-'), "{id}");
        assert!(fresh.insert(id));
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn every_answer_has_the_security_headers_and_an_id(pool: PgPool) {
    let app = TestApp::new(pool);
    let tokens = app.customer("cust@example.com").await;
    let login = |password: &str| json!({"email": "cust@example.com", "password": password});
    for (status, answer) in [
        (200, app.get("/auth/health").await),
        (200, app.post("/auth/login", login(PASSWORD)).await),
        (200, app.refresh(&tokens.refresh).await),
        (401, app.post("/auth/login", login("not the password")).await),
        (401, app.get("/users/me").await),
        (400, app.post_raw("/auth/login", None, b"\xff".as_slice()).await),
        (404, app.get("/nowhere").await),
        (405, app.get("/auth/login").await),
        (409, app.post("/auth/register", login(PASSWORD)).await),
        (413, app.post_raw("/auth/login", None, vec![b' '; 70_000]).await),
        (422, app.post("/auth/login", json!({})).await),
    ] {
        assert_eq!(answer.status, status);
        assert_has_the_headers_of_every_answer(&answer);
        assert_eq!(answer.header("www-authenticate"), (status == 401).then_some("Bearer"));
    }
    app.db.close().await;
    assert_has_the_headers_of_every_answer(&app.get("/auth/ready").await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn cors_is_off_unless_origins_are_named(pool: PgPool) {
    let off = TestApp::new(pool);
    let flags = ["--cors-allowed-origins=https://shop.example,http://localhost:3000"];
    let on = TestApp::with_clock(off.db.clone(), &flags, off.clock.clone());
    let any = TestApp::with_clock(off.db.clone(), &["--cors-allowed-origins=*"], off.clock.clone());
    let ask = async |app: &TestApp, method: Method, origin: &str| {
        let request = Request::builder().method(method).uri("/auth/login").header("origin", origin);
        let request = request.header("access-control-request-method", "POST");
        app.send(request.body(Body::empty()).unwrap()).await
    };
    for method in [Method::OPTIONS, Method::POST] {
        let answer = ask(&off, method, "https://shop.example").await;
        assert!(answer.headers.keys().all(|name| !name.as_str().starts_with("access-control-")));
    }
    for origin in ["https://shop.example", "http://localhost:3000"] {
        let preflight = ask(&on, Method::OPTIONS, origin).await;
        assert_eq!((preflight.status.as_u16(), preflight.header("access-control-allow-origin")), (200, Some(origin)));
        let methods = preflight.header("access-control-allow-methods").unwrap();
        assert!(["GET", "POST", "PATCH", "DELETE"].iter().all(|method| methods.contains(method)), "{methods}");
        let headers = preflight.header("access-control-allow-headers").unwrap().to_lowercase();
        assert!(headers.contains("authorization") && headers.contains("content-type"), "{headers}");
        let actual = ask(&on, Method::POST, origin).await;
        assert_eq!((actual.status.as_u16(), actual.header("access-control-allow-origin")), (422, Some(origin)));
        let exposed = actual.header("access-control-expose-headers").unwrap().to_lowercase();
        assert!(["link", "retry-after", "x-auth-reason"].iter().all(|name| exposed.contains(name)), "{exposed}");
        assert_eq!(actual.header("access-control-allow-credentials"), None);
        assert!(actual.header("vary").is_some_and(|vary| vary.to_lowercase().contains("origin")));
    }
    for origin in ["https://evil.example", "https://shop.example.evil.example", "http://shop.example", "null"] {
        let answer = ask(&on, Method::OPTIONS, origin).await;
        assert_eq!(answer.header("access-control-allow-origin"), None, "{origin}");
        assert_eq!(ask(&any, Method::POST, origin).await.header("access-control-allow-origin"), Some("*"));
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_request_that_takes_too_long_is_told_to_come_back(pool: PgPool) {
    let app = TestApp::with(pool, &["--request-timeout-seconds=1"]);
    let tokens = app.customer("cust@example.com").await;
    let mut holder = app.db.begin().await.unwrap();
    sqlx::query("SELECT FROM refresh_tokens FOR UPDATE").execute(&mut *holder).await.unwrap();
    let started = Instant::now();
    let answer = app.refresh(&tokens.refresh).await;
    assert!(started.elapsed() >= Duration::from_secs(1));
    answer.assert_detail(503, "Request timed out");
    assert_eq!(answer.retry_after(), 1);
    assert_has_the_headers_of_every_answer(&answer);
    holder.commit().await.unwrap();
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_body_is_json_by_whatever_name_and_nothing_else(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register("cust@example.com", "customer").await;
    let body = json!({"email": "cust@example.com", "password": PASSWORD}).to_string();
    for content_type in
        [None, Some(""), Some("application/json"), Some("application/json; charset=latin1"), Some("application/x+json")]
    {
        let answer = app.post_raw("/auth/login", content_type, body.clone()).await;
        assert_eq!(answer.status, 200, "{content_type:?}");
    }
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json"] {
        let answer = app.post_raw("/auth/login", Some(content_type), body.clone()).await;
        answer.assert_problems(&[("model_attributes_type", json!(["body"]))]);
        assert!(!answer.body.contains(PASSWORD), "{}", answer.body);
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_failure_of_the_database_is_logged_without_the_line_of_its_source(pool: PgPool) {
    let app = TestApp::new(pool);
    let recorder = Recorder::start();
    app.execute("ALTER TABLE users RENAME TO moved").await;
    app.try_login("cust@example.com", PASSWORD).await.assert_detail(503, "Service unavailable, try again later");
    assert_eq!(recorder.take_lines(), [r#"the database failed: relation "users" does not exist"#]);
}
