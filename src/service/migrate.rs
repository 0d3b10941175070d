//! Bringing the schema up to date, by `auth migrate` and at the start of `auth serve`.

use std::time::Duration;

use sqlx::postgres::PgConnectOptions;

pub use crate::db::migrations::Pending;
pub use crate::db::schema::SchemaError;
use crate::db::{self, migrations};

/// How long a starting service waits for its database.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(30);

/// Applies what is pending.
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
    if let Some(level) = db::low_synchronous_commit(&mut connection).await? {
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
async fn connect_at_start(options: &PgConnectOptions) -> Result<sqlx::PgConnection, SchemaError> {
    let deadline = tokio::time::Instant::now() + DATABASE_TIMEOUT;
    let mut pause = Duration::from_millis(100);
    loop {
        let error = match tokio::time::timeout_at(deadline, migrations::connect(options)).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) => error,
            Err(_elapsed) => return Err(sqlx::Error::from(std::io::Error::from(std::io::ErrorKind::TimedOut)).into()),
        };
        // 57P03: starting up.
        let starting =
            error.as_database_error().and_then(sqlx::error::DatabaseError::code).is_some_and(|c| c == "57P03");
        let unreachable = matches!(error, sqlx::Error::Io(_));
        if !(starting || unreachable) || tokio::time::Instant::now() + pause > deadline {
            return Err(error.into());
        }
        tracing::warn!(error = %db::database_message(&error), "waiting for the database");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(3));
    }
}
