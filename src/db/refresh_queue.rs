//! Many concurrent refreshes as one statement with one commit.
//!
//! Calls wait in a channel. A worker takes all that wait, up to a maximum, and sends them as one
//! [`refresh_tokens::rotate`]; while that is in the database the next ones gather. No clock is ever waited for: an idle
//! service sends batches of one at once, a busy one commits a hundred refreshes together. Each worker has a connection,
//! and there are few, because two batches in flight already keep the database busy.
//!
//! Why this is sound:
//! - **Durability.** Nobody is answered before the commit that holds their successor. If the connection breaks, nobody
//!   knows whether it was reached, and every caller of the batch is told so (503); none is told a lie.
//! - **Isolation.** A row decides for itself in the statement's own conditions; what happens to one token depends on no
//!   other in the batch. A token that stands twice goes in once; the later callers find it used, exactly as if they
//!   had come a moment later.
//! - **Failure.** A statement that the database refuses as a whole (one poisoned row) has changed nothing; its calls are
//!   then sent one by one, so that only the poisoned one fails.
//! - **Deadlocks.** Every batch locks its rows in the order of their `jti`. What still meets crosswise, such as a user
//!   being deleted, is resolved by the server and then sent one by one as above.
//! - **Fairness and back-pressure.** The channel is first come, first served, and bounded; beyond it callers are told
//!   to come back. A caller that went away is left out of the batch.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sqlx::PgPool;
use tokio::sync::{Mutex, Notify, mpsc, oneshot};

use super::refresh_tokens::{self, Rotated, Rotation};
use crate::domain::tokens::TokenHash;

/// Calls that may wait; some seconds' worth of them.
const WAITING: usize = 8192;

/// How often a gathering worker lets others run before it goes; each turn must bring somebody, or it goes at once.
const YIELDS: usize = 4;

/// What came of a call: the rotation, `None` where the token was refused.
type Answer = Result<Option<Rotated>, QueueError>;

/// Why a call was not decided.
#[derive(Clone, Debug, thiserror::Error)]
pub enum QueueError {
    /// More calls wait than the database can answer in a reasonable time.
    #[error("too many refreshes are waiting")]
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

struct Call {
    rotation: Rotation,
    answer: oneshot::Sender<Answer>,
}

/// A handle on the queue; when the last one is dropped the workers finish and end.
#[derive(Clone, Debug)]
pub struct RefreshQueue {
    calls: mpsc::Sender<Call>,
    pool: PgPool,
    max_batch: usize,
}

impl RefreshQueue {
    /// Starts the workers on the current runtime, one for each connection of the pool. At most `max_batch` calls go in
    /// one batch; 1 turns batching off.
    #[must_use]
    pub fn start(pool: PgPool, max_batch: usize) -> Self {
        let (calls, waiting) = mpsc::channel(WAITING);
        let desk =
            Arc::new(Desk { waiting: Mutex::new(waiting), in_flight: AtomicUsize::new(0), landed: Notify::new() });
        if max_batch > 1 {
            for _ in 0..pool.options().get_max_connections() {
                tokio::spawn(work(pool.clone(), Arc::clone(&desk), max_batch));
            }
        }
        Self { calls, pool, max_batch }
    }

