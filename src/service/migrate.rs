//! Bringing the schema up to date, by `auth migrate` and at the start of `auth serve`.

use std::time::{Duration, Instant};

use sqlx::PgConnection;
use sqlx::postgres::PgConnectOptions;

pub use crate::db::migrations::Pending;
pub use crate::db::schema::SchemaError;
use crate::db::{self, migrations};

/// How long a starting service waits for its database.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(30);

pub async fn migrate(options: &PgConnectOptions) -> Result<Vec<Pending>, SchemaError> {
    migrations::migrate(&mut migrations::connect(options).await?).await
}

/// What [`migrate`] would apply; changes nothing.
pub async fn pending(options: &PgConnectOptions) -> Result<Vec<Pending>, SchemaError> {
    migrations::pending(&mut migrations::connect(options).await?).await
}

/// As [`migrate`], once the database has started. With `only_check` it fails where something is pending.
pub async fn at_start(options: &PgConnectOptions, only_check: bool) -> Result<(), SchemaError> {
    let mut connection = connect_at_start(options).await?;
    let level = db::server::describe(&mut connection).await?.synchronous_commit;
    if db::server::is_low_synchronous_commit(&level) {
        tracing::warn!(
            "synchronous_commit is {level}, so a crash could undo log-outs; it is `on` for this service's connections"
        );
    }
    if only_check {
        return migrations::require_migrated(&mut connection).await;
    }
    for migration in migrations::migrate(&mut connection).await? {
        tracing::info!(version = migration.version, description = migration.description, "migrated");
    }
    Ok(())
}

/// A database that is just starting is waited for; one that refuses is not.
async fn connect_at_start(options: &PgConnectOptions) -> sqlx::Result<PgConnection> {
    let deadline = Instant::now() + DATABASE_TIMEOUT;
    let mut pause = Duration::from_millis(100);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let error = match db::within(left, migrations::connect(options)).await {
            Ok(connection) => return Ok(connection),
            Err(error) => error,
        };
        let is_unreachable = matches!(error, sqlx::Error::Io(_));
        let is_starting = db::sqlstate(&error).is_some_and(|code| code == "57P03");
        if !(is_unreachable || is_starting) || Instant::now() + pause > deadline {
            return Err(error);
        }
        tracing::warn!(error = %db::database_message(&error), "waiting for the database");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(3));
    }
}
