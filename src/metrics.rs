//! What is counted, under the names that dashboards read.
//!
//! The four `http_*` names and their labels are those of the Python service's instrumentation; `process_*` are those
//! of every Prometheus client. The rest is our own and begins with `auth_`.

use std::time::Duration;

use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    TextEncoder,
};

#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    /// By `handler` (the route's pattern), `method` and `status` (its class, as "2xx").
    http_requests: IntCounterVec,
    http_seconds: HistogramVec,
    http_request_bytes: HistogramVec,
    http_response_bytes: HistogramVec,
    pub hash_seconds: Histogram,
    pub hash_queue_depth: IntGauge,
    pub hash_shed: IntCounter,
    pub login_capacity: Gauge,
    /// By outcome: `success`, `invalid`, `unverified`, `throttled`, `shed`, `failed`.
    pub logins: IntCounterVec,
    /// By outcome: the labels of `service::refresh::Outcome`.
    pub refreshes: IntCounterVec,
    pub replays_detected: IntCounter,
    /// By outcome (`sent`, `retried`, `dead`, `dropped`) and template.
    pub mails: IntCounterVec,
    pub mail_oldest_unsent: Gauge,
    /// By type (`access`, `refresh`), kid (see `domain::tokens::TokenSigner`) and outcome (`valid`, `expired`, `wrong_type`,
    /// `invalid`).
    pub tokens_verified: IntCounterVec,
    /// At `/auth/verify`, by outcome: `allowed`, `anonymous`, `missing`, `invalid`, `expired`, `ended`, `forbidden`,
    /// `unavailable`.
    pub verifications: IntCounterVec,
    pub revocation_age: Gauge,
    pub revocation_entries: IntGauge,
    pub connections: IntGauge,
    pub connections_refused: IntCounter,
    pub forwarded_for_ignored: IntCounter,
}

impl Default for Metrics {
    fn default() -> Self {
        let registry = Registry::new();
        let histogram = |name, help, labels: &[&str], buckets: &[f64]| {
            let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            registered(&registry, HistogramVec::new(opts, labels))
        };
        let counters =
            |name, help, labels: &[&str]| registered(&registry, IntCounterVec::new(Opts::new(name, help), labels));
        let counter = |name, help| registered(&registry, IntCounter::new(name, help));
        let gauge = |name, help| registered(&registry, IntGauge::new(name, help));
        let measure = |name, help| registered(&registry, Gauge::new(name, help));
        let times = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];
        let sizes = [64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0];
        let (by_route, by_method, by_status) = (["handler"], ["handler", "method"], ["handler", "method", "status"]);
        let hash_seconds = HistogramOpts::new("auth_password_hash_seconds", "Time of one password hash on its thread.")
            .buckets(vec![0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28]);
        let metrics = Self {
            http_requests: counters("http_requests_total", "Requests by route, method and status class.", &by_status),
            http_seconds: histogram("http_request_duration_seconds", "Time to the response head.", &by_method, &times),
            http_request_bytes: histogram("http_request_size_bytes", "Content length of requests.", &by_route, &sizes),
            http_response_bytes: histogram(
                "http_response_size_bytes", "Content length of responses.", &by_route, &sizes,
            ),
            hash_seconds: registered(&registry, Histogram::with_opts(hash_seconds)),
            hash_queue_depth: gauge("auth_password_queue_depth", "Password hashes waiting or being computed."),
            hash_shed: counter("auth_password_shed_total", "Requests refused because hashing would start too late."),
            login_capacity: measure(
                "auth_login_capacity_per_second",
                "Logins per second that hashing allows, as measured.",
            ),
            logins: counters("auth_logins_total", "Logins by outcome.", &["outcome"]),
            refreshes: counters("auth_refresh_total", "Refreshes by outcome.", &["outcome"]),
            replays_detected: counter(
                "auth_replay_detected_total",
                "Sessions ended because a used refresh token came back.",
            ),
            mails: counters("auth_mail_total", "Attempts to send a mail by outcome.", &["outcome", "template"]),
            mail_oldest_unsent: measure(
                "auth_mail_oldest_unsent_seconds",
                "Age of the oldest mail that waits to be sent.",
            ),
            tokens_verified: counters(
                "auth_tokens_verified_total",
                "Tokens presented, by the key that verified them.",
                &["type", "kid", "outcome"],
            ),
            verifications: counters("auth_verifications_total", "Requests that gateways asked about.", &["outcome"]),
            revocation_age: measure(
                "auth_revocation_age_seconds",
                "For how long sessions that ended elsewhere may not be known here.",
            ),
            revocation_entries: gauge(
                "auth_revocation_entries",
                "Ended sessions whose access tokens are refused from memory.",
            ),
            connections: gauge("auth_http_connections", "Client connections that are open."),
            forwarded_for_ignored: counter(
                "auth_forwarded_for_ignored_total",
                "Requests with X-Forwarded-For from a sender that is no trusted proxy.",
            ),
            connections_refused: counter(
                "auth_http_connections_refused_total",
                "Client connections closed because there was no place, or none for their peer.",
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
}

impl Metrics {
    /// Counts one request. Route and method must come from small sets: their instruments are kept for ever.
    pub fn observe_request(
        &self,
        route: &str,
        method: &str,
        status: u16,
        elapsed: Duration,
        [request_bytes, response_bytes]: [usize; 2],
    ) {
        let size = |bytes| f64::from(u32::try_from(bytes).unwrap_or(u32::MAX));
        let class = ["1xx", "2xx", "3xx", "4xx", "5xx"][usize::from(status / 100).clamp(1, 5) - 1];
        self.http_requests.with_label_values(&[route, method, class]).inc();
        self.http_seconds.with_label_values(&[route, method]).observe(elapsed.as_secs_f64());
        self.http_request_bytes.with_label_values(&[route]).observe(size(request_bytes));
        self.http_response_bytes.with_label_values(&[route]).observe(size(response_bytes));
    }

    /// The current values in Prometheus' text format, and its content type.
    pub fn render(&self) -> (String, &'static str) {
        let mut text = Vec::new();
        // Encoding fails for an instrument without samples only; that one is left out.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        (String::from_utf8_lossy(&text).into_owned(), prometheus::TEXT_FORMAT)
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
