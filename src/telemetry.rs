//! The tracing subscriber: where log lines go and how they look.
//!
//! Lines are handed to a thread that writes them, many at a time under load: a request never waits for whoever reads the
//! log. If that is too slow for too long, lines are dropped rather than sign-ins.

use std::io::{BufWriter, IsTerminal};

use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use crate::config::LogFormat;

/// Lines that may wait to be written.
const WAITING_LINES: usize = 16 * 1024;
/// Bytes that are written at once, at most.
const BUFFER_BYTES: usize = 64 * 1024;

/// Starts logging to standard output, until the guard is dropped. A second call in one process changes nothing.
///
/// # Errors
/// When `filter` is no list of `target=level` directives.
pub fn init(format: LogFormat, filter: &str) -> Result<WorkerGuard, ParseError> {
    let filter = EnvFilter::try_new(filter)?;
    let stdout = std::io::stdout();
    let ansi = stdout.is_terminal();
    let (writer, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(WAITING_LINES)
        .finish(BufWriter::with_capacity(BUFFER_BYTES, stdout));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi).with_writer(writer);
    // Fails only where a subscriber is set already, which is as good.
    let _ = match format {
        LogFormat::Json => subscriber.json().flatten_event(true).with_span_list(false).try_init(),
        LogFormat::Pretty => subscriber.with_target(false).try_init(),
    };
    Ok(guard)
}
