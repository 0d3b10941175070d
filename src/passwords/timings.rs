//! How long hashes take, and with it the equal time of refusals while foreign hashes are left: those of another scheme or
//! at another cost than new ones, such as the bcrypt hashes of the Python service, or all that were made before the
//! settings were changed.
//!
//! A refusal takes as long as the slowest foreign hash ([`super::hasher`] has the turns), so that its time does not tell an
//! account with a foreign hash from another one or from none. The average, or a random one of their times, would not do:
//! refusals of some accounts would come late, or early, more often than others.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::domain::password::{Argon2Cost, HashCost};

/// Assumed time of a hash at the cost of new ones until the first was measured.
const UNMEASURED: Duration = Duration::from_millis(25);

#[derive(Debug)]
pub(super) struct HashTimings {
    cost: Argon2Cost,
    current: Timings,
    foreign: BTreeMap<HashCost, Timings>,
}

impl HashTimings {
    /// `cost` is that of new hashes.
    pub(super) fn new(cost: Argon2Cost) -> Self {
        Self { cost, current: Timings::default(), foreign: BTreeMap::new() }
    }

    fn is_foreign(&self, cost: HashCost) -> bool {
        cost != self.cost.into()
    }

    /// Sets which costs hashes in the table have. Returns the foreign ones of which no time is known yet.
    pub(super) fn set_foreign(&mut self, costs: Vec<HashCost>) -> Vec<HashCost> {
        let mut known = std::mem::take(&mut self.foreign);
        let foreign = costs.into_iter().filter(|&cost| self.is_foreign(cost));
        self.foreign = foreign.map(|cost| (cost, known.remove(&cost).unwrap_or_default())).collect();
        let unmeasured = self.foreign.iter().filter(|(_, timings)| timings.0.is_empty());
        unmeasured.map(|(&cost, _)| cost).collect()
    }

    /// Adds a time. A foreign hash may be met before it is found in the table.
    pub(super) fn add(&mut self, cost: HashCost, took: Duration) {
        let timings = if self.is_foreign(cost) { self.foreign.entry(cost).or_default() } else { &mut self.current };
        timings.add(took);
    }

    /// How long a hash at the cost of new ones takes.
    pub(super) fn current(&self) -> Duration {
        self.current.median().unwrap_or(UNMEASURED)
    }

    /// How long a hash of this cost takes.
    pub(super) fn expected(&self, cost: HashCost) -> Duration {
        if !self.is_foreign(cost) {
            return self.current();
        }
        self.foreign.get(&cost).and_then(Timings::median).unwrap_or_else(|| match cost {
            HashCost::Argon2 { m_kib, t, .. } => {
                let work = |m_kib: u32, t: u32| f64::from(m_kib) * f64::from(t);
                self.current().mul_f64(work(m_kib, t) / work(self.cost.m_kib, self.cost.t))
            }
            // 2^cost rounds at about 60 microseconds each.
            HashCost::Bcrypt { cost } => Duration::from_micros(60 << cost),
        })
    }

    /// The slowest kind of foreign hash, and how long the turn of a refusal takes, for all accounts; `None` once none is
    /// left. `met` is the foreign cost of the account's own hash, which may not have been seen in the table yet.
    pub(super) fn refusal(&mut self, met: Option<HashCost>) -> Option<(HashCost, Duration)> {
        if let Some(cost) = met {
            self.foreign.entry(cost).or_default();
        }
        let turn = |cost, timings: &Timings| timings.longest().unwrap_or_else(|| self.expected(cost));
        self.foreign.iter().map(|(&cost, timings)| (cost, turn(cost, timings))).max_by_key(|(_, turn)| *turn)
    }
}

/// The latest times, newest first.
#[derive(Debug, Default)]
struct Timings(VecDeque<Duration>);

impl Timings {
    const SAMPLES: usize = 32;

    fn add(&mut self, took: Duration) {
        self.0.truncate(Self::SAMPLES - 1);
        self.0.push_front(took);
    }

    fn sorted(&self) -> Vec<Duration> {
        let mut times: Vec<Duration> = self.0.iter().copied().collect();
        times.sort_unstable();
        times
    }

    fn median(&self) -> Option<Duration> {
        self.sorted().get(self.0.len() / 2).copied()
    }

    /// How long nearly every verification takes. An outlier does not count.
    fn longest(&self) -> Option<Duration> {
        let longest = *self.sorted().last()?;
        Some((longest + longest / 8).min(self.median()? * 3))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COST: Argon2Cost = Argon2Cost { m_kib: 7168, t: 2 };
    const BCRYPT: HashCost = HashCost::Bcrypt { cost: 12 };

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn an_outlier_does_not_delay_other_refusals() {
        let longest = |times: &[u64]| Timings(times.iter().copied().map(ms).collect()).longest();
        assert_eq!(longest(&[]), None);
        assert_eq!(longest(&[80]), Some(ms(90)));
        assert_eq!(longest(&[100, 160, 120]), Some(ms(180)));
        assert_eq!(longest(&[100, 9000, 110]), Some(ms(330)));
    }

    #[test]
    fn a_foreign_hash_changes_nothing_of_what_new_ones_are_taken_for() {
        let mut timings = HashTimings::new(COST);
        timings.add(COST.into(), ms(16));
        for _ in 0..100 {
            timings.add(HashCost::Argon2 { m_kib: 65_536, t: 10, lanes: 1 }, ms(900));
            timings.add(BCRYPT, ms(200));
        }
        assert_eq!(timings.current(), ms(16));
        assert_eq!(timings.expected(BCRYPT), ms(200));
        assert_eq!(timings.expected(HashCost::Argon2 { m_kib: 7168, t: 4, lanes: 1 }), ms(32));
    }

    #[test]
    fn a_refusal_takes_as_long_as_the_slowest_kind_that_is_left() {
        let mut timings = HashTimings::new(COST);
        timings.add(COST.into(), ms(16));
        assert_eq!(timings.refusal(None), None);
        let cheap = HashCost::Argon2 { m_kib: 7168, t: 1, lanes: 1 };
        assert_eq!(timings.set_foreign(vec![COST.into(), cheap]), [cheap]);
        assert_eq!(timings.refusal(None), Some((cheap, ms(8))), "as estimated");
        timings.add(cheap, ms(16));
        assert_eq!(timings.refusal(None), Some((cheap, ms(18))));
        assert_eq!(timings.set_foreign(vec![COST.into(), cheap, BCRYPT]), [BCRYPT]);
        timings.add(BCRYPT, ms(80));
        assert_eq!(timings.refusal(None), Some((BCRYPT, ms(90))));
        assert!(timings.set_foreign(vec![COST.into(), cheap]).is_empty());
        assert_eq!(timings.refusal(None), Some((cheap, ms(18))));
        let expected = timings.expected(BCRYPT);
        assert_eq!(timings.refusal(Some(BCRYPT)), Some((BCRYPT, expected)), "before it was found in the table");
        assert!(timings.set_foreign(vec![COST.into()]).is_empty());
        assert_eq!(timings.refusal(None), None);
    }
}
