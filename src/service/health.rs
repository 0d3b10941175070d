//! What machines ask of the service: whether it is up, whether it can do its work, and what it has counted.

use super::verify::up_to_date;
use crate::app::App;
use crate::db;
use crate::error::Error;

/// Whether the service accepts requests: it has not been asked to stop.
pub fn accepting(app: &App) -> Result<(), Error> {
    if app.stopping.is_cancelled() { Err(Error::Stopping) } else { Ok(()) }
}

/// Whether the service can do its work: it accepts requests, no thread for hashing is gone, it is known which sessions have
/// ended, and the database answers and accepts writes.
pub async fn ready(app: &App) -> Result<(), Error> {
    accepting(app)?;
    if !app.hasher.is_complete() {
        return Err(sqlx::Error::WorkerCrashed.into());
    }
    up_to_date(app)?;
    Ok(db::server::accepts_writes(&app.db).await?)
}

/// What is counted, in Prometheus' text format, and its content type.
pub fn metrics(app: &App) -> (String, &'static str) {
    app.metrics.revocation_age.set(app.revocations.age().as_secs_f64());
    app.metrics.revocation_entries.set(i64::try_from(app.revocations.count()).unwrap_or(i64::MAX));
    app.metrics.render()
}
