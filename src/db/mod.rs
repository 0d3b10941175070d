//! All SQL, one file per table, as free functions over a connection; every query is checked at compile time.
//!
//! Times are passed in, never taken from the server, and stored as `timestamp` in UTC. No function here decides
//! anything that a statement could decide.

mod adoption;
pub mod batch;
pub mod certain;
pub mod cleanup;
pub mod migrations;
pub mod refresh_tokens;
pub mod sessions;
pub mod throttle;
mod timestamp;
pub mod unanswered;
pub mod users;

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgConnection};

/// Embedded migrations; their table is named in `sqlx.toml`.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!();

/// A statement that takes longer than this is given up, before its request is.
const STATEMENT_TIMEOUT: &str = "15s";
/// The longest wait for a row that somebody else has locked.
const LOCK_TIMEOUT: &str = "2s";
/// The wait for a free connection. Longer than a statement takes, shorter than a client waits.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);
/// A connection unused for this long is tried before it is handed out; one in use needs no extra round trip.
const IDLE_BEFORE_PING: Duration = Duration::from_secs(5);

/// The pool for everything but refreshes. Connects when first used.
#[must_use]
pub fn pool(options: &PgConnectOptions, max_connections: u32) -> PgPool {
    lazy_pool(options.clone().options([("statement_timeout", STATEMENT_TIMEOUT)]), max_connections)
}

/// The few connections of the refresh queue. Its one statement always looks up a handful of rows by unique keys; with
/// these settings the plan is made once, and is that of a large table even while the tables are empty.
#[must_use]
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

/// The pool of a command, which nobody waits for.
#[must_use]
pub fn command_pool(options: &PgConnectOptions) -> PgPool {
    lazy_pool(options.clone().options([("statement_timeout", "0")]), 2)
}

fn lazy_pool(options: PgConnectOptions, max_connections: u32) -> PgPool {
    let options = options
        .options([("lock_timeout", LOCK_TIMEOUT)])
        .application_name("auth")
        .log_statements(tracing::log::LevelFilter::Trace);
    PgPoolOptions::new()
        .max_connections(max_connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .test_before_acquire(false)
        .before_acquire(|connection, meta| {
            Box::pin(async move {
                if meta.idle_for > IDLE_BEFORE_PING {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
        .connect_lazy_with(options)
}

/// The server's time. Used to set our clock by, and for nothing else.
pub async fn now(connection: &mut PgConnection) -> sqlx::Result<DateTime<Utc>> {
    sqlx::query_scalar!(r#"SELECT clock_timestamp() AS "now!""#).fetch_one(connection).await
}

/// Fails unless the database answers and accepts writes.
pub async fn accepts_writes(pool: &PgPool) -> sqlx::Result<()> {
    // Also on in a standby.
    let read_only = sqlx::query_scalar!(r#"SELECT current_setting('transaction_read_only')::bool AS "read_only!""#);
    if read_only.fetch_one(pool).await? {
        return Err(sqlx::Error::Protocol("the database is read-only".to_owned()));
    }
    Ok(())
}
