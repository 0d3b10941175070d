//! Password hashing, the only expensive thing the service does and the one an attacker can buy with a request: all of it
//! goes through one [`Gate`], in memory that each of its workers allocates once and keeps.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus::{Gauge, Histogram};

use super::gate::{self, Busy, Gate, GateMetrics, GateSettings};
use super::password::{self, Argon2Cost, Memory, Password, PasswordHash, Scheme, Verdict};

/// How passwords are hashed.
#[derive(Clone, Copy, Debug)]
pub struct HasherSettings {
    pub gate: GateSettings,
    /// Cost of new hashes.
    pub cost: Argon2Cost,
    /// Whether a right password of an outdated hash is hashed anew.
    pub rehash: bool,
}

/// What hashing tells the metrics.
#[derive(Clone, Debug)]
pub struct HasherMetrics {
    pub gate: GateMetrics,
    pub seconds: Histogram,
    pub capacity_per_second: Gauge,
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

/// What hashes lately took.
#[derive(Debug, Default)]
struct Times {
    /// Moving average of one argon2 hash at the current cost.
    argon2: Option<Duration>,
    legacy: Option<Legacy>,
}

/// The bcrypt accounts that remain of the Python service, and how long verifying one lately took.
#[derive(Debug)]
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

#[derive(Debug)]
struct Shared {
    times: Mutex<Times>,
    settings: HasherSettings,
    seconds: Histogram,
    capacity_per_second: Gauge,
}

/// What a worker keeps: allocated with its first job, so that a service nobody signs in to stays small.
type Kept = Option<Memory>;

/// Hashes and tries passwords, a few at a time.
#[derive(Debug)]
pub struct Hasher {
    gate: Gate<Kept>,
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
        let HasherMetrics { gate, seconds, capacity_per_second } = metrics;
        let gate = Gate::start(settings.gate, gate)?;
        Ok(Self { gate, shared: Arc::new(Shared { times: Mutex::default(), settings, seconds, capacity_per_second }) })
    }

    /// Lets somebody in who is going to have one password hashed or tried; or refuses, before anything else is spent
    /// on the request, when that would take too long.
    pub async fn admit(&self) -> Result<Admitted<'_>, Busy> {
        let place = self.gate.enter(self.shared.expected_argon2()).await?;
        Ok(Admitted { place, shared: &self.shared })
    }

    /// How much longer a refusal must be held back while bcrypt hashes are left: each comes when the slowest of theirs
    /// would, so an outsider cannot tell by time who is still on bcrypt, who is not, and who does not exist. (To wait
    /// for an average or a random one of theirs would not do: those of bcrypt accounts would come late, or early, more
    /// often than others.) Zero once no bcrypt hash is left.
    #[must_use]
    pub fn hold_back(&self, checked: &Checked) -> Duration {
        let longest = self.shared.times().legacy.as_ref().and_then(Legacy::longest);
        longest.unwrap_or_default().saturating_sub(checked.took)
    }

    /// Tells the highest cost among the bcrypt hashes that are left, or that none is. When one appears, its time is
    /// measured at once, so that the very first refusal is already held back.
    pub async fn set_legacy_cost(&self, cost: Option<u32>) {
        let cost = cost.map(|cost| cost.clamp(4, Argon2Cost::MAX_BCRYPT));
        {
            let mut times = self.shared.times();
            if times.legacy.as_ref().map(|legacy| legacy.cost) == cost {
                return;
            }
            times.legacy = cost.map(|cost| Legacy { cost, recent: VecDeque::new() });
        }
        let Some(cost) = cost else { return };
        for _ in 0..Legacy::FIRST_SAMPLES {
            let expected = self.shared.expected_bcrypt(cost);
            // A busy gate measures it soon enough by the logins that pass.
            let Ok(place) = self.gate.enter(expected).await else { return };
            let shared = Arc::clone(&self.shared);
            let measure = move |_: &mut Kept| {
                let started = Instant::now();
                // What is hashed does not matter, and the outcome is thrown away.
                let _ = bcrypt::hash_with_salt("measure", cost, [0; 16]);
                shared.measured_bcrypt(cost, started.elapsed());
            };
            let _ = place.run(expected, measure).await;
        }
    }
}

