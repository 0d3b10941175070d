//! Who the bearer of an access token is, and what administrators do with users.

use chrono::{DateTime, Utc};
use sqlx::PgPool;

use super::audit_admin;
use crate::app::App;
use crate::config::UsersListAccess;
use crate::db;
use crate::db::sessions::Which;
pub use crate::db::users::User;
use crate::domain::ids::{SessionId, UserId};
use crate::domain::password::PasswordHash;
use crate::domain::role::Role;
use crate::domain::session::{Device, EndReason};
use crate::error::Error;

/// Somebody with a good access token, a living session and an account.
#[derive(Clone, Debug)]
pub struct Bearer {
    pub user: User,
    /// None for an access token of the Python service.
    pub session_id: Option<SessionId>,
}

/// Which part of the users to list.
#[derive(Clone, Debug)]
pub struct Page {
    pub limit: u32,
    /// Only users with a greater id.
    pub after: UserId,
    /// Only the user with exactly this address.
    pub email: Option<String>,
}

/// A part of the users.
#[derive(Clone, Debug)]
pub struct Users {
    pub users: Vec<User>,
    /// Where the next page starts, if there is more.
    pub next_after: Option<UserId>,
}

/// Who an access token speaks for. Its signature is not enough: account and session must exist.
pub async fn authenticate(app: &App, bearer: Option<&str>) -> Result<Bearer, Error> {
    let token = bearer.ok_or(Error::NotAuthenticated)?;
    let claims = app.tokens.verify_access(token, app.clock.now()).map_err(|_| Error::InvalidAccessToken)?;
    let user = db::users::of_bearer(&app.db, &claims.subject, claims.session_id).await?;
    Ok(Bearer { user: user.ok_or(Error::InvalidAccessToken)?, session_id: claims.session_id })
}

/// As [`authenticate`], and the account must be an administrator's now, whatever the token says.
pub async fn require_admin(app: &App, bearer: Option<&str>) -> Result<Bearer, Error> {
    let bearer = authenticate(app, bearer).await?;
    if bearer.user.role.is_admin() { Ok(bearer) } else { Err(Error::Forbidden) }
}

/// Lists users by id.
pub async fn list(app: &App, bearer: Option<&str>, page: &Page) -> Result<Users, Error> {
    if app.config.users_list_access == UsersListAccess::Admin {
        require_admin(app, bearer).await?;
    }
    let limit = usize::try_from(page.limit).unwrap_or(usize::MAX);
    // One more than asked for tells whether there is a next page.
    let mut users = db::users::list(&app.db, page.after, i64::from(page.limit) + 1, page.email.as_deref()).await?;
    let more = users.len() > limit;
    users.truncate(limit);
    let next_after = users.last().filter(|_| more).map(|user| user.id);
    Ok(Users { users, next_after })
}

/// Gives a user another role. Access tokens that are out keep the old one until they expire.
pub async fn set_role(app: &App, admin: &Bearer, id: UserId, role: &Role, device: &Device) -> Result<User, Error> {
    let user = db::users::set_role(&app.db, id, role, app.clock.now()).await?.ok_or(Error::NotFound)?;
    audit_admin("role_change", "success", admin, id, device.ip);
    Ok(user)
}

/// Deletes a user and ends the user's sessions; their rows stay for the reason.
pub async fn delete(app: &App, admin: &Bearer, id: UserId, device: &Device) -> Result<(), Error> {
    let mut transaction = app.db.begin().await?;
    db::sessions::end(&mut transaction, id, Which::All, EndReason::UserDeleted, app.clock.now()).await?;
    if !db::users::delete(&mut *transaction, id).await? {
        return Err(Error::NotFound);
    }
    transaction.commit().await?;
    audit_admin("user_delete", "success", admin, id, device.ip);
    Ok(())
}

/// Sets a user's password and ends all of the user's sessions, for the command line; returns how many.
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
