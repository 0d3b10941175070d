//! The gate before password hashing, the only expensive thing the service does and the one an attacker can buy with a
//! request.
//!
//! Worker threads of their own, as many as there are cores, take jobs from one queue; nothing else ever runs there and
//! nothing else ever waits behind it. The queue is bounded by the wait it stands for (measured cost of each job, over
//! the number of workers): who would wait too long is told so at once, with an honest time to come back. A caller that
//! goes away takes its job out of the queue. Each worker allocates its memory once and keeps it.
//!
//! The workers run at a lower scheduling priority: with every core hashing, a refresh or a health check is still
//! answered at once, and a machine that has nothing else to do hashes as fast as ever.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus::{Gauge, Histogram, IntCounter, IntGauge};
use tokio::sync::oneshot;

use super::password::{self, Argon2Cost, Memory, Password, PasswordHash, Scheme, Verdict};

/// How the gate is set up.
#[derive(Clone, Copy, Debug)]
pub struct HasherSettings {
    /// Worker threads.
    pub concurrency: usize,
    /// The longest wait in the queue that is accepted.
    pub max_wait: Duration,
    /// Cost of new hashes.
    pub cost: Argon2Cost,
    /// Whether a right password of an outdated hash is hashed anew.
    pub rehash: bool,
}

/// What the gate tells the metrics.
#[derive(Clone, Debug)]
pub struct HasherMetrics {
    pub seconds: Histogram,
    pub queue_depth: IntGauge,
    pub shed: IntCounter,
    pub capacity_per_second: Gauge,
}

/// The queue is full; it will have drained after `retry_after`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy {
    pub retry_after: Duration,
}

/// A tried password.
#[derive(Debug)]
pub struct Checked {
    pub verdict: Verdict,
    /// A new hash to store, where the password was right and its hash outdated.
    pub replacement: Option<PasswordHash>,
    /// How long the verification took on its thread.
    took: Duration,
}

/// Does the work, and gives what tells the caller of its outcome.
type Work = Box<dyn FnOnce(&mut Memory) -> Tell + Send>;
type Tell = Box<dyn FnOnce()>;

struct Job {
    ticket: u64,
    /// Dropping it unrun tells the caller that it came too late.
    work: Work,
    expected: Duration,
    deadline: Instant,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    next_ticket: u64,
    /// Sum of the expected costs in the queue and on the workers.
    backlog: Duration,
    /// Moving average of one argon2 hash at the current cost.
    argon2: Option<Duration>,
    legacy: Option<Legacy>,
    closed: bool,
}

/// The bcrypt accounts that remain of the Python service, and how long verifying one lately took.
struct Legacy {
    cost: u32,
    recent: VecDeque<Duration>,
}

impl Legacy {
    const SAMPLES: usize = 32;
    const FIRST_SAMPLES: usize = 3;

    fn sorted(&self) -> Vec<Duration> {
        let mut times: Vec<Duration> = self.recent.iter().copied().collect();
        times.sort_unstable();
        times
    }

    fn median(&self) -> Option<Duration> {
        self.sorted().get(self.recent.len() / 2).copied()
    }

    /// How long nearly every verification takes. One that was held up extraordinarily does not count.
    fn longest(&self) -> Option<Duration> {
        let longest = *self.sorted().last()?;
        Some((longest + longest / 8).min(self.median()? * 3))
    }
}

struct Shared {
    state: Mutex<State>,
    arrived: Condvar,
    settings: HasherSettings,
    metrics: HasherMetrics,
}

/// A handle on the gate. Dropping it ends the workers after the job at hand.
pub struct Hasher {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Hasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hasher").field("settings", &self.shared.settings).finish_non_exhaustive()
    }
}

/// Niceness of the workers: about a tenth of a normal thread's share when both want the same core.
const NICENESS: i32 = 10;

/// Assumed cost of an argon2 hash until the first was measured.
const UNMEASURED: Duration = Duration::from_millis(25);

