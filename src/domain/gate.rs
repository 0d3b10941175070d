//! A gate before work that takes a whole core for many milliseconds: threads of its own do it, and a bounded queue
//! stands before them.
//!
//! As many workers as may run at once take jobs from one queue; nothing else ever runs there and nothing else ever
//! waits behind it. The queue is bounded by the wait it stands for (expected cost of each job, over the number of
//! workers): who would wait too long is told so at once, with an honest time to come back. A caller counts from the
//! moment it is let in, also while it still looks for what it will bring, and no longer once it goes away.
//!
//! The workers run at a lower scheduling priority: with every core at work, a refresh or a health check is still
//! answered at once, and a machine that has nothing else to do works as fast as ever.
//!
//! While every core is at work, every interruption is dear: whoever wakes up finds caches that the workers have filled,
//! and leaves them to be filled anew. That cost a tenth of all logins. So callers who have to wait anyway go on in
//! company, once when they are let in and once when they are told of their outcomes: what they do then runs in one go.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus::{IntCounter, IntGauge};
use tokio::sync::oneshot;

/// How a gate is set up.
#[derive(Clone, Copy, Debug)]
pub struct GateSettings {
    /// Worker threads.
    pub concurrency: usize,
    /// The longest wait in the queue that is accepted.
    pub max_wait: Duration,
}

/// What the gate tells the metrics.
#[derive(Clone, Debug)]
pub struct GateMetrics {
    pub queue_depth: IntGauge,
    pub shed: IntCounter,
}

/// The queue is full; it will have drained after `retry_after`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy {
    pub retry_after: Duration,
}

/// Does the work with what its worker keeps from job to job, and gives what tells the caller of the outcome.
type Work<K> = Box<dyn FnOnce(&mut K) -> Tell + Send>;
type Tell = Box<dyn FnOnce() + Send>;

struct Job<K> {
    ticket: u64,
    /// Dropping it unrun tells the caller that it came too late.
    work: Work<K>,
    expected: Duration,
    deadline: Instant,
}

struct State<K> {
    queue: VecDeque<Job<K>>,
    next_ticket: u64,
    /// Sum of the expected costs of all who were let in: on their way to the queue, in it, and on the workers.
    backlog: Duration,
    /// When those who were let in last go on.
    go_on: Instant,
    /// Callers whose work is done and who are told at the same time.
    done: Vec<Tell>,
    tell: Instant,
    closed: bool,
}

struct Shared<K> {
    state: Mutex<State<K>>,
    arrived: Condvar,
    settings: GateSettings,
    longest_spare: Duration,
    metrics: GateMetrics,
}

/// A handle on the gate. Each of its workers keeps a `K` of its own. Dropping the handle ends them after the job at
/// hand.
pub struct Gate<K> {
    shared: Arc<Shared<K>>,
}

impl<K> std::fmt::Debug for Gate<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").field("settings", &self.shared.settings).finish_non_exhaustive()
    }
}

/// Niceness of the workers: about a tenth of a normal thread's share when both want the same core.
const NICENESS: i32 = 10;

/// The longest time and the share of its wait that a caller spends on waiting for company.
const LONGEST_SPARE: Duration = Duration::from_millis(100);
const SPARE_SHARE: u32 = 8;

impl<K: Default + 'static> Gate<K> {
    /// Starts the workers.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(settings: GateSettings, metrics: GateMetrics) -> std::io::Result<Self> {
        Self::with_spare(settings, LONGEST_SPARE, metrics)
    }

    fn with_spare(settings: GateSettings, longest_spare: Duration, metrics: GateMetrics) -> std::io::Result<Self> {
        let now = Instant::now();
        let state = State {
            queue: VecDeque::new(),
            next_ticket: 0,
            backlog: Duration::ZERO,
            go_on: now,
            done: Vec::new(),
            tell: now,
            closed: false,
        };
        let (state, arrived) = (Mutex::new(state), Condvar::new());
        let shared = Arc::new(Shared { state, arrived, settings, longest_spare, metrics });
        for index in 0..settings.concurrency {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name(format!("password-{index}")).spawn(move || shared.work())?;
        }
        Ok(Self { shared })
    }
}

impl<K> Gate<K> {
    /// Lets a caller in whose work will take a worker about as long as `expected`; or refuses it, before anything is
    /// spent on it, when the wait is too long already.
    pub async fn enter(&self, expected: Duration) -> Result<Place<'_, K>, Busy> {
        let (place, go_on) = self.shared.let_in(expected)?;
        // A timer would round up to the next millisecond.
        if go_on > Instant::now() {
            tokio::time::sleep_until(go_on.into()).await;
        }
        Ok(place)
    }
}

