//! Batching: concurrent calls of one kind become one statement with one commit.
//!
//! Calls wait in a bounded channel. A worker takes all that wait, up to a maximum, and executes them as one statement
//! ([`BatchedCall`]); meanwhile the next batch is collected. An idle service sends batches of one without delay, a busy
//! one commits a hundred refreshes together. There are few workers, because two batches in flight already keep the
//! database busy.
//!
//! Why this is sound:
//! - **Durability.** No call is answered before its commit. If the connection breaks, nobody knows whether the commit
//!   was reached, and every caller of the batch gets an error (503).
//! - **Isolation.** Each row is decided by the conditions of the statement; the outcome of a call depends on no other
//!   call in the batch. Two equal calls are decided as if the second had come a moment later.
//! - **Failure.** A statement that the database refuses as a whole (one bad row, one row that stays locked) has changed
//!   nothing; its calls are then sent one by one, so that only the bad one fails. Once the database itself fails, the
//!   remaining calls fail with it, and nothing is sent for callers that have gone away.
//! - **Deadlocks.** Every batch locks its rows in one order. A deadlock with other statements, such as the deletion of a
//!   user, is resolved by the server, and the calls are then sent one by one as above.
//! - **Fairness and back-pressure.** The channel is first come, first served. When it is full, callers are refused. A
//!   caller that went away is left out of the batch.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sqlx::{PgConnection, PgPool};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Mutex, Notify, mpsc, oneshot};

/// Calls that may wait; a few seconds' worth.
const QUEUE_DEPTH: usize = 8192;

/// How often a collecting worker yields before it sends; it stops at the first turn that brings no call.
const YIELDS: usize = 4;

/// The longest time a batch waits for another one to finish; one that is stuck must not hold up the next.
const COLLECT_TIMEOUT: Duration = Duration::from_millis(20);

/// A connection that has not answered for so long is closed; the server gives a statement up earlier.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(20);

/// A call that can be executed together with others of its kind.
pub trait BatchedCall: Send + Sync + 'static {
    type Answer: Send;

    /// Executes all calls in one statement with one commit, each decided for itself. Answers are in the order of the
    /// calls.
    fn execute(
        connection: &mut PgConnection,
        calls: &[&Self],
    ) -> impl Future<Output = sqlx::Result<Vec<Self::Answer>>> + Send;
}

/// Why a call has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BatchError {
    /// More calls wait than the database can answer in a reasonable time.
    #[error("too many calls are waiting")]
    Full,
    /// The database failed; shared by all calls of the batch.
    #[error(transparent)]
    Database(Arc<sqlx::Error>),
}

impl From<sqlx::Error> for BatchError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(Arc::new(error))
    }
}

/// One column of the calls, as an array for a statement.
pub(super) fn column<'a, C, T>(calls: &[&'a C], value: impl Fn(&'a C) -> T) -> Vec<T> {
    calls.iter().copied().map(value).collect()
}

struct Submitted<C: BatchedCall> {
    call: C,
    caller: oneshot::Sender<Result<C::Answer, BatchError>>,
}

impl<C: BatchedCall> Submitted<C> {
    fn answer(self, answer: Result<C::Answer, BatchError>) {
        // The caller may have gone away.
        let _ = self.caller.send(answer);
    }
}

/// A handle on the queue and its workers, which end when it is dropped.
#[derive(Debug)]
pub struct Batcher<C: BatchedCall> {
    calls: mpsc::Sender<Submitted<C>>,
    pool: PgPool,
    max_batch: usize,
}

impl<C: BatchedCall> Batcher<C> {
    /// Starts the workers on the current runtime; each takes a connection of the pool for each batch. A batch has at
    /// most `max_batch` calls; 1 turns batching off.
    #[must_use]
    pub fn start(pool: PgPool, workers: u32, max_batch: usize) -> Self {
        let (calls, waiting) = mpsc::channel(QUEUE_DEPTH);
        let collector = Mutex::new(Collector { calls: waiting, last: 0 });
        let shared = Arc::new(Shared { collector, in_flight: AtomicUsize::new(0), batch_finished: Notify::new() });
        if max_batch > 1 {
            for _ in 0..workers {
                tokio::spawn(work(pool.clone(), Arc::clone(&shared), max_batch));
            }
        }
        Self { calls, pool, max_batch }
    }

    /// Has a call executed, in one batch with those that come at the same time.
    pub async fn submit(&self, call: C) -> Result<C::Answer, BatchError> {
        if self.max_batch <= 1 {
            return execute_one(&self.pool, &call).await;
        }
        let (caller, answer) = oneshot::channel();
        self.calls.try_send(Submitted { call, caller }).map_err(|error| match error {
            TrySendError::Full(_) => BatchError::Full,
            TrySendError::Closed(_) => sqlx::Error::WorkerCrashed.into(),
        })?;
        answer.await.unwrap_or_else(|_| Err(sqlx::Error::WorkerCrashed.into()))
    }
}

/// What the workers share.
struct Shared<C: BatchedCall> {
    collector: Mutex<Collector<C>>,
    /// Batches in the database.
    in_flight: AtomicUsize,
    batch_finished: Notify,
}

