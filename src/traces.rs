//! Traces: the spans that are exported where somebody asks for them, and the trace that a request belongs to.
//!
//! Spans for export have a target of their own: the log shows none of them, and where nothing is exported none is made.
//! They hold no address, no token and no body. `telemetry` exports them.

use std::collections::HashMap;

use opentelemetry::Context;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{SpanContext, TraceContextExt, TraceId};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::field::Empty;
use tracing::{Level, Span, trace_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

pub const TARGET: &str = "otel";

/// The span that a `traceparent` names (W3C Trace Context). `tracestate` is not read: it may be long, and it would be sent
/// along with every span.
pub fn parse(traceparent: &str) -> Option<SpanContext> {
    let headers = HashMap::from([("traceparent".to_owned(), traceparent.to_owned())]);
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &headers);
    Some(context.span().span_context().clone()).filter(SpanContext::is_valid)
}

/// Starts the span of a request, and says in which trace it is. A trusted sender's trace goes on. For any other one a new
/// trace is started with a link to the sender's: who calls must not choose what is recorded. Where nothing is exported the
/// trace is merely named.
pub fn start_request(method: &str, route: &str, sender: Option<SpanContext>, trusted: bool) -> (Span, Option<TraceId>) {
    let span = trace_span!(
        target: TARGET,
        "request",
        otel.name = format!("{method} {route}"),
        otel.kind = "server",
        otel.status_code = Empty,
        http.request.method = method,
        http.route = route,
        http.response.status_code = Empty,
    );
    if span.is_disabled() {
        return (span, sender.map(|sender| sender.trace_id()));
    }
    match sender {
        // Fails for a span that has been entered.
        Some(sender) if trusted => _ = span.set_parent(Context::new().with_remote_span_context(sender)),
        Some(sender) => span.add_link(sender),
        None => {}
    }
    let trace_id = span.context().span().span_context().trace_id();
    (span, Some(trace_id))
}

pub fn finish_request(span: &Span, status: u16) {
    // The exporter knows no unsigned numbers.
    span.record("http.response.status_code", i64::from(status));
    if status >= 500 {
        span.record("otel.status_code", "ERROR");
    }
}

/// The current span, if it is recorded.
pub fn current() -> Span {
    let recorded = || Context::current().span().span_context().is_sampled();
    if tracing::span_enabled!(target: TARGET, Level::TRACE) && recorded() { Span::current() } else { Span::none() }
}

/// Starts the span of calls that are executed together: in the trace of the first that is recorded, and with links to
/// and from all of them.
pub fn start_batch<'a>(callers: impl Iterator<Item = &'a Span> + Clone) -> Span {
    let calls = i64::try_from(callers.clone().count()).unwrap_or(i64::MAX);
    let mut recorded = callers.filter(|span| !span.is_none()).peekable();
    let Some(first) = recorded.peek() else { return Span::none() };
    let batch = trace_span!(target: TARGET, parent: *first, "batch", calls);
    for caller in recorded {
        batch.follows_from(caller);
        caller.follows_from(&batch);
    }
    batch
}
