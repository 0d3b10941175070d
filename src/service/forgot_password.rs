//! Asking for a mail to reset a forgotten password with.

use chrono::{DateTime, Utc};
use sqlx::PgPool;

use super::audit::{Actor, audit};
use super::mail;
use crate::app::App;
use crate::db;
use crate::db::mail_outbox::{NewMail, Recipient};
use crate::db::users::User;
use crate::domain::client::ClientInfo;
use crate::domain::email::Email;
use crate::domain::mail::{Locale, Template};
use crate::error::Error;

/// Accepts a request for whatever address. One statement counts it and inserts the mail; it looks at no account, so that
/// neither the answer nor its time nor the rows that it leaves tell whether there is one. That turns out when the mail is
/// sent, which then goes to the address that the account has.
pub async fn forgot_password(app: &App, email: &Email, locale: Locale, client: &ClientInfo) -> Result<(), Error> {
    let recipient = Recipient::Address(email.clone());
    let mail = NewMail::new(Template::ResetPassword, locale, recipient, app.clock.now());
    mail::request(app, "password_forgot", None, email, &mail, client).await
}

/// Sends a user such a mail without a limit, for the command line.
pub async fn send_reset(
    db: &PgPool,
    actor: Actor,
    user: &User,
    locale: Locale,
    now: DateTime<Utc>,
) -> Result<(), Error> {
    let mail = NewMail::new(Template::ResetPassword, locale, Recipient::User(user.id), now);
    db::mail_outbox::insert(db, &mail, &[]).await?;
    audit(actor, "password_forgot", "accepted", Some(user.id), None);
    Ok(())
}
