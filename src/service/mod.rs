//! The use cases, one file each. They own decisions and transactions, and are the same for HTTP and for the command line.

pub mod audit;
pub mod bearer;
pub mod cleanup;
pub mod clock;
pub mod credentials;
pub mod doctor;
pub mod forgot_password;
pub mod login;
pub mod logout;
pub mod mail;
pub mod migrate;
pub mod password;
pub mod refresh;
pub mod register;
pub mod reset_password;
pub mod revocations;
pub mod sessions;
mod tokens;
pub mod users;
pub mod verify;
pub mod verify_email;

use std::time::Duration;

use crate::app::App;
use crate::db;
use crate::error::Error;

/// The longest time that the process waits for its database before it ends.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(3);

/// Settles what clients were not told of, before the process ends.
pub async fn settle(app: &App) {
    let settled = async {
        let (refreshes, logins) = tokio::join!(app.unanswered_refreshes.settle(), app.unanswered_logins.settle());
        refreshes.and(logins)
    };
    if !matches!(tokio::time::timeout(SETTLE_TIMEOUT, settled).await, Ok(Ok(()))) {
        tracing::warn!("clients were not told of refreshes or logins, and these could not be settled");
    }
}

/// Whether the service accepts requests: it has not been asked to stop.
pub fn accepting(app: &App) -> Result<(), Error> {
    if app.stopping.is_cancelled() { Err(Error::Stopping) } else { Ok(()) }
}

/// Whether the service can do its work: it accepts requests, no thread for hashing is gone, it is known which sessions have ended, and
/// the database answers and accepts writes.
pub async fn ready(app: &App) -> Result<(), Error> {
    accepting(app)?;
    if !app.hasher.is_complete() {
        return Err(sqlx::Error::WorkerCrashed.into());
    }
    verify::up_to_date(app)?;
    Ok(db::accepts_writes(&app.db).await?)
}

/// What is counted, in Prometheus' text format, and its content type.
pub fn metrics(app: &App) -> (String, &'static str) {
    app.metrics.revocation_age.set(app.revocations.age().as_secs_f64());
    app.metrics.revocation_entries.set(i64::try_from(app.revocations.len()).unwrap_or(i64::MAX));
    app.metrics.render()
}
