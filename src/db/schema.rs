//! The schema that the tables are in, and why it is refused.
//!
//! It is one schema only: the first that exists in the search path, where new tables are made. What lies in another one is
//! another service's, or the search path is not what it was.

use sqlx::PgConnection;
use sqlx::migrate::MigrateError;

use super::database_message;

/// Why the database was left alone.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// A table of ours by name, but not by shape.
    #[error("refusing to touch this database: {0}")]
    Foreign(String),
    /// Other transactions held the tables for as long as the takeover waits for them.
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
    #[error("{}", migration_message(.0))]
    Migrate(#[from] MigrateError),
    #[error("the database failed: {}", database_message(.0))]
    Database(#[from] sqlx::Error),
}

fn migration_message(error: &MigrateError) -> String {
    match error {
        MigrateError::Execute(cause) => format!("while executing migrations: {}", database_message(cause)),
        MigrateError::ExecuteMigration(cause, version) => {
            format!("while executing migration {version}: {}", database_message(cause))
        }
        error => error.to_string(),
    }
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
