//! `users`.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgExecutor, PgPool};

use super::batch::{BatchedCall, column};
use super::throttle;
use crate::domain::email::Email;
use crate::domain::ids::{SessionId, UserId};
use crate::domain::password::PasswordHash;
use crate::domain::role::Role;
use crate::domain::throttle::Bucket;

/// A user as others see one.
#[derive(Clone, Debug)]
pub struct User {
    pub id: UserId,
    /// As stored, which is what tokens carry as `sub`.
    pub email: String,
    pub role: Role,
}

/// A user with what administrators see of one.
#[derive(Clone, Debug)]
pub struct UserDetails {
    pub user: User,
    pub created_at: DateTime<Utc>,
    pub email_verified: bool,
}

/// A user with what a login is checked against.
#[derive(Clone, Debug)]
pub struct Account {
    pub user: User,
    pub password_hash: PasswordHash,
}

/// Who signs in or registers, and the throttle's buckets that say whether that is allowed; one or two, or none where
/// nothing is throttled.
#[derive(Debug)]
pub struct Lookup {
    pub email: Email,
    pub buckets: Vec<Bucket>,
}

/// All that a login or a registration needs to know beforehand.
#[derive(Debug)]
pub struct Found {
    pub account: Option<Account>,
    /// The theoretical arrival time of each bucket that was asked for.
    pub tats: [Option<DateTime<Utc>>; 2],
}

impl BatchedCall for Lookup {
    type Answer = Found;

    /// Case is ignored. Where an adopted database holds two spellings, the exact one is preferred, then the
    /// lower-cased one, then the oldest. (`lower()` of the server knows only what its locale knows, hence both
    /// lower-cased forms.)
    async fn execute(connection: &mut PgConnection, calls: &[&Self]) -> sqlx::Result<Vec<Found>> {
        let key =
            |index: usize| column(calls, |lookup| lookup.buckets.get(index).map(|bucket| bucket.key.0.as_slice()));
        let rows = sqlx::query!(
            r#"
            SELECT
                found.id AS "id?: UserId",
                found.email AS "email?",
                found.role AS "role?: Role",
                found.password_hash AS "password_hash?: PasswordHash",
                (SELECT tat FROM auth_throttle WHERE key = first_key) AS first_tat,
                (SELECT tat FROM auth_throttle WHERE key = second_key) AS second_tat
            FROM unnest($1::text[], $2::text[], $3::bytea[], $4::bytea[])
                WITH ORDINALITY AS asked (email, lowered, first_key, second_key, position)
            LEFT JOIN LATERAL (
                SELECT id, email, role, password_hash
                FROM users
                WHERE lower(email) IN (lower(asked.email), asked.lowered)
                ORDER BY email = asked.email DESC, email = asked.lowered DESC, id
                LIMIT 1
            ) AS found ON true
            ORDER BY position
            "#,
            column(calls, |lookup| lookup.email.as_str()) as _,
            column(calls, |lookup| lookup.email.lowered()) as _,
            key(0) as _,
            key(1) as _,
        )
        .fetch_all(connection)
        .await?;
        let found = rows.into_iter().map(|row| {
            let account = match (row.id, row.email, row.role, row.password_hash) {
                (Some(id), Some(email), Some(role), Some(password_hash)) => {
                    Some(Account { user: User { id, email, role }, password_hash })
                }
                _ => None,
            };
            Found { account, tats: [row.first_tat, row.second_tat].map(|tat| tat.map(|tat| tat.and_utc())) }
        });
        Ok(found.collect())
    }
}

/// The user with this address, in whatever case.
pub async fn find(pool: &PgPool, email: Email) -> sqlx::Result<Option<User>> {
    let lookup = Lookup { email, buckets: Vec::new() };
    let found = Lookup::execute(&mut *pool.acquire().await?, &[&lookup]).await?;
    Ok(found.into_iter().find_map(|found| found.account).map(|account| account.user))
}

/// The user an access token speaks for: the one whose address is its subject, as long as the token's session lives.
/// Tokens of the Python service name no session.
pub async fn of_bearer(pool: &PgPool, subject: &str, session_id: Option<SessionId>) -> sqlx::Result<Option<User>> {
    sqlx::query_as!(
        User,
        r#"
        SELECT id AS "id: UserId", email, role AS "role: Role"
        FROM users
        WHERE email = $1
          AND ($2::uuid IS NULL OR EXISTS (
              SELECT FROM sessions
              WHERE sessions.id = $2 AND sessions.user_id = users.id AND sessions.ended_at IS NULL
          ))
        "#,
        subject,
        session_id as _,
    )
    .fetch_optional(pool)
    .await
}

/// The user with this id.
pub async fn get(executor: impl PgExecutor<'_>, id: UserId) -> sqlx::Result<Option<UserDetails>> {
    let row = sqlx::query!(
        r#"SELECT id AS "id: UserId", email, role AS "role: Role", created_at FROM users WHERE id = $1"#,
        id as _,
    )
    .fetch_optional(executor)
    .await?;
    Ok(row.map(|row| UserDetails {
        user: User { id: row.id, email: row.email, role: row.role },
        created_at: row.created_at.and_utc(),
        // Addresses are not verified yet. Once they are: whether `users.email_verified_at` is set.
        email_verified: false,
    }))
}

