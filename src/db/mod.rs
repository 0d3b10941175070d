//! All SQL, one file per table, as free functions over a connection; every query is checked at compile time.
//!
//! Times are passed in, never taken from the server, and stored as `timestamp` in UTC. No function here decides
//! anything that a statement could decide.

mod adoption;
pub mod batch;
pub mod cleanup;
pub mod mail_outbox;
pub mod mail_tokens;
pub mod migrations;
mod pools;
pub mod refresh_tokens;
pub mod retry;
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

pub use pools::{command_pool, pool, refresh_pool};
use sqlx::error::DatabaseError;

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