impl<K> Drop for Gate<K> {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.arrived.notify_all();
    }
}

/// A caller that was let in. Dropping it gives the place up.
pub struct Place<'a, K> {
    shared: &'a Shared<K>,
    expected: Duration,
    /// In the queue.
    ticket: Option<u64>,
}

impl<K> std::fmt::Debug for Place<'_, K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Place").field("expected", &self.expected).finish_non_exhaustive()
    }
}

impl<K> Place<'_, K> {
    /// Has the work done, which will take about as long as `expected`.
    pub async fn run<T: Send + 'static>(
        mut self,
        expected: Duration,
        work: impl FnOnce(&mut K) -> T + Send + 'static,
    ) -> Result<T, Busy> {
        let (sender, receiver) = oneshot::channel();
        let work: Work<K> = Box::new(move |kept| {
            let outcome = work(kept);
            Box::new(move || {
                // The caller may have gone; then there is nobody to tell.
                let _ = sender.send(outcome);
            })
        });
        self.line_up(expected, work);
        receiver.await.map_err(|_| {
            self.shared.metrics.shed.inc();
            self.shared.busy(&self.shared.lock())
        })
    }

    fn line_up(&mut self, expected: Duration, work: Work<K>) {
        let mut state = self.shared.lock();
        state.backlog = state.backlog.saturating_sub(self.expected) + expected;
        self.expected = expected;
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        self.ticket = Some(ticket);
        // Estimates err; a job that waited half as long again as promised is dropped by the worker that meets it.
        let deadline = Instant::now() + self.shared.settings.max_wait * 3 / 2;
        state.queue.push_back(Job { ticket, work, expected, deadline });
        self.shared.metrics.queue_depth.inc();
        drop(state);
        self.shared.arrived.notify_one();
    }
}

impl<K> Drop for Place<'_, K> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        let Some(ticket) = self.ticket else {
            state.backlog = state.backlog.saturating_sub(self.expected);
            return;
        };
        // Otherwise a worker has it, and will take it off the books.
        if let Ok(index) = state.queue.binary_search_by_key(&ticket, |job| job.ticket)
            && let Some(job) = state.queue.remove(index)
        {
            self.shared.leave(&mut state, job.expected);
        }
    }
}

impl<K> Shared<K> {
    fn lock(&self) -> MutexGuard<'_, State<K>> {
        // No code that can panic runs under the lock, so a poisoned one is still consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, state: &State<K>) -> Duration {
        state.backlog / u32::try_from(self.settings.concurrency).unwrap_or(u32::MAX)
    }

    fn busy(&self, state: &State<K>) -> Busy {
        Busy { retry_after: self.wait(state).max(Duration::from_secs(1)) }
    }

    /// What a caller can wait for company: none if nobody waits for a worker, and little compared to the wait otherwise.
    fn spare(&self, state: &State<K>) -> Duration {
        if state.queue.is_empty() { Duration::ZERO } else { (self.wait(state) / SPARE_SHARE).min(self.longest_spare) }
    }

    fn let_in(&self, expected: Duration) -> Result<(Place<'_, K>, Instant), Busy> {
        let mut state = self.lock();
        if self.wait(&state) > self.settings.max_wait {
            self.metrics.shed.inc();
            return Err(self.busy(&state));
        }
        // The first one says when, the others go along.
        let now = Instant::now();
        if state.queue.is_empty() || state.go_on <= now {
            state.go_on = now + self.spare(&state);
        }
        state.backlog += expected;
        Ok((Place { shared: self, expected, ticket: None }, state.go_on))
    }

    fn leave(&self, state: &mut State<K>, expected: Duration) {
        state.backlog = state.backlog.saturating_sub(expected);
        self.metrics.queue_depth.dec();
    }

    /// The next job; before it those are told who would otherwise be told too late. `None` is the end.
    fn next(&self) -> Option<Job<K>> {
        loop {
            let mut state = self.lock();
            if state.closed {
                return None;
            }
            let job = state.queue.pop_front();
            let last_chance = job.as_ref().is_none_or(|job| state.tell < Instant::now() + job.expected);
            if last_chance && !state.done.is_empty() {
                let done = std::mem::take(&mut state.done);
                drop(state);
                for tell in done {
                    tell();
                }
            } else if job.is_none() {
                drop(self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner));
            }
            if job.is_some() {
                return job;
            }
        }
    }

    fn finish(&self, expected: Duration, tell: Tell) {
        let mut state = self.lock();
        self.leave(&mut state, expected);
        if state.done.is_empty() {
            state.tell = Instant::now() + self.spare(&state);
        }
        state.done.push(tell);
    }
}

