//! What happens around every request: its id, its log line, its metrics, the headers every answer has, its time limit,
//! and the answer to a panic.
//!
//! One line a request, with method, route, status, time and id. The route is its pattern: a raw path may
//! hold anything, as may queries and bodies.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use axum::body::HttpBody as _;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt as _;
use tokio::time::timeout;
use tracing::{Instrument as _, Span, debug_span, info_span};
use uuid::Uuid;

use super::Peer;
use super::body::{MAX_DISCARDED_BYTES, content_length};
use super::connection::ProbesOnly;
use super::error::ApiError;
use super::extract::single_header;
use super::verify::{VERIFY, VERIFY_PATH, VERIFY_ROOT};
use crate::app::App;
use crate::background;
use crate::error::Error;
use crate::traces;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The label of requests that match no route, as the Python service's instrumentation has it.
const NO_ROUTE: &str = "none";

/// Routes that are asked by machines all the time; logged at the level `debug` while they succeed.
const PROBES: [&str; 4] = ["/auth/health", "/health", READY, "/auth/metrics"];
/// The one of them that may fail for a reason.
const READY: &str = "/auth/ready";

/// Routes that are asked for every request of a shop; logged at the level `debug` and counted by outcome.
const VERIFICATIONS: [&str; 3] = [VERIFY, VERIFY_ROOT, VERIFY_PATH];

/// Stands for the status of a request whose client went away before it was answered, as in nginx.
const CLIENT_GONE: u16 = 499;

pub(super) async fn observe(State(app): State<App>, request: Request, next: Next) -> Response {
    let mut record = RequestRecord::new(app, &request);
    let mut response = if request.extensions().get::<ProbesOnly>().is_some() && !record.probe {
        ApiError::from(Error::Busy(Duration::from_secs(1))).into_response()
    } else {
        let answer = AssertUnwindSafe(next.run(request)).catch_unwind();
        let answer = answer.map(|answer| answer.unwrap_or_else(|panic| panicked(&*panic)));
        // Statements and hashes belong to the innermost span.
        let answer = answer.instrument(record.traced.clone()).instrument(record.span.clone());
        let answer = timeout(record.app.config.request_timeout, answer).await;
        answer.unwrap_or_else(|_elapsed| ApiError::TimedOut.into_response())
    };
    add_headers(response.headers_mut(), record.id.clone());
    if record.app.stopping.is_cancelled() {
        // A gateway that kept the connection could send a request just when it is closed.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    record.record(response.status().as_u16(), response_bytes(&response));
    response
}

/// What is remembered of a request until it is answered.
struct RequestRecord {
    app: App,
    started: Instant,
    method: Method,
    route: Option<MatchedPath>,
    bytes: usize,
    id: HeaderValue,
    /// Whether it comes every few seconds for as long as the service lives, and says nothing unless it fails.
    probe: bool,
    verification: bool,
    span: Span,
    /// The span for export; none of a probe or a verification.
    traced: Span,
    recorded: bool,
}

impl RequestRecord {
    fn new(app: App, request: &Request) -> Self {
        let route = request.extensions().get::<MatchedPath>().cloned();
        let is_one_of = |routes: &[&str]| route.as_ref().is_some_and(|route| routes.contains(&route.as_str()));
        let (probe, verification) = (is_one_of(&PROBES), is_one_of(&VERIFICATIONS));
        let id = request_id(request.headers());
        let text = id.to_str().unwrap_or_default();
        let quiet = verification || probe && !is_one_of(&[READY]);
        let method = request.method().clone();
        let (traced, trace_id) = start_trace(&app, request, &method, route.as_ref(), probe || verification);
        let span = if quiet {
            debug_span!("request", id = text, trace_id)
        } else {
            info_span!("request", id = text, trace_id)
        };
        // No more of it is received, whatever its length is said to be.
        let bytes = content_length(request.headers()).unwrap_or(0).min(MAX_DISCARDED_BYTES);
        let started = Instant::now();
        Self { app, started, method, route, bytes, id, probe, verification, span, traced, recorded: false }
    }

    fn record(&mut self, status: u16, response_bytes: usize) {
        self.recorded = true;
        let elapsed = self.started.elapsed();
        let method = method_label(&self.method);
        let route = self.route.as_ref().map_or(NO_ROUTE, MatchedPath::as_str);
        let latency_us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        self.span.in_scope(|| {
            if self.verification || self.probe && status < 400 {
                tracing::debug!(method, route, status, latency_us, "request");
            } else {
                tracing::info!(method, route, status, latency_us, "request");
            }
        });
        traces::finish_request(&self.traced, status);
        self.app.metrics.observe_request(route, method, status, elapsed, [self.bytes, response_bytes]);
    }
}

/// The span for export, and the id of the trace, for the log.
fn start_trace(
    app: &App,
    request: &Request,
    method: &Method,
    route: Option<&MatchedPath>,
    probe: bool,
) -> (Span, Option<String>) {
    let sender = single_header(request.headers(), &TRACEPARENT).and_then(traces::parse);
    if probe {
        return (Span::none(), sender.map(|sender| sender.trace_id().to_string()));
    }
    let trusted = request.extensions().get::<Peer>().is_some_and(|peer| app.config.trusted_proxies.trusts(peer.0.ip()));
    let route = route.map_or(NO_ROUTE, MatchedPath::as_str);
    let (span, trace_id) = traces::start_request(method_label(method), route, sender, trusted);
    (span, trace_id.map(|id| id.to_string()))
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        if !self.recorded {
            self.record(CLIENT_GONE, 0);
        }
    }
}

