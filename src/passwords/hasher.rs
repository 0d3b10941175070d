//! Hashes and verifies passwords in a [`WorkerPool`], in memory that each worker allocates once and keeps.
//!
//! Foreign hashes (see [`super::timings`]) have a smaller pool of their own, so that dear ones leave logins with
//! current hashes their workers. While any is left, every attempt that is not right by then goes through both: first a
//! hash at the current cost, whatever the account has, then a turn in the pool of foreign hashes. There one of them is
//! computed, and the turn takes equally long for all that are refused. So neither the time of a refusal, nor a full queue,
//! nor the load on the machine tells an account with a foreign hash from another one or from none, however many attempts
//! come at once.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::pool::{Overloaded, PoolSettings, Slot, WorkerPool};
use super::timings::HashTimings;
use crate::domain::password::{self, Argon2Cost, HashCost, Memory, Password, PasswordHash, Verdict};
use crate::metrics::Metrics;

#[derive(Clone, Copy, Debug)]
pub struct HasherSettings {
    pub pool: PoolSettings,
    /// Cost of new hashes.
    pub cost: Argon2Cost,
    /// Whether a right password of an outdated hash is hashed anew.
    pub rehash: bool,
}

#[derive(Debug)]
pub struct Checked {
    pub verdict: Verdict,
    /// A new hash to store, where the password was right and its hash outdated.
    pub replacement: Option<PasswordHash>,
}

#[derive(Debug)]
struct Shared {
    timings: Mutex<HashTimings>,
    settings: HasherSettings,
    metrics: Metrics,
}

thread_local! {
    /// Of a worker: allocated with its first job, so that a service without logins stays small.
    static MEMORY: RefCell<Option<Memory>> = const { RefCell::new(None) };
}

/// Hashes and verifies passwords, as many at once as there are workers.
#[derive(Debug)]
pub struct Hasher {
    pool: WorkerPool,
    /// With half as many workers.
    foreign_pool: WorkerPool,
    shared: Arc<Shared>,
}

/// How often a new kind of hash is measured.
const FIRST_SAMPLES: usize = 3;

impl Hasher {
    /// Starts the workers. Fails where the system gives no thread.
    pub fn start(settings: HasherSettings, metrics: &Metrics) -> std::io::Result<Self> {
        let foreign = PoolSettings { concurrency: (settings.pool.concurrency / 2).max(1), ..settings.pool };
        let timings = Mutex::new(HashTimings::new(settings.cost));
        Ok(Self {
            pool: WorkerPool::start(settings.pool, metrics)?,
            foreign_pool: WorkerPool::start(foreign, metrics)?,
            shared: Arc::new(Shared { timings, settings, metrics: metrics.clone() }),
        })
    }

    /// Refuses a request that is going to need a hash, before anything else is spent on it, when that would take too long.
    pub fn check_room(&self) -> Result<(), Overloaded> {
        self.pool.check_room()
    }

    /// Admits a caller that hashes or verifies one password next, or refuses it when that would take too long.
    pub async fn acquire(&self) -> Result<HashSlot<'_>, Overloaded> {
        let expected = self.shared.timings.lock().current();
        let slot = self.pool.acquire(expected).await?;
        Ok(HashSlot { slot, hasher: self })
    }

    pub fn is_complete(&self) -> bool {
        self.pool.is_complete() && self.foreign_pool.is_complete()
    }

    /// Sets which costs the hashes in the table have. New ones are measured at once, so that the first refusal is already
    /// delayed by the right time.
    pub async fn set_foreign(&self, costs: Vec<HashCost>) {
        let unmeasured = self.shared.timings.lock().set_foreign(costs);
        for cost in unmeasured.into_iter().flat_map(|cost| [cost; FIRST_SAMPLES]) {
            let expected = self.shared.timings.lock().expected(cost);
            // A pool that is overloaded gets its samples from the logins it serves.
            let Ok(slot) = self.foreign_pool.acquire(expected).await else { return };
            let shared = Arc::clone(&self.shared);
            let _ = slot.run(expected, move || shared.compute(cost)).await;
        }
    }
}

