//! Which migrations are pending, and running them.
//!
//! Both are asked of one schema only: the first that exists in the search path, where new tables are made. What lies in
//! another one is another service's, or the search path is not what it was.

use sqlx::migrate::{Migrate, MigrateError};
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};

use super::{MIGRATOR, adoption};

/// Why the database was left alone.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// A table of ours by name, but not by shape.
    #[error("refusing to touch this database: {0}")]
    Foreign(String),
    /// Other transactions held the tables for all of [`adoption::TIMEOUT`].
    #[error(
        "`users` and `refresh_tokens` are in use without a pause, by a transaction that is left open or a backup; nothing was changed"
    )]
    InUse,
    #[error("the schema is not up to date: {0} migration(s) pending; run `auth migrate`")]
    Pending(usize),
    /// New tables would be made beside the old ones.
    #[error(
        "`{table}` is in the schema `{found}`, but `{first}` comes first in the search path; put `{found}` first, for example by `ALTER ROLE ... SET search_path`"
    )]
    OtherSchema { table: String, found: String, first: String },
    #[error("no schema of the search path exists; set one, for example by `ALTER ROLE ... SET search_path`")]
    NoSchema,
    #[error(transparent)]
    Migrate(#[from] MigrateError),
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// A migration that has not been applied yet.
#[derive(Clone, Debug)]
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

/// Fails unless every migration has been applied.
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

async fn not_applied(connection: &mut PgConnection) -> Result<Vec<Pending>, SchemaError> {
    let mut applied = Vec::new();
    if in_our_schema(connection, &MIGRATOR.table_name).await? {
        let versions = sqlx::query_scalar!("SELECT version FROM _sqlx_migrations_auth WHERE success");
        applied = versions.fetch_all(connection).await?;
    }
    let pending = MIGRATOR.iter().filter(|migration| !applied.contains(&migration.version));
    Ok(pending
        .map(|migration| Pending { version: migration.version, description: migration.description.to_string() })
        .collect())
}

/// Whether the schema for new tables has the table. Fails where only a later schema of the search path has it.
pub(super) async fn in_our_schema(connection: &mut PgConnection, table: &str) -> Result<bool, SchemaError> {
    let place = sqlx::query!(
        r#"
        SELECT
            current_schema()::text AS first,
            (
                SELECT nspname::text FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
                WHERE relname = $1 AND nspname = ANY (current_schemas(false))
                ORDER BY array_position(current_schemas(false), nspname) LIMIT 1
            ) AS found
        "#,
        table,
    )
    .fetch_one(connection)
    .await?;
    let first = place.first.ok_or(SchemaError::NoSchema)?;
    match place.found {
        None => Ok(false),
        Some(found) if found == first => Ok(true),
        Some(found) => Err(SchemaError::OtherSchema { table: table.to_owned(), found, first }),
    }
}
