//! What the command line does to users, with the rules that HTTP has.

use chrono::{DateTime, Utc};
use sqlx::PgPool;

use crate::db;
use crate::db::sessions::Which;
use crate::domain::ids::{SessionId, UserId};
use crate::domain::password::PasswordHash;
use crate::domain::session::EndReason;

/// Sets a user's password and ends all of the user's sessions; returns how many.
pub async fn set_password(
    pool: &PgPool,
    user_id: UserId,
    hash: &PasswordHash,
    now: DateTime<Utc>,
) -> sqlx::Result<u64> {
    let mut transaction = pool.begin().await?;
    db::users::set_password_hash(&mut *transaction, user_id, hash, now).await?;
    let ended = db::sessions::end(&mut transaction, user_id, Which::All, EndReason::PasswordChanged, now).await?;
    db::refresh_tokens::revoke_sessionless(&mut *transaction, user_id, None).await?;
    transaction.commit().await?;
    Ok(ended)
}

/// Ends one session of a user, or all of them; returns how many.
pub async fn end_sessions(
    pool: &PgPool,
    user_id: UserId,
    only: Option<SessionId>,
    now: DateTime<Utc>,
) -> sqlx::Result<u64> {
    let mut transaction = pool.begin().await?;
    let which = only.map_or(Which::All, Which::One);
    let ended = db::sessions::end(&mut transaction, user_id, which, EndReason::ByAdmin, now).await?;
    if only.is_none() {
        db::refresh_tokens::revoke_sessionless(&mut *transaction, user_id, None).await?;
    }
    transaction.commit().await?;
    Ok(ended)
}
