//! The pools, and what keeps connections out of them that are lost or have turned read-only.
//!
//! sqlx opens TCP connections without keep-alive and offers no way to set it, so a connection that a firewall dropped, or
//! whose server is gone without a word, is found by a check with a short limit. A server can turn read-only under its
//! connections, too: a primary that was demoted. A connection is checked before its use, and before it goes back to the
//! pool, because sqlx then waits for its answer without a limit. A check that was passed holds for the whole pool for a
//! moment. One that was failed holds for all older connections; they are closed without a check of their own.

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
/// How long a check that was passed holds, so that a busy pool makes four a second.
const CHECK_VALIDITY: Duration = Duration::from_millis(250);
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
        .before_acquire(move |connection, meta| Box::pin(before.clone().check(connection, meta.age)))
        .after_release(move |connection, meta| Box::pin(after.clone().check(connection, meta.age)))
        .connect_lazy_with(options)
}

/// What the checks of a pool have found.
#[derive(Clone, Debug, Default)]
struct Checks(Arc<Mutex<Found>>);

/// When the last check began that was passed, and the last one that was failed.
#[derive(Debug, Default)]
struct Found {
    passed: Option<Instant>,
    failed: Option<Instant>,
}

impl Checks {
    /// Whether the connection may be used.
    async fn check(self, connection: &mut PgConnection, age: Duration) -> sqlx::Result<bool> {
        {
            let found = self.0.lock();
            if found.failed.is_some_and(|failed| age > failed.elapsed()) {
                return Ok(false);
            }
            if found.passed.is_some_and(|passed| passed.elapsed() < CHECK_VALIDITY) {
                return Ok(true);
            }
        }
        let began = Instant::now();
        let outcome = within(CHECK_TIMEOUT, accepts_writes(connection)).await;
        let mut found = self.0.lock();
        let last = if outcome.is_ok() { &mut found.passed } else { &mut found.failed };
        *last = (*last).max(Some(began));
        outcome.map(|()| true)
    }
}
