//! Traces: the spans that are exported where somebody asks for them, and the trace that a request belongs to.
//!
//! Spans for export have a target of their own: the log shows none of them, and where nothing is exported none is made.
//! They hold no address, no token and no body. `telemetry` exports them.

use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use tracing::field::Empty;
use tracing::{Level, Span, trace_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The target of spans for export.
pub const TARGET: &str = "otel";

/// The span that a `traceparent` names, if it is well formed (W3C Trace Context §3.2). `tracestate` is not read: it may
/// be long, and it would be sent along with every span.
#[must_use]
pub fn parse(traceparent: &str) -> Option<SpanContext> {
    let mut fields = traceparent.splitn(5, '-');
    let mut hex = |length| {
        let digits = |text: &&str| text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        fields.next().filter(digits)
    };
    let (version, trace, span, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
    // A later version may have further fields.
    if version == "ff" || version == "00" && fields.next().is_some() {
        return None;
    }
    let sampled = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED;
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let sender = SpanContext::new(trace, span, sampled, true, TraceState::NONE);
    sender.is_valid().then_some(sender)
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

/// Notes how a request was answered.
pub fn finish_request(span: &Span, status: u16) {
    // The exporter knows no unsigned numbers.
    span.record("http.response.status_code", i64::from(status));
    if status >= 500 {
        span.record("otel.status_code", "ERROR");
    }
}

/// The current span, if it is recorded.
#[must_use]
pub fn current() -> Span {
    let recorded = || Context::current().span().span_context().is_sampled();
    if tracing::span_enabled!(target: TARGET, Level::TRACE) && recorded() { Span::current() } else { Span::none() }
}

/// Starts the span of calls that are executed together: in the trace of the first that is recorded, and with links to
/// and from all of them.
#[must_use]
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

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    #[test]
    fn a_well_formed_traceparent_names_a_span() {
        for (text, sampled) in [
            (format!("00-{TRACE}-00f067aa0ba902b7-01"), true),
            (format!("00-{TRACE}-00f067aa0ba902b7-00"), false),
            (format!("00-{TRACE}-00f067aa0ba902b7-ff"), true),
            (format!("cc-{TRACE}-00f067aa0ba902b7-01"), true),
            (format!("cc-{TRACE}-00f067aa0ba902b7-01-what-comes-later"), true),
        ] {
            let sender = parse(&text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(sender.trace_id().to_string(), TRACE);
            assert_eq!(sender.span_id().to_string(), "00f067aa0ba902b7");
            assert_eq!((sender.is_sampled(), sender.is_remote()), (sampled, true), "{text}");
        }
    }

    #[test]
    fn anything_else_names_none() {
        for text in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01 ",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-000f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e47é-00f067aa0ba902b7-01",
            "00_4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7_01",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
