//! The pools, and what keeps connections out of them that are lost or have turned read-only.
//!
//! sqlx opens TCP connections without keep-alive and offers no way to set it, so a connection that a firewall dropped, or
//! whose server is gone without a word, is found by a check with a short limit. A server can turn read-only under its
//! connections, too: a primary that was demoted. What one check finds holds for all older connections of the pool; they
//! are closed without a check of their own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions, PgConnection};

use super::server::{accepts_writes, raise_synchronous_commit};
use super::within;

/// A statement that takes longer than this is given up, before its request is.
const STATEMENT_TIMEOUT: &str = "15s";
/// The longest wait for a row that somebody else has locked.
const LOCK_TIMEOUT: &str = "2s";
/// The wait for a free connection. Longer than a statement takes, shorter than a client waits.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);
/// A connection unused for this long is checked before its next use; one in use needs no extra round trip.
const IDLE_BEFORE_CHECK: Duration = Duration::from_secs(5);
/// While a pool is in use, a connection that comes back is checked this often.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);

/// The pool for everything but refreshes. Connects when first used.
pub fn pool(options: &PgConnectOptions, max_connections: u32) -> PgPool {
    lazy_pool(options.clone().options([("statement_timeout", STATEMENT_TIMEOUT)]), max_connections)
}

/// The few connections of the refresh queue. Its one statement always looks up a handful of rows by unique keys; with
/// these settings the plan is made once, and is that of a large table even while the tables are empty.
pub fn refresh_pool(options: &PgConnectOptions, connections: u32) -> PgPool {
    let options = options.clone().options([
        ("statement_timeout", STATEMENT_TIMEOUT),
        ("plan_cache_mode", "force_generic_plan"),
        ("enable_seqscan", "off"),
        ("enable_bitmapscan", "off"),
        ("enable_hashjoin", "off"),
        ("enable_mergejoin", "off"),
    ]);
    lazy_pool(options, connections)
}

/// The pool of a command.
pub fn command_pool(options: &PgConnectOptions) -> PgPool {
    lazy_pool(options.clone().options([("statement_timeout", "0")]), 2)
}

fn lazy_pool(options: PgConnectOptions, max_connections: u32) -> PgPool {
    let options = options
        .options([("lock_timeout", LOCK_TIMEOUT)])
        .application_name("auth")
        .log_statements(tracing::log::LevelFilter::Trace);
    let before = Checks::default();
    let after = before.clone();
    PgPoolOptions::new()
        .max_connections(max_connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .test_before_acquire(false)
        .after_connect(|connection, _| Box::pin(raise_synchronous_commit(connection)))
        .before_acquire(move |connection, meta| {
            let checks = before.clone();
            Box::pin(async move { checks.run(connection, meta.age, meta.idle_for > IDLE_BEFORE_CHECK).await })
        })
        .after_release(move |connection, meta| {
            let checks = after.clone();
            Box::pin(async move { checks.run(connection, meta.age, checks.is_due()).await })
        })
        .connect_lazy_with(options)
}

/// What the checks of a pool have found.
#[derive(Clone, Debug, Default)]
struct Checks(Arc<Mutex<Found>>);

#[derive(Debug, Default)]
struct Found {
    last: Option<Instant>,
    /// When a connection last failed.
    failed: Option<Instant>,
}

impl Checks {
    fn is_due(&self) -> bool {
        self.0.lock().last.is_none_or(|last| last.elapsed() >= CHECK_INTERVAL)
    }

    async fn run(&self, connection: &mut PgConnection, age: Duration, due: bool) -> sqlx::Result<bool> {
        if self.0.lock().failed.is_some_and(|failed| age > failed.elapsed()) {
            return Ok(false);
        }
        if !due {
            return Ok(true);
        }
        self.0.lock().last = Some(Instant::now());
        let outcome = within(CHECK_TIMEOUT, accepts_writes(connection)).await;
        if outcome.is_err() {
            self.0.lock().failed = Some(Instant::now());
        }
        outcome.map(|()| true)
    }
}
