//! `auth_throttle`: buckets of counted events (`domain::throttle`), shared by all replicas. They are read in the query
//! that fetches the user (`db::users`) and written here, on failure only.

use chrono::{DateTime, Utc};
use sqlx::{PgExecutor, PgPool};

use crate::domain::throttle::Bucket;

/// Keys and intervals of buckets, as arrays for a statement.
pub(super) fn columns(buckets: &[Bucket]) -> (Vec<Vec<u8>>, Vec<f64>) {
    buckets.iter().map(|bucket| (bucket.key.0.clone(), bucket.limit.interval.as_seconds_f64())).unzip()
}

/// Counts one event in each bucket, in one statement; buckets are locked in one order.
pub async fn count(pool: &PgPool, buckets: &[Bucket], now: DateTime<Utc>) -> sqlx::Result<()> {
    if buckets.is_empty() {
        return Ok(());
    }
    let (keys, seconds) = columns(buckets);
    sqlx::query!(
        r"
        INSERT INTO auth_throttle AS bucket (key, tat)
        SELECT key, $3::timestamp + make_interval(secs => seconds)
        FROM unnest($1::bytea[], $2::float8[]) AS event (key, seconds)
        ORDER BY key
        ON CONFLICT ON CONSTRAINT auth_throttle_pkey
        DO UPDATE SET tat = greatest(bucket.tat, $3::timestamp) + (excluded.tat - $3::timestamp)
        ",
        &keys,
        &seconds,
        now.naive_utc(),
    )
    .execute(pool)
    .await
    .map(|_| ())
}

/// Removes up to `size` buckets that are full again.
pub async fn delete_full(executor: impl PgExecutor<'_>, size: i64, now: DateTime<Utc>) -> sqlx::Result<u64> {
    sqlx::query!(
        r"
        DELETE FROM auth_throttle WHERE key IN (
            SELECT key FROM auth_throttle WHERE tat < $1 LIMIT $2 FOR UPDATE SKIP LOCKED
        )
        ",
        now.naive_utc(),
        size,
    )
    .execute(executor)
    .await
    .map(|done| done.rows_affected())
}
