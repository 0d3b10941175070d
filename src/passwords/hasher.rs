//! Hashes and verifies passwords: all of it in one [`WorkerPool`], in memory that each worker allocates once and keeps.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus::{Gauge, Histogram};

use super::pool::{Overloaded, PoolMetrics, PoolSettings, Slot, WorkerPool};
use super::refusal_delay::BcryptTimings;
use crate::domain::password::{self, Argon2Cost, Memory, Password, PasswordHash, Scheme, Verdict};

/// How passwords are hashed.
#[derive(Clone, Copy, Debug)]
pub struct HasherSettings {
    pub pool: PoolSettings,
    /// Cost of new hashes.
    pub cost: Argon2Cost,
    /// Whether a right password of an outdated hash is hashed anew.
    pub rehash: bool,
}

/// Metrics of hashing.
#[derive(Clone, Debug)]
pub struct HasherMetrics {
    pub pool: PoolMetrics,
    pub seconds: Histogram,
    pub capacity_per_second: Gauge,
}

/// The outcome of a verification.
#[derive(Debug)]
pub struct Checked {
    pub verdict: Verdict,
    /// A new hash to store, where the password was right and its hash outdated.
    pub replacement: Option<PasswordHash>,
    /// How long the verification took on its thread.
    took: Duration,
}

/// How long recent hashes took.
#[derive(Debug, Default)]
struct Times {
    /// Moving average of one argon2 hash at the current cost.
    argon2: Option<Duration>,
    /// None once no bcrypt hash is left.
    bcrypt: Option<BcryptTimings>,
}

#[derive(Debug)]
struct Shared {
    times: Mutex<Times>,
    settings: HasherSettings,
    seconds: Histogram,
    capacity_per_second: Gauge,
}

/// Allocated with the first job, so that a service without logins stays small.
type Scratch = Option<Memory>;

/// Hashes and verifies passwords, as many at once as there are workers.
#[derive(Debug)]
pub struct Hasher {
    pool: WorkerPool<Scratch>,
    shared: Arc<Shared>,
}

/// Assumed cost of an argon2 hash until the first was measured.
const UNMEASURED: Duration = Duration::from_millis(25);

impl Hasher {
    /// Starts the workers.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(settings: HasherSettings, metrics: HasherMetrics) -> std::io::Result<Self> {
        let HasherMetrics { pool, seconds, capacity_per_second } = metrics;
        let pool = WorkerPool::start(settings.pool, pool)?;
        Ok(Self { pool, shared: Arc::new(Shared { times: Mutex::default(), settings, seconds, capacity_per_second }) })
    }

    /// Admits a caller that is going to hash or verify one password, or refuses it, before anything else is spent on the
    /// request, when that would take too long.
    pub async fn acquire(&self) -> Result<HashSlot<'_>, Overloaded> {
        let slot = self.pool.acquire(self.shared.expected_argon2()).await?;
        Ok(HashSlot { slot, shared: &self.shared })
    }

    /// Whether no worker has ended.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.pool.is_complete()
    }

    /// How much longer to wait before a refusal, so that it comes when the slowest one of a bcrypt account would (see
    /// [`super::refusal_delay`]). Zero once no bcrypt hash is left.
    #[must_use]
    pub fn refusal_delay(&self, checked: &Checked) -> Duration {
        let longest = self.shared.times().bcrypt.as_ref().and_then(BcryptTimings::longest);
        longest.unwrap_or_default().saturating_sub(checked.took)
    }

    /// Sets the highest cost among the bcrypt hashes that are left, if any. A new cost is measured at once, so that the
    /// first refusal is already delayed.
    pub async fn set_bcrypt_cost(&self, cost: Option<u32>) {
        let cost = cost.map(|cost| cost.clamp(4, Argon2Cost::MAX_BCRYPT));
        {
            let mut times = self.shared.times();
            if times.bcrypt.as_ref().map(BcryptTimings::cost) == cost {
                return;
            }
            times.bcrypt = cost.map(BcryptTimings::new);
        }
        let Some(cost) = cost else { return };
        for _ in 0..BcryptTimings::FIRST_SAMPLES {
            let expected = self.shared.expected_bcrypt(cost);
            // A pool that is overloaded gets its samples from the logins it serves.
            let Ok(slot) = self.pool.acquire(expected).await else { return };
            let shared = Arc::clone(&self.shared);
            let measure = move |_: &mut Scratch| {
                let started = Instant::now();
                password::compute_bcrypt(cost);
                shared.measured_bcrypt(cost, started.elapsed());
            };
            let _ = slot.run(expected, measure).await;
        }
    }
}

/// An admitted caller. Dropping it gives the slot up.
#[derive(Debug)]
pub struct HashSlot<'a> {
    slot: Slot<'a, Scratch>,
    shared: &'a Arc<Shared>,
}

