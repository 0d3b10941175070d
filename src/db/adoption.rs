//! Taking over the tables of the Python service: whether they are what they must be, and all migrations in one
//! transaction while that service is at work on them. This file is deleted when no Python service runs any more.

use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection};

use super::schema::{SchemaError, in_our_schema};
use super::{MIGRATOR, sqlstate};

/// Columns the two inherited tables must have, with the types they may have (ids were 32-bit once), and for texts how
/// long they must be able to be.
const INHERITED: [(&str, &str, &[&str], i32); 13] = [
    ("users", "id", &["integer", "bigint"], 0),
    ("users", "email", &["character varying"], 255),
    ("users", "password_hash", &["character varying"], 255),
    ("users", "role", &["character varying"], 32),
    ("users", "created_at", &["timestamp without time zone"], 0),
    ("users", "updated_at", &["timestamp without time zone"], 0),
    ("refresh_tokens", "id", &["integer", "bigint"], 0),
    ("refresh_tokens", "user_id", &["integer", "bigint"], 0),
    ("refresh_tokens", "jti", &["character varying"], 64),
    ("refresh_tokens", "token_hash", &["character varying"], 64),
    ("refresh_tokens", "expires_at", &["timestamp without time zone"], 0),
    ("refresh_tokens", "revoked", &["boolean"], 0),
    ("refresh_tokens", "created_at", &["timestamp without time zone"], 0),
];

/// Constraints and sequences that later migrations and queries name.
const NAMED: [(&str, &[&str]); 2] = [
    ("users", &["users_pkey", "users_email_key", "users_id_seq"]),
    (
        "refresh_tokens",
        &["refresh_tokens_pkey", "refresh_tokens_jti_key", "refresh_tokens_user_id_fkey", "refresh_tokens_id_seq"],
    ),
];

/// Tables and indexes that the migrations make, and so must not exist yet.
const MADE: [&str; 25] = [
    "sessions", "sessions_pkey", "sessions_user_id_idx", "sessions_ended_at_idx", "sessions_live_idx",
    "sessions_user_id_id_idx", "sessions_ended_xid_idx", "refresh_tokens_user_id_session_id_idx",
    "refresh_tokens_user_id_session_id_id_idx", "users_admin_idx", "users_lower_email_idx", "users_bcrypt_cost_idx",
    "users_hash_parameters_idx", "auth_throttle", "auth_throttle_pkey", "mail_outbox", "mail_outbox_pkey",
    "mail_outbox_due_at_idx", "mail_outbox_finished_at_idx", "mail_outbox_user_id_idx", "mail_tokens",
    "mail_tokens_pkey", "mail_tokens_token_hash_idx", "mail_tokens_previous_hash_idx", "mail_tokens_expires_at_idx",
];

/// Columns that the migrations add.
const ADDED: [(&str, &str); 5] = [
    ("users", "email_verified_at"),
    ("refresh_tokens", "session_id"),
    ("refresh_tokens", "used_at"),
    ("refresh_tokens", "successor_jti"),
    ("refresh_tokens", "refresh_tat"),
];

/// Where the Python service notes its own migrations.
const ALEMBIC_VERSION: &str = "alembic_version_auth";

/// How long [`apply_all`] tries to lock the tables before it gives up.
pub(super) const TIMEOUT: Duration = Duration::from_mins(1);

/// Fails where the tables are not the Python service's, or where one of ours is there already. Changes nothing.
pub(super) async fn check(connection: &mut PgConnection) -> Result<(), SchemaError> {
    // No other service has a table of this name, so the tables that go with it are wanted.
    in_our_schema(connection, ALEMBIC_VERSION).await?;
    let taken = sqlx::query_scalar!(
        r#"
        SELECT relname AS "name!: String" FROM pg_class
        WHERE relnamespace = quote_ident(current_schema())::regnamespace AND relname = ANY ($1) ORDER BY relname LIMIT 1
        "#,
        &MADE[..] as _,
    )
    .fetch_optional(&mut *connection)
    .await?;
    if let Some(name) = taken {
        return refuse(format!("it already has a `{name}` that is not this service's"));
    }
    for (table, names) in NAMED {
        check_table(connection, table, names).await?;
    }
    Ok(())
}

fn refuse(sentence: String) -> Result<(), SchemaError> {
    Err(SchemaError::Foreign(sentence))
}

