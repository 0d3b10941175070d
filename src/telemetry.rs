//! The tracing subscriber: where log lines go and how they look.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use crate::config::LogFormat;

/// Starts logging to standard output. A second call in one process changes nothing.
///
/// # Errors
/// When `filter` is no list of `target=level` directives.
pub fn init(format: LogFormat, filter: &str) -> Result<(), ParseError> {
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(filter)?)
        .with_ansi(std::io::stdout().is_terminal());
    // Fails only where a subscriber is set already, which is as good.
    let _ = match format {
        LogFormat::Json => subscriber.json().flatten_event(true).with_span_list(false).try_init(),
        LogFormat::Pretty => subscriber.with_target(false).try_init(),
    };
    Ok(())
}
