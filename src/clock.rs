//! The only caller of the system clock. It follows the database's (`service::clock`), and tests move it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use chrono::{DateTime, SubsecRound as _, TimeDelta, Utc};

/// Tells the time: the system's at the start and what has passed since then, moved by an offset. Steps of the system's clock
/// do not matter: a token that was used before one would look as if it had been used long ago, and end its session.
#[derive(Clone, Debug)]
pub struct Clock {
    started: Instant,
    started_at: DateTime<Utc>,
    offset_micros: Arc<AtomicI64>,
}

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that may")]
    pub fn system() -> Self {
        Self { started: Instant::now(), started_at: Utc::now(), offset_micros: Arc::default() }
    }

    /// Now, to the microsecond, which is what PostgreSQL stores.
    pub fn now(&self) -> DateTime<Utc> {
        let offset = TimeDelta::microseconds(self.offset_micros.load(Ordering::Relaxed));
        (self.started_at + self.started.elapsed() + offset).trunc_subsecs(6)
    }

    /// Moves this clock and all its clones.
    pub fn advance(&self, by: TimeDelta) {
        self.offset_micros.fetch_add(by.num_microseconds().unwrap_or(i64::MAX), Ordering::Relaxed);
    }
}
