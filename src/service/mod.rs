//! The use cases, one file each. They own decisions and transactions, and are the same for HTTP and for the command line.

pub mod audit;
pub mod bearer;
pub mod cleanup;
pub mod clock;
pub mod login;
pub mod logout;
pub mod migrate;
pub mod password;
pub mod refresh;
pub mod register;
pub mod sessions;
pub mod tokens;
pub mod users;

use crate::app::App;
use crate::db;
use crate::error::Error;

/// Whether the service can do its work: no worker is gone, and the database answers and accepts writes.
pub async fn ready(app: &App) -> Result<(), Error> {
    if !app.has_all_workers() {
        return Err(sqlx::Error::WorkerCrashed.into());
    }
    Ok(db::accepts_writes(&app.db).await?)
}
