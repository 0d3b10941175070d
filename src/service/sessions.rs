//! A user's sessions: seeing them and ending them.

use chrono::{DateTime, Utc};
use sqlx::PgPool;

use super::audit::{audit, audit_admin};
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

/// Any user's sessions that can still refresh, for an administrator.
pub async fn list_of(app: &App, user_id: UserId) -> Result<Vec<Session>, Error> {
    let sessions = db::sessions::list(&app.db, user_id, false, app.clock.now()).await?;
    if sessions.is_empty() && !db::users::exists(&app.db, user_id).await? {
        return Err(Error::NotFound);
    }
    Ok(sessions)
}

/// Ends all sessions of a user, by an administrator's order. Returns how many there were.
pub async fn end_all_of(app: &App, admin: &Bearer, user_id: UserId, client: &ClientInfo) -> Result<u64, Error> {
    let ended = end_by_admin(&app.db, user_id, None, app.clock.now()).await?;
    if ended == 0 && !db::users::exists(&app.db, user_id).await? {
        return Err(Error::NotFound);
    }
    audit_admin("session_end", EndReason::ByAdmin.as_str(), admin, user_id, client.ip);
    Ok(ended)
}

/// Ends one session of a user, or all of them, on an administrator's word. Returns how many there were.
pub async fn end_by_admin(
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
