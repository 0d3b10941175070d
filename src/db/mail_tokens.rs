//! `mail_tokens`: what the tokens in mails are good for. A user has one for each purpose; its newer one takes its place.

use chrono::{DateTime, Utc};
use sqlx::PgExecutor;
use sqlx::types::Uuid;

use super::users::User;
use crate::domain::email::Email;
use crate::domain::ids::UserId;
use crate::domain::mail::Template;
use crate::domain::mail_token::MailTokenHash;
use crate::domain::password::PasswordHash;

/// Stores the token of a mail to a user, for the address that the account has. Says whether it did: not if the user is
/// gone, or a later mail has been sent for the same purpose.
///
/// The token of the attempt before to send the same mail stays valid, because it may have arrived. One of another mail
/// does not.
pub async fn put(
    executor: impl PgExecutor<'_>,
    user: &User,
    purpose: Template,
    mail_id: Uuid,
    hash: &MailTokenHash,
    expires_at: DateTime<Utc>,
) -> sqlx::Result<bool> {
    sqlx::query!(
        r"
        INSERT INTO mail_tokens AS token (user_id, purpose, mail_id, email, token_hash, expires_at)
        SELECT id, $3, $4, email, $5, $6 FROM users WHERE id = $1 AND email = $2
        ON CONFLICT ON CONSTRAINT mail_tokens_pkey
        DO UPDATE SET
            mail_id = excluded.mail_id, email = excluded.email, token_hash = excluded.token_hash,
            previous_hash = CASE WHEN token.mail_id = excluded.mail_id THEN token.token_hash END,
            expires_at = excluded.expires_at
        WHERE token.mail_id <= excluded.mail_id
        ",
        user.id as _,
        user.email,
        purpose.label(),
        mail_id,
        hash as _,
        expires_at.naive_utc(),
    )
    .execute(executor)
    .await
    .map(|done| done.rows_affected() > 0)
}

/// Whose token this is, and the address, if it is good for a reset of the password: the account still has the address that
/// the token was sent to.
pub async fn find_reset(
    executor: impl PgExecutor<'_>,
    hash: &MailTokenHash,
    now: DateTime<Utc>,
) -> sqlx::Result<Option<(UserId, Email)>> {
    let row = sqlx::query!(
        r#"
        SELECT users.id AS "user_id: UserId", users.email
        FROM mail_tokens AS token JOIN users ON users.id = token.user_id AND users.email = token.email
        WHERE (token.token_hash = $1 OR token.previous_hash = $1) AND token.purpose = 'reset_password'
          AND token.expires_at > $2
        "#,
        hash as _,
        now.naive_utc(),
    )
    .fetch_optional(executor)
    .await?;
    Ok(row.map(|row| (row.user_id, Email::from_stored(row.email))))
}

/// Spends a token: its user gets the new password, and the address is verified. Says whether it was good; of many
/// requests with one token, for one.
///
/// The user is locked first, as by a password change, which voids the token: whichever is second finds it gone.
pub async fn spend_reset(
    executor: impl PgExecutor<'_>,
    user_id: UserId,
    hash: &MailTokenHash,
    password_hash: &PasswordHash,
    now: DateTime<Utc>,
) -> sqlx::Result<bool> {
    sqlx::query!(
        r"
        WITH locked AS MATERIALIZED (
            SELECT id, email FROM users WHERE id = $1 FOR NO KEY UPDATE
        ), spent AS (
            DELETE FROM mail_tokens AS token USING locked
            WHERE token.user_id = locked.id AND token.email = locked.email AND token.purpose = 'reset_password'
              AND (token.token_hash = $2 OR token.previous_hash = $2) AND token.expires_at > $4
            RETURNING token.user_id
        )
        UPDATE users SET
            password_hash = $3, updated_at = $4, email_verified_at = coalesce(users.email_verified_at, $4)
        FROM spent
        WHERE users.id = spent.user_id
        ",
        user_id as _,
        hash as _,
        password_hash as _,
        now.naive_utc(),
    )
    .execute(executor)
    .await
    .map(|done| done.rows_affected() > 0)
}

/// Marks the address verified that a token was sent to. Says whose, if the token is good, which it stays.
pub async fn verify_email(
    executor: impl PgExecutor<'_>,
    hash: &MailTokenHash,
    now: DateTime<Utc>,
) -> sqlx::Result<Option<UserId>> {
    sqlx::query_scalar!(
        r#"
        UPDATE users SET email_verified_at = coalesce(users.email_verified_at, $2)
        FROM mail_tokens AS token
        WHERE (token.token_hash = $1 OR token.previous_hash = $1) AND token.purpose = 'verify_email'
          AND token.expires_at > $2 AND users.id = token.user_id AND users.email = token.email
        RETURNING users.id AS "id: UserId"
        "#,
        hash as _,
        now.naive_utc(),
    )
    .fetch_optional(executor)
    .await
}

/// Makes all tokens of a user void, in the transaction that changes the password.
pub async fn void(executor: impl PgExecutor<'_>, user_id: UserId) -> sqlx::Result<()> {
    sqlx::query!("DELETE FROM mail_tokens WHERE user_id = $1", user_id as _).execute(executor).await.map(|_| ())
}

/// Forgets up to `size` tokens that have expired.
pub async fn delete_expired(executor: impl PgExecutor<'_>, now: DateTime<Utc>, size: i64) -> sqlx::Result<u64> {
    sqlx::query!(
        r"
        DELETE FROM mail_tokens WHERE (user_id, purpose) IN (
            SELECT user_id, purpose FROM mail_tokens
            WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED
        )
        ",
        now.naive_utc(),
        size,
    )
    .execute(executor)
    .await
    .map(|done| done.rows_affected())
}