impl<K: Default> Shared<K> {
    fn work(&self) {
        // Without the permission, or elsewhere than on Linux, the workers just run at normal priority.
        let _ = rustix::process::nice(NICENESS);
        let mut kept = K::default();
        while let Some(job) = self.next() {
            if Instant::now() < job.deadline {
                let tell = (job.work)(&mut kept);
                self.finish(job.expected, tell);
            } else {
                // Who is told has left the queue.
                self.leave(&mut self.lock(), job.expected);
                drop(job.work);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::task::Poll;

    use super::*;

    const BRIEF: Duration = Duration::from_millis(1);
    const LONG: Duration = Duration::from_mins(1);

    fn gate(max_wait: Duration) -> Gate<()> {
        let metrics = crate::metrics::Metrics::new();
        let metrics = GateMetrics { queue_depth: metrics.hash_queue_depth, shed: metrics.hash_shed };
        Gate::with_spare(GateSettings { concurrency: 1, max_wait }, LONG, metrics).unwrap()
    }

    /// Brings a job that begins, says so, and ends when it is told to.
    async fn hold(place: Place<'_, ()>, begun: mpsc::Sender<()>, end: mpsc::Receiver<()>) {
        let work = move |(): &mut ()| {
            begun.send(()).unwrap();
            let _ = end.recv();
        };
        place.run(BRIEF, work).await.unwrap();
    }

    #[tokio::test]
    async fn who_was_let_in_counts_until_it_goes_away() {
        let gate = gate(LONG * 2);
        let first = gate.enter(LONG).await.unwrap();
        let second = gate.enter(LONG).await.unwrap();
        let third = gate.enter(LONG).await.unwrap();
        assert_eq!(gate.enter(LONG).await.unwrap_err(), Busy { retry_after: LONG * 3 });
        assert_eq!(gate.shared.metrics.shed.get(), 1);
        drop((first, second));
        let fourth = gate.enter(LONG).await.unwrap();
        drop(third);
        // What the job is found to take replaces what it was taken for.
        fourth.run(BRIEF, |()| ()).await.unwrap();
        assert_eq!(gate.shared.lock().backlog, Duration::ZERO);
    }

    #[tokio::test]
    async fn callers_go_on_at_once_while_nobody_waits_and_together_otherwise() {
        let gate = gate(LONG * 9);
        let (begun, begins) = mpsc::channel();
        let (end, ends) = mpsc::channel();
        let mut at_work = std::pin::pin!(hold(gate.enter(LONG).await.unwrap(), begun, ends));
        assert!(poll(at_work.as_mut()).await.is_pending());
        begins.recv().unwrap();
        // The worker is busy, but the queue is empty.
        let (second, at_once) = gate.shared.let_in(LONG).unwrap();
        assert!(at_once <= Instant::now());
        let mut second = std::pin::pin!(second.run(LONG, |()| ()));
        assert!(poll(second.as_mut()).await.is_pending());

        let before = Instant::now();
        let (_third, later) = gate.shared.let_in(LONG).unwrap();
        let (_fourth, together) = gate.shared.let_in(LONG).unwrap();
        assert!(later >= before + LONG / SPARE_SHARE);
        assert_eq!(later, together);
        drop(end);
        at_work.await;
        second.await.unwrap();
        // The others are still waiting for company, but now there is a worker to be had.
        let (_fifth, at_once) = gate.shared.let_in(LONG).unwrap();
        assert!(at_once <= Instant::now());
    }

    #[tokio::test]
    async fn callers_are_told_together_while_others_wait() {
        let gate = gate(LONG * 9);
        let (begun, begins) = mpsc::channel();
        let (mut callers, mut ends) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            let (end, ended) = mpsc::channel();
            let mut caller = Box::pin(hold(gate.shared.let_in(LONG).unwrap().0, begun.clone(), ended));
            assert!(poll(caller.as_mut()).await.is_pending());
            callers.push(caller);
            ends.push(end);
        }
        // Somebody who takes long is still to come, so there is a long wait to spare some of.
        let _coming = gate.shared.let_in(LONG).unwrap();
        for (before, end) in ends.into_iter().enumerate() {
            begins.recv().unwrap();
            assert_eq!(gate.shared.lock().done.len(), before, "somebody was told alone");
            drop(end);
        }
        for caller in callers {
            caller.await;
        }
        assert!(gate.shared.lock().done.is_empty());
    }

    async fn poll<F: Future>(mut future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await
    }
}
