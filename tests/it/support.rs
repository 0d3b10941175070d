//! What all tests use: the service on a database of its own, with a clock that moves, and requests to it.

use std::future::Future;
use std::net::SocketAddr;

use auth::app::App;
use auth::clock::Clock;
use auth::config::{Config, Given};
use auth::http::{HttpService, Peer};
use auth::{db, http};
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use chrono::{NaiveDateTime, TimeDelta};
use clap::Parser;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sqlx::PgPool;
use sqlx::postgres::PgRow;
use tower::ServiceExt;
use uuid::Uuid;

use crate::forwarder::Forwarder;

/// At least 32 bytes, so that production would take it, too.
pub(crate) const SECRET: &str = "a secret that only the tests know!";
pub(crate) const PASSWORD: &str = "P@ssw0rd!";

/// The defaults of production that development opens.
pub(crate) const CLOSED: [&str; 2] = ["--register-open-roles=customer", "--users-list-access=admin"];

/// Where `SMTP_URL` and `MAIL_FROM` are not set, outside development.
pub(crate) const MAIL_OFF: [&str; 3] =
    ["--app-env=production", "--register-open-roles=customer,admin", "--jwt-secret=41d8d5f7c6a0b1e29f3be0a5a4f0c7d3"];

/// A service in development mode, with the throttle on; `settings` are flags as in `--refresh-grace-seconds=10`.
#[derive(Clone)]
pub(crate) struct TestApp {
    pub(crate) app: App,
    pub(crate) db: PgPool,
    pub(crate) refresh_db: PgPool,
    pub(crate) clock: Clock,
    service: HttpService,
}

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    settings: Given<Config>,
}

