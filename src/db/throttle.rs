//! `auth_throttle`: buckets of counted events (`domain::throttle`), shared by all replicas. They are written by the
//! statement that fetches the user (`db::users::Lookup`), by the one that opens a session (`db::sessions::NewSession`), and by
//! the one that inserts a mail (`db::mail_outbox::insert`).

use chrono::{DateTime, Utc};
use sqlx::PgExecutor;

use super::column;
use crate::domain::throttle::Bucket;

/// Takes back one event in each of these buckets, which are locked in the order of their keys. (A login that opens a session
/// does so with it, see `db::sessions::NewSession`.)
pub async fn take_back(executor: impl PgExecutor<'_>, buckets: &[Bucket]) -> sqlx::Result<()> {
    if buckets.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        r"
        INSERT INTO auth_throttle AS bucket (key, tat)
        SELECT key, timestamp 'epoch' - step * interval '1 microsecond'
        FROM unnest($1::bytea[], $2::bigint[]) AS event (key, step)
        ORDER BY key
        ON CONFLICT ON CONSTRAINT auth_throttle_pkey
        DO UPDATE SET tat = bucket.tat + (excluded.tat - timestamp 'epoch')
        ",
        &column(buckets, |bucket| bucket.key.clone()),
        &column(buckets, |bucket| bucket.limit.step()),
    )
    .execute(executor)
    .await
    .map(|_| ())
}

/// Forgets what was counted in these buckets, which are locked in the order of their keys.
pub async fn empty(executor: impl PgExecutor<'_>, buckets: &[Bucket]) -> sqlx::Result<()> {
    sqlx::query!(
        "DELETE FROM auth_throttle WHERE key IN (
            SELECT key FROM auth_throttle WHERE key = ANY ($1) ORDER BY key FOR UPDATE
        )",
        &column(buckets, |bucket| bucket.key.clone()),
    )
    .execute(executor)
    .await
    .map(|_| ())
}

/// Removes up to `size` buckets that are full again, or further ahead than any limit allows.
pub async fn delete_full(executor: impl PgExecutor<'_>, size: i64, now: DateTime<Utc>) -> sqlx::Result<u64> {
    sqlx::query!(
        r"
        DELETE FROM auth_throttle WHERE key IN (
            SELECT key FROM auth_throttle WHERE tat < $1 OR tat > $1 + interval '1 day' LIMIT $2 FOR UPDATE SKIP LOCKED
        )
        ",
        now.naive_utc(),
        size,
    )
    .execute(executor)
    .await
    .map(|done| done.rows_affected())
}