/// An unknown method must not become a label.
fn method_label(method: &Method) -> &str {
    match *method {
        Method::GET | Method::POST | Method::PUT | Method::PATCH | Method::DELETE | Method::HEAD | Method::OPTIONS => {
            method.as_str()
        }
        _ => "other",
    }
}

fn response_bytes(response: &Response) -> usize {
    let exact = || usize::try_from(response.body().size_hint().exact()?).ok();
    content_length(response.headers()).or_else(exact).unwrap_or(0)
}

/// The caller's id for the request, if it is one that can stand in a log, or else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let sane = |id: &&HeaderValue| {
        let bytes = id.as_bytes();
        (1..=128).contains(&bytes.len())
            && bytes.iter().all(|&byte| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(&byte))
    };
    headers.get(X_REQUEST_ID).filter(sane).cloned().unwrap_or_else(|| {
        let mut buffer = Uuid::encode_buffer();
        // From the thread's generator: Uuid::new_v4 would ask the kernel each time.
        let id = uuid::Builder::from_random_bytes(rand::random()).into_uuid();
        let text = id.hyphenated().encode_lower(&mut buffer);
        HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("-"))
    })
}

fn add_headers(headers: &mut HeaderMap, id: HeaderValue) {
    headers.reserve(6);
    headers.insert(X_REQUEST_ID, id);
    headers.insert(X_CONTENT_TYPE_OPTIONS, const { HeaderValue::from_static("nosniff") });
    headers.insert(X_FRAME_OPTIONS, const { HeaderValue::from_static("DENY") });
    headers.insert(REFERRER_POLICY, const { HeaderValue::from_static("no-referrer") });
    headers
        .entry(CONTENT_SECURITY_POLICY)
        .or_insert(const { HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'") });
    // RFC 6749 §5.1 asks it for tokens; nothing else here is worth keeping either, but for what says otherwise.
    headers.entry(CACHE_CONTROL).or_insert(const { HeaderValue::from_static("no-store") });
}

/// The router writes `Allow` without spaces; clients compare it with the one they know.
pub(super) fn space_allow(mut response: Response) -> Response {
    if let Some(allow) = response.headers_mut().get_mut(ALLOW) {
        let spaced = allow.to_str().unwrap_or_default().replace(',', ", ");
        *allow = HeaderValue::from_str(&spaced).unwrap_or_else(|_| allow.clone());
    }
    response
}

/// A panic is a defect: it is logged, and its request answered like any other.
fn panicked(panic: &(dyn Any + Send)) -> Response {
    tracing::error!(panic = background::message(panic), "a handler panicked");
    ApiError::Internal.into_response()
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::middleware::from_fn_with_state;
    use axum::routing::get;
    use clap::Parser;
    use tower::ServiceExt;

    use super::*;
    use crate::clock::Clock;
    use crate::config::{Config, Given};

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        settings: Given<Config>,
    }

    #[tokio::test]
    async fn a_panic_is_answered_and_counted() {
        let flags = ["test", "--app-env=development", "--postgres-dsn=postgres://unused"];
        let config = Flags::try_parse_from(flags).unwrap().settings.resolve().unwrap();
        let app = App::new(config, Clock::system()).unwrap();
        let handler = async || -> &'static str { panic!("as the test wants it") };
        let router: Router = Router::new().route("/", get(handler)).layer(from_fn_with_state(app.clone(), observe));
        let response = router.oneshot(Request::new(Body::empty())).await.unwrap();
        assert_eq!(response.status(), 500);
        assert!(response.headers().contains_key(X_REQUEST_ID));
        let counted = r#"http_requests_total{handler="/",method="GET",status="5xx"} 1"#;
        assert!(app.metrics.render().0.contains(counted), "{}", app.metrics.render().0);
    }
}