/// Only the worker that collects has it.
struct Collector<C: BatchedCall> {
    calls: mpsc::Receiver<Submitted<C>>,
    /// Size of the last batch.
    last: usize,
}

impl<C: BatchedCall> Collector<C> {
    fn take(&mut self, batch: &mut Vec<Submitted<C>>, max_batch: usize) {
        while batch.len() < max_batch
            && let Ok(call) = self.calls.try_recv()
        {
            batch.push(call);
        }
    }
}

impl<C: BatchedCall> Shared<C> {
    /// Takes the next batch; an empty one is the end.
    ///
    /// One worker collects at a time. It takes what waits, yields to tasks that are about to call (unless one call came
    /// alone, as the last did), and returns. But while other batches are in the database it waits for half a batch or
    /// for one of them to finish, though no longer than [`COLLECT_TIMEOUT`]: a fuller batch is cheaper, and the database
    /// is not idle meanwhile.
    async fn collect(&self, max_batch: usize) -> Vec<Submitted<C>> {
        let mut batch = Vec::with_capacity(max_batch);
        let mut collector = self.collector.lock().await;
        if collector.calls.recv_many(&mut batch, max_batch).await == 0 {
            return batch;
        }
        let turns = if batch.len().max(collector.last) > 1 { YIELDS } else { 0 };
        for _ in 0..turns {
            let before = batch.len();
            tokio::task::yield_now().await;
            collector.take(&mut batch, max_batch);
            if batch.len() == before {
                break;
            }
        }
        let mut timeout = std::pin::pin!(tokio::time::sleep(COLLECT_TIMEOUT));
        while batch.len() < max_batch / 2 {
            // Registered before the check, so that a batch that finishes in between is not missed.
            let finished = self.batch_finished.notified();
            if self.in_flight.load(Ordering::Acquire) == 0 {
                break;
            }
            tokio::select! {
                biased;
                call = collector.calls.recv() => match call {
                    Some(call) => batch.push(call),
                    None => break,
                },
                () = finished => {}
                () = &mut timeout => break,
            }
        }
        collector.take(&mut batch, max_batch);
        collector.last = batch.len();
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        batch
    }
}

/// A batch in the database. It is finished when this is dropped, whatever its outcome.
struct InFlight<'a, C: BatchedCall>(&'a Shared<C>);

impl<C: BatchedCall> Drop for InFlight<'_, C> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
        self.0.batch_finished.notify_waiters();
    }
}

async fn work<C: BatchedCall>(pool: PgPool, shared: Arc<Shared<C>>, max_batch: usize) {
    loop {
        let mut batch = shared.collect(max_batch).await;
        if batch.is_empty() {
            return;
        }
        let _in_flight = InFlight(&shared);
        batch.retain(|submitted| !submitted.caller.is_closed());
        execute(&pool, batch).await;
    }
}

/// Executes a batch and answers every call in it.
async fn execute<C: BatchedCall>(pool: &PgPool, batch: Vec<Submitted<C>>) {
    if batch.is_empty() {
        return;
    }
    let calls: Vec<&C> = batch.iter().map(|submitted| &submitted.call).collect();
    match send(pool, &calls).await {
        Ok(answers) => {
            for (submitted, answer) in batch.into_iter().zip(answers) {
                submitted.answer(Ok(answer));
            }
        }
        Err(error) if is_refusal(&error) && batch.len() > 1 => {
            tracing::warn!(error = &error as &dyn std::error::Error, calls = batch.len(), "batch split");
            execute_one_by_one(pool, batch).await;
        }
        Err(error) => {
            let error = BatchError::from(error);
            for submitted in batch {
                submitted.answer(Err(error.clone()));
            }
        }
    }
}

async fn execute_one_by_one<C: BatchedCall>(pool: &PgPool, batch: Vec<Submitted<C>>) {
    let mut database_gone = None;
    for submitted in batch {
        if submitted.caller.is_closed() {
            continue;
        }
        let answer = match &database_gone {
            Some(error) => Err(BatchError::clone(error)),
            None => execute_one(pool, &submitted.call).await,
        };
        if let Err(BatchError::Database(error)) = &answer
            && !is_refusal(error)
        {
            database_gone = Some(BatchError::Database(Arc::clone(error)));
        }
        submitted.answer(answer);
    }
}

/// Whether the server took the statement and refused it, so that nothing has changed. When it is going down (class 57P)
/// it says so at any moment, perhaps after the commit.
fn is_refusal(error: &sqlx::Error) -> bool {
    let going_down = |code: &str| code.starts_with("57P");
    error.as_database_error().is_some_and(|error| !error.code().as_deref().is_some_and(going_down))
}

async fn execute_one<C: BatchedCall>(pool: &PgPool, call: &C) -> Result<C::Answer, BatchError> {
    Ok(send(pool, &[call]).await?.pop().expect("BUG: there is an answer to every call"))
}

async fn send<C: BatchedCall>(pool: &PgPool, calls: &[&C]) -> sqlx::Result<Vec<C::Answer>> {
    let mut connection = pool.acquire().await?;
    match tokio::time::timeout(STATEMENT_TIMEOUT, C::execute(&mut connection, calls)).await {
        Ok(answers) => answers,
        Err(_elapsed) => {
            connection.close_on_drop();
            Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into())
        }
    }
}
