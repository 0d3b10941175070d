//! Finding, listing, creating, changing and deleting users, for administrators and the command line.

use chrono::{DateTime, Utc};
use sqlx::PgPool;

use super::audit::{Actor, audit_by};
use crate::db;
use crate::db::sessions::Except;
pub use crate::db::users::{User, UserDetails};
use crate::domain::email::Email;
use crate::domain::ids::UserId;
use crate::domain::page::{Page, PageSize};
use crate::domain::password::PasswordHash;
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

/// The user with this address, in any case.
pub async fn find(db: &PgPool, email: Email) -> Result<User, Error> {
    db::users::find(db, email).await?.ok_or(Error::NotFound)
}

/// Creates a user with any role. (Clients register, see [`super::register`].)
pub async fn create(
    db: &PgPool,
    actor: Actor,
    email: &Email,
    hash: &PasswordHash,
    role: &Role,
    now: DateTime<Utc>,
) -> Result<UserId, Error> {
    let created = db::users::insert(db, email, hash, role, now).await?;
    audit_by(actor, "register", if created.is_some() { "success" } else { "email_taken" }, created, None);
    created.ok_or(Error::EmailTaken)
}

/// Gives a user another role. Access tokens that are out keep the old one until they expire.
pub async fn set_role(db: &PgPool, actor: Actor, id: UserId, role: &Role, now: DateTime<Utc>) -> Result<User, Error> {
    let user = db::users::set_role(db, id, role, now).await?.ok_or(Error::NotFound)?;
    audit_by(actor, "role_change", "success", Some(id), None);
    Ok(user)
}

/// Deletes a user and ends the user's sessions; their rows stay for the reason.
pub async fn delete(db: &PgPool, actor: Actor, id: UserId, now: DateTime<Utc>) -> Result<(), Error> {
    let mut transaction = db.begin().await?;
    db::sessions::end_all(&mut transaction, id, Except::Nothing, EndReason::UserDeleted, now).await?;
    if !db::users::delete(&mut *transaction, id).await? {
        return Err(Error::NotFound);
    }
    transaction.commit().await?;
    audit_by(actor, "user_delete", "success", Some(id), None);
    Ok(())
}
