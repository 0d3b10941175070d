//! What a collector receives, and what the service does without one.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as AnyValue;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::stack::{Answer, Database, Service, client, post, send};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SENDER: &str = "00f067aa0ba902b7";
const PASSWORD: &str = "Cust-pass1";
const EMAIL: &str = "cust@example.com";

/// A receiver of OTLP over HTTP.
struct Collector {
    address: SocketAddr,
    received: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
}

impl Collector {
    async fn start() -> Self {
        let received = Arc::default();
        let store: Arc<Mutex<Vec<_>>> = Arc::clone(&received);
        let receive = move |body: Bytes| async move {
            store.lock().expect("no holder panics").push(ExportTraceServiceRequest::decode(body).expect("it is OTLP"));
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
        let address = listener.local_addr().expect("it listens");
        let router = axum::Router::new().route("/v1/traces", axum::routing::post(receive));
        tokio::spawn(async { axum::serve(listener, router).await });
        Self { address, received }
    }

    fn requests(&self) -> Vec<ExportTraceServiceRequest> {
        self.received.lock().expect("no holder panics").clone()
    }

    fn spans(&self) -> Vec<Span> {
        let scopes = self.requests().into_iter().flat_map(|request| request.resource_spans);
        scopes.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans).collect()
    }

    /// Waits for a span.
    async fn wait_for(&self, wanted: impl Fn(&Span) -> bool) -> Span {
        let started = Instant::now();
        loop {
            if let Some(span) = self.spans().into_iter().find(&wanted) {
                return span;
            }
            assert!(started.elapsed() < Duration::from_secs(20), "no such span in {:#?}", self.spans());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn child(&self, parent: &Span, name: &str) -> Span {
        let spans = self.spans();
        let child = spans.iter().find(|span| span.parent_span_id == parent.span_id && span.name == name);
        child.unwrap_or_else(|| panic!("{} has no {name} in {spans:#?}", parent.name)).clone()
    }
}

/// A service that sends its spans at once.
async fn traced(database: &Database, collector: SocketAddr, settings: &[(&str, &str)]) -> Service {
    let endpoint = format!("http://{collector}");
    let base =
        [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("OTEL_BSP_SCHEDULE_DELAY", "20"), ("LOG_FORMAT", "json")];
    Service::start_with(&database.dsn(), &[&base, settings].concat()).await
}

async fn post_with(service: &Service, path: &str, body: &Value, traceparent: &str) -> Answer {
    send(client().post(service.url(path)).json(body).header("traceparent", traceparent)).await
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn attribute(span: &Span, name: &str) -> Option<AnyValue> {
    span.attributes.iter().find(|attribute| attribute.key == name)?.value.clone()?.value
}

/// Waits for the nth line of the log whose field has a value.
async fn logged(service: &Service, field: &str, value: &str, nth: usize) -> Value {
    let started = Instant::now();
    loop {
        let log = service.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        if let Some(line) = lines.filter(|line| line[field] == value).nth(nth) {
            return line;
        }
        assert!(started.elapsed() < Duration::from_secs(10), "no line has {field}={value}:\n{log}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn sign_up(service: &Service) -> Value {
    let account = json!({"email": EMAIL, "password": PASSWORD});
    assert_eq!(post(&service.url("/auth/register"), &account).await.status, 201);
    account
}

#[tokio::test]
async fn the_log_does_not_say_what_is_secret_in_the_collectors_url() {
    let database = Database::create().await;
    let endpoint = "http://user:hidden-pass@127.0.0.1:9/v1/traces?key=hidden-key";
    let settings = [
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", endpoint),
        ("OTEL_BSP_SCHEDULE_DELAY", "20"),
        ("LOG_FORMAT", "json"),
        ("LOG_LEVEL", "trace"),
    ];
    let service = Service::start_with(&database.dsn(), &settings).await;
    sign_up(&service).await;
    logged(&service, "name", "BatchSpanProcessor.ExportError", 0).await;
    assert!(!service.log().contains("hidden"), "{}", service.log());
}

#[tokio::test]
async fn one_login_and_one_refresh_are_followed_from_the_gateway_to_the_statement() {
    let (database, collector) = (Database::create().await, Collector::start().await);
    let service = traced(&database, collector.address, &[("TRUSTED_PROXIES", "127.0.0.0/8")]).await;
    let account = sign_up(&service).await;
    let traceparent = format!("00-{TRACE}-{SENDER}-01");
    let login = post_with(&service, "/auth/login", &account, &traceparent).await;
    let token = login.text("refresh_token");
    let refreshed = post_with(&service, "/auth/refresh", &json!({"refresh_token": token}), &traceparent).await;
    assert_eq!(refreshed.status, 200);

    let refresh = collector.wait_for(|span| span.name == "POST /auth/refresh").await;
    let login_span = collector.wait_for(|span| span.name == "POST /auth/login").await;
    for span in [&login_span, &refresh] {
        assert_eq!((hex(&span.trace_id).as_str(), hex(&span.parent_span_id).as_str()), (TRACE, SENDER));
        assert_eq!(attribute(span, "http.response.status_code"), Some(AnyValue::IntValue(200)));
        let batch = collector.child(span, "batch");
        assert_eq!(attribute(&batch, "calls"), Some(AnyValue::IntValue(1)));
        assert_eq!(hex(&batch.links[0].span_id), hex(&span.span_id));
        assert_eq!(hex(&span.links[0].span_id).len(), 16);
        let statement = collector.child(&batch, "statement");
        assert!(matches!(attribute(&statement, "db.query.text"), Some(AnyValue::StringValue(_))), "{statement:?}");
        assert!(statement.start_time_unix_nano >= batch.start_time_unix_nano);
    }
    let hash = collector.child(&login_span, "hash");
    for name in ["wait_ms", "work_ms"] {
        assert!(matches!(attribute(&hash, name), Some(AnyValue::DoubleValue(_))), "{name} of {hash:?}");
    }

    let requests = collector.requests();
    let resource = format!("{:?}", requests[0].resource_spans[0].resource);
    assert!(resource.contains(r#"key: "service.name""#) && resource.contains(r#"StringValue("auth")"#), "{resource}");
    let everything = format!("{requests:?}");
    let signature = token.rsplit('.').next().expect("a token has parts");
    for secret in [EMAIL, PASSWORD, signature, &refreshed.text("access_token")] {
        assert!(!everything.contains(secret), "{secret} stands in {everything}");
    }
    for (field, value) in [("route", "/auth/login"), ("event", "login")] {
        let span = &logged(&service, field, value, 0).await["span"];
        assert_eq!((&span["name"], &span["trace_id"]), (&json!("request"), &json!(TRACE)));
        assert!(span["id"].is_string(), "{span}");
    }
}

#[tokio::test]
async fn a_strangers_trace_is_linked_to_and_decides_nothing() {
    let (database, collector) = (Database::create().await, Collector::start().await);
    let service = traced(&database, collector.address, &[("OTEL_SERVICE_NAME", "sign-in")]).await;
    let account = sign_up(&service).await;
    // It says that it is not recorded.
    let login = post_with(&service, "/auth/login", &account, &format!("00-{TRACE}-{SENDER}-00")).await;
    assert_eq!(login.status, 200);
    let span = collector.wait_for(|span| span.name == "POST /auth/login").await;
    assert_ne!(hex(&span.trace_id), TRACE);
    assert_eq!(span.parent_span_id, [0_u8; 0]);
    assert!(span.links.iter().any(|link| hex(&link.trace_id) == TRACE), "{span:?}");
    let line = logged(&service, "route", "/auth/login", 0).await;
    assert_eq!(line["span"]["trace_id"], json!(hex(&span.trace_id)));
    assert!(format!("{:?}", collector.requests()).contains("sign-in"));
    let names: BTreeSet<_> = collector.spans().into_iter().map(|span| span.name).collect();
    assert!(!names.iter().any(|name| name.contains("health")), "a probe is traced: {names:?}");
}

#[tokio::test]
async fn a_batch_has_links_to_the_requests_in_it() {
    let (database, collector) = (Database::create().await, Collector::start().await);
    let service = traced(&database, collector.address, &[]).await;
    let account = sign_up(&service).await;
    let mut tokens = Vec::new();
    for _ in 0..16 {
        tokens.push(post(&service.url("/auth/login"), &account).await.text("refresh_token"));
    }
    let shared =
        |span: &Span| span.name == "batch" && matches!(attribute(span, "calls"), Some(AnyValue::IntValue(2..)));
    let mut rounds = 0;
    while !collector.spans().iter().any(shared) {
        rounds += 1;
        assert!(rounds < 50, "refreshes at once are never batched");
        let refreshes = tokens.drain(..).map(|token| {
            let url = service.url("/auth/refresh");
            tokio::spawn(async move { post(&url, &json!({"refresh_token": token})).await.text("refresh_token") })
        });
        for refresh in refreshes.collect::<Vec<_>>() {
            tokens.push(refresh.await.expect("a refresh succeeds"));
        }
    }
    let batch = collector.wait_for(shared).await;
    let Some(AnyValue::IntValue(calls)) = attribute(&batch, "calls") else { panic!("{batch:?}") };
    let linked: BTreeSet<_> = batch.links.iter().map(|link| hex(&link.span_id)).collect();
    assert_eq!(i64::try_from(linked.len()), Ok(calls));
    for id in linked {
        let request = collector.wait_for(|span| hex(&span.span_id) == id).await;
        assert_eq!(request.name, "POST /auth/refresh");
        assert!(request.links.iter().any(|link| link.span_id == batch.span_id), "{request:?}");
    }
}

#[tokio::test]
async fn without_a_collector_the_trace_of_the_gateway_is_in_every_line() {
    let database = Database::create().await;
    let service = Service::start_with(&database.dsn(), &[("LOG_FORMAT", "json")]).await;
    let account = sign_up(&service).await;
    let login = post_with(&service, "/auth/login", &account, &format!("00-{TRACE}-{SENDER}-01")).await;
    assert_eq!(login.status, 200);
    for (field, value) in [("route", "/auth/login"), ("event", "login")] {
        assert_eq!(logged(&service, field, value, 0).await["span"]["trace_id"], json!(TRACE));
    }
    // One that is malformed, and none at all.
    post_with(&service, "/auth/login", &account, &format!("00-{TRACE}-{SENDER}-01-x")).await;
    for (route, nth) in [("/auth/login", 1), ("/auth/register", 0)] {
        assert_eq!(logged(&service, "route", route, nth).await["span"]["trace_id"], Value::Null);
    }
}

#[tokio::test]
async fn a_collector_that_is_away_or_does_not_answer_delays_neither_a_request_nor_the_end() {
    // One refuses connections, the other accepts them and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
    let silent = silent.local_addr().map(|address| (silent, address)).expect("it listens");
    for collector in [SocketAddr::from(([127, 0, 0, 1], 9)), silent.1] {
        let database = Database::create().await;
        let mut service = traced(&database, collector, &[("OTEL_BSP_MAX_QUEUE_SIZE", "16")]).await;
        let account = sign_up(&service).await;
        let started = Instant::now();
        for _ in 0..20 {
            assert_eq!(post(&service.url("/auth/login"), &account).await.status, 200);
        }
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
        service.terminate();
        assert_eq!(service.exit_code(Duration::from_secs(10)).await, 0);
    }
}