impl Hasher {
    /// Starts the workers.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(settings: HasherSettings, metrics: HasherMetrics) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { state: Mutex::default(), arrived: Condvar::new(), settings, metrics });
        for index in 0..settings.concurrency {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name(format!("password-{index}")).spawn(move || shared.work())?;
        }
        Ok(Self { shared })
    }

    /// Hashes a chosen password.
    pub async fn hash(&self, password: Password) -> Result<PasswordHash, Busy> {
        let cost = self.shared.settings.cost;
        let shared = Arc::clone(&self.shared);
        self.run(self.expected_argon2(), move |memory| {
            let started = Instant::now();
            let hash = password::hash(&password, cost, memory);
            shared.measured_argon2(started.elapsed());
            hash
        })
        .await
    }

    /// Tries a password against a stored hash, or against nobody's: then the work is done all the same.
    pub async fn verify(&self, password: Password, stored: Option<PasswordHash>) -> Result<Checked, Busy> {
        let scheme = stored.as_ref().map(Scheme::of);
        let bcrypt_cost = match scheme {
            Some(Scheme::Bcrypt { cost }) => Some(cost),
            _ => None,
        };
        let expected = bcrypt_cost.map_or_else(|| self.expected_argon2(), |cost| self.expected_bcrypt(cost));
        let shared = Arc::clone(&self.shared);
        self.run(expected, move |memory| shared.check(&password, stored.as_ref(), bcrypt_cost, memory)).await
    }

    /// Refuses at once when the queue is already full, before anything else is spent on the request.
    pub fn admit(&self) -> Result<(), Busy> {
        self.shared.admit(&self.shared.lock()).inspect_err(|_| self.shared.metrics.shed.inc())
    }

    /// How much longer a refusal must be held back while bcrypt hashes are left: each comes when the slowest of theirs
    /// would, so an outsider cannot tell by time who is still on bcrypt, who is not, and who does not exist. (To wait
    /// for an average or a random one of theirs would not do: those of bcrypt accounts would come late, or early, more
    /// often than others.) Zero once no bcrypt hash is left.
    #[must_use]
    pub fn hold_back(&self, checked: &Checked) -> Duration {
        let longest = self.shared.lock().legacy.as_ref().and_then(Legacy::longest);
        longest.unwrap_or_default().saturating_sub(checked.took)
    }

    /// Tells the gate the highest cost among the bcrypt hashes that are left, or that none is. When one appears, its
    /// time is measured at once, so that the very first refusal is already held back.
    pub async fn set_legacy_cost(&self, cost: Option<u32>) {
        let cost = cost.map(|cost| cost.clamp(4, Argon2Cost::MAX_BCRYPT));
        {
            let mut state = self.shared.lock();
            if state.legacy.as_ref().map(|legacy| legacy.cost) == cost {
                return;
            }
            state.legacy = cost.map(|cost| Legacy { cost, recent: VecDeque::new() });
        }
        let Some(cost) = cost else { return };
        for _ in 0..Legacy::FIRST_SAMPLES {
            let shared = Arc::clone(&self.shared);
            let measure = move |_: &mut Memory| {
                let started = Instant::now();
                // What is hashed does not matter, and the outcome is thrown away.
                let _ = bcrypt::hash_with_salt("measure", cost, [0; 16]);
                shared.measured_bcrypt(cost, started.elapsed());
            };
            // A busy queue measures it soon enough by the logins in it.
            let _ = self.run(self.expected_bcrypt(cost), measure).await;
        }
    }

    fn expected_argon2(&self) -> Duration {
        self.shared.lock().argon2.unwrap_or(UNMEASURED)
    }

    fn expected_bcrypt(&self, cost: u32) -> Duration {
        let state = self.shared.lock();
        let measured = state.legacy.as_ref().filter(|legacy| legacy.cost == cost).and_then(Legacy::median);
        // 2^cost rounds at about 60 microseconds each.
        measured.unwrap_or_else(|| Duration::from_micros(60 << cost))
    }

    async fn run<T: Send + 'static>(
        &self,
        expected: Duration,
        work: impl FnOnce(&mut Memory) -> T + Send + 'static,
    ) -> Result<T, Busy> {
        let (sender, receiver) = oneshot::channel();
        let work: Work = Box::new(move |memory| {
            let outcome = work(memory);
            Box::new(move || {
                // The caller may have gone; then there is nobody to tell.
                let _ = sender.send(outcome);
            })
        });
        let place = self.shared.enqueue(expected, work)?;
        let outcome = receiver.await;
        drop(place);
        outcome.map_err(|_| {
            self.shared.metrics.shed.inc();
            self.shared.busy(&self.shared.lock())
        })
    }
}

