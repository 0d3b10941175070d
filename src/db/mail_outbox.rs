//! `mail_outbox`: mails that wait to be sent, and for a while those that were sent or given up.
//!
//! A mail is inserted in the transaction of its cause (see also `db::users::insert` and `db::sessions::NewSession`). A
//! replica claims it in a short transaction of its own, which no connection outlasts: from then on another one may have
//! it only when the lease is over. So no mail is lost with a replica, and one is sent twice only where its replica died,
//! or lost the database, between the server's acceptance and [`sent`].

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgExecutor;
use sqlx::types::Uuid;

use super::column;
use super::timestamp::Timestamp;
use crate::domain::email::Email;
use crate::domain::ids::{SessionId, UserId};
use crate::domain::mail::{Locale, Template};
use crate::domain::throttle::Bucket;

/// How long a mail is tried.
const LIFETIME: TimeDelta = TimeDelta::days(1);
/// Notices of one kind that a user gets in a day, so that somebody who has the password cannot flood the mailbox.
pub(super) const MAX_NOTICES_A_DAY: i64 = 10;
/// The width of `last_error`, in characters.
const ERROR_CHARACTERS: usize = 500;

/// Whom a mail is for.
#[derive(Clone, Debug)]
pub enum Recipient {
    User(UserId),
    /// The account with this address, if there is one. It is looked up when the mail is sent.
    Address(Email),
}

/// A mail to be sent. Its id is the key of the write.
#[derive(Clone, Debug)]
pub struct NewMail {
    pub id: Uuid,
    pub template: Template,
    pub locale: Locale,
    pub recipient: Recipient,
    pub now: DateTime<Utc>,
}

impl NewMail {
    pub fn new(template: Template, locale: Locale, recipient: Recipient, now: DateTime<Utc>) -> Self {
        Self { id: Uuid::now_v7(), template, locale, recipient, now }
    }
}

/// When a mail is given up.
pub(super) fn give_up_at(now: DateTime<Utc>) -> DateTime<Utc> {
    now + LIFETIME
}

/// Inserts a mail, if it fits in all of its buckets; otherwise says how long until it does. A notice is left out where the
/// user had enough of its kind.
///
/// One statement, which looks at no account. Buckets are locked in the order of their keys, and one in which another
/// request has taken the room meanwhile refuses. A mail that is there already was inserted, and counted, by an earlier
/// attempt.
pub async fn insert(
    executor: impl PgExecutor<'_>,
    mail: &NewMail,
    buckets: &[Bucket],
) -> sqlx::Result<Option<Duration>> {
    let (user_id, email) = match &mail.recipient {
        Recipient::User(id) => (Some(*id), None),
        Recipient::Address(email) => (None, Some(email.as_str())),
    };
    let wait = sqlx::query_scalar!(
        r#"
        WITH event AS MATERIALIZED (
            -- Microseconds: how far a mail moves the bucket, and how far it can still be moved.
            SELECT event.key, event.step, event.size, event.size - (1000000 * extract(epoch FROM greatest(
                $1::timestamp, least(coalesce(bucket.tat, $1::timestamp), $1::timestamp + event.size * interval '1 microsecond')
            ) - $1::timestamp))::bigint AS room
            FROM unnest($2::bytea[], $3::bigint[], $4::bigint[]) AS event (key, step, size)
            LEFT JOIN auth_throttle AS bucket USING (key)
            WHERE NOT EXISTS (SELECT FROM mail_outbox WHERE id = $5)
        ), counted AS (
            INSERT INTO auth_throttle AS bucket (key, tat)
            SELECT key, $1::timestamp + step * interval '1 microsecond' FROM event
            WHERE NOT EXISTS (SELECT FROM event WHERE step > room)
            ORDER BY key
            ON CONFLICT ON CONSTRAINT auth_throttle_pkey
            DO UPDATE SET tat = greatest(bucket.tat, $1::timestamp) + (excluded.tat - $1::timestamp)
            WHERE greatest(bucket.tat, $1::timestamp) + (excluded.tat - $1::timestamp) <= $1::timestamp
                + (SELECT size FROM event WHERE event.key = excluded.key) * interval '1 microsecond'
            RETURNING key
        ), inserted AS (
            INSERT INTO mail_outbox (id, template, locale, user_id, email, created_at, due_at, give_up_at)
            SELECT $5, $6::varchar, $7, $8, $9, $1, $1, $10
            WHERE (SELECT count(*) FROM counted) = (SELECT count(*) FROM event)
              AND ($11::bigint IS NULL OR $11 > (
                  SELECT count(*) FROM mail_outbox
                  WHERE user_id = $8 AND template = $6::varchar AND created_at > $1::timestamp - interval '1 day'
              ))
            ON CONFLICT ON CONSTRAINT mail_outbox_pkey DO NOTHING
        )
        SELECT max(event.step - event.room % event.step) AS wait
        FROM event LEFT JOIN counted USING (key)
        WHERE event.step > event.room
           OR counted.key IS NULL AND NOT EXISTS (SELECT FROM event WHERE step > room)
        "#,
        mail.now.naive_utc(),
        &column(buckets, |bucket| bucket.key.clone()),
        &column(buckets, |bucket| bucket.limit.step()),
        &column(buckets, |bucket| bucket.limit.size()),
        mail.id,
        mail.template.label(),
        mail.locale.label(),
        user_id as _,
        email,
        give_up_at(mail.now).naive_utc(),
        mail.template.token_lifetime().is_none().then_some(MAX_NOTICES_A_DAY),
    )
    .fetch_one(executor)
    .await?;
    Ok(wait.map(|micros| Duration::from_micros(micros.unsigned_abs())))
}

