//! Clean-up: what has expired is deleted in small batches that skip locked rows, so that no request waits for it.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgExecutor};

/// Names the advisory lock that lets one replica clean up at a time.
const LOCK: i64 = 0x6175_7468_636c_6e75;

/// Takes the clean-up lock if no other replica has it. It is the connection's and goes with it.
pub async fn try_lock(connection: &mut PgConnection) -> sqlx::Result<bool> {
    sqlx::query_scalar!(r#"SELECT pg_try_advisory_lock($1) AS "locked!""#, LOCK).fetch_one(connection).await
}

pub async fn unlock(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query_scalar!("SELECT pg_advisory_unlock($1)", LOCK).fetch_one(connection).await.map(|_| ())
}

/// What one step through the tokens did.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Where the next step starts.
    pub last_id: i64,
    /// Rows looked at; fewer than asked for at the end of the table.
    pub seen: i64,
    pub deleted: i64,
}

/// Looks at the next `size` tokens by id and deletes the expired ones. A session whose last token expires unused is
/// over, and says so from then on. Ids are about in the order of expiry, so no index on it is needed.
pub async fn delete_expired_tokens(
    executor: impl PgExecutor<'_>,
    after: i64,
    size: i64,
    now: DateTime<Utc>,
) -> sqlx::Result<Step> {
    sqlx::query_as!(
        Step,
        r#"
        WITH step AS (
            SELECT id, expires_at FROM refresh_tokens WHERE id > $1 ORDER BY id LIMIT $2
        ), doomed AS (
            SELECT id FROM refresh_tokens
            WHERE id IN (SELECT id FROM step WHERE expires_at <= $3)
            FOR UPDATE SKIP LOCKED
        ), deleted AS (
            DELETE FROM refresh_tokens WHERE id IN (SELECT id FROM doomed)
            RETURNING session_id, successor_jti, expires_at
        ), ended AS (
            UPDATE sessions SET ended_at = deleted.expires_at, end_reason = 'expired'
            FROM deleted
            WHERE sessions.id = deleted.session_id AND deleted.successor_jti IS NULL AND sessions.ended_at IS NULL
        )
        SELECT
            coalesce((SELECT max(id) FROM step), $1) AS "last_id!",
            (SELECT count(*) FROM step) AS "seen!",
            (SELECT count(*) FROM deleted) AS "deleted!"
        "#,
        after,
        size,
        now.naive_utc(),
    )
    .fetch_one(executor)
    .await
}

/// Ends what is left of sessions whose user was deleted by somebody else, such as the Python service.
pub async fn end_orphaned_sessions(executor: impl PgExecutor<'_>, now: DateTime<Utc>) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE sessions SET ended_at = $1, end_reason = 'user_deleted' WHERE user_id IS NULL AND ended_at IS NULL",
        now.naive_utc(),
    )
    .execute(executor)
    .await
    .map(|_| ())
}

/// Forgets up to `size` sessions that ended before `before`.
pub async fn delete_ended_sessions(
    executor: impl PgExecutor<'_>,
    before: DateTime<Utc>,
    size: i64,
) -> sqlx::Result<u64> {
    sqlx::query!(
        r"
        DELETE FROM sessions WHERE id IN (
            SELECT id FROM sessions WHERE ended_at < $1 ORDER BY ended_at LIMIT $2 FOR UPDATE SKIP LOCKED
        )
        ",
        before.naive_utc(),
        size,
    )
    .execute(executor)
    .await
    .map(|done| done.rows_affected())
}
