//! What is counted, under the names that dashboards read.
//!
//! The four `http_*` names and their labels are those of the Python service's instrumentation; `process_*` are those
//! of every Prometheus client. The rest is our own and begins with `auth_`.

use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    TextEncoder,
};

/// All instruments of one service.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    /// By `handler` (the route's pattern), `method` and `status` (its class, as "2xx").
    pub http_requests: IntCounterVec,
    pub http_seconds: HistogramVec,
    pub http_request_bytes: HistogramVec,
    pub http_response_bytes: HistogramVec,
    pub hash_seconds: Histogram,
    pub hash_queue_depth: IntGauge,
    pub hash_shed: IntCounter,
    pub login_capacity: Gauge,
    /// By outcome: `success`, `invalid`, `throttled`, `shed`.
    pub logins: IntCounterVec,
    /// By outcome: `rotated`, `replayed_answer`, `grace_refused`, `replay_detected`, `refused`, `shed`.
    pub refreshes: IntCounterVec,
    pub replays_detected: IntCounter,
    pub connections: IntGauge,
}

impl Metrics {
    /// # Panics
    /// Never: the names are distinct and well formed, which every test that starts the service shows.
    #[must_use]
    pub fn new() -> Self {
        let registry = Registry::new();
        let sizes = prometheus::exponential_buckets(64.0, 4.0, 6).expect("BUG: constant buckets");
        let histogram = |name: &str, help: &str, labels: &[&str], buckets: &[f64]| {
            let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            registered(&registry, HistogramVec::new(opts, labels))
        };
        let counter = |name: &str, help: &str, labels: &[&str]| {
            registered(&registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let times = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];
        let hash_opts = HistogramOpts::new("auth_password_hash_seconds", "Thread time of one password hash.")
            .buckets(vec![0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28]);
        let metrics = Self {
            http_requests: counter(
                "http_requests_total",
                "Requests by route, method and status class.",
                &["handler", "method", "status"],
            ),
            http_seconds: histogram(
                "http_request_duration_seconds",
                "Time to the response head.",
                &["handler", "method"],
                &times,
            ),
            http_request_bytes: histogram(
                "http_request_size_bytes",
                "Content length of requests.",
                &["handler"],
                &sizes,
            ),
            http_response_bytes: histogram(
                "http_response_size_bytes",
                "Content length of responses.",
                &["handler"],
                &sizes,
            ),
            hash_seconds: registered(&registry, Histogram::with_opts(hash_opts)),
            hash_queue_depth: registered(
                &registry,
                IntGauge::new("auth_password_queue_depth", "Password hashes waiting or being computed."),
            ),
            hash_shed: registered(
                &registry,
                IntCounter::new("auth_password_shed_total", "Requests refused because hashing would start too late."),
            ),
            login_capacity: registered(
                &registry,
                Gauge::new("auth_login_capacity_per_second", "Logins per second that hashing allows, as measured."),
            ),
            logins: counter("auth_logins_total", "Logins by outcome.", &["outcome"]),
            refreshes: counter("auth_refresh_total", "Refreshes by outcome.", &["outcome"]),
            replays_detected: registered(
                &registry,
                IntCounter::new("auth_replay_detected_total", "Sessions ended because a used refresh token came back."),
            ),
            connections: registered(
                &registry,
                IntGauge::new("auth_http_connections", "Client connections that are open."),
            ),
            registry,
        };
        #[cfg(target_os = "linux")]
        {
            let process = prometheus::process_collector::ProcessCollector::for_self();
            metrics.registry.register(Box::new(process)).expect("BUG: registered once");
        }
        metrics
    }

    /// The current values in Prometheus' text format, and its content type.
    #[must_use]
    pub fn render(&self) -> (String, &'static str) {
        let mut text = Vec::new();
        // Encoding fails for an instrument without samples only; that one is left out.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        (String::from_utf8_lossy(&text).into_owned(), prometheus::TEXT_FORMAT)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn registered<T: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    instrument: prometheus::Result<T>,
) -> T {
    let instrument = instrument.expect("BUG: constant names are well formed");
    registry.register(Box::new(instrument.clone())).expect("BUG: constant names are distinct");
    instrument
}
