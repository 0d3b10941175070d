//! Which statements the driver sends, and the service's audit and error lines: both say so to `tracing`, and this listens.

use std::cell::RefCell;
use std::fmt;
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Once;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

thread_local! {
    /// Of a test that has a recorder; the one thread of a test is its whole runtime.
    static STATEMENTS: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
    static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Listens on this thread until it is dropped.
pub(crate) struct Recorder(PhantomData<Rc<()>>);

impl Recorder {
    pub(crate) fn start() -> Self {
        // One listener for the process: where tests are threads, the interest in an event is remembered for all of
        // them, and a listener of one's own could come too late.
        static LISTEN: Once = Once::new();
        LISTEN.call_once(|| {
            tracing::subscriber::set_global_default(tracing_subscriber::registry().with(Listener)).unwrap();
            tracing::callsite::rebuild_interest_cache();
        });
        STATEMENTS.set(Some(Vec::new()));
        Self(PhantomData)
    }

    /// What was sent since the last call, with its spaces in order.
    #[expect(clippy::unused_self, reason = "it takes a recorder to have something recorded")]
    pub(crate) fn take(&self) -> Vec<String> {
        STATEMENTS.replace(Some(Vec::new())).unwrap_or_default()
    }
}

impl Recorder {
    /// Event, outcome and reason of the audit lines since the last call, and the error of error lines.
    #[expect(clippy::unused_self, reason = "it takes a recorder to have something recorded")]
    pub(crate) fn take_lines(&self) -> Vec<String> {
        LINES.take()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        STATEMENTS.set(None);
    }
}

struct Listener;

impl<S: Subscriber> Layer<S> for Listener {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().fields().field("audit").is_some() || *event.metadata().level() == Level::ERROR {
            let mut line = Line::default();
            event.record(&mut line);
            LINES.with_borrow_mut(|lines| lines.push(line.0.join(" ")));
        }
        if event.metadata().target() == "sqlx::query" {
            let mut statement = Statement::default();
            event.record(&mut statement);
            let text = statement.0.split_whitespace().collect::<Vec<_>>().join(" ");
            // The pool's own looks at a connection and the readings of ended sessions come at any time and belong to no request.
            if text.starts_with("SELECT current_setting('transaction_read_only')")
                || text.starts_with("SELECT set_config('synchronous_commit'")
                || text.starts_with("SELECT pg_postmaster_start_time()")
            {
                return;
            }
            STATEMENTS.with_borrow_mut(|statements| statements.as_mut().map(|statements| statements.push(text)));
        }
    }
}

#[derive(Default)]
struct Line(Vec<String>);

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        if ["event", "outcome", "reason"].contains(&field.name()) {
            self.0.push(value.to_owned());
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "error" {
            self.0.push(format!("{value:?}"));
        }
    }
}

/// The full text where there is one, else the summary, which then is all of it.
#[derive(Default)]
struct Statement(String);

impl Visit for Statement {
    fn record_str(&mut self, field: &Field, value: &str) {
        if !value.is_empty() && ["summary", "db.statement"].contains(&field.name()) {
            value.clone_into(&mut self.0);
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
}
