//! `users`.

use chrono::{DateTime, Utc};
use sqlx::types::Uuid;
use sqlx::{PgConnection, PgExecutor, PgPool};
use std::net::IpAddr;
use std::time::Duration;

use super::batch::BatchedCall;
use super::timestamp::Timestamp;
use super::{column, mail_outbox};
use crate::domain::email::Email;
use crate::domain::ids::{SessionId, UserId};
use crate::domain::mail::Locale;
use crate::domain::network::counted_network;
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
    pub email_verified: bool,
}

/// Who signs in or registers, and what that is counted in; nothing where the throttle is off.
#[derive(Debug)]
pub struct Lookup {
    pub email: Email,
    pub client: IpAddr,
    pub buckets: Vec<Bucket>,
    pub now: DateTime<Utc>,
}

/// All that a login or a registration needs to know beforehand.
#[derive(Debug)]
pub struct Found {
    pub account: Option<Account>,
    pub counted: Counted,
}

/// Whether an attempt fitted in all of its buckets.
#[derive(Debug)]
pub enum Counted {
    /// It did, and is counted in these.
    In(Vec<Bucket>),
    /// It did not, and is counted in none. One more fits after this long.
    Refused(Duration),
}

impl BatchedCall for Lookup {
    type Answer = Found;

    /// The look-up ignores case. Where an adopted database holds two spellings, the exact one is preferred, then the
    /// lower-cased one, then the oldest. (`lower()` of the server knows only what its locale knows, hence both
    /// lower-cased forms.)
    ///
    /// A network is known if one of the account's last thousand sessions is from it. There may be very many, and anybody can
    /// try to log in.
    ///
    /// An attempt is counted before its password is verified, so that of many at once no more are verified than fit. Of
    /// the attempts of a batch the first ones fit. Buckets are locked in the order of their keys; where one has less room
    /// by then than the statement saw, because of another batch, the attempts of this batch do not fit. Where a connection
    /// is lost, an attempt may be counted twice.
    #[expect(clippy::too_many_lines, reason = "nearly all of it is one statement")]
    async fn execute(connection: &mut PgConnection, calls: &[&Self]) -> sqlx::Result<Vec<Found>> {
        let now = calls.iter().map(|lookup| lookup.now).max().unwrap_or_default();
        let buckets: Vec<(usize, &Bucket)> = (1..)
            .zip(calls)
            .flat_map(|(position, lookup)| lookup.buckets.iter().map(move |bucket| (position, bucket)))
            .collect();
        let rows = sqlx::query!(
            r#"
            WITH asked AS (
                SELECT * FROM unnest($1::text[], $2::text[], $3::inet[])
                    WITH ORDINALITY AS asked (email, lowered, network, position)
            ), found AS (
                SELECT asked.position, asked.network, account.*
                FROM asked
                LEFT JOIN LATERAL (
                    SELECT id, email, role, password_hash, email_verified_at
                    FROM users
                    WHERE lower(email) IN (lower(asked.email), asked.lowered)
                    ORDER BY email = asked.email DESC, email = asked.lowered DESC, id
                    LIMIT 1
                ) AS account ON true
            ), event AS MATERIALIZED (
                -- Microseconds: how far an event moves the bucket, and how far it can still be moved.
                SELECT
                    event.position, event.key, event.step,
                    event.size - (1000000 * extract(epoch FROM greatest($4::timestamp, least(
                        coalesce(bucket.tat, $4::timestamp), $4::timestamp + event.size * interval '1 microsecond'
                    )) - $4::timestamp))::bigint AS room
                FROM unnest($5::bigint[], $6::bytea[], $7::bigint[], $8::bigint[], $9::bool[])
                    AS event (position, key, step, size, spares_known_networks)
                JOIN found USING (position)
                LEFT JOIN auth_throttle AS bucket USING (key)
                WHERE CASE WHEN event.spares_known_networks AND bucket.tat > $4::timestamp
                    THEN NOT EXISTS (
                        SELECT FROM (
                            SELECT ip FROM sessions WHERE sessions.user_id = found.id ORDER BY sessions.id DESC LIMIT 1000
                        ) AS recent
                        WHERE recent.ip <<= found.network
                    )
                    ELSE true END
            ), ranked AS (
                SELECT *, row_number() OVER (PARTITION BY key ORDER BY position) AS rank
                FROM event
                WHERE position NOT IN (SELECT position FROM event WHERE step > room)
            ), fitting AS (
                SELECT position FROM ranked GROUP BY position HAVING bool_and(rank * step <= room)
            ), counted AS (
                INSERT INTO auth_throttle AS bucket (key, tat)
                SELECT key, $4::timestamp + sum(step)::bigint * interval '1 microsecond'
                FROM ranked JOIN fitting USING (position)
                GROUP BY key
                ORDER BY key
                ON CONFLICT ON CONSTRAINT auth_throttle_pkey
                DO UPDATE SET tat = greatest(bucket.tat, $4::timestamp) + (excluded.tat - $4::timestamp)
                WHERE greatest(bucket.tat, $4::timestamp) + (excluded.tat - $4::timestamp) <= $4::timestamp
                    + ($8::bigint[])[array_position($6::bytea[], excluded.key)] * interval '1 microsecond'
                RETURNING key
            ), outcome AS (
                SELECT
                    event.position,
                    array_agg(event.key) AS keys,
                    max(event.step - event.room % event.step) FILTER (
                        WHERE event.step > event.room OR ranked.rank * event.step > event.room
                           OR (fitting.position IS NOT NULL AND counted.key IS NULL)
                    ) AS wait
                FROM event
                LEFT JOIN ranked ON ranked.position = event.position AND ranked.key = event.key
                LEFT JOIN fitting ON fitting.position = event.position
                LEFT JOIN counted ON counted.key = event.key
                GROUP BY event.position
            )
            SELECT
                found.id AS "id?: UserId",
                found.email AS "email?",
                found.role AS "role?: Role",
                found.password_hash AS "password_hash?: PasswordHash",
                found.email_verified_at IS NOT NULL AS "email_verified!",
                outcome.keys AS "keys?",
                outcome.wait AS "wait?"
            FROM found LEFT JOIN outcome USING (position)
            ORDER BY position
            "#,
            column(calls, |lookup| lookup.email.as_str()) as _,
            column(calls, |lookup| lookup.email.lowered()) as _,
            &column(calls, |lookup| counted_network(lookup.client)),
            now.naive_utc(),
            &column(&buckets, |(position, _)| i64::try_from(*position).unwrap_or(0)),
            &column(&buckets, |(_, bucket)| bucket.key.clone()),
            &column(&buckets, |(_, bucket)| bucket.limit.step()),
            &column(&buckets, |(_, bucket)| bucket.limit.size()),
            &column(&buckets, |(_, bucket)| bucket.spares_known_networks),
        )
        .fetch_all(connection)
        .await?;
        let found = calls.iter().zip(rows).map(|(lookup, row)| Found {
            account: match (row.id, row.email, row.role, row.password_hash) {
                (Some(id), Some(email), Some(role), Some(password_hash)) => {
                    Some(Account { user: User { id, email, role }, password_hash, email_verified: row.email_verified })
                }
                _ => None,
            },
            counted: if let Some(micros) = row.wait {
                Counted::Refused(Duration::from_micros(micros.unsigned_abs()))
            } else {
                let keys = row.keys.unwrap_or_default();
                Counted::In(lookup.buckets.iter().filter(|bucket| keys.contains(&bucket.key)).cloned().collect())
            },
        });
        Ok(found.collect())
    }
}

