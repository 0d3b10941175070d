//! A user's sessions: seeing them and ending them.

use chrono::{DateTime, Utc};
use sqlx::{Connection as _, PgPool};

use super::audit::{Actor, audit};
use super::bearer::Bearer;
use crate::app::App;
use crate::db;
use crate::db::revocations::{Ending, Revocations};
pub use crate::db::sessions::Session;
use crate::db::sign_out::Except;
use crate::domain::client::ClientInfo;
use crate::domain::ids::{SessionId, UserId};
use crate::domain::page::{Page, PageSize};
use crate::domain::session::EndReason;
use crate::error::Error;

/// Ends one of the bearer's own sessions. One that is not theirs, or not alive, is not found.
pub async fn end(app: &App, bearer: &Bearer, id: SessionId, client: &ClientInfo) -> Result<(), Error> {
    let user_id = bearer.user.id;
    let own = bearer.session_id == id;
    let reason = if own { EndReason::Logout } else { EndReason::LoggedOutElsewhere };
    let ending = &Ending::new(&app.revocations, reason, app.clock.now());
    let ended = db::retry::execute(&app.db, |mut connection, again| async move {
        let ended = db::sign_out::end_one(&mut connection, ending, user_id, id).await?;
        Ok(ended || again && db::sign_out::count_ended(&mut connection, ending, user_id, Some(id)).await? > 0)
    });
    if !ended.await? {
        return Err(Error::NotFound);
    }
    ending.committed();
    audit(client, "session_end", reason.label(), Some(user_id), Some(id));
    Ok(())
}

/// A page of a user's sessions that can still refresh, those older than `after`.
pub async fn list(
    db: &PgPool,
    user_id: UserId,
    after: Option<SessionId>,
    size: PageSize,
    now: DateTime<Utc>,
) -> Result<Page<Session>, Error> {
    let sessions = db::sessions::list_live(db, user_id, after, size.rows(), now).await?;
    if sessions.is_empty() && !db::users::exists(db, user_id).await? {
        return Err(Error::NotFound);
    }
    Ok(size.page(sessions))
}

/// A page of all sessions of a user that are remembered, for the command line.
pub async fn list_all(
    db: &PgPool,
    user_id: UserId,
    after: Option<SessionId>,
    size: PageSize,
) -> Result<Page<Session>, Error> {
    Ok(size.page(db::sessions::list_all(db, user_id, after, size.rows()).await?))
}

/// Ends one session of a user, or all of them, for administrators. Returns how many there were.
pub async fn end_of(
    pool: &PgPool,
    revocations: &Revocations,
    actor: Actor,
    user_id: UserId,
    only: Option<SessionId>,
    now: DateTime<Utc>,
) -> Result<u64, Error> {
    let ending = &Ending::new(revocations, EndReason::ByAdmin, now);
    let ended = db::retry::execute(pool, |mut connection, again| async move {
        let mut transaction = connection.begin().await?;
        let mut ended = match only {
            Some(id) => db::sign_out::end_one(&mut transaction, ending, user_id, id).await?.into(),
            None => db::sign_out::end_all(&mut transaction, ending, user_id, Except::Nothing).await?,
        };
        if again {
            ended = db::sign_out::count_ended(&mut transaction, ending, user_id, only).await?;
        }
        let found = ended > 0 || db::users::exists(&mut *transaction, user_id).await?;
        transaction.commit().await?;
        Ok(found.then_some(ended))
    });
    let ended = ended.await?.ok_or(Error::NotFound)?;
    ending.committed();
    audit(actor, "session_end", ending.reason.label(), Some(user_id), only);
    Ok(ended)
}
