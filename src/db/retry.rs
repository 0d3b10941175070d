//! Writes that are done again where the connection is lost, and find what they did.
//!
//! A connection that breaks behind a commit leaves open whether the commit was reached. A client that is told 503 then
//! would try again, and be refused for what it has done itself: its address is taken, its password is wrong. So each
//! write has a key that tells its own work from that of others (the new password hash, whose salt is random; the id of
//! the new session; the time at which sessions ended), and [`execute`] does it again on another connection. There it
//! either finds its work done, and answers as it would have the first time, or does it now. Where the first attempt is still
//! under way in a server process without a client, both meet at the same rows, which one of them locks first.

use std::time::{Duration, Instant};

use sqlx::pool::PoolConnection;
use sqlx::{PgPool, Postgres};

use super::{database_message, sqlstate};

/// How long the outcome is looked for. A request is answered 503 before, if its own time is up.
const TIMEOUT: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_millis(50);
/// How often a write is done again that the server broke off in favour of another.
const MAX_BROKEN_OFF: u32 = 5;
/// How long a first connection is waited for; nothing has been sent yet.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Runs `work` on a connection of the pool. Where the connection is lost it runs on another one, for a minute at most, and
/// a few times where the server broke it off. The second argument says whether an earlier attempt may have done it
/// already; `work` must then answer as that one would have.
pub async fn execute<T, F>(pool: &PgPool, mut work: impl FnMut(PoolConnection<Postgres>, bool) -> F) -> sqlx::Result<T>
where
    F: Future<Output = sqlx::Result<T>>,
{
    let started = Instant::now();
    let mut again = false;
    let mut broken_off = 0;
    loop {
        let outcome = match acquire(pool).await {
            Ok(connection) => work(connection, again).await,
            Err(error) if !again => return Err(error),
            Err(error) => Err(error),
        };
        match outcome {
            Err(error) if is_lost(&error) || matches!(error, sqlx::Error::PoolTimedOut) => {
                if started.elapsed() > TIMEOUT {
                    return Err(error);
                }
                tracing::debug!(error = %database_message(&error), "connection lost; trying again");
                again = true;
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) if is_broken_off(&error) && broken_off < MAX_BROKEN_OFF => broken_off += 1,
            outcome => return outcome,
        }
    }
}

/// Whether the server undid the write because of another one at the same time: a deadlock, or a failure to serialise.
fn is_broken_off(error: &sqlx::Error) -> bool {
    sqlstate(error).is_some_and(|code| code == "40P01" || code == "40001")
}

/// Takes a connection of the pool; where the server breaks off while it is being opened, another one.
pub(super) async fn acquire(pool: &PgPool) -> sqlx::Result<PoolConnection<Postgres>> {
    let started = Instant::now();
    loop {
        match pool.acquire().await {
            Err(error) if is_lost(&error) && started.elapsed() < CONNECT_TIMEOUT => tokio::time::sleep(PAUSE).await,
            outcome => return outcome,
        }
    }
}

/// Whether the connection was lost, so that it is unknown whether what was sent on it was done. A server that is going
/// down (class 57P) says so at any moment, perhaps after the commit.
pub(super) fn is_lost(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_))
        || sqlstate(error).is_some_and(|code| code.starts_with("57P") || code.starts_with("08"))
}