/// The user who would sign in with this address (see [`Lookup`]).
pub async fn find(pool: &PgPool, email: &Email) -> sqlx::Result<Option<User>> {
    sqlx::query_as!(
        User,
        r#"
        SELECT id AS "id: UserId", email, role AS "role: Role"
        FROM users
        WHERE lower(email) IN (lower($1), $2)
        ORDER BY email = $1 DESC, email = $2 DESC, id
        LIMIT 1
        "#,
        email.as_str(),
        email.lowered(),
    )
    .fetch_optional(pool)
    .await
}

/// The user whose address is the subject of an access token, if the session of the token is alive.
pub async fn of_bearer(pool: &PgPool, subject: &str, session_id: SessionId) -> sqlx::Result<Option<User>> {
    sqlx::query_as!(
        User,
        r#"
        SELECT id AS "id: UserId", email, role AS "role: Role"
        FROM users
        WHERE email = $1
          AND EXISTS (
              SELECT FROM sessions
              WHERE sessions.id = $2 AND sessions.user_id = users.id AND sessions.ended_at IS NULL
          )
        "#,
        subject,
        session_id as _,
    )
    .fetch_optional(pool)
    .await
}

pub async fn get(executor: impl PgExecutor<'_>, id: UserId) -> sqlx::Result<Option<UserDetails>> {
    let row = sqlx::query!(
        r#"
        SELECT
            id AS "id: UserId", email, role AS "role: Role", created_at AS "created_at: Timestamp",
            email_verified_at IS NOT NULL AS "email_verified!"
        FROM users WHERE id = $1
        "#,
        id as _,
    )
    .fetch_optional(executor)
    .await?;
    Ok(row.map(|row| UserDetails {
        user: User { id: row.id, email: row.email, role: row.role },
        created_at: row.created_at.0,
        email_verified: row.email_verified,
    }))
}

