//! Registering a user.

use uuid::Uuid;

use super::audit::audit;
use super::bearer::require_admin;
use super::login::slot_for_counted;
use crate::app::App;
use crate::db;
use crate::db::users::{Counted, Lookup, Verification};
use crate::domain::client::ClientInfo;
use crate::domain::email::Email;
use crate::domain::password::Password;
use crate::domain::role::Role;
use crate::domain::throttle;
use crate::error::Error;

/// Registers a user, who gets a mail to verify the address where mail is on. `bearer` is asked for only if the role is not
/// open to everybody.
pub async fn register(
    app: &App,
    email: &Email,
    password: Password,
    role: &Role,
    bearer: Option<&str>,
    client: &ClientInfo,
) -> Result<(), Error> {
    if !app.config.register_open_roles.contains(role) {
        // All other clients get this one answer.
        require_admin(app, bearer).await.map_err(|error| match error {
            Error::Database(_) => error,
            _ => Error::RoleNotOpen,
        })?;
    }
    app.hasher.check_room()?;
    let buckets = if app.config.throttle { throttle::register(client.ip) } else { Vec::new() };
    let lookup = Lookup { email: email.clone(), client: client.ip, buckets, now: app.clock.now() };
    let found = app.account_lookups.submit(lookup).await?;
    let counted = match found.counted {
        Counted::In(buckets) => buckets,
        Counted::Refused(wait) => {
            audit(client, "register", "throttled", None, None);
            return Err(Error::Throttled(wait));
        }
    };
    if let Some(account) = found.account {
        audit(client, "register", "email_taken", Some(account.user.id), None);
        return Err(Error::EmailTaken);
    }
    let hash = slot_for_counted(app, &counted).await?.hash(password).await?;
    let (hash, now) = (&hash, app.clock.now());
    let verification =
        if app.config.mail.is_on() { Verification::Mail(Uuid::now_v7(), client.locale) } else { Verification::None };
    let created = db::retry::execute(&app.db, |mut connection, again| async move {
        match db::users::insert(&mut *connection, email, hash, role, verification, now).await? {
            // Perhaps an earlier attempt, which was being committed just then.
            None if again => db::users::insert(&mut *connection, email, hash, role, verification, now).await,
            created => Ok(created),
        }
    });
    let created = created.await?;
    if created.is_some() {
        app.mail_inserted.notify_one();
    }
    audit(client, "register", if created.is_some() { "success" } else { "email_taken" }, created, None);
    created.map(|_| ()).ok_or(Error::EmailTaken)
}