/// Whether there is such a user.
pub async fn exists(executor: impl PgExecutor<'_>, id: UserId) -> sqlx::Result<bool> {
    sqlx::query_scalar!(r#"SELECT EXISTS (SELECT FROM users WHERE id = $1) AS "exists!""#, id as _)
        .fetch_one(executor)
        .await
}

/// Adds a user unless the address is taken in any spelling; `None` says it is. Among concurrent registrations the
/// unique constraint decides, since new addresses are stored lower-cased. The attempt is counted in `buckets` either way.
pub async fn insert(
    executor: impl PgExecutor<'_>,
    email: &Email,
    password_hash: &PasswordHash,
    role: &Role,
    buckets: &[Bucket],
    now: DateTime<Utc>,
) -> sqlx::Result<Option<UserId>> {
    let (keys, seconds) = throttle::columns(buckets);
    sqlx::query_scalar!(
        r#"
        WITH counted AS (
            INSERT INTO auth_throttle AS bucket (key, tat)
            SELECT key, $4::timestamp + make_interval(secs => seconds)
            FROM unnest($5::bytea[], $6::float8[]) AS event (key, seconds)
            ORDER BY key
            ON CONFLICT ON CONSTRAINT auth_throttle_pkey
            DO UPDATE SET tat = greatest(bucket.tat, $4::timestamp) + (excluded.tat - $4::timestamp)
        )
        INSERT INTO users (email, password_hash, role, created_at, updated_at)
        SELECT $1::text, $2, $3, $4, $4
        WHERE NOT EXISTS (SELECT FROM users WHERE lower(email) = $1::text)
        ON CONFLICT ON CONSTRAINT users_email_key DO NOTHING
        RETURNING id AS "id: UserId"
        "#,
        email.lowered(),
        password_hash as _,
        role as _,
        now.naive_utc(),
        &keys,
        &seconds,
    )
    .fetch_optional(executor)
    .await
}

/// A page of users by id, after `after`; with `email`, only the one with exactly that address.
pub async fn list(pool: &PgPool, after: UserId, limit: i64, email: Option<&str>) -> sqlx::Result<Vec<User>> {
    match email {
        Some(email) => {
            sqlx::query_as!(
                User,
                r#"
                SELECT id AS "id: UserId", email, role AS "role: Role"
                FROM users WHERE email = $1 AND id > $2 ORDER BY id LIMIT $3
                "#,
                email,
                after as _,
                limit,
            )
            .fetch_all(pool)
            .await
        }
        None => {
            sqlx::query_as!(
                User,
                r#"
                SELECT id AS "id: UserId", email, role AS "role: Role"
                FROM users WHERE id > $1 ORDER BY id LIMIT $2
                "#,
                after as _,
                limit,
            )
            .fetch_all(pool)
            .await
        }
    }
}

/// Gives a user another role.
pub async fn set_role(
    executor: impl PgExecutor<'_>,
    id: UserId,
    role: &Role,
    now: DateTime<Utc>,
) -> sqlx::Result<Option<User>> {
    sqlx::query_as!(
        User,
        r#"
        UPDATE users SET role = $2, updated_at = $3 WHERE id = $1
        RETURNING id AS "id: UserId", email, role AS "role: Role"
        "#,
        id as _,
        role as _,
        now.naive_utc(),
    )
    .fetch_optional(executor)
    .await
}

/// Replaces a user's password hash, whatever it was. (A login replaces one together with opening its session, see
/// `db::sessions::NewSession`.)
pub async fn set_password_hash(
    executor: impl PgExecutor<'_>,
    id: UserId,
    hash: &PasswordHash,
    now: DateTime<Utc>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "UPDATE users SET password_hash = $2, updated_at = $3 WHERE id = $1",
        id as _,
        hash as _,
        now.naive_utc(),
    )
    .execute(executor)
    .await
    .map(|_| ())
}

/// Deletes a user; tokens go with it, ended sessions stay for their reasons.
pub async fn delete(executor: impl PgExecutor<'_>, id: UserId) -> sqlx::Result<bool> {
    sqlx::query!("DELETE FROM users WHERE id = $1", id as _)
        .execute(executor)
        .await
        .map(|done| done.rows_affected() > 0)
}

/// The highest cost among the bcrypt hashes that are left, as two digits, or `None` when none is.
pub async fn highest_bcrypt_cost(pool: &PgPool) -> sqlx::Result<Option<String>> {
    sqlx::query_scalar!(
        r"
        SELECT substr(password_hash, 5, 2) FROM users
        WHERE password_hash LIKE '$2%'
        ORDER BY substr(password_hash, 5, 2) DESC LIMIT 1
        "
    )
    .fetch_optional(pool)
    .await
    .map(Option::flatten)
}