    /// Exchanges one token, in company if there is any.
    pub async fn rotate(&self, rotation: Rotation) -> Answer {
        if self.max_batch <= 1 {
            let answers = refresh_tokens::rotate(&self.pool, &[&rotation]).await?;
            return Ok(answers.into_iter().next().flatten());
        }
        let (answer, decided) = oneshot::channel();
        self.calls.try_send(Call { rotation, answer }).map_err(|_| QueueError::Full)?;
        decided.await.unwrap_or_else(|_| Err(sqlx::Error::WorkerCrashed.into()))
    }
}

/// What the workers share.
struct Desk {
    waiting: Mutex<mpsc::Receiver<Call>>,
    /// Batches in the database.
    in_flight: AtomicUsize,
    landed: Notify,
}

impl Desk {
    /// Takes the next batch; an empty one says that there will be no more.
    ///
    /// One worker gathers at a time. It takes what waits, lets those who are just about to call do so, and goes; but
    /// while another batch is in the database it waits for half a batch or for that one to land, because a fuller batch
    /// is cheaper and the database is not idle meanwhile.
    async fn gather(&self, max_batch: usize) -> Vec<Call> {
        let mut batch = Vec::with_capacity(max_batch);
        let mut waiting = self.waiting.lock().await;
        if waiting.recv_many(&mut batch, max_batch).await == 0 {
            return batch;
        }
        for _ in 0..YIELDS {
            let before = batch.len();
            tokio::task::yield_now().await;
            take_waiting(&mut waiting, &mut batch, max_batch);
            if batch.len() == before {
                break;
            }
        }
        while batch.len() < max_batch / 2 {
            // Registered before the check, so that a landing in between is not missed.
            let landed = self.landed.notified();
            if self.in_flight.load(Ordering::Acquire) == 0 {
                break;
            }
            tokio::select! {
                biased;
                call = waiting.recv() => match call {
                    Some(call) => batch.push(call),
                    None => break,
                },
                () = landed => {}
            }
        }
        take_waiting(&mut waiting, &mut batch, max_batch);
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        batch
    }
}

/// A batch in the database; lands when it is dropped, whatever happened to it.
struct Flight<'a>(&'a Desk);

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
        self.0.landed.notify_waiters();
    }
}

fn take_waiting(waiting: &mut mpsc::Receiver<Call>, batch: &mut Vec<Call>, max_batch: usize) {
    while batch.len() < max_batch
        && let Ok(call) = waiting.try_recv()
    {
        batch.push(call);
    }
}

async fn work(pool: PgPool, desk: Arc<Desk>, max_batch: usize) {
    loop {
        let mut batch = desk.gather(max_batch).await;
        if batch.is_empty() {
            return;
        }
        let _flight = Flight(&desk);
        batch.retain(|call| !call.answer.is_closed());
        decide(&pool, batch).await;
    }
}

/// Decides a batch and answers every call in it.
async fn decide(pool: &PgPool, calls: Vec<Call>) {
    // The first caller of each token goes into the statement; who brings the same one again is answered `None` and
    // finds out by itself that it is used.
    let mut seen: HashSet<TokenHash> = HashSet::new();
    let mut batch: Vec<Call> = Vec::new();
    let mut again: Vec<oneshot::Sender<Answer>> = Vec::new();
    for call in calls {
        if seen.insert(call.rotation.presented.hash.clone()) {
            batch.push(call);
        } else {
            again.push(call.answer);
        }
    }
    batch.sort_unstable_by(|a, b| a.rotation.presented.jti.as_str().cmp(b.rotation.presented.jti.as_str()));
    if batch.is_empty() {
        return;
    }
    let rotations: Vec<&Rotation> = batch.iter().map(|call| &call.rotation).collect();
    match refresh_tokens::rotate(pool, &rotations).await {
        Ok(answers) => {
            for (call, answer) in batch.into_iter().zip(answers) {
                respond(call.answer, Ok(answer));
            }
        }
        // The server took the statement and refused it: nothing has changed.
        Err(error) if error.as_database_error().is_some() && batch.len() > 1 => {
            tracing::warn!(error = &error as &dyn std::error::Error, calls = batch.len(), "batch split");
            for call in batch {
                let answers = refresh_tokens::rotate(pool, &[&call.rotation]).await;
                let answer = answers.map(|answers| answers.into_iter().next().flatten());
                respond(call.answer, answer.map_err(QueueError::from));
            }
        }
        Err(error) => {
            let error = QueueError::from(error);
            for call in batch {
                respond(call.answer, Err(error.clone()));
            }
            for answer in again.drain(..) {
                respond(answer, Err(error.clone()));
            }
        }
    }
    for answer in again {
        respond(answer, Ok(None));
    }
}

fn respond(caller: oneshot::Sender<Answer>, answer: Answer) {
    // A caller that has gone away meanwhile needs no answer.
    let _ = caller.send(answer);
}
