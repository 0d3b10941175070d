//! What happens around every request: its id, its log line, its metrics, the headers every answer has, and the limits
//! of time and of luck.
//!
//! One line a request, with method, route, status, time and id. The route is its pattern: a raw path is a stranger's
//! text and may hold anything, as do queries and bodies.

use std::any::Any;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tracing::Instrument;
use uuid::Uuid;

use super::error::ApiError;
use crate::app::App;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The label of requests that match no route, as the Python service's instrumentation has it.
const NO_ROUTE: &str = "none";

/// Routes that are asked by machines all the time; logged at the level `debug` while they succeed.
const PROBES: [&str; 4] = ["/auth/health", "/health", "/auth/ready", "/auth/metrics"];

/// Wraps a request in all of it.
pub(super) async fn observe(State(app): State<App>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or(NO_ROUTE, MatchedPath::as_str);
    let request_bytes = content_length(request.headers()).unwrap_or(0.0);
    let id = request_id(request.headers());
    // Probes come every few seconds for as long as the service lives, and say nothing unless they fail.
    let probe = PROBES.contains(&route);
    let span = if probe {
        tracing::debug_span!("request", id = id.to_str().unwrap_or_default())
    } else {
        tracing::info_span!("request", id = id.to_str().unwrap_or_default())
    };

    let answered = tokio::time::timeout(app.config.request_timeout, next.run(request).instrument(span.clone())).await;
    let mut response = answered.unwrap_or_else(|_| ApiError::TimedOut.into_response());
    add_headers(response.headers_mut(), id);

    let status = response.status().as_u16();
    let elapsed = started.elapsed();
    let method = method_label(&method);
    let latency_us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
    span.in_scope(|| {
        if probe && status < 400 {
            tracing::debug!(method, route, status, latency_us, "request");
        } else {
            tracing::info!(method, route, status, latency_us, "request");
        }
    });
    let response_bytes = content_length(response.headers()).or_else(|| {
        let exact = axum::body::HttpBody::size_hint(response.body()).exact()?;
        u32::try_from(exact).ok().map(f64::from)
    });
    app.metrics.observe_request(route, method, status, elapsed, [request_bytes, response_bytes.unwrap_or(0.0)]);
    response
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
    headers.insert(X_REQUEST_ID, id);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers
        .entry(CONTENT_SECURITY_POLICY)
        .or_insert(HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"));
    // RFC 6749 §5.1 asks it for tokens; nothing else here is worth keeping either, but for what says otherwise.
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
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
#[expect(clippy::needless_pass_by_value, reason = "the layer hands it over")]
pub(super) fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response {
    let message = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    tracing::error!(message = message.unwrap_or("(no message)"), "a handler panicked");
    ApiError::Internal.into_response()
}
