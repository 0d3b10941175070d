//! Many concurrent calls as one statement with one commit.
//!
//! Calls wait in a channel. A worker takes all that wait, up to a maximum, and sends them as one statement
//! ([`Batched`]); while that is in the database the next ones gather. An idle service sends batches of one at once, a
//! busy one commits a hundred refreshes together. There are few workers, because two batches in flight already keep
//! the database busy.
//!
//! Why this is sound:
//! - **Durability.** Nobody is answered before the commit that holds what they are told. If the connection breaks,
//!   nobody knows whether it was reached, and every caller of the batch is told so (503); none is told a lie.
//! - **Isolation.** A row decides for itself in the statement's own conditions; what happens to one call depends on no
//!   other in the batch. A call that stands twice is decided as if the second had come a moment later.
//! - **Failure.** A statement that the database refuses as a whole (one poisoned row, one that somebody keeps locked) has
//!   changed nothing; its calls are then sent one by one, so that only the poisoned one fails. Once the database itself
//!   is gone, everybody who is left is told so, and nothing is sent any more for callers who have gone away.
//! - **Deadlocks.** Every batch locks its rows in one order. What still meets crosswise, such as a user being deleted, is
//!   resolved by the server and then sent one by one as above.
//! - **Fairness and back-pressure.** The channel is first come, first served, and bounded; beyond it callers are told
//!   to come back. A caller that went away is left out of the batch.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sqlx::{PgConnection, PgPool};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Mutex, Notify, mpsc, oneshot};

/// Calls that may wait; some seconds' worth of them.
const WAITING: usize = 8192;

/// How often a gathering worker lets others run before it goes; each turn must bring somebody, or it goes at once.
const YIELDS: usize = 4;

/// The longest a batch waits for another one to land; a batch that is stuck must not hold up the next.
const GATHER: Duration = Duration::from_millis(20);

/// A connection that has not answered for so long is given up; the server gives a statement up before.
const PATIENCE: Duration = Duration::from_secs(20);

/// What can be decided in company.
pub trait Batched: Send + Sync + 'static {
    type Answer: Send;

    /// Decides all calls in one statement with one commit, each for itself. The answers stand in the order of the calls.
    fn decide(
        connection: &mut PgConnection,
        calls: &[&Self],
    ) -> impl Future<Output = sqlx::Result<Vec<Self::Answer>>> + Send;
}

/// Why a call was not decided.
#[derive(Clone, Debug, thiserror::Error)]
pub enum QueueError {
    /// More calls wait than the database can answer in a reasonable time.
    #[error("too many calls are waiting")]
    Full,
    /// The database failed; shared by all calls of the batch.
    #[error(transparent)]
    Database(Arc<sqlx::Error>),
}

impl From<sqlx::Error> for QueueError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(Arc::new(error))
    }
}

/// One column of the calls, as an array for a statement.
pub(super) fn column<'a, B, T>(calls: &[&'a B], value: impl Fn(&'a B) -> T) -> Vec<T> {
    calls.iter().copied().map(value).collect()
}

struct Call<B: Batched> {
    what: B,
    caller: oneshot::Sender<Result<B::Answer, QueueError>>,
}

/// A handle on the queue; when the last one is dropped the workers finish and end.
#[derive(Debug)]
pub struct Queue<B: Batched> {
    calls: mpsc::Sender<Call<B>>,
    pool: PgPool,
    max_batch: usize,
}

impl<B: Batched> Queue<B> {
    /// Starts the workers on the current runtime; each takes a connection of the pool for each batch. At most
    /// `max_batch` calls go in one batch; 1 turns batching off.
    #[must_use]
    pub fn start(pool: PgPool, workers: u32, max_batch: usize) -> Self {
        let (calls, waiting) = mpsc::channel(WAITING);
        let waiting = Mutex::new(Waiting { calls: waiting, last: 0 });
        let desk = Arc::new(Desk { waiting, in_flight: AtomicUsize::new(0), landed: Notify::new() });
        if max_batch > 1 {
            for _ in 0..workers {
                tokio::spawn(work(pool.clone(), Arc::clone(&desk), max_batch));
            }
        }
        Self { calls, pool, max_batch }
    }

    /// Has one call decided, in company if there is any.
    pub async fn call(&self, what: B) -> Result<B::Answer, QueueError> {
        if self.max_batch <= 1 {
            return decide_one(&self.pool, &what).await;
        }
        let (caller, answer) = oneshot::channel();
        self.calls.try_send(Call { what, caller }).map_err(|error| match error {
            TrySendError::Full(_) => QueueError::Full,
            TrySendError::Closed(_) => sqlx::Error::WorkerCrashed.into(),
        })?;
        answer.await.unwrap_or_else(|_| Err(sqlx::Error::WorkerCrashed.into()))
    }
}

/// What the workers share.
struct Desk<B: Batched> {
    waiting: Mutex<Waiting<B>>,
    /// Batches in the database.
    in_flight: AtomicUsize,
    landed: Notify,
}

/// What only the gathering worker has.
struct Waiting<B: Batched> {
    calls: mpsc::Receiver<Call<B>>,
    /// How many calls went in the last batch.
    last: usize,
}