pub async fn exists(executor: impl PgExecutor<'_>, id: UserId) -> sqlx::Result<bool> {
    sqlx::query_scalar!(r#"SELECT EXISTS (SELECT FROM users WHERE id = $1) AS "exists!""#, id as _)
        .fetch_one(executor)
        .await
}

/// How the address of a new user becomes verified.
#[derive(Clone, Copy, Debug)]
pub enum Verification {
    /// An operator vouches for it.
    Done,
    /// By a mail with this id, in the language that the user prefers.
    Mail(Uuid, Locale),
    /// By a reset of the password, if at all.
    None,
}

/// Adds a user unless the address is taken in any spelling; `None` says it is. Among concurrent registrations the
/// unique constraint decides, since new addresses are stored lower-cased. A mail is inserted together with the user.
pub async fn insert(
    executor: impl PgExecutor<'_>,
    email: &Email,
    password_hash: &PasswordHash,
    role: &Role,
    verification: Verification,
    now: DateTime<Utc>,
) -> sqlx::Result<Option<UserId>> {
    let (verified_at, mail_id, locale) = match verification {
        Verification::Done => (Some(now), None, Locale::default()),
        Verification::Mail(id, locale) => (None, Some(id), locale),
        Verification::None => (None, None, Locale::default()),
    };
    sqlx::query_scalar!(
        r#"
        WITH inserted AS (
            INSERT INTO users (email, password_hash, role, created_at, updated_at, email_verified_at)
            SELECT $1::text, $2, $3, $4, $4, $5
            WHERE NOT EXISTS (SELECT FROM users WHERE lower(email) = $1::text)
            ON CONFLICT ON CONSTRAINT users_email_key DO NOTHING
            RETURNING id
        ), mail AS (
            INSERT INTO mail_outbox (id, template, locale, user_id, created_at, due_at, give_up_at)
            SELECT $6, 'verify_email', $7, id, $4, $4, $8 FROM inserted WHERE $6::uuid IS NOT NULL
        )
        SELECT id AS "id!: UserId" FROM inserted
        UNION ALL SELECT id FROM users WHERE email = $1::text AND password_hash = $2
        "#,
        email.lowered(),
        password_hash as _,
        role as _,
        now.naive_utc(),
        verified_at.map(|at| at.naive_utc()),
        mail_id,
        locale.label(),
        mail_outbox::give_up_at(now).naive_utc(),
    )
    .fetch_optional(executor)
    .await
}

pub async fn list(pool: &PgPool, after: UserId, limit: i64) -> sqlx::Result<Vec<User>> {
    sqlx::query_as!(
        User,
        r#"SELECT id AS "id: UserId", email, role AS "role: Role" FROM users WHERE id > $1 ORDER BY id LIMIT $2"#,
        after as _,
        limit,
    )
    .fetch_all(pool)
    .await
}

/// What became of a change after which an administrator must be left.
#[derive(Clone, Debug)]
pub enum Change<T> {
    Done(T),
    /// The user is the only administrator.
    LastAdmin,
    NoSuchUser,
}

/// Gives a user another role. Administrators are locked in the order of their ids, so that of two who are demoted or
/// deleted at the same time the second finds the first one gone.
pub async fn set_role(
    connection: &mut PgConnection,
    id: UserId,
    role: &Role,
    now: DateTime<Utc>,
) -> sqlx::Result<Change<User>> {
    let user = sqlx::query_as!(
        User,
        r#"
        WITH admins AS (
            SELECT id FROM users WHERE role = 'admin' ORDER BY id FOR NO KEY UPDATE
        )
        UPDATE users SET role = $2, updated_at = $3
        WHERE id = $1 AND ($2 = 'admin' OR role <> 'admin' OR EXISTS (SELECT FROM admins WHERE id <> $1))
        RETURNING id AS "id: UserId", email, role AS "role: Role"
        "#,
        id as _,
        role as _,
        now.naive_utc(),
    )
    .fetch_optional(&mut *connection)
    .await?;
    match user {
        Some(user) => Ok(Change::Done(user)),
        None => why_not(connection, id).await,
    }
}

async fn why_not<T>(connection: &mut PgConnection, id: UserId) -> sqlx::Result<Change<T>> {
    Ok(if exists(connection, id).await? { Change::LastAdmin } else { Change::NoSuchUser })
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

/// Whether a user has exactly this hash, whose salt tells it from all others.
pub async fn has_password_hash(executor: impl PgExecutor<'_>, id: UserId, hash: &PasswordHash) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM users WHERE id = $1 AND password_hash = $2) AS "exists!""#,
        id as _,
        hash as _,
    )
    .fetch_one(executor)
    .await
}

/// Deletes a user, under the same lock as [`set_role`]; tokens go with it, ended sessions stay for their reasons.
pub async fn delete(connection: &mut PgConnection, id: UserId) -> sqlx::Result<Change<()>> {
    let deleted = sqlx::query!(
        r"
        WITH admins AS (
            SELECT id FROM users WHERE role = 'admin' ORDER BY id FOR NO KEY UPDATE
        )
        DELETE FROM users WHERE id = $1 AND (role <> 'admin' OR EXISTS (SELECT FROM admins WHERE id <> $1))
        ",
        id as _,
    )
    .execute(&mut *connection)
    .await?;
    if deleted.rows_affected() > 0 { Ok(Change::Done(())) } else { why_not(connection, id).await }
}

/// The schemes and parameters of all password hashes, each once, as they stand at the beginning of a hash. Of what looks
/// like no hash there is none.
pub async fn hash_parameters(pool: &PgPool) -> sqlx::Result<Vec<String>> {
    // One step in the index for each; a DISTINCT would read all of it.
    sqlx::query_scalar!(
        r#"
        WITH RECURSIVE found (parameters) AS (
            SELECT min(substring(password_hash FROM '^\$(?:2.\$..|argon2.*p=[0-9]+)')) FROM users
            UNION ALL
            SELECT (
                SELECT min(substring(password_hash FROM '^\$(?:2.\$..|argon2.*p=[0-9]+)')) FROM users
                WHERE substring(password_hash FROM '^\$(?:2.\$..|argon2.*p=[0-9]+)') > found.parameters
            )
            FROM found WHERE found.parameters IS NOT NULL
        )
        SELECT parameters AS "parameters!" FROM found WHERE parameters IS NOT NULL LIMIT 100
        "#
    )
    .fetch_all(pool)
    .await
}
