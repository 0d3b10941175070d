//! Many concurrent refreshes as one statement with one commit.
//!
//! Calls wait in a channel. A worker takes all that wait, up to a maximum, and sends them as one
//! [`refresh_tokens::rotate`]; while that is in the database the next ones gather. An idle service sends batches of one
//! at once, a busy one commits a hundred refreshes together. Each worker has a connection, and there are few, because
//! two batches in flight already keep the database busy.
//!
//! Why this is sound:
//! - **Durability.** Nobody is answered before the commit that holds their successor. If the connection breaks, nobody
//!   knows whether it was reached, and every caller of the batch is told so (503); none is told a lie.
//! - **Isolation.** A row decides for itself in the statement's own conditions; what happens to one token depends on no
//!   other in the batch. A token that stands twice goes in once; the later callers find it used, exactly as if they
//!   had come a moment later.
//! - **Failure.** A statement that the database refuses as a whole (one poisoned row, one that somebody keeps locked) has
//!   changed nothing; its tokens are then sent one by one, so that only the poisoned one fails. Once the database itself
//!   is gone, everybody who is left is told so, and nothing is sent any more for callers who have gone away.
//! - **Deadlocks.** Every batch locks its rows in the order of their `jti`. What still meets crosswise, such as a user
//!   being deleted, is resolved by the server and then sent one by one as above.
//! - **Fairness and back-pressure.** The channel is first come, first served, and bounded; beyond it callers are told
//!   to come back. A caller that went away is left out of the batch.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sqlx::PgPool;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Mutex, Notify, mpsc, oneshot};

use super::refresh_tokens::{self, Rotated, Rotation};

/// Calls that may wait; some seconds' worth of them.
const WAITING: usize = 8192;

/// How often a gathering worker lets others run before it goes; each turn must bring somebody, or it goes at once.
const YIELDS: usize = 4;

/// The longest a batch waits for another one to land; a batch that is stuck must not hold up the next.
const GATHER: Duration = Duration::from_millis(20);

/// A connection that has not answered for so long is given up; the server gives a statement up before.
const PATIENCE: Duration = Duration::from_secs(20);

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
        let waiting = Mutex::new(Waiting { calls: waiting, last: 0 });
        let desk = Arc::new(Desk { waiting, in_flight: AtomicUsize::new(0), landed: Notify::new() });
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
            return rotate_one(&self.pool, &rotation).await;
        }
        let (answer, decided) = oneshot::channel();
        self.calls.try_send(Call { rotation, answer }).map_err(|error| match error {
            TrySendError::Full(_) => QueueError::Full,
            TrySendError::Closed(_) => sqlx::Error::WorkerCrashed.into(),
        })?;
        decided.await.unwrap_or_else(|_| Err(sqlx::Error::WorkerCrashed.into()))
    }
}

/// What the workers share.
struct Desk {
    waiting: Mutex<Waiting>,
    /// Batches in the database.
    in_flight: AtomicUsize,
    landed: Notify,
}

/// What only the gathering worker has.
struct Waiting {
    calls: mpsc::Receiver<Call>,
    /// How many calls went in the last batch.
    last: usize,
}

impl Waiting {
    fn take(&mut self, batch: &mut Vec<Call>, max_batch: usize) {
        while batch.len() < max_batch
            && let Ok(call) = self.calls.try_recv()
        {
            batch.push(call);
        }
    }
}

impl Desk {
    /// Takes the next batch; an empty one says that there will be no more.
    ///
    /// One worker gathers at a time. It takes what waits, lets those who are just about to call do so (unless one came
    /// alone, as the last did), and goes. But while others are in the database it waits for half a batch or for them to
    /// land, though no longer than [`GATHER`]: a fuller batch is cheaper, and the database is not idle meanwhile.
    async fn gather(&self, max_batch: usize) -> Vec<Call> {
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
struct Flight<'a>(&'a Desk);

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
        self.0.landed.notify_waiters();
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

/// A token in a batch, and everybody who brought it. The first caller goes into the statement; the others are answered
/// `None` and find out by themselves that the token is used.
struct Entry {
    rotation: Rotation,
    callers: Vec<oneshot::Sender<Answer>>,
}

impl Entry {
    fn is_abandoned(&self) -> bool {
        self.callers.iter().all(oneshot::Sender::is_closed)
    }

