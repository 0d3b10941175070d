//! Which migrations are pending, and running them.

use serde::Serialize;
use sqlx::migrate::Migrate;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};

use super::schema::{SchemaError, in_our_schema};
use super::{MIGRATOR, adoption};

#[derive(Clone, Debug, Serialize)]
pub struct Pending {
    pub version: i64,
    pub description: String,
}

/// Opens the one connection that migrating needs.
pub async fn connect(options: &PgConnectOptions) -> sqlx::Result<PgConnection> {
    PgConnection::connect_with(&options.clone().application_name("auth")).await
}

/// Applies what is pending. Where nothing is, nothing is written or locked, so that neither rights to create tables nor
/// a writable server is needed.
pub async fn migrate(connection: &mut PgConnection) -> Result<Vec<Pending>, SchemaError> {
    if not_applied(connection).await?.is_empty() {
        return Ok(Vec::new());
    }
    // Replicas that start together do it one after the other.
    connection.lock().await?;
    let outcome = migrate_alone(connection).await;
    // A failure leaves locks and a setting behind, and the connection may be used further.
    let reset = async {
        sqlx::query!("RESET lock_timeout").execute(&mut *connection).await?;
        sqlx::query_scalar!("SELECT pg_advisory_unlock_all()").fetch_one(connection).await
    };
    let reset = reset.await;
    let migrated = outcome?;
    reset?;
    Ok(migrated)
}

async fn migrate_alone(connection: &mut PgConnection) -> Result<Vec<Pending>, SchemaError> {
    let pending = pending(connection).await?;
    if pending.len() == MIGRATOR.iter().count() {
        adoption::apply_all(connection).await?;
    } else if !pending.is_empty() {
        MIGRATOR.run_direct(None, connection, false).await?;
    }
    Ok(pending)
}

pub async fn require_migrated(connection: &mut PgConnection) -> Result<(), SchemaError> {
    match pending(connection).await?.len() {
        0 => Ok(()),
        count => Err(SchemaError::Pending(count)),
    }
}

/// What [`migrate`] would do; changes nothing.
pub async fn pending(connection: &mut PgConnection) -> Result<Vec<Pending>, SchemaError> {
    let pending = not_applied(connection).await?;
    if pending.len() == MIGRATOR.iter().count() {
        adoption::check(connection).await?;
    }
    Ok(pending)
}

/// Versions that have been applied and are not known here: those of a newer version of the service.
pub async fn unknown(connection: &mut PgConnection) -> Result<Vec<i64>, SchemaError> {
    let mut versions = applied(connection).await?;
    versions.retain(|version| !MIGRATOR.version_exists(*version));
    Ok(versions)
}

async fn applied(connection: &mut PgConnection) -> Result<Vec<i64>, SchemaError> {
    if !in_our_schema(connection, &MIGRATOR.table_name).await? {
        return Ok(Vec::new());
    }
    let versions = sqlx::query_scalar!("SELECT version FROM _sqlx_migrations_auth WHERE success");
    Ok(versions.fetch_all(connection).await?)
}

async fn not_applied(connection: &mut PgConnection) -> Result<Vec<Pending>, SchemaError> {
    let applied = applied(connection).await?;
    let pending = MIGRATOR.iter().filter(|migration| !applied.contains(&migration.version));
    Ok(pending
        .map(|migration| Pending { version: migration.version, description: migration.description.to_string() })
        .collect())
}
