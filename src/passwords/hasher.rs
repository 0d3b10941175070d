//! Hashes and verifies passwords: all of it in one [`WorkerPool`], in memory that each worker allocates once and keeps.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus::{Gauge, Histogram};

use super::pool::{Overloaded, PoolMetrics, PoolSettings, Slot, WorkerPool};
use super::refusal_delay::HashTimings;
use crate::domain::password::{self, Argon2Cost, HashCost, Memory, Password, PasswordHash, Scheme, Verdict};

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

#[derive(Debug)]
struct Shared {
    timings: Mutex<HashTimings>,
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

/// How often a new kind of hash is measured.
const FIRST_SAMPLES: usize = 3;

impl Hasher {
    /// Starts the workers.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(settings: HasherSettings, metrics: HasherMetrics) -> std::io::Result<Self> {
        let HasherMetrics { pool, seconds, capacity_per_second } = metrics;
        let pool = WorkerPool::start(settings.pool, pool)?;
        let timings = Mutex::new(HashTimings::new(settings.cost));
        Ok(Self { pool, shared: Arc::new(Shared { timings, settings, seconds, capacity_per_second }) })
    }

    /// Admits a caller that is going to hash or verify one password, or refuses it, before anything else is spent on the
    /// request, when that would take too long.
    pub async fn acquire(&self) -> Result<HashSlot<'_>, Overloaded> {
        let expected = self.shared.timings().current();
        let slot = self.pool.acquire(expected).await?;
        Ok(HashSlot { slot, shared: &self.shared })
    }

    /// Whether no worker has ended.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.pool.is_complete()
    }

    /// How much longer to wait before a refusal, so that it comes when the slowest one of any account would (see
    /// [`super::refusal_delay`]). Zero once no foreign hash is left.
    #[must_use]
    pub fn refusal_delay(&self, checked: &Checked) -> Duration {
        self.shared.timings().refusal().saturating_sub(checked.took)
    }

    /// Sets which costs the hashes in the table have. New ones are measured at once, so that the first refusal is already
    /// delayed.
    pub async fn set_foreign(&self, costs: Vec<HashCost>) {
        let unmeasured = self.shared.timings().set_foreign(costs);
        for cost in unmeasured.into_iter().flat_map(|cost| [cost; FIRST_SAMPLES]) {
            let expected = self.shared.timings().expected(cost);
            // A pool that is overloaded gets its samples from the logins it serves.
            let Ok(slot) = self.pool.acquire(expected).await else { return };
            let shared = Arc::clone(&self.shared);
            let measure = move |scratch: &mut Scratch| {
                let started = Instant::now();
                cost.compute(shared.memory(scratch));
                shared.measured(cost, started.elapsed());
            };
            let _ = slot.run(expected, true, measure).await;
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
            shared.measured(shared.settings.cost.into(), started.elapsed());
            hash
        };
        let expected = self.shared.timings().current();
        self.slot.run(expected, false, work).await
    }

    /// Verifies a password against a stored hash. Without one, for an unknown account, it costs the same.
    pub async fn verify(self, password: Password, stored: Option<PasswordHash>) -> Result<Checked, Overloaded> {
        let shared = Arc::clone(self.shared);
        // Where there is no usable hash, one at the cost of new ones is computed.
        let cost = stored.as_ref().and_then(|stored| Scheme::of(stored).cost()).unwrap_or(shared.settings.cost.into());
        let (expected, foreign) = {
            let timings = shared.timings();
            (timings.expected(cost), timings.is_foreign(cost))
        };
        let work = move |scratch: &mut Scratch| shared.check(&password, stored.as_ref(), cost, shared.memory(scratch));
        self.slot.run(expected, foreign, work).await
    }
}

impl Shared {
    fn timings(&self) -> MutexGuard<'_, HashTimings> {
        // No code that can panic runs under the lock, so a poisoned one is still consistent.
        self.timings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn memory<'a>(&self, scratch: &'a mut Scratch) -> &'a mut Memory {
        scratch.get_or_insert_with(|| Memory::for_cost(self.settings.cost))
    }

    fn check(
        &self,
        password: &Password,
        stored: Option<&PasswordHash>,
        cost: HashCost,
        memory: &mut Memory,
    ) -> Checked {
        let current = self.settings.cost;
        let started = Instant::now();
        let verdict = if let Some(stored) = stored {
            password::verify(password, stored, current, memory)
        } else {
            let _ = password::hash(password, current, memory);
            Verdict::Mismatch
        };
        let took = started.elapsed();
        self.measured(cost, took);
        let outdated = verdict == Verdict::Match { outdated: true };
        let replacement = (outdated && self.settings.rehash).then(|| password::hash(password, current, memory));
        Checked { verdict, replacement, took }
    }

    fn measured(&self, cost: HashCost, took: Duration) {
        self.seconds.observe(took.as_secs_f64());
        let mut timings = self.timings();
        timings.add(cost, took);
        let each = timings.current().as_secs_f64();
        drop(timings);
        let workers = u32::try_from(self.settings.pool.concurrency).unwrap_or(u32::MAX);
        self.capacity_per_second.set(f64::from(workers) / each);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BCRYPT: &str = "$2b$04$AToaJW/vWh2zQWC7Y6wtaOydfsLgRPdabeYPjiMiiQiEosDnyVGEC";

    const CHEAP: &str = "$argon2id$v=19$m=16,t=1,p=1$c29tZXNhbHQ$9sTbSlTio3Biev89thdrlKKiCaYsjjYVJxGAL3swxpQ";

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
    async fn every_refusal_comes_when_the_slowest_one_would() {
        let hasher = hasher();
        hasher.set_foreign(vec![HashCost::Bcrypt { cost: 4 }]).await;
        let argon2 = hasher.acquire().await.unwrap().hash(Password::attempt("right".to_owned())).await.unwrap();
        for stored in [None, Some(argon2.as_str()), Some(""), Some(BCRYPT), Some(CHEAP)] {
            let (took, refused) = refusal(&hasher, stored).await;
            let slowest = hasher.shared.timings().refusal();
            assert_eq!(refused, slowest.max(took), "{stored:?}");
        }
    }

    #[tokio::test]
    async fn no_refusal_is_delayed_once_no_foreign_hash_is_left() {
        let hasher = hasher();
        for foreign in [BCRYPT, CHEAP] {
            let (took, refused) = refusal(&hasher, None).await;
            assert_eq!(refused, took);
            // One is met before the table was looked at, and is gone again.
            refusal(&hasher, Some(foreign)).await;
            assert!(hasher.shared.timings().refusal() > Duration::ZERO);
            hasher.set_foreign(Vec::new()).await;
        }
        let (took, refused) = refusal(&hasher, None).await;
        assert_eq!(refused, took);
    }
}
