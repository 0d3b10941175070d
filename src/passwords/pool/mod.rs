//! A pool of worker threads with a bounded queue, for work that takes a core for many milliseconds.
//!
//! Admission: the queue is bounded by the expected wait, which is the expected cost of every admitted job divided by the
//! number of workers. A caller that would wait too long is refused at once, with the time after which to try again. A
//! caller counts from its admission until its job is done or it goes away.
//!
//! The workers run at a lower scheduling priority, so that requests that need no hash are still answered at once while
//! every core is busy.
//!
//! Callers are released in groups. While all cores are busy, each wake-up evicts the caches of a worker; waking callers
//! one by one cost a tenth of all logins. Callers that have to wait anyway are therefore woken together, once after
//! their admission and once when their jobs are done. It is a task of the runtime that wakes them then: a worker would be
//! preempted by the first it wakes, and what the callers do next would not meet in one batch (`db::batch`).

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tracing::field::Empty;
use tracing::{Instrument as _, trace_span};

use crate::metrics::Metrics;
use crate::traces;

#[derive(Clone, Copy, Debug)]
pub struct PoolSettings {
    pub concurrency: usize,
    /// Callers that would wait longer are refused.
    pub max_wait: Duration,
}

/// The queue is full; it will have drained after `retry_after`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overloaded {
    pub retry_after: Duration,
}

/// Does the work, and returns what hands the outcome to the caller.
type Work = Box<dyn FnOnce() -> Notify + Send>;
type Notify = Box<dyn FnOnce() + Send>;

struct Job {
    ticket: u64,
    /// Dropped without an outcome, it tells the caller that the job waited too long, or panicked.
    work: Work,
    expected: Duration,
    deadline: Instant,
}

struct State {
    queue: VecDeque<Job>,
    next_ticket: u64,
    /// Sum of the expected costs of all admitted jobs: not yet enqueued, in the queue, and on the workers.
    backlog: Duration,
    /// When the group of callers admitted last is released.
    release_at: Instant,
    /// Finished jobs whose callers are notified together, at `notify_at`.
    done: Vec<Notify>,
    notify_at: Instant,
    closed: bool,
}

struct Shared {
    state: Mutex<State>,
    enqueued: Condvar,
    settings: PoolSettings,
    max_group_delay: Duration,
    /// Where the callers are.
    runtime: Handle,
    metrics: Metrics,
}

/// A handle on the pool. Dropping it ends the workers after their current jobs.
pub struct WorkerPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for WorkerPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerPool").field("settings", &self.shared.settings).finish_non_exhaustive()
    }
}

/// Niceness of the workers: about a tenth of a normal thread's share when both want the same core.
const NICENESS: i32 = 10;

/// How long a caller waits for a group at most, and as a share of its wait for a worker.
const MAX_GROUP_DELAY: Duration = Duration::from_millis(100);
const GROUP_DELAY_SHARE: u32 = 4;

impl WorkerPool {
    /// Starts the workers, for callers on the current runtime. Fails where the system gives no thread.
    pub fn start(settings: PoolSettings, metrics: &Metrics) -> std::io::Result<Self> {
        Self::with_group_delay(settings, MAX_GROUP_DELAY, metrics)
    }

    fn with_group_delay(settings: PoolSettings, max_group_delay: Duration, metrics: &Metrics) -> std::io::Result<Self> {
        let now = Instant::now();
        let state = State {
            queue: VecDeque::new(),
            next_ticket: 0,
            backlog: Duration::ZERO,
            release_at: now,
            done: Vec::new(),
            notify_at: now,
            closed: false,
        };
        let (state, enqueued) = (Mutex::new(state), Condvar::new());
        let runtime = Handle::current();
        let shared = Arc::new(Shared { state, enqueued, settings, max_group_delay, runtime, metrics: metrics.clone() });
        let start = |index| {
            let shared = Arc::clone(&shared);
            Builder::new().name(format!("password-{index}")).spawn(move || shared.work())
        };
        let workers = (0..settings.concurrency).map(start).collect::<Result<_, _>>()?;
        Ok(Self { shared, workers })
    }

    /// Admits a caller whose job will take a worker about as long as `expected`, or refuses it, before anything is spent
    /// on it, when the wait is too long.
    pub async fn acquire(&self, expected: Duration) -> Result<Slot<'_>, Overloaded> {
        let (slot, release_at) = self.shared.admit(expected)?;
        // A timer would round up to the next millisecond.
        if release_at > Instant::now() {
            let admission = trace_span!(target: traces::TARGET, "hash admission");
            tokio::time::sleep_until(release_at.into()).instrument(admission).await;
        }
        Ok(slot)
    }

    /// Refuses a caller as [`acquire`](Self::acquire) would now, and admits none.
    pub fn check_room(&self) -> Result<(), Overloaded> {
        self.shared.check_room(&self.shared.state.lock())
    }

    /// Whether no worker has ended, which only a bug can do.
    pub fn is_complete(&self) -> bool {
        self.workers.iter().all(|worker| !worker.is_finished())
    }
}

impl Drop for WorkerPool {
    fn drop(&mut self) {
        self.shared.state.lock().closed = true;
        self.shared.enqueued.notify_all();
    }
}

/// The admission of one caller. Dropping it gives the slot up.
pub struct Slot<'a> {
    shared: &'a Shared,
    expected: Duration,
    /// Set once the job is in the queue.
    ticket: Option<u64>,
}

