//! Batching: concurrent calls of one kind become one statement with one commit.
//!
//! Calls wait in a bounded channel. A worker takes all that wait, up to a maximum, and executes them as one statement
//! ([`BatchedCall`]); meanwhile the next batch is collected. An idle service sends batches of one without delay, a busy
//! one commits a hundred refreshes together. There are few workers, because two batches in flight already keep the
//! database busy.
//!
//! Why this is sound:
//! - **Durability.** No call is answered before its commit.
//! - **Isolation.** Each row is decided by the conditions of the statement, so the outcome of a call depends on no other
//!   call in the batch. Two equal calls are decided as if the second had come a moment later.
//! - **A refusal** of a statement as a whole (one bad row, one row that stays locked, a deadlock) has changed nothing. Its
//!   calls are then sent one by one, so that only the bad one fails. So they are after a panic in a statement; one elsewhere
//!   fails its batch, and the worker begins anew.
//! - **A lost connection** leaves open whether the commit was reached. The same calls are sent again on another connection
//!   while their callers wait, in a task of their own that holds up no other batch. [`BatchedCall`] demands that this does no
//!   work twice, also where the first attempt still waits for a lock (`db::retry`). The attempts end when no caller waits
//!   any more; what then becomes of the work is for `db::unanswered` to settle.
//! - **An unreachable database** fails the calls of which nothing was sent, after seconds.
//! - **Back-pressure.** The channel is first come, first served. When it is full, callers are refused. A caller that went
//!   away is left out of the batch.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use sqlx::pool::PoolConnection;
use sqlx::{PgConnection, PgPool, Postgres};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Mutex, Notify, mpsc, oneshot};
use tracing::{Instrument as _, Span};

use super::{database_message, retry, within};
use crate::{background, traces};

/// Calls that may wait; a few seconds' worth.
const QUEUE_DEPTH: usize = 8192;

/// How often a collecting worker yields before it sends; it stops at the first turn that brings no call.
const YIELDS: usize = 4;

/// The longest time a batch waits for another one to finish; one that is stuck must not hold up the next.
const COLLECT_TIMEOUT: Duration = Duration::from_millis(20);

/// A connection that has not answered for so long is closed; the server gives a statement up earlier.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(20);

/// The pause before calls are sent again whose connection was lost.
const RESEND_PAUSE: Duration = Duration::from_millis(50);

/// A call that can be executed together with others of its kind.
pub trait BatchedCall: Send + Sync + 'static {
    type Answer: Send;

    /// Executes all calls in one statement with one commit, each decided for itself. Answers are in the order of the
    /// calls.
    ///
    /// It may be executed again with the same calls, if its connection was lost, and then must not do the work twice: a
    /// call that finds its own work done answers as it would have answered the first time. Each call therefore brings
    /// a key of its own, chosen at random, that tells its work from that of others.
    fn execute(
        connection: &mut PgConnection,
        calls: &[&Self],
    ) -> impl Future<Output = sqlx::Result<Vec<Self::Answer>>> + Send;
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum BatchError {
    /// More calls wait than the database can answer in a reasonable time.
    #[error("too many calls are waiting")]
    Full,
    /// The database could not be reached or has refused, and nothing was done; shared by all calls of the batch.
    #[error(transparent)]
    Database(Arc<sqlx::Error>),
    /// The same, but a connection had been lost before, and the call may have been executed on that one.
    #[error(transparent)]
    InDoubt(Arc<sqlx::Error>),
}

#[derive(Debug)]
struct Submitted<C: BatchedCall> {
    call: C,
    caller: oneshot::Sender<Result<C::Answer, BatchError>>,
    /// The caller's, if it is recorded.
    span: Span,
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
}

impl<C: BatchedCall> Batcher<C> {
    /// Starts the workers on the current runtime; each takes a connection of the pool for each batch. A batch has at
    /// most `max_batch` calls.
    pub fn start(pool: &PgPool, workers: u32, max_batch: usize) -> Self {
        let (calls, waiting) = mpsc::channel(QUEUE_DEPTH);
        let collector = Mutex::new(Collector { calls: waiting, last: 0 });
        let shared = Arc::new(Shared { collector, in_flight: AtomicUsize::new(0), batch_finished: Notify::new() });
        for _ in 0..workers {
            let state = (pool.clone(), Arc::clone(&shared));
            background::spawn("batches", state, move |(pool, shared)| work(pool, shared, max_batch));
        }
        Self { calls }
    }

    /// Has a call executed, in one batch with those that come at the same time.
    pub async fn submit(&self, call: C) -> Result<C::Answer, BatchError> {
        let (caller, answer) = oneshot::channel();
        self.calls.try_send(Submitted { call, caller, span: traces::current() }).map_err(|error| match error {
            TrySendError::Full(_) => BatchError::Full,
            TrySendError::Closed(_) => BatchError::Database(Arc::new(sqlx::Error::WorkerCrashed)),
        })?;
        answer.await.unwrap_or_else(|_| Err(BatchError::InDoubt(Arc::new(sqlx::Error::WorkerCrashed))))
    }
}

