//! Which statements the driver sends: it says so to `tracing`, and this listens.

use std::fmt;
use std::sync::{Arc, Mutex};

use tracing::field::{Field, Visit};
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// Listens on this thread, which is the whole runtime of a test, until it is dropped.
pub(crate) struct Recorder {
    statements: Arc<Mutex<Vec<String>>>,
    _listening: DefaultGuard,
}

impl Recorder {
    pub(crate) fn start() -> Self {
        let statements = Arc::<Mutex<Vec<String>>>::default();
        let subscriber = tracing_subscriber::registry().with(Listener(Arc::clone(&statements)));
        Self { statements, _listening: tracing::subscriber::set_default(subscriber) }
    }

    /// What was sent since the last call, with its spaces in order.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.statements.lock().unwrap())
    }
}

struct Listener(Arc<Mutex<Vec<String>>>);

impl<S: Subscriber> Layer<S> for Listener {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == "sqlx::query" {
            let mut statement = Statement::default();
            event.record(&mut statement);
            self.0.lock().unwrap().push(statement.0.split_whitespace().collect::<Vec<_>>().join(" "));
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
