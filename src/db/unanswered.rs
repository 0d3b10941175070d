//! Writes whose callers were not told what became of them.
//!
//! A request that is answered 503, or whose client gives up waiting, may be executed all the same: its connection to the
//! database broke behind the commit, or the database stood still and went on. Its client holds nothing of what was
//! made, and its next attempt must not be refused because of it. So each such write is settled as soon as the
//! database answers: its effect on the next attempt of the client is removed.
//!
//! Why this is sound. Of a write, this process knows whether it has answered. [`Unanswered::expect`] is called before
//! the write is sent, and its guard is told when there is an answer, or a failure. A guard that is dropped before that belongs
//! to a request that ran out of time or whose client went away, and leaves its write here too; if it had not waited long
//! ([`MIN_WAIT`]), for a moment only. Settling a write that was never committed changes nothing. One that is still under way,
//! behind a lock or in a process that was stopped, may be committed later. So settling is repeated until the server has given
//! up every statement that was sent before (`statement_timeout`). If the same client comes back to this replica earlier,
//! [`Unanswered::contains`] tells.
//!
//! What it cannot know: a process that dies takes its list with it, and another replica does not see a list before it
//! was settled. A client that lost its answer in this way needs `REFRESH_GRACE_SECONDS`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sqlx::{PgConnection, PgPool};

use super::{database_message, retry};
use crate::background;

/// How long a statement may be under way that was sent before: the server's limit (`db::pools`), doubled.
const STATEMENT_LIFETIME: Duration = Duration::from_secs(30);
/// The pause until writes are settled once more.
const PAUSE: Duration = Duration::from_millis(500);
/// A client that goes away sooner was not kept waiting by a failure, and its answer may have arrived. Its write is
/// remembered for a moment, for a request that waited for the same decision, and never settled. Otherwise a client could
/// choose, by closing its connection, that its write has no effect.
const MIN_WAIT: Duration = Duration::from_secs(2);
/// How long such a write is remembered.
const MOMENT: Duration = Duration::from_secs(5);
/// Writes that are remembered: the first ones, which were under way when the database went. Half of the places are for
/// those that are to be settled.
const CAPACITY: usize = 8192;

/// A write whose effect on its client can be removed afterwards, in one statement with others.
pub trait Settle: Send + Sync + 'static {
    /// For the log.
    const WHAT: &str;

    /// Settles the writes that were committed. It is repeated, and must be idempotent.
    fn settle(connection: &mut PgConnection, writes: &[Arc<Self>]) -> impl Future<Output = sqlx::Result<()>> + Send;
}

/// The writes of one kind whose clients had no answer.
#[derive(Debug)]
pub struct Unanswered<W>(Arc<Shared<W>>);

#[derive(Debug)]
struct Shared<W> {
    pool: PgPool,
    min_wait: Duration,
    list: Mutex<List<W>>,
}

#[derive(Debug)]
struct List<W> {
    writes: VecDeque<Remembered<W>>,
    /// Whether a task is settling them.
    settling: bool,
}

#[derive(Debug)]
struct Remembered<W> {
    write: Arc<W>,
    since: Instant,
    to_settle: bool,
}

/// A write that has no answer yet.
#[derive(Debug)]
#[must_use = "dropping it means that there was no answer"]
pub struct Expected<W: Settle> {
    write: Option<W>,
    since: Instant,
    unanswered: Unanswered<W>,
}

impl<W: Settle> Unanswered<W> {
    pub fn new(pool: PgPool, request_timeout: Duration) -> Self {
        let list = Mutex::new(List { writes: VecDeque::new(), settling: false });
        Self(Arc::new(Shared { pool, min_wait: MIN_WAIT.min(request_timeout / 2), list }))
    }

    /// Announces a write. Unless its guard is told of an answer, it will be settled.
    pub fn expect(&self, write: W) -> Expected<W> {
        Expected { write: Some(write), since: Instant::now(), unanswered: Self(Arc::clone(&self.0)) }
    }

    /// Whether the client of this write had no answer.
    pub fn contains(&self, write: &W) -> bool
    where
        W: PartialEq,
    {
        self.0.list.lock().writes.iter().any(|remembered| *remembered.write == *write)
    }

    /// Settles what is left, before the process ends.
    pub async fn settle(&self) -> sqlx::Result<()> {
        let to_settle = |remembered: &Remembered<W>| remembered.to_settle.then(|| Arc::clone(&remembered.write));
        let writes: &Vec<Arc<W>> = &self.0.list.lock().writes.iter().filter_map(to_settle).collect();
        let began = Instant::now();
        if !writes.is_empty() {
            retry::execute(&self.0.pool, |mut connection, _| async move { W::settle(&mut connection, writes).await })
                .await?;
        }
        self.0.list.lock().writes.retain(|remembered| {
            let lifetime = if remembered.to_settle { STATEMENT_LIFETIME } else { MOMENT };
            remembered.since + lifetime >= began
        });
        Ok(())
    }

    fn add(&self, write: W, to_settle: bool) {
        let mut list = self.0.list.lock();
        if list.writes.len() >= if to_settle { CAPACITY } else { CAPACITY / 2 } {
            return;
        }
        list.writes.push_back(Remembered { write: Arc::new(write), since: Instant::now(), to_settle });
        if !list.settling && tokio::runtime::Handle::try_current().is_ok() {
            list.settling = true;
            background::spawn("unanswered writes", Arc::clone(&self.0), |shared| Self(shared).settle_all());
        }
    }

    async fn settle_all(self) {
        tracing::info!("settling {} whose clients had no answer", W::WHAT);
        loop {
            let outcome = self.settle().await;
            if let Err(error) = &outcome {
                tracing::debug!(error = %database_message(error), "not settled yet");
            }
            {
                let mut list = self.0.list.lock();
                if list.writes.is_empty() || matches!(outcome, Err(sqlx::Error::PoolClosed)) {
                    list.settling = false;
                    return;
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

impl<W: Settle> Expected<W> {
    /// There is an answer; or nothing was sent.
    pub fn answered(mut self) {
        self.write = None;
    }

    /// The client is told of a failure.
    pub fn failed(mut self) {
        if let Some(write) = self.write.take() {
            self.unanswered.add(write, true);
        }
    }
}

impl<W: Settle> Drop for Expected<W> {
    fn drop(&mut self) {
        if let Some(write) = self.write.take() {
            let gave_up_waiting = self.since.elapsed() >= self.unanswered.0.min_wait;
            self.unanswered.add(write, gave_up_waiting);
        }
    }
}