#[derive(Debug)]
struct Shared<C: BatchedCall> {
    collector: Mutex<Collector<C>>,
    in_flight: AtomicUsize,
    batch_finished: Notify,
}

/// Only the worker that collects has it.
#[derive(Debug)]
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
        let mut batch = Batch { calls: shared.collect(max_batch).await, in_doubt: false };
        if batch.calls.is_empty() {
            return;
        }
        let _in_flight = InFlight(&shared);
        if !batch.drop_abandoned() {
            continue;
        }
        match retry::acquire(&pool).await {
            Ok(connection) => {
                if let Err(error) = batch.execute_on(connection).await {
                    let calls = batch.calls.len();
                    tracing::warn!(error = %database_message(&error), calls, "connection lost under a batch");
                    tokio::spawn(batch.execute_until_known(pool.clone()));
                }
            }
            Err(error) => batch.fail(error),
        }
    }
}

/// Calls that were collected and are not answered yet.
struct Batch<C: BatchedCall> {
    calls: Vec<Submitted<C>>,
    /// Whether a connection was lost under them, or there was a panic.
    in_doubt: bool,
}

impl<C: BatchedCall> Batch<C> {
    /// Drops the calls of callers that have gone away. False if none is left.
    fn drop_abandoned(&mut self) -> bool {
        self.calls.retain(|submitted| !submitted.caller.is_closed());
        !self.calls.is_empty()
    }

    /// Executes and answers the calls. If the connection is lost, those that have no answer yet are left, in doubt.
    async fn execute_on(&mut self, mut connection: PoolConnection<Postgres>) -> sqlx::Result<()> {
        let outcome = self.execute(&mut connection).await;
        if outcome.is_err() {
            self.in_doubt = true;
            connection.close_on_drop();
        }
        outcome
    }

    async fn execute(&mut self, connection: &mut PgConnection) -> sqlx::Result<()> {
        let error = match run(connection, &self.calls).await {
            Ok(answers) => {
                for (submitted, answer) in self.calls.drain(..).zip(answers) {
                    submitted.answer(Ok(answer));
                }
                return Ok(());
            }
            Err(error) if retry::is_lost(&error) => return Err(error),
            Err(error) => error,
        };
        // It panicked, perhaps after the commit.
        self.in_doubt |= matches!(error, sqlx::Error::WorkerCrashed);
        if self.calls.len() == 1 {
            self.fail(error);
            return Ok(());
        }
        tracing::warn!(error = %database_message(&error), calls = self.calls.len(), "batch split");
        self.execute_one_by_one(connection).await
    }

    async fn execute_one_by_one(&mut self, connection: &mut PgConnection) -> sqlx::Result<()> {
        let mut rest = std::mem::take(&mut self.calls).into_iter();
        while let Some(submitted) = rest.next() {
            let mut single = Self { calls: vec![submitted], in_doubt: self.in_doubt };
            if single.drop_abandoned()
                && let Err(error) = Box::pin(single.execute(connection)).await
            {
                self.calls = single.calls;
                self.calls.extend(rest);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Executes the calls again and again, until their outcome is known or no caller waits any more.
    async fn execute_until_known(mut self, pool: PgPool) {
        while self.drop_abandoned() {
            tokio::time::sleep(RESEND_PAUSE).await;
            let outcome = match retry::acquire(&pool).await {
                Ok(connection) => self.execute_on(connection).await,
                Err(error @ sqlx::Error::PoolClosed) => return self.fail(error),
                Err(error) => Err(error),
            };
            if let Err(error) = outcome {
                tracing::debug!(error = %database_message(&error), calls = self.calls.len(), "still in doubt");
            }
        }
    }

    fn fail(&mut self, error: sqlx::Error) {
        let error = Arc::new(error);
        let error = if self.in_doubt { BatchError::InDoubt(error) } else { BatchError::Database(error) };
        for submitted in self.calls.drain(..) {
            submitted.answer(Err(error.clone()));
        }
    }
}

async fn run<C: BatchedCall>(
    connection: &mut PgConnection,
    submitted: &[Submitted<C>],
) -> sqlx::Result<Vec<C::Answer>> {
    let calls: Vec<&C> = submitted.iter().map(|submitted| &submitted.call).collect();
    let span = traces::start_batch(submitted.iter().map(|submitted| &submitted.span));
    let answers = AssertUnwindSafe(C::execute(connection, &calls)).catch_unwind().instrument(span);
    let answers = answers.map(|outcome| {
        outcome.unwrap_or_else(|_panic| {
            tracing::error!("a batched statement panicked");
            Err(sqlx::Error::WorkerCrashed)
        })
    });
    within(STATEMENT_TIMEOUT, answers).await
}
