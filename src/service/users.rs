//! Listing, changing and deleting users.

use super::audit::audit_admin;
use super::bearer::{Bearer, require_admin};
use crate::app::App;
use crate::config::UsersListAccess;
use crate::db;
use crate::db::sessions::Which;
pub use crate::db::users::User;
use crate::domain::client::ClientInfo;
use crate::domain::ids::UserId;
use crate::domain::role::Role;
use crate::domain::session::EndReason;
use crate::error::Error;

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
pub async fn set_role(app: &App, admin: &Bearer, id: UserId, role: &Role, client: &ClientInfo) -> Result<User, Error> {
    let user = db::users::set_role(&app.db, id, role, app.clock.now()).await?.ok_or(Error::NotFound)?;
    audit_admin("role_change", "success", admin, id, client.ip);
    Ok(user)
}

/// Deletes a user and ends the user's sessions; their rows stay for the reason.
pub async fn delete(app: &App, admin: &Bearer, id: UserId, client: &ClientInfo) -> Result<(), Error> {
    let mut transaction = app.db.begin().await?;
    db::sessions::end(&mut transaction, id, Which::All, EndReason::UserDeleted, app.clock.now()).await?;
    if !db::users::delete(&mut *transaction, id).await? {
        return Err(Error::NotFound);
    }
    transaction.commit().await?;
    audit_admin("user_delete", "success", admin, id, client.ip);
    Ok(())
}