/// Checks one of the two inherited tables, if it exists.
async fn check_table(connection: &mut PgConnection, table: &str, named: &[&str]) -> Result<(), SchemaError> {
    let owner = sqlx::query!(
        r#"
        SELECT pg_get_userbyid(relowner) AS "name!", pg_has_role(relowner, 'USAGE') AS "is_us!"
        FROM pg_class WHERE relnamespace = quote_ident(current_schema())::regnamespace AND relname = $1
        "#,
        table,
    )
    .fetch_optional(&mut *connection)
    .await?;
    let Some(owner) = owner else { return Ok(()) };
    if !owner.is_us {
        let owner = owner.name;
        return refuse(format!("its table `{table}` belongs to the role `{owner}`, and only that role may alter it"));
    }
    let columns = sqlx::query!(
        r#"
        SELECT
            column_name AS "name!: String",
            data_type AS "data_type!: String",
            character_maximum_length::integer AS max_length,
            is_nullable = 'NO' AND column_default IS NULL AND is_identity = 'NO' AS "must_be_given!"
        FROM information_schema.columns
        WHERE table_schema = current_schema() AND table_name = $1
        "#,
        table,
    )
    .fetch_all(&mut *connection)
    .await?;
    let inherited = || INHERITED.iter().filter(|(of, ..)| *of == table);
    for (_, name, types, length) in inherited() {
        let Some(column) = columns.iter().find(|column| column.name == *name) else {
            return refuse(format!("its table `{table}` has no column `{name}`"));
        };
        if !types.contains(&column.data_type.as_str()) {
            let (found, expected) = (&column.data_type, types.join(" or "));
            return refuse(format!("`{table}.{name}` is {found} where {expected} is expected"));
        }
        if column.max_length.is_some_and(|found| found < *length) {
            return refuse(format!("`{table}.{name}` holds fewer than {length} characters"));
        }
    }
    for column in &columns {
        let known = inherited().any(|(_, name, ..)| column.name == *name);
        if column.must_be_given && !known {
            let name = &column.name;
            return refuse(format!("`{table}.{name}` must be given on insert, and this service does not know it"));
        }
        if ADDED.contains(&(table, column.name.as_str())) {
            return refuse(format!("its table `{table}` already has a column `{}`", column.name));
        }
    }
    let missing = sqlx::query_scalar!(
        r#"
        SELECT name AS "name!" FROM unnest($1::text[]) AS name
        WHERE NOT EXISTS (SELECT FROM pg_constraint WHERE conname = name AND conrelid = to_regclass($2))
          AND NOT EXISTS (
              SELECT FROM pg_class
              WHERE relname = name AND relkind = 'S' AND relnamespace = quote_ident(current_schema())::regnamespace
          )
        "#,
        named as _,
        table,
    )
    .fetch_optional(&mut *connection)
    .await?;
    missing.map_or(Ok(()), |name| refuse(format!("its table `{table}` lacks `{name}`")))
}

/// Applies all migrations, in one transaction.
///
/// The Python service may be using the tables, and locks them in no fixed order. To hold one and wait for the other could
/// deadlock with it. So nothing is held while waiting. Each wait is short, because all others queue behind it, but longer
/// than the second after which an autovacuum cancels itself.
pub(super) async fn apply_all(connection: &mut PgConnection) -> Result<(), SchemaError> {
    sqlx::query!("SET lock_timeout = '1500ms'").execute(&mut *connection).await?;
    let started = Instant::now();
    loop {
        let attempt = Instant::now();
        let mut transaction = connection.begin().await?;
        match lock_inherited(&mut transaction).await {
            Ok(fresh) => {
                MIGRATOR.run_direct(None, &mut *transaction, false).await?;
                if fresh {
                    stamp_alembic_version(&mut transaction).await?;
                }
                return Ok(transaction.commit().await?);
            }
            // Lock not available.
            Err(error) if sqlstate(&error).is_none_or(|code| code != "55P03") => return Err(error.into()),
            Err(_) if started.elapsed() > TIMEOUT => return Err(SchemaError::InUse),
            Err(_) => transaction.rollback().await?,
        }
        tracing::debug!("the tables are in use; trying again");
        // Those that queued behind an attempt get twice its time.
        tokio::time::sleep(attempt.elapsed() * 2 + Duration::from_millis(rand::random_range(20..100))).await;
    }
}

/// Locks the tables that there are in our schema; true where there are none. A later schema of the search path may hold
/// another service's table of the same name.
async fn lock_inherited(connection: &mut PgConnection) -> sqlx::Result<bool> {
    let tables = sqlx::query_scalar!(
        r#"
        SELECT relname AS "name!: String" FROM pg_class
        WHERE relnamespace = quote_ident(current_schema())::regnamespace
          AND relname IN ('users', 'refresh_tokens', 'alembic_version_auth')
        "#,
    )
    .fetch_all(&mut *connection)
    .await?;
    let exists = |name: &str| tables.iter().any(|table| table == name);
    if exists("refresh_tokens") {
        sqlx::query!("LOCK TABLE refresh_tokens IN ACCESS EXCLUSIVE MODE").execute(&mut *connection).await?;
    }
    if exists("users") {
        sqlx::query!("LOCK TABLE users IN ACCESS EXCLUSIVE MODE NOWAIT").execute(&mut *connection).await?;
    }
    Ok(tables.is_empty())
}

/// Tells Alembic that its migrations have been applied: the stack's seed script runs it for every service.
async fn stamp_alembic_version(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query!("CREATE TABLE alembic_version_auth AS SELECT '20250823142355'::varchar(32) AS version_num")
        .execute(&mut *connection)
        .await?;
    sqlx::query!(
        "ALTER TABLE alembic_version_auth
         ALTER version_num SET NOT NULL, ADD CONSTRAINT alembic_version_auth_pkc PRIMARY KEY (version_num)"
    )
    .execute(connection)
    .await?;
    Ok(())
}
