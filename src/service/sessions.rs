//! A user's sessions: seeing them and ending them.

use chrono::{DateTime, Utc};
use sqlx::PgPool;

use super::audit::{Actor, audit, audit_by};
use super::bearer::Bearer;
use crate::app::App;
use crate::db;
pub use crate::db::sessions::Session;
use crate::db::sessions::Which;
use crate::domain::client::ClientInfo;
use crate::domain::ids::{SessionId, UserId};
use crate::domain::session::EndReason;
use crate::error::Error;

/// The bearer's own sessions that can still refresh.
pub async fn list(app: &App, bearer: &Bearer) -> Result<Vec<Session>, Error> {
    Ok(db::sessions::list(&app.db, bearer.user.id, false, app.clock.now()).await?)
}

/// Ends one of the bearer's own sessions. One that is not theirs, or not alive, is not found.
pub async fn end(app: &App, bearer: &Bearer, id: SessionId, client: &ClientInfo) -> Result<(), Error> {
    let user_id = bearer.user.id;
    let own = bearer.session_id == Some(id);
    let reason = if own { EndReason::Logout } else { EndReason::LoggedOutElsewhere };
    let mut connection = app.db.acquire().await?;
    let ended = db::sessions::end(&mut connection, user_id, Which::One(id), reason, app.clock.now()).await?;
    if ended == 0 {
        return Err(Error::NotFound);
    }
    audit("session_end", reason.as_str(), Some(user_id), Some(id), client.ip);
    Ok(())
}

/// Any user's sessions, for administrators: those that can still refresh, and on request those that ended.
pub async fn list_of(
    db: &PgPool,
    user_id: UserId,
    with_ended: bool,
    now: DateTime<Utc>,
) -> Result<Vec<Session>, Error> {
    let sessions = db::sessions::list(db, user_id, with_ended, now).await?;
    if sessions.is_empty() && !db::users::exists(db, user_id).await? {
        return Err(Error::NotFound);
    }
    Ok(sessions)
}

/// Ends one session of a user, or all of them, for administrators. Returns how many there were.
pub async fn end_of(
    db: &PgPool,
    actor: Actor,
    user_id: UserId,
    only: Option<SessionId>,
    now: DateTime<Utc>,
) -> Result<u64, Error> {
    let mut transaction = db.begin().await?;
    let which = only.map_or(Which::All, Which::One);
    let ended = db::sessions::end(&mut transaction, user_id, which, EndReason::ByAdmin, now).await?;
    if only.is_none() {
        db::refresh_tokens::revoke_sessionless(&mut *transaction, user_id, None).await?;
    }
    if ended == 0 && !db::users::exists(&mut *transaction, user_id).await? {
        return Err(Error::NotFound);
    }
    transaction.commit().await?;
    audit_by(actor, "session_end", EndReason::ByAdmin.as_str(), Some(user_id), only);
    Ok(ended)
}
