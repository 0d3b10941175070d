//! Equal time of refusals while bcrypt hashes of the Python service are left, and only that.
//!
//! A refusal waits until the slowest verification of a bcrypt hash would be done, so that its time does not tell a bcrypt
//! account from another one or from none. Waiting for their average, or for a random one of their times, would not do:
//! refusals of bcrypt accounts would come late, or early, more often than others.

use std::collections::VecDeque;
use std::time::Duration;

/// The highest cost among the bcrypt hashes that are left, and how long verifying one of these lately took.
#[derive(Debug)]
pub(super) struct BcryptTimings {
    cost: u32,
    recent: VecDeque<Duration>,
}

impl BcryptTimings {
    const SAMPLES: usize = 32;
    pub(super) const FIRST_SAMPLES: usize = 3;

    pub(super) fn new(cost: u32) -> Self {
        Self { cost, recent: VecDeque::new() }
    }

    pub(super) fn cost(&self) -> u32 {
        self.cost
    }

    /// Adds a time; those of cheaper hashes do not count.
    pub(super) fn add(&mut self, cost: u32, took: Duration) {
        if cost == self.cost {
            self.recent.truncate(Self::SAMPLES - 1);
            self.recent.push_front(took);
        }
    }

    fn sorted(&self) -> Vec<Duration> {
        let mut times: Vec<Duration> = self.recent.iter().copied().collect();
        times.sort_unstable();
        times
    }

    pub(super) fn median(&self) -> Option<Duration> {
        self.sorted().get(self.recent.len() / 2).copied()
    }

    /// How long nearly every verification takes. An outlier does not count.
    pub(super) fn longest(&self) -> Option<Duration> {
        let longest = *self.sorted().last()?;
        Some((longest + longest / 8).min(self.median()? * 3))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn longest(times: impl IntoIterator<Item = u64>) -> Option<Duration> {
        let recent = times.into_iter().map(Duration::from_millis).collect();
        BcryptTimings { cost: 4, recent }.longest()
    }

    #[test]
    fn an_outlier_does_not_delay_other_refusals() {
        assert_eq!(longest([]), None);
        assert_eq!(longest([80]), Some(Duration::from_millis(90)));
        assert_eq!(longest([100, 160, 120]), Some(Duration::from_millis(180)));
        assert_eq!(longest([100, 9000, 110]), Some(Duration::from_millis(330)));
    }
}