/// A mail that this replica may send until the lease is over.
#[derive(Debug)]
pub struct Claimed {
    pub id: Uuid,
    pub template: Template,
    pub locale: Locale,
    pub recipient: Recipient,
    /// The sign-in that a notice is about.
    pub session_id: Option<SessionId>,
    /// How often it was claimed, which tells this claim from a later one.
    pub attempts: i32,
    pub give_up_at: DateTime<Utc>,
    /// Of the attempt before.
    pub last_error: Option<String>,
}

/// Claims the mail that has been due for the longest time, until `lease_end`.
pub async fn claim(
    executor: impl PgExecutor<'_>,
    now: DateTime<Utc>,
    lease_end: DateTime<Utc>,
) -> sqlx::Result<Option<Claimed>> {
    let row = sqlx::query!(
        r#"
        WITH due AS (
            SELECT id FROM mail_outbox
            WHERE finished_at IS NULL AND due_at <= $1
            ORDER BY due_at
            LIMIT 1
            FOR UPDATE SKIP LOCKED
        )
        UPDATE mail_outbox AS mail SET claimed_at = $1, due_at = $2, attempts = attempts + 1
        FROM due
        WHERE mail.id = due.id
        RETURNING
            mail.id, mail.template, mail.locale, mail.user_id AS "user_id: UserId", mail.email,
            mail.session_id AS "session_id: SessionId", mail.attempts, mail.give_up_at AS "give_up_at: Timestamp",
            mail.last_error
        "#,
        now.naive_utc(),
        lease_end.naive_utc(),
    )
    .fetch_optional(executor)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let recipient =
        row.user_id.map(Recipient::User).or(row.email.map(|email| Recipient::Address(Email::from_stored(email))));
    let (Some(template), Some(recipient)) = (Template::from_label(&row.template), recipient) else {
        return Err(sqlx::Error::Protocol("the table's checks admit no such mail".to_owned()));
    };
    Ok(Some(Claimed {
        id: row.id,
        template,
        locale: Locale::from_tag(&row.locale).unwrap_or_default(),
        recipient,
        session_id: row.session_id,
        attempts: row.attempts,
        give_up_at: row.give_up_at.0,
        last_error: row.last_error,
    }))
}

/// The server has accepted the mail.
pub async fn sent(executor: impl PgExecutor<'_>, id: Uuid, now: DateTime<Utc>) -> sqlx::Result<()> {
    sqlx::query!(
        r"
        UPDATE mail_outbox SET finished_at = $2, outcome = 'sent', claimed_at = NULL, last_error = NULL
        WHERE id = $1 AND finished_at IS NULL
        ",
        id,
        now.naive_utc(),
    )
    .execute(executor)
    .await
    .map(|_| ())
}

/// The mail was not sent: it is due again at `due_at`, or without one it is a dead letter.
pub async fn failed(
    executor: impl PgExecutor<'_>,
    mail: &Claimed,
    error: &str,
    due_at: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) -> sqlx::Result<()> {
    let error: String = error.chars().filter(|c| *c != '\0').take(ERROR_CHARACTERS).collect();
    sqlx::query!(
        r"
        UPDATE mail_outbox
        SET claimed_at = NULL, last_error = $3, due_at = coalesce($4, due_at),
            finished_at = CASE WHEN $4::timestamp IS NULL THEN $5::timestamp END,
            outcome = CASE WHEN $4::timestamp IS NULL THEN 'dead' END
        WHERE id = $1 AND attempts = $2 AND finished_at IS NULL
        ",
        mail.id,
        mail.attempts,
        error,
        due_at.map(|at| at.naive_utc()),
        now.naive_utc(),
    )
    .execute(executor)
    .await
    .map(|_| ())
}

