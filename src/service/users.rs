//! Finding, listing, creating, changing and deleting users, for administrators and the command line.

use chrono::{DateTime, Utc};
use sqlx::{Connection as _, PgPool};

use super::audit::{Actor, audit};
use crate::db;
use crate::db::revocations::{Ending, Revocations};
use crate::db::sign_out::Except;
use crate::db::users::{Change, Verification};
pub use crate::db::users::{User, UserDetails};
use crate::domain::email::Email;
use crate::domain::ids::UserId;
use crate::domain::page::{Page, PageSize};
use crate::domain::password::PasswordHash;
use crate::domain::role::Role;
use crate::domain::session::EndReason;
use crate::error::Error;

/// Lists users by id, those with a greater one than `after`; with `email`, only the one with that address, in any case.
pub async fn list(db: &PgPool, after: UserId, size: PageSize, email: Option<&Email>) -> Result<Page<User>, Error> {
    let users = match email {
        Some(email) => db::users::find(db, email).await?.filter(|user| user.id.0 > after.0).into_iter().collect(),
        None => db::users::list(db, after, size.rows()).await?,
    };
    Ok(size.page(users))
}

pub async fn get(db: &PgPool, id: UserId) -> Result<UserDetails, Error> {
    db::users::get(db, id).await?.ok_or(Error::NotFound)
}

pub async fn find(db: &PgPool, email: &Email) -> Result<User, Error> {
    db::users::find(db, email).await?.ok_or(Error::NotFound)
}

/// Creates a user with any role, whose address counts as verified. (Clients register, see [`super::register`].)
pub async fn create(
    db: &PgPool,
    actor: Actor,
    email: &Email,
    hash: &PasswordHash,
    role: &Role,
    now: DateTime<Utc>,
) -> Result<UserId, Error> {
    let created = db::users::insert(db, email, hash, role, Verification::Done, now).await?;
    audit(actor, "register", if created.is_some() { "success" } else { "email_taken" }, created, None);
    created.ok_or(Error::EmailTaken)
}

/// Gives a user another role. Access tokens that were issued keep the old one until they expire.
pub async fn set_role(pool: &PgPool, actor: Actor, id: UserId, role: &Role, now: DateTime<Utc>) -> Result<User, Error> {
    let changed = db::retry::execute(pool, |mut connection, _| async move {
        db::users::set_role(&mut connection, id, role, now).await
    });
    finish(actor, "role_change", id, changed.await?)
}

/// Deletes a user and ends the user's sessions; their rows stay for the reason.
pub async fn delete(
    pool: &PgPool,
    revocations: &Revocations,
    actor: Actor,
    id: UserId,
    now: DateTime<Utc>,
) -> Result<(), Error> {
    let ending = &Ending::new(revocations, EndReason::UserDeleted, now);
    let deleted = db::retry::execute(pool, |mut connection, again| async move {
        let mut transaction = connection.begin().await?;
        db::sign_out::end_all(&mut transaction, ending, id, Except::Nothing).await?;
        match db::users::delete(&mut transaction, id).await? {
            Change::Done(()) => transaction.commit().await.map(Change::Done),
            // An earlier attempt deleted the user.
            Change::NoSuchUser if again => Ok(Change::Done(())),
            refused => Ok(refused),
        }
    });
    let deleted = deleted.await.map_err(Error::of_deletion)?;
    if matches!(deleted, Change::Done(())) {
        ending.committed();
    }
    finish(actor, "user_delete", id, deleted)
}

/// Writes the audit line of a change.
fn finish<T>(actor: Actor, event: &'static str, id: UserId, change: Change<T>) -> Result<T, Error> {
    match change {
        Change::Done(value) => {
            audit(actor, event, "success", Some(id), None);
            Ok(value)
        }
        Change::LastAdmin => {
            audit(actor, event, "last_admin", Some(id), None);
            Err(Error::LastAdmin)
        }
        Change::NoSuchUser => Err(Error::NotFound),
    }
}
