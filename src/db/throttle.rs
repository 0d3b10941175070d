//! `auth_throttle`: buckets of counted events (`domain::throttle`), shared by all replicas. They are read in the query
//! that fetches the user (`db::users`) and written here, on failure only.

use chrono::{DateTime, Utc};
use sqlx::PgPool;

use crate::domain::throttle::{BucketKey, Limit};

/// Counts one event in each bucket, in one statement; buckets are locked in one order.
pub async fn count(pool: &PgPool, buckets: &[(BucketKey, Limit)], now: DateTime<Utc>) -> sqlx::Result<()> {
    let keys: Vec<Vec<u8>> = buckets.iter().map(|(key, _)| key.0.clone()).collect();
    let seconds: Vec<f64> = buckets.iter().map(|(_, limit)| limit.interval.as_seconds_f64()).collect();
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

/// Removes buckets that are full again.
pub async fn delete_full(pool: &PgPool, now: DateTime<Utc>) -> sqlx::Result<u64> {
    sqlx::query!("DELETE FROM auth_throttle WHERE tat < $1", now.naive_utc())
        .execute(pool)
        .await
        .map(|done| done.rows_affected())
}
