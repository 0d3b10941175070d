//! What all tests use: the service on a database of its own, with a clock that moves, and requests to it.

use std::net::SocketAddr;

use auth::app::App;
use auth::clock::Clock;
use auth::config::{Config, Settings};
use auth::http::{Peer, Service};
use auth::{db, http};
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use chrono::TimeDelta;
use clap::Parser;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use sqlx::PgPool;
use tower::ServiceExt;

/// At least 32 bytes, so that production would take it, too.
pub(crate) const SECRET: &str = "a secret that only the tests know!";
pub(crate) const PASSWORD: &str = "P@ssw0rd!";

/// A service in development mode, with the throttle on; `settings` are flags as in `--refresh-grace-answer=replay`.
pub(crate) struct TestApp {
    pub(crate) app: App,
    pub(crate) db: PgPool,
    pub(crate) clock: Clock,
    service: Service,
}

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    settings: Settings,
}

/// The configuration that `flags` make, over what tests need.
pub(crate) fn config(flags: &[&str]) -> Config {
    // A database address is required, but the pool of the test is used.
    let base = ["test", "--app-env=development", "--postgres-dsn=postgres://unused", "--password-hash-concurrency=2"];
    let secret = format!("--jwt-secret={SECRET}");
    let secret = if flags.iter().any(|flag| flag.starts_with("--jwt-secret=")) { None } else { Some(secret) };
    let flags = base.iter().map(ToString::to_string).chain(secret).chain(flags.iter().map(ToString::to_string));
    Flags::try_parse_from(flags).unwrap().settings.resolve().unwrap()
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.body))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// Asserts status and sentence.
    #[track_caller]
    pub(crate) fn assert_detail(&self, status: u16, sentence: &str) {
        assert_eq!(
            (self.status.as_u16(), self.body.as_str()),
            (status, json!({"detail": sentence}).to_string().as_str())
        );
    }
}

/// A pair of tokens, as a client keeps them.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) access: String,
    pub(crate) refresh: String,
}

impl TestApp {
    pub(crate) fn new(pool: PgPool) -> Self {
        Self::with(pool, &[])
    }

    pub(crate) fn with(pool: PgPool, flags: &[&str]) -> Self {
        Self::with_clock(pool, flags, Clock::system())
    }

    /// Another replica on the same database would share the clock, too.
    pub(crate) fn with_clock(pool: PgPool, flags: &[&str], clock: Clock) -> Self {
        let refresh_pool = db::refresh_pool(&pool.connect_options(), 2);
        let app = App::with_pools(config(flags), clock.clone(), pool.clone(), refresh_pool).unwrap();
        Self { service: http::service(app.clone()), app, db: pool, clock }
    }

    pub(crate) fn advance(&self, seconds: i64) {
        self.clock.advance(TimeDelta::seconds(seconds));
    }

    /// Sends any request; the peer is 127.0.0.1 unless the request says otherwise by a [`Peer`] extension.
    pub(crate) async fn send(&self, mut request: Request<Body>) -> Answer {
        if request.extensions().get::<Peer>().is_none() {
            request.extensions_mut().insert(Peer(SocketAddr::from(([127, 0, 0, 1], 4711))));
        }
        let response = self.service.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: parts.status, headers: parts.headers, body: String::from_utf8(body.to_vec()).unwrap() }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    pub(crate) async fn get_as(&self, path: &str, access: &str) -> Answer {
        self.request_as(Method::GET, path, access, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.post_raw(path, Some("application/json"), body.to_string()).await
    }

    pub(crate) async fn post_raw(&self, path: &str, content_type: Option<&str>, body: impl Into<Body>) -> Answer {
        let mut request = Request::post(path);
        if let Some(content_type) = content_type {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        self.send(request.body(body.into()).unwrap()).await
    }

    /// As POST, but from another address.
    pub(crate) async fn post_from(&self, ip: &str, path: &str, body: Value) -> Answer {
        let peer = Peer(SocketAddr::new(ip.parse().unwrap(), 4711));
        let request = Request::post(path).header(header::CONTENT_TYPE, "application/json").extension(peer);
        self.send(request.body(body.to_string().into()).unwrap()).await
    }

    /// With a bearer token.
    pub(crate) async fn request_as(&self, method: Method, path: &str, access: &str, body: Option<Value>) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        request = request.header(header::AUTHORIZATION, format!("Bearer {access}"));
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = body.map_or_else(Body::empty, |body| body.to_string().into());
        self.send(request.body(body).unwrap()).await
    }

    /// Registers `email` with [`PASSWORD`].
    pub(crate) async fn register(&self, email: &str, role: &str) {
        let answer = self.post("/auth/register", json!({"email": email, "password": PASSWORD, "role": role})).await;
        assert_eq!(answer.status, 201, "{}", answer.body);
    }

    pub(crate) async fn login(&self, email: &str) -> Pair {
        let answer = self.post("/auth/login", json!({"email": email, "password": PASSWORD})).await;
        pair(&answer)
    }

    /// Registers a customer and signs in.
    pub(crate) async fn customer(&self, email: &str) -> Pair {
        self.register(email, "customer").await;
        self.login(email).await
    }

    pub(crate) async fn refresh(&self, token: &str) -> Answer {
        self.post("/auth/refresh", json!({"refresh_token": token})).await
    }

    pub(crate) async fn logout(&self, token: &str) -> Answer {
        self.post("/auth/logout", json!({"refresh_token": token})).await
    }
}

/// The tokens in an answer that must be a success.
#[track_caller]
pub(crate) fn pair(answer: &Answer) -> Pair {
    assert_eq!(answer.status, 200, "{}", answer.body);
    let body = answer.json();
    let token = |name: &str| body[name].as_str().unwrap().to_owned();
    Pair { access: token("access_token"), refresh: token("refresh_token") }
}

/// The claims of a token, unverified.
pub(crate) fn claims(token: &str) -> Value {
    jsonwebtoken::dangerous::insecure_decode::<Value>(token).unwrap().claims
}

/// Signs any claims as the service would.
pub(crate) fn sign(claims: &Value, secret: &str) -> String {
    let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), claims, &key).unwrap()
}