    fn respond(self, answer: Answer) {
        let later = answer.as_ref().map_or_else(|error| Err(error.clone()), |_| Ok(None));
        let later = std::iter::repeat(later);
        for (caller, answer) in self.callers.into_iter().zip(std::iter::once(answer).chain(later)) {
            // A caller that has gone away meanwhile needs no answer.
            let _ = caller.send(answer);
        }
    }
}

/// The calls by token, in the order in which rows are locked.
fn entries(mut calls: Vec<Call>) -> Vec<Entry> {
    fn token(rotation: &Rotation) -> (&str, &str) {
        (rotation.presented.jti.as_str(), rotation.presented.hash.as_str())
    }
    // Stable: who brought a token first stays first.
    calls.sort_by(|a, b| token(&a.rotation).cmp(&token(&b.rotation)));
    let mut entries: Vec<Entry> = Vec::with_capacity(calls.len());
    for Call { rotation, answer } in calls {
        match entries.last_mut() {
            Some(entry) if token(&entry.rotation) == token(&rotation) => entry.callers.push(answer),
            _ => entries.push(Entry { rotation, callers: vec![answer] }),
        }
    }
    entries
}

/// Decides a batch and answers every call in it.
async fn decide(pool: &PgPool, calls: Vec<Call>) {
    let entries = entries(calls);
    if entries.is_empty() {
        return;
    }
    let rotations: Vec<&Rotation> = entries.iter().map(|entry| &entry.rotation).collect();
    match rotate(pool, &rotations).await {
        Ok(answers) => {
            for (entry, answer) in entries.into_iter().zip(answers) {
                entry.respond(Ok(answer));
            }
        }
        Err(error) if is_refusal(&error) && entries.len() > 1 => {
            tracing::warn!(error = &error as &dyn std::error::Error, tokens = entries.len(), "batch split");
            decide_one_by_one(pool, entries).await;
        }
        Err(error) => {
            let error = QueueError::from(error);
            for entry in entries {
                entry.respond(Err(error.clone()));
            }
        }
    }
}

async fn decide_one_by_one(pool: &PgPool, entries: Vec<Entry>) {
    let mut gone = None;
    for entry in entries {
        if entry.is_abandoned() {
            continue;
        }
        let answer = match &gone {
            Some(error) => Err(QueueError::clone(error)),
            None => rotate_one(pool, &entry.rotation).await,
        };
        if let Err(QueueError::Database(error)) = &answer
            && !is_refusal(error)
        {
            gone = Some(QueueError::Database(Arc::clone(error)));
        }
        entry.respond(answer);
    }
}

/// Whether the server took the statement and refused it, so that nothing has changed. When it is going down (class 57P)
/// it says so at any moment, perhaps after the commit.
fn is_refusal(error: &sqlx::Error) -> bool {
    let going_down = |code: &str| code.starts_with("57P");
    error.as_database_error().is_some_and(|error| !error.code().as_deref().is_some_and(going_down))
}

async fn rotate_one(pool: &PgPool, rotation: &Rotation) -> Answer {
    Ok(rotate(pool, &[rotation]).await?.pop().flatten())
}

async fn rotate(pool: &PgPool, rotations: &[&Rotation]) -> sqlx::Result<Vec<Option<Rotated>>> {
    let mut connection = pool.acquire().await?;
    match tokio::time::timeout(PATIENCE, refresh_tokens::rotate(&mut *connection, rotations)).await {
        Ok(answers) => answers,
        Err(_elapsed) => {
            connection.close_on_drop();
            Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into())
        }
    }
}
