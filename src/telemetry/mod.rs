//! The tracing subscriber: where log lines go and how they look.

mod json;
mod lines;

pub use lines::LogGuard;

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::JsonFields;

use crate::config::LogFormat;
use lines::Lines;

/// Starts logging to standard output, until the guard is dropped. A second call in one process changes nothing.
///
/// # Errors
/// When `filter` is no list of `target=level` directives, or the system gives no thread to write with.
pub fn init(format: LogFormat, filter: &str) -> Result<LogGuard, Box<dyn std::error::Error + Send + Sync>> {
    let filter = EnvFilter::try_new(filter)?;
    let stdout = std::io::stdout();
    let ansi = stdout.is_terminal();
    let (lines, guard) = Lines::written_to(stdout)?;
    let writer = move || lines.clone();
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi).with_writer(writer);
    // Fails only where a subscriber is set already, which is as good.
    let _ = match format {
        LogFormat::Json => subscriber.fmt_fields(JsonFields::new()).event_format(json::JsonLine).try_init(),
        LogFormat::Pretty => subscriber.with_target(false).try_init(),
    };
    Ok(guard)
}
