//! What was measured, and the line of JSON that says it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// The time in which requests count: after the warm-up, before the end.
#[derive(Clone, Copy)]
pub(crate) struct Window {
    pub(crate) begin: Instant,
    pub(crate) end: Instant,
}

impl Window {
    pub(crate) fn after(warm_up: Duration, length: Duration) -> Self {
        let begin = Instant::now() + warm_up;
        Self { begin, end: begin + length }
    }

    pub(crate) fn contains(&self, instant: Instant) -> bool {
        (self.begin..self.end).contains(&instant)
    }

    pub(crate) fn length(&self) -> Duration {
        self.end - self.begin
    }
}

/// The answers of some connections.
#[derive(Clone, Default)]
pub(crate) struct Samples {
    /// Of the successful ones, in microseconds.
    latencies: Vec<u32>,
    /// Everything else, by status or kind of error.
    others: BTreeMap<String, u64>,
}

impl Samples {
    pub(crate) fn success(&mut self, took: Duration) {
        self.latencies.push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
    }

    pub(crate) fn other(&mut self, what: &impl ToString) {
        *self.others.entry(what.to_string()).or_default() += 1;
    }

    pub(crate) fn absorb(&mut self, other: Self) {
        self.latencies.extend(other.latencies);
        for (what, count) in other.others {
            *self.others.entry(what).or_default() += count;
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.latencies.len()
    }

    pub(crate) fn others(&self) -> &BTreeMap<String, u64> {
        &self.others
    }

    /// Microseconds that this share of the successful answers stayed under.
    pub(crate) fn quantile(&mut self, share: f64) -> u32 {
        self.latencies.sort_unstable();
        let last = self.latencies.len().saturating_sub(1);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index"
        )]
        let index = (last as f64 * share).round() as usize;
        self.latencies.get(index).copied().unwrap_or_default()
    }

    /// `count`, `others`, `rps`, and `p50_us`, `p99_us`, `max_us` of the successful answers.
    pub(crate) fn report(&mut self, during: Duration) -> Value {
        json!({
            "count": self.count(),
            "others": self.others,
            "rps": round(rate(self.count(), during)),
            "p50_us": self.quantile(0.5),
            "p99_us": self.quantile(0.99),
            "max_us": self.quantile(1.0),
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are small")]
pub(crate) fn rate(count: usize, during: Duration) -> f64 {
    count as f64 / during.as_secs_f64()
}

pub(crate) fn round(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

/// Prints an object as one line of JSON.
#[expect(clippy::print_stdout, reason = "this is what the program is for")]
pub(crate) fn print(kind: &str, mut report: Value) {
    report["kind"] = kind.into();
    println!("{report}");
}
