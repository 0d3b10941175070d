//! Sending spans to a collector, by OTLP over HTTP.
//!
//! Finished spans wait in a bounded queue for a thread of their own. Where the collector is slow or away they are dropped,
//! and no request waits. What is not set here the SDK reads from the `OTEL_*` variables.

use std::time::Duration;

use opentelemetry::trace::{SpanKind, TraceContextExt, Tracer, TracerProvider};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer;
use tracing_subscriber::registry::LookupSpan;

use crate::traces;

const STATEMENTS: &str = "sqlx::query";

/// Starts the exporter to `endpoint`.
///
/// # Errors
/// When the endpoint is no URL, or a variable of the exporter's cannot be understood.
pub(super) fn start(endpoint: &str) -> Result<SdkTracerProvider, Box<dyn std::error::Error + Send + Sync>> {
    // Fails where there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let exporter = SpanExporter::builder().with_http().with_endpoint(endpoint).build()?;
    let detected = Resource::builder().build();
    let named = detected.iter().any(|(key, name)| key.as_str() == SERVICE_NAME && !is_placeholder(name));
    let resource = Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    let resource = if named { resource } else { resource.with_service_name(env!("CARGO_PKG_NAME")) };
    Ok(SdkTracerProvider::builder().with_resource(resource.build()).with_batch_exporter(exporter).build())
}

const SERVICE_NAME: &str = "service.name";

/// What the SDK calls a service that has been given no name.
fn is_placeholder(name: &Value) -> bool {
    name.as_str().starts_with("unknown_service")
}

pub(super) fn layer<S>(provider: &SdkTracerProvider) -> impl Layer<S> + use<S>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let tracer = provider.tracer(env!("CARGO_PKG_NAME"));
    let spans = tracing_opentelemetry::layer()
        .with_tracer(tracer.clone())
        .with_level(false)
        .with_location(false)
        .with_target(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_filter(Targets::new().with_target(traces::TARGET, LevelFilter::TRACE));
    let statements = Statements(tracer).with_filter(Targets::new().with_target(STATEMENTS, LevelFilter::TRACE));
    spans.and_then(statements)
}

/// Makes a span of each statement of a request or batch that is recorded. The text has placeholders for all values.
struct Statements(SdkTracer);

impl<S: Subscriber> Layer<S> for Statements {
    fn on_event(&self, event: &Event<'_>, _: layer::Context<'_, S>) {
        let parent = Context::current();
        if !parent.span().span_context().is_sampled() {
            return;
        }
        let mut statement = Statement::default();
        event.record(&mut statement);
        let end = opentelemetry::time::now();
        self.0
            .span_builder("statement")
            .with_kind(SpanKind::Client)
            .with_start_time(end - statement.elapsed)
            .with_attributes([
                KeyValue::new("db.system.name", "postgresql"),
                KeyValue::new("db.query.text", statement.text),
            ])
            .start_with_context(&self.0, &parent);
    }
}

/// What sqlx tells of a statement. Its text stands in `summary`, or, where it is long, in `db.statement`.
#[derive(Default)]
struct Statement {
    text: String,
    elapsed: Duration,
}

impl Visit for Statement {
    fn record_str(&mut self, field: &Field, value: &str) {
        if !value.is_empty() && ["summary", "db.statement"].contains(&field.name()) {
            self.text = value.split_whitespace().collect::<Vec<_>>().join(" ");
        }
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if field.name() == "elapsed_secs" {
            self.elapsed = Duration::try_from_secs_f64(value).unwrap_or_default();
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}