impl std::fmt::Debug for Slot<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot").field("expected", &self.expected).finish_non_exhaustive()
    }
}

impl Slot<'_> {
    /// Runs the work on a worker. By now it may be known better how long it takes: `expected`.
    pub async fn run<T: Send + 'static>(
        mut self,
        expected: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Overloaded> {
        let (sender, receiver) = oneshot::channel();
        let span = trace_span!(target: traces::TARGET, "hash", wait_ms = Empty, work_ms = Empty);
        let (recorded, enqueued) = (span.clone(), Instant::now());
        let work: Work = Box::new(move || {
            let started = Instant::now();
            let outcome = work();
            recorded
                .record("wait_ms", milliseconds(started - enqueued))
                .record("work_ms", milliseconds(started.elapsed()));
            Box::new(move || {
                // The caller may have gone away.
                let _ = sender.send(outcome);
            })
        });
        self.enqueue(expected, work);
        receiver.instrument(span).await.map_err(|_| {
            self.shared.metrics.hash_shed.inc();
            self.shared.overloaded(&self.shared.state.lock())
        })
    }

    fn enqueue(&mut self, expected: Duration, work: Work) {
        let mut state = self.shared.state.lock();
        state.backlog = state.backlog.saturating_sub(self.expected) + expected;
        self.expected = expected;
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        self.ticket = Some(ticket);
        // Estimates err. A job that waited half as long again as was promised is dropped by the worker that takes it.
        let deadline = Instant::now() + self.shared.settings.max_wait * 3 / 2;
        state.queue.push_back(Job { ticket, work, expected, deadline });
        self.shared.metrics.hash_queue_depth.inc();
        drop(state);
        self.shared.enqueued.notify_one();
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        let Some(ticket) = self.ticket else {
            state.backlog = state.backlog.saturating_sub(self.expected);
            return;
        };
        // Otherwise a worker has the job, and releases it.
        if let Ok(index) = state.queue.binary_search_by_key(&ticket, |job| job.ticket)
            && let Some(job) = state.queue.remove(index)
        {
            self.shared.release(&mut state, job.expected);
        }
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

impl Shared {
    fn wait(&self, state: &State) -> Duration {
        state.backlog / u32::try_from(self.settings.concurrency).unwrap_or(u32::MAX)
    }

    fn overloaded(&self, state: &State) -> Overloaded {
        Overloaded { retry_after: self.wait(state).max(Duration::from_secs(1)) }
    }

    /// How long a caller waits for a group: not at all while nobody waits for a worker, else a small share of its
    /// wait.
    fn group_delay(&self, state: &State) -> Duration {
        if state.queue.is_empty() {
            Duration::ZERO
        } else {
            (self.wait(state) / GROUP_DELAY_SHARE).min(self.max_group_delay)
        }
    }

    fn check_room(&self, state: &State) -> Result<(), Overloaded> {
        if self.wait(state) > self.settings.max_wait {
            self.metrics.hash_shed.inc();
            return Err(self.overloaded(state));
        }
        Ok(())
    }

    fn admit(&self, expected: Duration) -> Result<(Slot<'_>, Instant), Overloaded> {
        let mut state = self.state.lock();
        self.check_room(&state)?;
        // The first caller of a group sets the time for all of it.
        let now = Instant::now();
        if state.queue.is_empty() || state.release_at <= now {
            state.release_at = now + self.group_delay(&state);
        }
        state.backlog += expected;
        Ok((Slot { shared: self, expected, ticket: None }, state.release_at))
    }

    /// Takes a job that was enqueued off the backlog.
    fn release(&self, state: &mut State, expected: Duration) {
        state.backlog = state.backlog.saturating_sub(expected);
        self.metrics.hash_queue_depth.dec();
    }

    /// The next job, once the callers are notified whose time would pass during it. `None` when the pool is closed.
    fn next(&self) -> Option<Job> {
        loop {
            let mut state = self.state.lock();
            if state.closed {
                return None;
            }
            let job = state.queue.pop_front();
            let due = job.as_ref().is_none_or(|job| state.notify_at < Instant::now() + job.expected);
            if due && !state.done.is_empty() {
                let done = std::mem::take(&mut state.done);
                drop(state);
                self.runtime.spawn(async move {
                    for notify in done {
                        notify();
                    }
                });
            } else if job.is_none() {
                self.enqueued.wait(&mut state);
            }
            if job.is_some() {
                return job;
            }
        }
    }

    /// Without `notify` the job has no outcome.
    fn finish(&self, expected: Duration, notify: Option<Notify>) {
        let mut state = self.state.lock();
        self.release(&mut state, expected);
        if state.done.is_empty() {
            state.notify_at = Instant::now() + self.group_delay(&state);
        }
        state.done.extend(notify);
    }

    /// What a worker does until the pool is closed.
    fn work(&self) {
        // Where this is not permitted, or not Linux, the workers run at normal priority.
        let _ = rustix::process::nice(NICENESS);
        while let Some(Job { work, expected, deadline, .. }) = self.next() {
            if Instant::now() >= deadline {
                // Finished first: the caller that is told may come back at once.
                self.finish(expected, None);
                drop(work);
                continue;
            }
            let notify = catch_unwind(AssertUnwindSafe(work)).ok();
            if notify.is_none() {
                // The caller has learnt it: the job was dropped.
                tracing::error!("a job of the password workers panicked");
            }
            self.finish(expected, notify);
        }
    }
}

#[cfg(test)]
mod tests;
