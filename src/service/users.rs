//! Listing, changing and deleting users.

use sqlx::PgPool;

use super::audit::audit_admin;
use super::bearer::Bearer;
use crate::app::App;
use crate::db;
use crate::db::sessions::Which;
pub use crate::db::users::{User, UserDetails};
use crate::domain::client::ClientInfo;
use crate::domain::ids::UserId;
use crate::domain::page::{Page, PageSize};
use crate::domain::role::Role;
use crate::domain::session::EndReason;
use crate::error::Error;

/// Lists users by id, those with a greater one than `after`; with `email`, only the one with exactly that address.
pub async fn list(db: &PgPool, after: UserId, size: PageSize, email: Option<&str>) -> Result<Page<User>, Error> {
    Ok(size.page(db::users::list(db, after, size.rows(), email).await?))
}

/// A user with what administrators see of one.
pub async fn get(db: &PgPool, id: UserId) -> Result<UserDetails, Error> {
    db::users::get(db, id).await?.ok_or(Error::NotFound)
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
