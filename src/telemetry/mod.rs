//! Logging: how a line looks, and how it gets to standard output. Traces are exported by [`export`].
//!
//! A request never waits for the reader of the log. Lines pass through a bounded queue to a thread of their own. When the
//! reader is too slow for too long, lines are dropped rather than sign-ins.
//!
//! The thread writes what 20 ms bring together. Woken and writing for each line it would cost 20 µs of CPU per request,
//! half as much as a refresh.

mod export;

use std::io::{self, BufWriter, IsTerminal, Write};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Dispatch;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry};

use crate::config::LogFormat;
use crate::traces;

/// How many lines may wait to be written; some megabytes.
const MAX_WAITING_LINES: usize = 16 * 1024;
/// For how long lines are gathered before they are written together.
const GATHER_PERIOD: Duration = Duration::from_millis(20);
/// How long the last lines and the last spans may take, each: a reader that does not read must not keep the process from
/// ending.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Starts logging to standard output, and exporting traces where there is a place for them, until the guard is dropped. A
/// second call in one process changes nothing.
///
/// # Errors
/// When `filter` is no list of `target=level` directives, or `traces_endpoint` no URL.
pub fn init(
    format: LogFormat,
    filter: &str,
    traces_endpoint: Option<&str>,
) -> Result<Guard, Box<dyn std::error::Error + Send + Sync>> {
    let filter = EnvFilter::try_new(filter)?;
    let provider = traces_endpoint.map(export::start).transpose()?;
    let stdout = io::stdout();
    let ansi = stdout.is_terminal();
    let (lines, log) = lines_to(stdout);
    // Fails only where a subscriber is set already, which is as good.
    let _ = subscriber(format, filter, ansi, lines, provider.as_ref()).try_init();
    Ok(Guard { provider, _log: log })
}

/// Starts logging for a command, in JSON: its standard output is for its result.
pub fn init_on_stderr() {
    let _ = subscriber(LogFormat::Json, EnvFilter::new("info"), false, io::stderr, None).try_init();
}

fn subscriber<W>(
    format: LogFormat,
    filter: EnvFilter,
    ansi: bool,
    writer: W,
    provider: Option<&SdkTracerProvider>,
) -> Dispatch
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_ansi(ansi).with_writer(writer);
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match format {
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).boxed(),
        LogFormat::Pretty => lines.with_target(false).boxed(),
    };
    // A line names the innermost span that its filter lets pass, which is to be the request's.
    let for_export = format!("{}=off", traces::TARGET);
    // These tell the collector's URL, in which a key may stand.
    let silent = [&for_export, "opentelemetry-otlp=off", "hyper_util::client=off"];
    let filter = silent
        .into_iter()
        .fold(filter, |filter, directive| filter.add_directive(directive.parse().expect("BUG: it is a directive")));
    match provider {
        // One filter for all costs less than one for each layer.
        None => tracing_subscriber::registry().with(lines).with(filter).into(),
        Some(provider) => {
            tracing_subscriber::registry().with(lines.with_filter(filter)).with(export::layer(provider)).into()
        }
    }
}

fn lines_to(output: impl Write + Send + 'static) -> (NonBlocking, LogGuard) {
    let queue = NonBlockingBuilder::default().buffered_lines_limit(MAX_WAITING_LINES).thread_name("log");
    let dropped = Arc::new(OnceLock::new());
    let output = Gathered { output: BufWriter::new(output), dropped: Arc::clone(&dropped), reported: 0 };
    let (lines, worker) = queue.finish(output);
    let _ = dropped.set(lines.error_counter());
    (lines, LogGuard(Some(worker)))
}

/// An output for the thread that writes: it flushes whenever its queue is empty.
struct Gathered<W: Write> {
    output: BufWriter<W>,
    /// How many lines found the queue full.
    dropped: Arc<OnceLock<ErrorCounter>>,
    reported: usize,
}

impl<W: Write> Write for Gathered<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        let dropped = self.dropped.get().map_or(0, ErrorCounter::dropped_lines);
        if dropped > self.reported {
            tracing::warn!(dropped = dropped - self.reported, "the log was read too slowly: lines are missing");
            self.reported = dropped;
        }
        let outcome = self.output.flush();
        // The queue fills meanwhile without waking this thread.
        thread::sleep(GATHER_PERIOD);
        outcome
    }
}

/// Sends the spans and writes the lines that wait when it is dropped.
#[derive(Debug)]
pub struct Guard {
    provider: Option<SdkTracerProvider>,
    // Written last: the exporter may have something to say.
    _log: LogGuard,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(provider) = &self.provider {
            // What fails is logged there.
            let _ = provider.shutdown_with_timeout(FLUSH_TIMEOUT);
        }
    }
}

#[derive(Debug)]
struct LogGuard(Option<WorkerGuard>);

impl Drop for LogGuard {
    fn drop(&mut self) {
        let worker = self.0.take();
        let (done, flushed) = mpsc::channel::<()>();
        // The worker's own guard complains on standard output when the queue is full, and would wait for the reader there.
        thread::spawn(move || {
            drop(worker);
            drop(done);
        });
        let _ = flushed.recv_timeout(FLUSH_TIMEOUT);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use serde_json::{Value, json};

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What `events` log, without the times.
    fn logged(events: impl FnOnce()) -> Vec<Value> {
        let log = Log::default();
        let (lines, guard) = lines_to(log.clone());
        tracing::dispatcher::with_default(
            &subscriber(LogFormat::Json, EnvFilter::new("info"), false, lines, None),
            events,
        );
        drop(guard);
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        let lines = text.lines().map(|line| {
            let mut line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            let time = line.as_object_mut().unwrap().remove("timestamp").unwrap();
            chrono::DateTime::parse_from_rfc3339(time.as_str().unwrap()).unwrap();
            line
        });
        lines.collect()
    }

    #[test]
    fn a_line_is_an_object_of_the_fields_of_its_event_and_the_request_it_belongs_to() {
        let lines = logged(|| {
            let error = io::Error::other("it \"failed\"");
            let error = &error as &dyn std::error::Error;
            tracing::info_span!("request", id = "a \"b\"").in_scope(|| {
                tracing::warn!(audit = true, user.id = 7_i64, network = %"2001:db8::/64", error, "words");
            });
            tracing::info!("outside\n{}", '\u{1f600}');
        });
        assert_eq!(
            lines,
            [
                json!({
                    "level": "WARN", "message": "words", "audit": true, "user.id": 7, "network": "2001:db8::/64",
                    "error": "it \"failed\"", "target": module_path!(), "span": {"name": "request", "id": "a \"b\""},
                }),
                json!({"level": "INFO", "message": "outside\n\u{1f600}", "target": module_path!()}),
            ]
        );
    }

    /// An output that takes nothing until the test says so.
    struct Stalled(mpsc::Receiver<()>, Log);

    impl Write for Stalled {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            self.1.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_does_not_read_delays_no_request() {
        let (resume, stalled) = mpsc::channel();
        let log = Log::default();
        let (mut lines, guard) = lines_to(Stalled(stalled, log.clone()));
        let line = [b'x'; 1024];
        for _ in 0..2 * MAX_WAITING_LINES {
            lines.write_all(&line).unwrap();
        }
        drop(resume);
        drop(guard);
        let written = log.0.lock().unwrap().len() / line.len();
        assert!((MAX_WAITING_LINES..MAX_WAITING_LINES * 3 / 2).contains(&written), "{written}");
    }
}
