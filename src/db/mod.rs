//! All SQL, one file per table, as free functions over a connection; every query is checked at compile time.
//!
//! Times are passed in, never taken from the server, and stored as `timestamp` in UTC. No function here decides
//! anything that a statement could decide.

mod adoption;
pub mod batch;
pub mod certain;
pub mod cleanup;
pub mod mail_outbox;
pub mod mail_tokens;
pub mod migrations;
mod pools;
pub mod refresh_tokens;
pub mod revocations;
pub mod schema;
pub mod server;
pub mod sessions;
pub mod sign_out;
pub mod throttle;
mod timestamp;
pub mod unanswered;
pub mod users;

use std::borrow::Cow;
use std::io;
use std::time::Duration;

use chrono::{DateTime, Utc};
pub use pools::{command_pool, pool, refresh_pool};

use sqlx::error::DatabaseError;
use sqlx::{PgConnection, PgExecutor};

/// Embedded migrations; their table is named in `sqlx.toml`.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!();

/// What the database says. To that, sqlx adds the line of the server's source code.
pub fn database_message(error: &sqlx::Error) -> Cow<'_, str> {
    error.as_database_error().map_or_else(|| error.to_string().into(), |error| error.message().into())
}

/// The code of an error that the server has reported.
pub fn sqlstate(error: &sqlx::Error) -> Option<Cow<'_, str>> {
    error.as_database_error().and_then(DatabaseError::code)
}

/// One column of the items, as an array for a statement.
fn column<'a, T, V>(items: &'a [T], value: impl Fn(&'a T) -> V) -> Vec<V> {
    items.iter().map(value).collect()
}

/// Gives up after `limit`, as if the connection had been lost.
pub async fn within<T>(limit: Duration, work: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    let outcome = tokio::time::timeout(limit, work).await;
    outcome.unwrap_or_else(|_elapsed| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
}

/// The server's time. Used to set our clock by, and for nothing else.
pub async fn now(connection: &mut PgConnection) -> sqlx::Result<DateTime<Utc>> {
    sqlx::query_scalar!(r#"SELECT clock_timestamp() AS "now!""#).fetch_one(connection).await
}

/// Fails unless the database answers and accepts writes.
pub async fn accepts_writes(db: impl PgExecutor<'_>) -> sqlx::Result<()> {
    // Also on in a standby.
    let read_only = sqlx::query_scalar!(r#"SELECT current_setting('transaction_read_only')::bool AS "read_only!""#);
    if read_only.fetch_one(db).await? {
        return Err(sqlx::Error::Protocol("the database is read-only".to_owned()));
    }
    Ok(())
}

/// Raises `synchronous_commit` to `on` for this connection, where the server, the database or the role has less: a crash
/// would undo log-outs that were answered. More than `on` stays. Pinned, so that no reload of the server lowers it.
pub(crate) async fn raise_synchronous_commit(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query_scalar!(
        r#"
        SELECT set_config('synchronous_commit', CASE
            WHEN current_setting('synchronous_commit') IN ('off', 'local', 'remote_write') THEN 'on'
            ELSE current_setting('synchronous_commit')
        END, false)
        "#
    )
    .fetch_one(connection)
    .await
    .map(|_| ())
}

/// Whether with this level a crash of the server would undo what was answered.
pub fn is_low_synchronous_commit(level: &str) -> bool {
    ["off", "local", "remote_write"].contains(&level)
}
