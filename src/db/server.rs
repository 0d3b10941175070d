//! What the server says of itself, and what it lets this service do.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgExecutor};

/// What the server says of itself.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "four facts that do not depend on each other")]
pub struct Server {
    /// As in 150018 for 15.18.
    pub version_number: i32,
    pub version: String,
    pub encoding: String,
    pub is_local: bool,
    pub uses_tls: bool,
    pub is_read_only: bool,
    pub synchronous_commit: String,
    /// As many as roles without privileges may have together.
    pub max_connections: i32,
    /// Whether tables can be made in the first schema of the search path.
    pub may_create: bool,
    /// Tables of ours that may not be read or written.
    pub closed_tables: Vec<String>,
    /// Tables and triggers that migrations have made, and that are gone or turned off.
    pub lost: Vec<String>,
}

/// Asks the server about itself, on a connection whose settings are the server's own.
pub async fn describe(connection: &mut PgConnection) -> sqlx::Result<Server> {
    sqlx::query_as!(
        Server,
        r#"
        WITH ours AS (
            SELECT name, to_regclass(quote_ident(current_schema()) || '.' || name) AS found
            FROM unnest(ARRAY['users', 'refresh_tokens', 'sessions', 'auth_throttle', 'mail_outbox', 'mail_tokens'])
                AS name
        )
        SELECT
            current_setting('server_version_num')::int AS "version_number!",
            current_setting('server_version') AS "version!",
            current_setting('server_encoding') AS "encoding!",
            coalesce(inet_server_addr() <<= '127.0.0.0/8' OR inet_server_addr() = '::1', true) AS "is_local!",
            coalesce((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false) AS "uses_tls!",
            current_setting('transaction_read_only')::bool AS "is_read_only!",
            current_setting('synchronous_commit') AS "synchronous_commit!",
            current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
                AS "max_connections!",
            coalesce(has_schema_privilege(current_schema(), 'CREATE'), false) AS "may_create!",
            ARRAY(
                SELECT name FROM ours
                WHERE NOT (
                    has_table_privilege(found, 'SELECT') AND has_table_privilege(found, 'INSERT')
                    AND has_table_privilege(found, 'UPDATE') AND has_table_privilege(found, 'DELETE')
                )
                ORDER BY name
            ) AS "closed_tables!",
            ARRAY(
                SELECT 'table ' || name FROM ours WHERE found IS NULL
                UNION ALL
                SELECT 'trigger sessions_number_end'
                WHERE NOT EXISTS (
                    SELECT FROM pg_trigger
                    WHERE tgrelid = to_regclass(quote_ident(current_schema()) || '.sessions')
                      AND tgname = 'sessions_number_end' AND tgenabled IN ('O', 'A')
                )
            ) AS "lost!"
        "#
    )
    .fetch_one(connection)
    .await
}

/// The server's time. Used to set our clock by, and for nothing else.
pub async fn now(connection: &mut PgConnection) -> sqlx::Result<DateTime<Utc>> {
    sqlx::query_scalar!(r#"SELECT clock_timestamp() AS "now!""#).fetch_one(connection).await
}

/// Fails unless the database answers and accepts writes.
pub async fn accepts_writes(db: impl PgExecutor<'_>) -> sqlx::Result<()> {
    // Also on in a standby.
    let read_only = sqlx::query_scalar!(r#"SELECT current_setting('transaction_read_only')::bool AS "read_only!""#);
    if read_only.fetch_one(db).await? {
        return Err(sqlx::Error::Protocol("the database is read-only".to_owned()));
    }
    Ok(())
}

/// Raises `synchronous_commit` to `on` for this connection, where the server, the database or the role has less: a crash
/// would undo log-outs that were answered. More than `on` stays. Pinned, so that no reload of the server lowers it.
pub(super) async fn raise_synchronous_commit(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query_scalar!(
        r#"
        SELECT set_config('synchronous_commit', CASE
            WHEN current_setting('synchronous_commit') IN ('off', 'local', 'remote_write') THEN 'on'
            ELSE current_setting('synchronous_commit')
        END, false)
        "#
    )
    .fetch_one(connection)
    .await
    .map(|_| ())
}

/// Whether with this level a crash of the server would undo what was answered.
pub fn is_low_synchronous_commit(level: &str) -> bool {
    ["off", "local", "remote_write"].contains(&level)
}