/// An admitted caller. Dropping it gives the slot up.
#[derive(Debug)]
pub struct HashSlot<'a> {
    slot: Slot<'a>,
    hasher: &'a Hasher,
}

impl HashSlot<'_> {
    pub async fn hash(self, password: Password) -> Result<PasswordHash, Overloaded> {
        let shared = Arc::clone(&self.hasher.shared);
        let work = move || {
            let started = Instant::now();
            let hash = shared.with_memory(|memory| password::hash(&password, shared.settings.cost, memory));
            shared.measured(shared.settings.cost.into(), started.elapsed());
            hash
        };
        let expected = self.hasher.shared.timings.lock().current();
        self.slot.run(expected, work).await
    }

    /// Verifies a password against a stored hash. Without one, for an unknown account, it takes the same time.
    pub async fn verify(self, password: Password, stored: Option<PasswordHash>) -> Result<Checked, Overloaded> {
        let shared = &self.hasher.shared;
        let foreign = stored.as_ref().and_then(|hash| shared.foreign_cost_of(hash));
        let (expected, refusal) = {
            let mut timings = shared.timings.lock();
            (timings.current(), timings.refusal(foreign))
        };
        let current = stored.clone().filter(|_| foreign.is_none());
        let (worker, tried) = (Arc::clone(shared), password.clone());
        let first = move || worker.check(&tried, current.as_ref(), worker.settings.cost.into());
        let checked = self.slot.run(expected, first).await?;
        let Some((slowest, turn)) = refusal.filter(|_| !checked.is_match()) else { return Ok(checked) };
        let slot = self.hasher.foreign_pool.acquire(turn).await?;
        let worker = Arc::clone(shared);
        let second = move || {
            let started = Instant::now();
            let checked = if let Some(cost) = foreign {
                worker.check(&password, stored.as_ref(), cost)
            } else {
                // The load on the machine can be seen, too.
                worker.compute(slowest);
                checked
            };
            if !checked.is_match() {
                std::thread::sleep(turn.saturating_sub(started.elapsed()));
            }
            checked
        };
        slot.run(turn, second).await
    }
}

impl Checked {
    fn is_match(&self) -> bool {
        matches!(self.verdict, Verdict::Match { .. })
    }
}

impl Shared {
    /// The cost of a hash, if that is not the cost of new ones.
    fn foreign_cost_of(&self, hash: &PasswordHash) -> Option<HashCost> {
        HashCost::of(hash).filter(|&cost| cost != self.settings.cost.into())
    }

    fn with_memory<T>(&self, work: impl FnOnce(&mut Memory) -> T) -> T {
        MEMORY.with_borrow_mut(|memory| work(memory.get_or_insert_with(|| Memory::for_cost(self.settings.cost))))
    }

    fn compute(&self, cost: HashCost) {
        let started = Instant::now();
        self.with_memory(|memory| cost.compute(memory));
        self.measured(cost, started.elapsed());
    }

    fn check(&self, password: &Password, stored: Option<&PasswordHash>, cost: HashCost) -> Checked {
        let current = self.settings.cost;
        let hash = || self.with_memory(|memory| password::hash(password, current, memory));
        let started = Instant::now();
        let verdict = if let Some(stored) = stored {
            self.with_memory(|memory| password::verify(password, stored, current, memory))
        } else {
            hash();
            Verdict::Mismatch
        };
        self.measured(cost, started.elapsed());
        let outdated = verdict == Verdict::Match { outdated: true };
        let replacement = (outdated && self.settings.rehash).then(hash);
        Checked { verdict, replacement }
    }