/// The configuration that `flags` make, over what tests need.
pub(crate) fn config(flags: &[&str]) -> Config {
    // A database address is required, but the pool of the test is used.
    let base = [
        "--app-env=development".to_owned(),
        "--postgres-dsn=postgres://unused".to_owned(),
        "--password-hash-concurrency=2".to_owned(),
        format!("--jwt-secret={SECRET}"),
    ];
    let name = |flag: &str| flag.split('=').next().map(str::to_owned);
    let given = |default: &String| flags.iter().any(|flag| name(flag) == name(default));
    let base = base.iter().filter(|default| !given(default)).map(String::as_str);
    let flags = std::iter::once("test").chain(base).chain(flags.iter().copied());
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

    /// Asserts status and sentence, and the headers that go with the status.
    #[track_caller]
    pub(crate) fn assert_detail(&self, status: u16, sentence: &str) {
        assert_eq!(
            (self.status.as_u16(), self.body.as_str()),
            (status, json!({"detail": sentence}).to_string().as_str())
        );
        assert_eq!(self.header("content-type"), Some("application/json"));
        assert_eq!(self.header("www-authenticate"), (status == 401).then_some("Bearer"));
        assert_eq!(self.headers.contains_key("retry-after"), status == 429 || status == 503);
        assert_eq!(self.header("cache-control"), Some("no-store"));
    }

    /// Asserts a 401 with this sentence and this reason.
    #[track_caller]
    pub(crate) fn assert_refused(&self, sentence: &str, reason: Option<&str>) {
        self.assert_detail(401, sentence);
        assert_eq!(self.header("x-auth-reason"), reason);
    }

    /// Asserts a 422 with just these problems, as type and place.
    #[track_caller]
    pub(crate) fn assert_problems(&self, problems: &[(&str, Value)]) {
        assert_eq!(self.status, 422, "{}", self.body);
        let detail = self.json()["detail"].as_array().unwrap().clone();
        let found: Vec<_> = detail.iter().map(|problem| (problem["type"].clone(), problem["loc"].clone())).collect();
        let expected: Vec<_> = problems.iter().map(|(kind, loc)| (json!(kind), loc.clone())).collect();
        assert_eq!(found, expected);
    }

    /// The seconds after which to come back.
    #[track_caller]
    pub(crate) fn retry_after(&self) -> i64 {
        self.header("retry-after").expect("no Retry-After").parse().unwrap()
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
        Self::with_refresh_connections(pool, flags, clock, auth::app::REFRESH_CONNECTIONS)
    }

    /// As many refresh batches at once as there are connections for them.
    pub(crate) fn with_refresh_connections(pool: PgPool, flags: &[&str], clock: Clock, connections: u32) -> Self {
        let config = config(flags);
        let refresh_db = db::refresh_pool(&pool.connect_options(), connections);
        let app = App::with_pools(config, clock.clone(), pool.clone(), &refresh_db).unwrap();
        Self { service: http::build(app.clone()), app, db: pool, refresh_db, clock }.after_the_first_reading()
    }

    /// As if the table of an empty database had been read. What ends elsewhere is not followed unless a test does so.
    fn after_the_first_reading(self) -> Self {
        self.app.revocations.add_read(&[], std::time::Instant::now());
        self
    }

    /// Reaches its database through `line`; the test itself has a connection of its own.
    pub(crate) fn behind(line: &Forwarder, pool: PgPool, flags: &[&str]) -> Self {
        let options = (*pool.connect_options()).clone().host("127.0.0.1").port(line.port());
        let refresh_db = db::refresh_pool(&options, auth::app::REFRESH_CONNECTIONS);
        let clock = Clock::system();
        let app = App::with_pools(config(flags), clock.clone(), db::pool(&options, 4), &refresh_db).unwrap();
        Self { service: http::build(app.clone()), app, db: pool, refresh_db, clock }.after_the_first_reading()
    }

    pub(crate) fn advance(&self, seconds: i64) {
        self.clock.advance(TimeDelta::seconds(seconds));
    }

    /// Now, as the tables have it.
    pub(crate) fn now(&self) -> NaiveDateTime {
        self.clock.now().naive_utc()
    }

    /// All rows of all tables: what a refused request must leave as it was.
    pub(crate) async fn rows(&self) -> Value {
        let mut all = Value::Null;
        for (table, query) in [
            ("users", "SELECT coalesce(jsonb_agg(row ORDER BY id), '[]') FROM users AS row"),
            ("refresh_tokens", "SELECT coalesce(jsonb_agg(row ORDER BY id), '[]') FROM refresh_tokens AS row"),
            ("sessions", "SELECT coalesce(jsonb_agg(row ORDER BY id), '[]') FROM sessions AS row"),
            ("mail_outbox", "SELECT coalesce(jsonb_agg(row ORDER BY id), '[]') FROM mail_outbox AS row"),
            ("mail_tokens", "SELECT coalesce(jsonb_agg(row ORDER BY token_hash), '[]') FROM mail_tokens AS row"),
            ("auth_throttle", "SELECT coalesce(jsonb_agg(row ORDER BY key), '[]') FROM auth_throttle AS row"),
        ] {
            all[table] = sqlx::query_scalar(query).fetch_one(&self.db).await.unwrap();
        }
        all
    }

    /// The one value that a query without parameters gives.
    pub(crate) async fn value<T>(&self, query: &'static str) -> T
    where
        (T,): for<'r> sqlx::FromRow<'r, PgRow>,
        T: Send + Unpin,
    {
        sqlx::query_scalar(query).fetch_one(&self.db).await.unwrap()
    }

    /// Runs a statement without parameters.
    pub(crate) async fn execute(&self, statement: &'static str) {
        sqlx::query(statement).execute(&self.db).await.unwrap();
    }

    /// Tokens of a session that are not revoked.
    pub(crate) async fn unrevoked(&self, session: Uuid) -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM refresh_tokens WHERE session_id = $1 AND NOT revoked")
            .bind(session)
            .fetch_one(&self.db)
            .await
            .unwrap()
    }

    /// Why a session ended, or None while it lives.
    pub(crate) async fn end_reason(&self, session: Uuid) -> Option<String> {
        sqlx::query_scalar("SELECT end_reason FROM sessions WHERE id = $1")
            .bind(session)
            .fetch_one(&self.db)
            .await
            .unwrap()
    }

    pub(crate) async fn user_id(&self, email: &str) -> i64 {
        sqlx::query_scalar("SELECT id FROM users WHERE email = $1").bind(email).fetch_one(&self.db).await.unwrap()
    }

    /// Adds a user as an adopted table may hold one.
    pub(crate) async fn insert_user(&self, email: &str, password_hash: &str) -> i64 {
        sqlx::query_scalar("INSERT INTO users (email, password_hash) VALUES ($1, $2) RETURNING id")
            .bind(email)
            .bind(password_hash)
            .fetch_one(&self.db)
            .await
            .unwrap()
    }

    /// A token as the Python service issued and stored it: it knows no sessions.
    pub(crate) async fn python_token(&self, email: &str, jti: &str) -> String {
        let expires = self.now() + TimeDelta::days(30);
        let exp = expires.and_utc().timestamp();
        let token = sign(&json!({"sub": email, "jti": jti, "exp": exp, "type": "refresh"}), SECRET);
        sqlx::query(
            "INSERT INTO refresh_tokens (user_id, jti, token_hash, expires_at)
             SELECT id, $2, $3, $4 FROM users WHERE email = $1",
        )
        .bind(email)
        .bind(jti)
        .bind(sha256(&token))
        .bind(expires)
        .execute(&self.db)
        .await
        .unwrap();
        token
    }

    /// Until so many statements wait for a lock in the database of the test.
    pub(crate) async fn until_blocked(&self, statements: i64) {
        let started = std::time::Instant::now();
        while self
            .value::<i64>(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
            )
            .await
            < statements
        {
            assert!(started.elapsed().as_secs() < 30, "nothing is blocked");
        }
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

    /// A login that may fail.
    pub(crate) async fn try_login(&self, email: &str, password: &str) -> Answer {
        self.post("/auth/login", json!({"email": email, "password": password})).await
    }

    /// Refreshes one token so many times at once.
    pub(crate) async fn refresh_together(&self, token: &str, times: usize) -> Vec<Answer> {
        let (app, token) = (self.clone(), token.to_owned());
        together((0..times).map(|_| {
            let (app, token) = (app.clone(), token.clone());
            async move { app.refresh(&token).await }
        }))
        .await
    }
}

impl Pair {
    /// The session of both tokens.
    pub(crate) fn session(&self) -> Uuid {
        session_of(&self.refresh)
    }
}

/// The session a token names.
pub(crate) fn session_of(token: &str) -> Uuid {
    claims(token)["sid"].as_str().unwrap().parse().unwrap()
}

/// Runs all at once, and gives what came of each in their order.
pub(crate) async fn together<F>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    let tasks: Vec<_> = futures.into_iter().map(tokio::spawn).collect();
    let mut outcomes = Vec::new();
    for task in tasks {
        outcomes.push(task.await.unwrap());
    }
    outcomes
}

/// How many of the answers have a status.
pub(crate) fn count(answers: &[Answer], status: u16) -> usize {
    answers.iter().filter(|answer| answer.status == status).count()
}

/// SHA-256 in hex digits.
pub(crate) fn sha256(text: &str) -> String {
    Sha256::digest(text).iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
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

/// The claims of a token as they were written.
pub(crate) fn payload(token: &str) -> String {
    jsonwebtoken::dangerous::insecure_decode::<Value>(token).unwrap().claims.to_string()
}

/// Signs any claims as the service would.
pub(crate) fn sign(claims: &Value, secret: &str) -> String {
    let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), claims, &key).unwrap()
}