impl Drop for Hasher {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.arrived.notify_all();
    }
}

/// A place in the queue, given up when the caller goes away.
struct Place<'a> {
    shared: &'a Shared,
    ticket: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if let Ok(index) = state.queue.binary_search_by_key(&self.ticket, |job| job.ticket)
            && let Some(job) = state.queue.remove(index)
        {
            self.shared.leave(&mut state, job.expected);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under the lock, so a poisoned one is still consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for(&self, state: &State) -> Duration {
        state.backlog / u32::try_from(self.settings.concurrency).unwrap_or(u32::MAX)
    }

    fn busy(&self, state: &State) -> Busy {
        Busy { retry_after: self.wait_for(state).max(Duration::from_secs(1)) }
    }

    fn admit(&self, state: &State) -> Result<(), Busy> {
        if self.wait_for(state) > self.settings.max_wait { Err(self.busy(state)) } else { Ok(()) }
    }

    fn enqueue(&self, expected: Duration, work: Work) -> Result<Place<'_>, Busy> {
        let mut state = self.lock();
        self.admit(&state).inspect_err(|_| self.metrics.shed.inc())?;
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.backlog += expected;
        // Estimates err; a job that waited half as long again as promised is dropped by the worker that meets it.
        let deadline = Instant::now() + self.settings.max_wait + self.settings.max_wait / 2;
        state.queue.push_back(Job { ticket, work, expected, deadline });
        self.metrics.queue_depth.inc();
        drop(state);
        self.arrived.notify_one();
        Ok(Place { shared: self, ticket })
    }

    fn leave(&self, state: &mut State, expected: Duration) {
        state.backlog = state.backlog.saturating_sub(expected);
        self.metrics.queue_depth.dec();
    }

    fn work(&self) {
        // Without the permission, or elsewhere than on Linux, the workers just run at normal priority.
        let _ = rustix::process::nice(NICENESS);
        // Allocated with the first job: a service nobody signs in to stays small.
        let mut memory = None;
        while let Some(job) = self.next_job() {
            // Who is told has left the queue.
            if Instant::now() < job.deadline {
                let memory = memory.get_or_insert_with(|| Memory::for_cost(self.settings.cost));
                let tell = (job.work)(memory);
                self.leave(&mut self.lock(), job.expected);
                tell();
            } else {
                self.leave(&mut self.lock(), job.expected);
                drop(job.work);
            }
        }
    }

    fn next_job(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(job) = state.queue.pop_front() {
                return Some(job);
            }
            state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn check(
        &self,
        password: &Password,
        stored: Option<&PasswordHash>,
        bcrypt_cost: Option<u32>,
        memory: &mut Memory,
    ) -> Checked {
        let cost = self.settings.cost;
        let started = Instant::now();
        let verdict = if let Some(stored) = stored {
            password::verify(password, stored, cost, memory)
        } else {
            let _ = password::hash(password, cost, memory);
            Verdict::Mismatch
        };
        let took = started.elapsed();
        match bcrypt_cost {
            Some(cost) => self.measured_bcrypt(cost, took),
            None => self.measured_argon2(took),
        }
        let outdated = verdict == Verdict::Match { outdated: true };
        let replacement = (outdated && self.settings.rehash).then(|| password::hash(password, cost, memory));
        Checked { verdict, replacement, took }
    }

    fn measured_argon2(&self, took: Duration) {
        self.metrics.seconds.observe(took.as_secs_f64());
        let mut state = self.lock();
        let average = state.argon2.map_or(took, |average| (average * 15 + took) / 16);
        state.argon2 = Some(average);
        drop(state);
        let workers = u32::try_from(self.settings.concurrency).unwrap_or(u32::MAX);
        self.metrics.capacity_per_second.set(f64::from(workers) / average.as_secs_f64());
    }

    fn measured_bcrypt(&self, cost: u32, took: Duration) {
        self.metrics.seconds.observe(took.as_secs_f64());
        let mut state = self.lock();
        // A hash that nobody has told of yet, because the Python service has just made it, counts from now on.
        let known = state.legacy.take().filter(|legacy| legacy.cost >= cost);
        let legacy = state.legacy.insert(known.unwrap_or_else(|| Legacy { cost, recent: VecDeque::new() }));
        if legacy.cost == cost {
            legacy.recent.truncate(Legacy::SAMPLES - 1);
            legacy.recent.push_front(took);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BCRYPT: &str = "$2b$04$AToaJW/vWh2zQWC7Y6wtaOydfsLgRPdabeYPjiMiiQiEosDnyVGEC";

    fn hasher() -> Hasher {
        let metrics = crate::metrics::Metrics::new();
        let metrics = HasherMetrics {
            seconds: metrics.hash_seconds,
            queue_depth: metrics.hash_queue_depth,
            shed: metrics.hash_shed,
            capacity_per_second: metrics.login_capacity,
        };
        let cost = Argon2Cost { m_kib: 8, t: 1 };
        let settings = HasherSettings { concurrency: 1, max_wait: Duration::from_mins(1), cost, rehash: true };
        Hasher::start(settings, metrics).unwrap()
    }

    /// The time after which a wrong password is refused, the wait for a worker left out.
    async fn refusal(hasher: &Hasher, stored: Option<&str>) -> (Duration, Duration) {
        let stored = stored.map(|text| PasswordHash::from_stored(text.to_owned()));
        let checked = hasher.verify(Password::attempt("wrong".to_owned()), stored).await.unwrap();
        (checked.took, checked.took + hasher.hold_back(&checked))
    }

    fn legacy(times: impl IntoIterator<Item = u64>) -> Option<Duration> {
        let recent = times.into_iter().map(Duration::from_millis).collect();
        Legacy { cost: 4, recent }.longest()
    }

    #[tokio::test]
    async fn every_refusal_comes_when_the_slowest_bcrypt_one_would() {
        let hasher = hasher();
        hasher.set_legacy_cost(Some(4)).await;
        let argon2 = hasher.hash(Password::attempt("right".to_owned())).await.unwrap();
        for stored in [None, Some(argon2.as_str()), Some(""), Some(BCRYPT)] {
            let (took, refused) = refusal(&hasher, stored).await;
            let longest = hasher.shared.lock().legacy.as_ref().and_then(Legacy::longest).unwrap();
            assert_eq!(refused, longest.max(took), "{stored:?}");
        }
    }

    #[tokio::test]
    async fn nothing_is_held_back_once_no_bcrypt_hash_is_left() {
        let hasher = hasher();
        let (took, refused) = refusal(&hasher, None).await;
        assert_eq!(refused, took);
        // One turns up before anybody told of it, and is gone again.
        refusal(&hasher, Some(BCRYPT)).await;
        assert!(hasher.shared.lock().legacy.is_some());
        hasher.set_legacy_cost(None).await;
        let (took, refused) = refusal(&hasher, None).await;
        assert_eq!(refused, took);
    }

    #[test]
    fn one_that_was_held_up_does_not_hold_up_the_others() {
        assert_eq!(legacy([]), None);
        assert_eq!(legacy([80]), Some(Duration::from_millis(90)));
        assert_eq!(legacy([100, 160, 120]), Some(Duration::from_millis(180)));
        assert_eq!(legacy([100, 9000, 110]), Some(Duration::from_millis(330)));
    }
}