impl<B: Batched> Waiting<B> {
    fn take(&mut self, batch: &mut Vec<Call<B>>, max_batch: usize) {
        while batch.len() < max_batch
            && let Ok(call) = self.calls.try_recv()
        {
            batch.push(call);
        }
    }
}

impl<B: Batched> Desk<B> {
    /// Takes the next batch; an empty one says that there will be no more.
    ///
    /// One worker gathers at a time. It takes what waits, lets those who are just about to call do so (unless one came
    /// alone, as the last did), and goes. But while others are in the database it waits for half a batch or for them to
    /// land, though no longer than [`GATHER`]: a fuller batch is cheaper, and the database is not idle meanwhile.
    async fn gather(&self, max_batch: usize) -> Vec<Call<B>> {
        let mut batch = Vec::with_capacity(max_batch);
        let mut waiting = self.waiting.lock().await;
        if waiting.calls.recv_many(&mut batch, max_batch).await == 0 {
            return batch;
        }
        let turns = if batch.len().max(waiting.last) > 1 { YIELDS } else { 0 };
        for _ in 0..turns {
            let before = batch.len();
            tokio::task::yield_now().await;
            waiting.take(&mut batch, max_batch);
            if batch.len() == before {
                break;
            }
        }
        let mut enough = std::pin::pin!(tokio::time::sleep(GATHER));
        while batch.len() < max_batch / 2 {
            // Registered before the check, so that a landing in between is not missed.
            let landed = self.landed.notified();
            if self.in_flight.load(Ordering::Acquire) == 0 {
                break;
            }
            tokio::select! {
                biased;
                call = waiting.calls.recv() => match call {
                    Some(call) => batch.push(call),
                    None => break,
                },
                () = landed => {}
                () = &mut enough => break,
            }
        }
        waiting.take(&mut batch, max_batch);
        waiting.last = batch.len();
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        batch
    }
}

/// A batch in the database; lands when it is dropped, whatever happened to it.
struct Flight<'a, B: Batched>(&'a Desk<B>);

impl<B: Batched> Drop for Flight<'_, B> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
        self.0.landed.notify_waiters();
    }
}

async fn work<B: Batched>(pool: PgPool, desk: Arc<Desk<B>>, max_batch: usize) {
    loop {
        let mut batch = desk.gather(max_batch).await;
        if batch.is_empty() {
            return;
        }
        let _flight = Flight(&desk);
        batch.retain(|call| !call.caller.is_closed());
        decide(&pool, batch).await;
    }
}

/// Decides a batch and answers every call in it.
async fn decide<B: Batched>(pool: &PgPool, batch: Vec<Call<B>>) {
    if batch.is_empty() {
        return;
    }
    let calls: Vec<&B> = batch.iter().map(|call| &call.what).collect();
    match send(pool, &calls).await {
        Ok(answers) => {
            for (call, answer) in batch.into_iter().zip(answers) {
                call.answer(Ok(answer));
            }
        }
        Err(error) if is_refusal(&error) && batch.len() > 1 => {
            tracing::warn!(error = &error as &dyn std::error::Error, calls = batch.len(), "batch split");
            decide_one_by_one(pool, batch).await;
        }
        Err(error) => {
            let error = QueueError::from(error);
            for call in batch {
                call.answer(Err(error.clone()));
            }
        }
    }
}

async fn decide_one_by_one<B: Batched>(pool: &PgPool, batch: Vec<Call<B>>) {
    let mut gone = None;
    for call in batch {
        if call.caller.is_closed() {
            continue;
        }
        let answer = match &gone {
            Some(error) => Err(QueueError::clone(error)),
            None => decide_one(pool, &call.what).await,
        };
        if let Err(QueueError::Database(error)) = &answer
            && !is_refusal(error)
        {
            gone = Some(QueueError::Database(Arc::clone(error)));
        }
        call.answer(answer);
    }
}

impl<B: Batched> Call<B> {
    fn answer(self, answer: Result<B::Answer, QueueError>) {
        // A caller that has gone away meanwhile needs none.
        let _ = self.caller.send(answer);
    }
}

/// Whether the server took the statement and refused it, so that nothing has changed. When it is going down (class 57P)
/// it says so at any moment, perhaps after the commit.
fn is_refusal(error: &sqlx::Error) -> bool {
    let going_down = |code: &str| code.starts_with("57P");
    error.as_database_error().is_some_and(|error| !error.code().as_deref().is_some_and(going_down))
}

async fn decide_one<B: Batched>(pool: &PgPool, call: &B) -> Result<B::Answer, QueueError> {
    Ok(send(pool, &[call]).await?.pop().expect("BUG: there is an answer to every call"))
}

async fn send<B: Batched>(pool: &PgPool, calls: &[&B]) -> sqlx::Result<Vec<B::Answer>> {
    let mut connection = pool.acquire().await?;
    match tokio::time::timeout(PATIENCE, B::decide(&mut connection, calls)).await {
        Ok(answers) => answers,
        Err(_elapsed) => {
            connection.close_on_drop();
            Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into())
        }
    }
}