    fn measured(&self, cost: HashCost, took: Duration) {
        self.metrics.hash_seconds.observe(took.as_secs_f64());
        let mut timings = self.timings.lock();
        timings.add(cost, took);
        let each = timings.current().as_secs_f64();
        drop(timings);
        let workers = u32::try_from(self.settings.pool.concurrency).unwrap_or(u32::MAX);
        self.metrics.login_capacity.set(f64::from(workers) / each);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BCRYPT: &str = "$2b$04$AToaJW/vWh2zQWC7Y6wtaOydfsLgRPdabeYPjiMiiQiEosDnyVGEC";

    const CHEAP: &str = "$argon2id$v=19$m=16,t=1,p=1$c29tZXNhbHQ$9sTbSlTio3Biev89thdrlKKiCaYsjjYVJxGAL3swxpQ";

    fn hasher() -> Hasher {
        let cost = Argon2Cost { m_kib: 8, t: 1 };
        let pool = PoolSettings { concurrency: 1, max_wait: Duration::from_mins(1) };
        let settings = HasherSettings { pool, cost, rehash: true };
        Hasher::start(settings, &Metrics::default()).unwrap()
    }

    /// How long six wrong passwords at once take to be refused, sorted.
    async fn refusals(hasher: &Arc<Hasher>, stored: Option<&str>) -> Vec<Duration> {
        let stored = stored.map(|text| PasswordHash::from_stored(text.to_owned()));
        let started = Instant::now();
        let attempts: Vec<_> = (0..6)
            .map(|_| {
                let (hasher, stored) = (Arc::clone(hasher), stored.clone());
                tokio::spawn(async move {
                    let slot = hasher.acquire().await.unwrap();
                    let checked = slot.verify(Password::attempt("wrong".to_owned()), stored).await.unwrap();
                    assert!(!checked.is_match());
                    started.elapsed()
                })
            })
            .collect();
        let mut times = Vec::new();
        for attempt in attempts {
            times.push(attempt.await.unwrap());
        }
        times.sort_unstable();
        times
    }

    #[tokio::test]
    async fn refusals_of_every_account_take_turns_of_the_same_length() {
        let hasher = Arc::new(hasher());
        let current = hasher.acquire().await.unwrap().hash(Password::attempt("right".to_owned())).await.unwrap();
        // Far more than any of the hashes takes, so that only the turns tell.
        let turn = Duration::from_millis(60);
        let bcrypt = HashCost::Bcrypt { cost: 4 };
        hasher.shared.timings.lock().set_foreign(vec![bcrypt]);
        for stored in [None, Some(current.as_str()), Some(""), Some(BCRYPT), Some(CHEAP)] {
            for _ in 0..32 {
                hasher.shared.timings.lock().add(bcrypt, turn);
            }
            let computed = || hasher.shared.metrics.hash_seconds.get_sample_count();
            let before = computed();
            for (times, took) in (1..).zip(refusals(&hasher, stored).await) {
                assert!(took >= turn * times, "{stored:?}: refusal {times} came after {took:?}");
            }
            assert_eq!(computed(), before + 12, "{stored:?}");
        }
    }

    #[tokio::test]
    async fn a_right_password_waits_for_no_turn_that_it_does_not_need() {
        let hasher = hasher();
        let right = || Password::attempt("right".to_owned());
        let current = hasher.acquire().await.unwrap().hash(right()).await.unwrap();
        hasher.shared.timings.lock().refusal(Some(HashCost::Bcrypt { cost: 4 }));
        let before = hasher.foreign_pool.acquire(Duration::from_hours(1)).await.unwrap();
        let slot = hasher.acquire().await.unwrap();
        assert!(slot.verify(right(), Some(current.clone())).await.unwrap().is_match());
        // A full queue refuses all others, wrong or foreign.
        for stored in [None, Some(current), Some(PasswordHash::from_stored(BCRYPT.to_owned()))] {
            let slot = hasher.acquire().await.unwrap();
            slot.verify(Password::attempt("wrong".to_owned()), stored).await.unwrap_err();
        }
        drop(before);
    }

    #[tokio::test]
    async fn no_refusal_is_delayed_once_no_foreign_hash_is_left() {
        let hasher = Arc::new(hasher());
        for foreign in [BCRYPT, CHEAP] {
            assert_eq!(hasher.shared.timings.lock().refusal(None), None);
            // One is met before the table was looked at, and is gone again.
            refusals(&hasher, Some(foreign)).await;
            assert!(hasher.shared.timings.lock().refusal(None).is_some());
            hasher.set_foreign(Vec::new()).await;
        }
        assert_eq!(hasher.shared.timings.lock().refusal(None), None);
    }
}
