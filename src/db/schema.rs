//! Migrations, and taking over the database of the Python service.

use sqlx::migrate::MigrateError;
use sqlx::{Connection, PgConnection};

use super::MIGRATOR;

/// Why the database was left alone.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// A table of ours by name, but not by shape.
    #[error("refusing to touch this database: {0}")]
    Foreign(String),
    #[error("the schema is not up to date: {0} migration(s) pending; run `auth migrate`")]
    Pending(usize),
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

/// Columns the two inherited tables must have, with the types they may have (ids were 32-bit once), and whether an
/// insert has to supply them.
const INHERITED: [(&str, &str, &[&str]); 13] = [
    ("users", "id", &["integer", "bigint"]),
    ("users", "email", &["character varying"]),
    ("users", "password_hash", &["character varying"]),
    ("users", "role", &["character varying"]),
    ("users", "created_at", &["timestamp without time zone"]),
    ("users", "updated_at", &["timestamp without time zone"]),
    ("refresh_tokens", "id", &["integer", "bigint"]),
    ("refresh_tokens", "user_id", &["integer", "bigint"]),
    ("refresh_tokens", "jti", &["character varying"]),
    ("refresh_tokens", "token_hash", &["character varying"]),
    ("refresh_tokens", "expires_at", &["timestamp without time zone"]),
    ("refresh_tokens", "revoked", &["boolean"]),
    ("refresh_tokens", "created_at", &["timestamp without time zone"]),
];

/// Constraints and sequences that later migrations and queries name.
const NAMED: [(&str, &[&str]); 2] = [
    ("users", &["users_pkey", "users_email_key", "users_id_seq"]),
    (
        "refresh_tokens",
        &["refresh_tokens_pkey", "refresh_tokens_jti_key", "refresh_tokens_user_id_fkey", "refresh_tokens_id_seq"],
    ),
];

/// Applies what is pending, after making sure that the tables it would adopt are what they must be.
pub async fn migrate(connection: &mut PgConnection) -> Result<Vec<Pending>, SchemaError> {
    let pending = pending(connection).await?;
    MIGRATOR.run_direct(None, connection, false).await?;
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
    let applied = applied(connection).await?;
    if applied.is_empty() {
        check_inherited(connection).await?;
    }
    let pending = MIGRATOR.iter().filter(|migration| !applied.contains(&migration.version));
    Ok(pending
        .map(|migration| Pending { version: migration.version, description: migration.description.to_string() })
        .collect())
}

async fn applied(connection: &mut PgConnection) -> sqlx::Result<Vec<i64>> {
    let known = sqlx::query_scalar!(r#"SELECT to_regclass($1) IS NOT NULL AS "known!""#, MIGRATOR.table_name.as_ref())
        .fetch_one(&mut *connection)
        .await?;
    if !known {
        return Ok(Vec::new());
    }
    sqlx::query_scalar!("SELECT version FROM _sqlx_migrations_auth WHERE success").fetch_all(connection).await
}

async fn check_inherited(connection: &mut PgConnection) -> Result<(), SchemaError> {
    let columns = sqlx::query!(
        r#"
        SELECT
            table_name AS "table!: String",
            column_name AS "column!: String",
            data_type AS "data_type!: String",
            is_nullable = 'NO' AND column_default IS NULL AND is_identity = 'NO' AS "must_be_given!"
        FROM information_schema.columns
        WHERE table_schema = current_schema() AND table_name IN ('users', 'refresh_tokens', 'sessions')
        "#
    )
    .fetch_all(&mut *connection)
    .await?;
    let foreign = |sentence: String| Err(SchemaError::Foreign(sentence));
    if columns.iter().any(|column| column.table == "sessions") {
        return foreign("it already has a table `sessions` that is not this service's".to_owned());
    }
    for (table, name, types) in INHERITED {
        if !columns.iter().any(|column| column.table == table) {
            continue;
        }
        match columns.iter().find(|column| column.table == table && column.column == name) {
            None => return foreign(format!("its table `{table}` has no column `{name}`")),
            Some(column) if !types.contains(&column.data_type.as_str()) => {
                let (found, expected) = (&column.data_type, types.join(" or "));
                return foreign(format!("`{table}.{name}` is {found} where {expected} is expected"));
            }
            Some(_) => {}
        }
    }
    for column in &columns {
        let known = INHERITED.iter().any(|(table, name, _)| column.table == *table && column.column == *name);
        if column.must_be_given && !known {
            let (table, name) = (&column.table, &column.column);
            return foreign(format!("`{table}.{name}` must be given on insert, and this service does not know it"));
        }
    }
    for (table, names) in NAMED {
        if !columns.iter().any(|column| column.table == table) {
            continue;
        }
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let missing = sqlx::query_scalar!(
            r#"
            SELECT name AS "name!" FROM unnest($1::text[]) AS name
            WHERE NOT EXISTS (SELECT FROM pg_constraint WHERE conname = name AND conrelid = to_regclass($2))
              AND NOT EXISTS (SELECT FROM pg_class WHERE relname = name AND relkind = 'S')
            "#,
            &names,
            table,
        )
        .fetch_optional(&mut *connection)
        .await?;
        if let Some(name) = missing {
            return foreign(format!("its table `{table}` lacks `{name}`"));
        }
    }
    Ok(())
}

/// Opens the one connection that migrating needs.
pub async fn connect(options: &sqlx::postgres::PgConnectOptions) -> sqlx::Result<PgConnection> {
    PgConnection::connect_with(&options.clone().application_name("auth")).await
}
