//! Registering a user.

use super::audit::audit;
use super::bearer::require_admin;
use super::login::refuse_throttled;
use crate::app::App;
use crate::config::Throttle;
use crate::db;
use crate::db::users::Lookup;
use crate::domain::client::ClientInfo;
use crate::domain::email::Email;
use crate::domain::password::Password;
use crate::domain::role::Role;
use crate::domain::throttle::{Bucket, BucketKey};
use crate::error::Error;

/// Registers a user. `bearer` is asked for only if the role is not open to everybody.
pub async fn register(
    app: &App,
    email: &Email,
    password: Password,
    role: &Role,
    bearer: Option<&str>,
    client: &ClientInfo,
) -> Result<(), Error> {
    if !app.config.register_open_roles.contains(role) {
        // Whoever is not an administrator learns no more than that.
        require_admin(app, bearer).await.map_err(|error| match error {
            Error::Database(_) => error,
            _ => Error::RoleNotOpen,
        })?;
    }
    let slot = app.hasher.acquire().await?;
    let now = app.clock.now();
    let throttle = app.config.throttle.iter();
    let bucket =
        |throttle: &Throttle| Bucket { key: BucketKey::register_network(client.ip), limit: throttle.register_network };
    let buckets: Vec<Bucket> = throttle.map(bucket).collect();
    let found = app.account_lookups.submit(Lookup { email: email.clone(), buckets: buckets.clone() }).await?;
    if let Err(error) = refuse_throttled(&buckets, &found.tats, now) {
        audit("register", "throttled", None, None, client.ip);
        return Err(error);
    }
    if let Some(account) = found.account {
        db::throttle::count(&app.db, &buckets, now).await?;
        audit("register", "email_taken", Some(account.user.id), None, client.ip);
        return Err(Error::EmailTaken);
    }
    let hash = slot.hash(password).await?;
    let created = db::users::insert(&app.db, email, &hash, role, &buckets, now).await?;
    audit("register", if created.is_some() { "success" } else { "email_taken" }, created, None, client.ip);
    created.map(|_| ()).ok_or(Error::EmailTaken)
}