impl HashSlot<'_> {
    /// Hashes a chosen password.
    pub async fn hash(self, password: Password) -> Result<PasswordHash, Overloaded> {
        let shared = Arc::clone(self.shared);
        let work = move |scratch: &mut Scratch| {
            let started = Instant::now();
            let hash = password::hash(&password, shared.settings.cost, shared.memory(scratch));
            shared.measured_argon2(started.elapsed());
            hash
        };
        self.slot.run(self.shared.expected_argon2(), work).await
    }

    /// Verifies a password against a stored hash. Without one, for an unknown account, it costs the same.
    pub async fn verify(self, password: Password, stored: Option<PasswordHash>) -> Result<Checked, Overloaded> {
        let scheme = stored.as_ref().map(Scheme::of);
        let bcrypt_cost = match scheme {
            Some(Scheme::Bcrypt { cost }) => Some(cost),
            _ => None,
        };
        let shared = Arc::clone(self.shared);
        let expected = bcrypt_cost.map_or_else(|| shared.expected_argon2(), |cost| shared.expected_bcrypt(cost));
        let work =
            move |scratch: &mut Scratch| shared.check(&password, stored.as_ref(), bcrypt_cost, shared.memory(scratch));
        self.slot.run(expected, work).await
    }
}

impl Shared {
    fn times(&self) -> MutexGuard<'_, Times> {
        // No code that can panic runs under the lock, so a poisoned one is still consistent.
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn memory<'a>(&self, scratch: &'a mut Scratch) -> &'a mut Memory {
        scratch.get_or_insert_with(|| Memory::for_cost(self.settings.cost))
    }

    fn expected_argon2(&self) -> Duration {
        self.times().argon2.unwrap_or(UNMEASURED)
    }

    fn expected_bcrypt(&self, cost: u32) -> Duration {
        let times = self.times();
        let measured = times.bcrypt.as_ref().filter(|timings| timings.cost() == cost).and_then(BcryptTimings::median);
        // 2^cost rounds at about 60 microseconds each.
        measured.unwrap_or_else(|| Duration::from_micros(60 << cost))
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
        self.seconds.observe(took.as_secs_f64());
        let mut times = self.times();
        let average = times.argon2.map_or(took, |average| (average * 15 + took) / 16);
        times.argon2 = Some(average);
        drop(times);
        let workers = u32::try_from(self.settings.pool.concurrency).unwrap_or(u32::MAX);
        self.capacity_per_second.set(f64::from(workers) / average.as_secs_f64());
    }

    fn measured_bcrypt(&self, cost: u32, took: Duration) {
        self.seconds.observe(took.as_secs_f64());
        let mut times = self.times();
        // The Python service may have made a dearer hash since the last look at the table.
        let known = times.bcrypt.take().filter(|timings| timings.cost() >= cost);
        times.bcrypt.insert(known.unwrap_or_else(|| BcryptTimings::new(cost))).add(cost, took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BCRYPT: &str = "$2b$04$AToaJW/vWh2zQWC7Y6wtaOydfsLgRPdabeYPjiMiiQiEosDnyVGEC";

    fn hasher() -> Hasher {
        let metrics = crate::metrics::Metrics::new();
        let metrics = HasherMetrics {
            pool: PoolMetrics { queue_depth: metrics.hash_queue_depth, shed: metrics.hash_shed },
            seconds: metrics.hash_seconds,
            capacity_per_second: metrics.login_capacity,
        };
        let cost = Argon2Cost { m_kib: 8, t: 1 };
        let pool = PoolSettings { concurrency: 1, max_wait: Duration::from_mins(1) };
        let settings = HasherSettings { pool, cost, rehash: true };
        Hasher::start(settings, metrics).unwrap()
    }

    /// The time after which a wrong password is refused, the wait for a worker left out.
    async fn refusal(hasher: &Hasher, stored: Option<&str>) -> (Duration, Duration) {
        let stored = stored.map(|text| PasswordHash::from_stored(text.to_owned()));
        let checked =
            hasher.acquire().await.unwrap().verify(Password::attempt("wrong".to_owned()), stored).await.unwrap();
        (checked.took, checked.took + hasher.refusal_delay(&checked))
    }

    #[tokio::test]
    async fn every_refusal_comes_when_the_slowest_bcrypt_one_would() {
        let hasher = hasher();
        hasher.set_bcrypt_cost(Some(4)).await;
        let argon2 = hasher.acquire().await.unwrap().hash(Password::attempt("right".to_owned())).await.unwrap();
        for stored in [None, Some(argon2.as_str()), Some(""), Some(BCRYPT)] {
            let (took, refused) = refusal(&hasher, stored).await;
            let longest = hasher.shared.times().bcrypt.as_ref().and_then(BcryptTimings::longest).unwrap();
            assert_eq!(refused, longest.max(took), "{stored:?}");
        }
    }

    #[tokio::test]
    async fn no_refusal_is_delayed_once_no_bcrypt_hash_is_left() {
        let hasher = hasher();
        let (took, refused) = refusal(&hasher, None).await;
        assert_eq!(refused, took);
        // One is met before the table was looked at, and is gone again.
        refusal(&hasher, Some(BCRYPT)).await;
        assert!(hasher.shared.times().bcrypt.is_some());
        hasher.set_bcrypt_cost(None).await;
        let (took, refused) = refusal(&hasher, None).await;
        assert_eq!(refused, took);
    }
}