/// When the oldest mail was written that is not finished.
pub async fn oldest_unsent(executor: impl PgExecutor<'_>) -> sqlx::Result<Option<DateTime<Utc>>> {
    let oldest = sqlx::query_scalar!(
        r#"SELECT min(created_at) AS "oldest: Timestamp" FROM mail_outbox WHERE finished_at IS NULL"#
    );
    Ok(oldest.fetch_one(executor).await?.map(|oldest| oldest.0))
}

/// A mail that was not sent, as an operator sees it.
#[derive(Clone, Debug)]
pub struct Unsent {
    pub id: Uuid,
    pub template: String,
    pub email: String,
    pub created_at: DateTime<Utc>,
    /// When it is tried next; none for a dead letter.
    pub due_at: Option<DateTime<Utc>>,
    pub is_being_sent: bool,
    pub attempts: i32,
    pub last_error: Option<String>,
}

/// A page of the mails that were not sent, those with a greater id than `after`: the oldest first.
pub async fn list_unsent(executor: impl PgExecutor<'_>, after: Uuid, limit: i64) -> sqlx::Result<Vec<Unsent>> {
    let rows = sqlx::query!(
        r#"
        SELECT
            mail.id, mail.template, coalesce(mail.email, users.email) AS "email!",
            mail.created_at AS "created_at: Timestamp", mail.due_at AS "due_at: Timestamp",
            mail.outcome IS NOT NULL AS "is_dead!", mail.claimed_at IS NOT NULL AS "is_being_sent!",
            mail.attempts, mail.last_error
        FROM mail_outbox AS mail LEFT JOIN users ON users.id = mail.user_id
        WHERE mail.outcome IS DISTINCT FROM 'sent' AND mail.id > $1
        ORDER BY mail.id
        LIMIT $2
        "#,
        after,
        limit,
    )
    .fetch_all(executor)
    .await?;
    let unsent = rows.into_iter().map(|row| Unsent {
        id: row.id,
        template: row.template,
        email: row.email,
        created_at: row.created_at.0,
        due_at: (!row.is_dead).then_some(row.due_at.0),
        is_being_sent: row.is_being_sent,
        attempts: row.attempts,
        last_error: row.last_error,
    });
    Ok(unsent.collect())
}

/// Has an unsent mail, or all of them, sent at once and tried for another day. Returns how many there are. One that is
/// being sent is left alone.
pub async fn retry(executor: impl PgExecutor<'_>, only: Option<Uuid>, now: DateTime<Utc>) -> sqlx::Result<u64> {
    sqlx::query!(
        r"
        UPDATE mail_outbox SET due_at = $2, give_up_at = $3, finished_at = NULL, outcome = NULL
        WHERE outcome IS DISTINCT FROM 'sent' AND claimed_at IS NULL AND ($1::uuid IS NULL OR id = $1)
        ",
        only,
        now.naive_utc(),
        give_up_at(now).naive_utc(),
    )
    .execute(executor)
    .await
    .map(|done| done.rows_affected())
}

/// Deletes an unsent mail, or without an id all dead letters. Returns how many there were.
pub async fn delete(executor: impl PgExecutor<'_>, only: Option<Uuid>) -> sqlx::Result<u64> {
    sqlx::query!(
        r"
        DELETE FROM mail_outbox
        WHERE CASE WHEN $1::uuid IS NULL THEN outcome = 'dead' ELSE id = $1 AND outcome IS DISTINCT FROM 'sent' END
        ",
        only,
    )
    .execute(executor)
    .await
    .map(|done| done.rows_affected())
}

/// Forgets up to `size` mails that were sent or given up before `before`.
pub async fn delete_finished(executor: impl PgExecutor<'_>, before: DateTime<Utc>, size: i64) -> sqlx::Result<u64> {
    sqlx::query!(
        r"
        DELETE FROM mail_outbox WHERE id IN (
            SELECT id FROM mail_outbox WHERE finished_at < $1 ORDER BY finished_at LIMIT $2 FOR UPDATE SKIP LOCKED
        )
        ",
        before.naive_utc(),
        size,
    )
    .execute(executor)
    .await
    .map(|done| done.rows_affected())
}