/// Somebody who was let in. Dropping it gives the place up.
#[derive(Debug)]
pub struct Admitted<'a> {
    place: gate::Place<'a, Kept>,
    shared: &'a Arc<Shared>,
}

impl Admitted<'_> {
    /// Hashes a chosen password.
    pub async fn hash(self, password: Password) -> Result<PasswordHash, Busy> {
        let shared = Arc::clone(self.shared);
        let work = move |kept: &mut Kept| {
            let started = Instant::now();
            let hash = password::hash(&password, shared.settings.cost, shared.memory(kept));
            shared.measured_argon2(started.elapsed());
            hash
        };
        self.place.run(self.shared.expected_argon2(), work).await
    }

    /// Tries a password against a stored hash, or against nobody's: then the work is done all the same.
    pub async fn verify(self, password: Password, stored: Option<PasswordHash>) -> Result<Checked, Busy> {
        let scheme = stored.as_ref().map(Scheme::of);
        let bcrypt_cost = match scheme {
            Some(Scheme::Bcrypt { cost }) => Some(cost),
            _ => None,
        };
        let shared = Arc::clone(self.shared);
        let expected = bcrypt_cost.map_or_else(|| shared.expected_argon2(), |cost| shared.expected_bcrypt(cost));
        let work = move |kept: &mut Kept| shared.check(&password, stored.as_ref(), bcrypt_cost, shared.memory(kept));
        self.place.run(expected, work).await
    }
}

impl Shared {
    fn times(&self) -> MutexGuard<'_, Times> {
        // No code that can panic runs under the lock, so a poisoned one is still consistent.
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn memory<'a>(&self, kept: &'a mut Kept) -> &'a mut Memory {
        kept.get_or_insert_with(|| Memory::for_cost(self.settings.cost))
    }

    fn expected_argon2(&self) -> Duration {
        self.times().argon2.unwrap_or(UNMEASURED)
    }

    fn expected_bcrypt(&self, cost: u32) -> Duration {
        let times = self.times();
        let measured = times.legacy.as_ref().filter(|legacy| legacy.cost == cost).and_then(Legacy::median);
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
        let workers = u32::try_from(self.settings.gate.concurrency).unwrap_or(u32::MAX);
        self.capacity_per_second.set(f64::from(workers) / average.as_secs_f64());
    }

    fn measured_bcrypt(&self, cost: u32, took: Duration) {
        self.seconds.observe(took.as_secs_f64());
        let mut times = self.times();
        // A hash that nobody has told of yet, because the Python service has just made it, counts from now on.
        let known = times.legacy.take().filter(|legacy| legacy.cost >= cost);
        let legacy = times.legacy.insert(known.unwrap_or_else(|| Legacy { cost, recent: VecDeque::new() }));
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
            gate: GateMetrics { queue_depth: metrics.hash_queue_depth, shed: metrics.hash_shed },
            seconds: metrics.hash_seconds,
            capacity_per_second: metrics.login_capacity,
        };
        let cost = Argon2Cost { m_kib: 8, t: 1 };
        let gate = GateSettings { concurrency: 1, max_wait: Duration::from_mins(1) };
        let settings = HasherSettings { gate, cost, rehash: true };
        Hasher::start(settings, metrics).unwrap()
    }

    /// The time after which a wrong password is refused, the wait for a worker left out.
    async fn refusal(hasher: &Hasher, stored: Option<&str>) -> (Duration, Duration) {
        let stored = stored.map(|text| PasswordHash::from_stored(text.to_owned()));
        let checked =
            hasher.admit().await.unwrap().verify(Password::attempt("wrong".to_owned()), stored).await.unwrap();
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
        let argon2 = hasher.admit().await.unwrap().hash(Password::attempt("right".to_owned())).await.unwrap();
        for stored in [None, Some(argon2.as_str()), Some(""), Some(BCRYPT)] {
            let (took, refused) = refusal(&hasher, stored).await;
            let longest = hasher.shared.times().legacy.as_ref().and_then(Legacy::longest).unwrap();
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
        assert!(hasher.shared.times().legacy.is_some());
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
