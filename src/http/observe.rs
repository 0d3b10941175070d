//! What happens around every request: its id, its log line, its metrics, the headers every answer has, and the limits
//! of time and of luck.
//!
//! One line a request, with method, route, status, time and id. The route is its pattern: a raw path is a stranger's
//! text and may hold anything, as do queries and bodies.

use std::any::Any;
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::response::{IntoResponse, Response};
use pin_project_lite::pin_project;
use tokio::time::{Timeout, timeout};
use tower::{Layer, Service};
use tracing::instrument::{Instrument, Instrumented};
use tracing::{Span, debug_span, info_span};
use uuid::Uuid;

use super::error::ApiError;
use crate::app::App;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The label of requests that match no route, as the Python service's instrumentation has it.
const NO_ROUTE: &str = "none";

/// Routes that are asked by machines all the time; logged at the level `debug` while they succeed.
const PROBES: [&str; 4] = ["/auth/health", "/health", READY, "/auth/metrics"];
/// The one of them that may fail for a reason.
const READY: &str = "/auth/ready";

/// Stands for the status of a request whose client went away before it was answered, as in nginx.
const CLIENT_GONE: u16 = 499;

/// Wraps routes in all of it. Written out rather than as a function of `axum::middleware`, which would allocate four
/// times for each request.
#[derive(Clone)]
pub(super) struct ObserveLayer(pub(super) App);

impl<S> Layer<S> for ObserveLayer {
    type Service = Observe<S>;

    fn layer(&self, inner: S) -> Observe<S> {
        Observe { app: self.0.clone(), inner }
    }
}

#[derive(Clone)]
pub(super) struct Observe<S> {
    app: App,
    inner: S,
}

impl<S: Service<Request, Response = Response, Error = Infallible>> Service<Request> for Observe<S> {
    type Response = Response;
    type Error = Infallible;
    type Future = ObservedFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let seen = Seen::of(&request, self.app.clone());
        let answer = self.inner.call(request).instrument(seen.span.clone());
        ObservedFuture { answer: timeout(self.app.config.request_timeout, answer), seen }
    }
}

pin_project! {
    pub(super) struct ObservedFuture<F> {
        #[pin]
        answer: Timeout<Instrumented<F>>,
        seen: Seen,
    }
}

impl<F: Future<Output = Result<Response, Infallible>>> Future for ObservedFuture<F> {
    type Output = Result<Response, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        // What panicked is not used again.
        let response = match catch_unwind(AssertUnwindSafe(|| this.answer.poll(context))) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(Ok(Ok(response)))) => response,
            Ok(Poll::Ready(Err(_elapsed))) => ApiError::TimedOut.into_response(),
            Err(panic) => this.seen.span.in_scope(|| panicked(&*panic)),
        };
        Poll::Ready(Ok(this.seen.answered(response)))
    }
}

/// What is remembered of a request until it is answered.
struct Seen {
    app: App,
    started: Instant,
    method: Method,
    route: Option<MatchedPath>,
    bytes: f64,
    id: HeaderValue,
    /// Whether it comes every few seconds for as long as the service lives, and says nothing unless it fails.
    probe: bool,
    span: Span,
    answered: bool,
}

impl Seen {
    fn of(request: &Request, app: App) -> Self {
        let route = request.extensions().get::<MatchedPath>().cloned();
        let probe = route.as_ref().is_some_and(|route| PROBES.contains(&route.as_str()));
        let id = request_id(request.headers());
        let text = id.to_str().unwrap_or_default();
        let quiet = probe && route.as_ref().is_none_or(|route| route.as_str() != READY);
        let span = if quiet { debug_span!("request", id = text) } else { info_span!("request", id = text) };
        let bytes = content_length(request.headers()).unwrap_or(0.0);
        let method = request.method().clone();
        Self { app, started: Instant::now(), method, route, bytes, id, probe, span, answered: false }
    }

    /// Adds to the answer what all have, and writes it down.
    fn answered(&mut self, mut response: Response) -> Response {
        let id = std::mem::replace(&mut self.id, const { HeaderValue::from_static("") });
        add_headers(response.headers_mut(), id);
        let bytes = content_length(response.headers()).or_else(|| {
            let exact = axum::body::HttpBody::size_hint(response.body()).exact()?;
            u32::try_from(exact).ok().map(f64::from)
        });
        self.write_down(response.status().as_u16(), bytes.unwrap_or(0.0));
        self.answered = true;
        response
    }

    fn write_down(&self, status: u16, bytes: f64) {
        let elapsed = self.started.elapsed();
        let method = method_label(&self.method);
        let route = self.route.as_ref().map_or(NO_ROUTE, MatchedPath::as_str);
        let latency_us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        self.span.in_scope(|| {
            if self.probe && status < 400 {
                tracing::debug!(method, route, status, latency_us, "request");
            } else {
                tracing::info!(method, route, status, latency_us, "request");
            }
        });
        self.app.metrics.observe_request(route, method, status, elapsed, [self.bytes, bytes]);
    }
}

impl Drop for Seen {
    fn drop(&mut self) {
        if !self.answered {
            self.write_down(CLIENT_GONE, 0.0);
        }
    }
}

/// A method a stranger made up must not become a label.
fn method_label(method: &Method) -> &str {
    match *method {
        Method::GET | Method::POST | Method::PUT | Method::PATCH | Method::DELETE | Method::HEAD | Method::OPTIONS => {
            method.as_str()
        }
        _ => "other",
    }
}

fn content_length(headers: &HeaderMap) -> Option<f64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
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
    let message = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    tracing::error!(panic = message.unwrap_or("(no message)"), "a handler panicked");
    ApiError::Internal.into_response()
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::routing::get;
    use clap::Parser;
    use tower::ServiceExt;

    use super::*;
    use crate::clock::Clock;
    use crate::config::Settings;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        settings: Settings,
    }

    #[tokio::test]
    async fn a_panic_is_answered_and_counted() {
        let flags = ["test", "--app-env=development", "--postgres-dsn=postgres://unused"];
        let config = Flags::try_parse_from(flags).unwrap().settings.resolve().unwrap();
        let app = App::new(config, Clock::system()).unwrap();
        let handler = async || -> &'static str { panic!("as the test wants it") };
        let router: Router = Router::new().route("/", get(handler)).layer(ObserveLayer(app.clone()));
        let response = router.oneshot(Request::new(Body::empty())).await.unwrap();
        assert_eq!(response.status(), 500);
        assert!(response.headers().contains_key(X_REQUEST_ID));
        let counted = r#"http_requests_total{handler="/",method="GET",status="5xx"} 1"#;
        assert!(app.metrics.render().0.contains(counted), "{}", app.metrics.render().0);
    }
}
