//! Verifying that an address is its user's.

use super::audit::audit;
use super::bearer::Bearer;
use super::mail;
use crate::app::App;
use crate::db;
use crate::db::mail_outbox::{NewMail, Recipient};
use crate::domain::client::ClientInfo;
use crate::domain::email::Email;
use crate::domain::mail::Template;
use crate::domain::mail_token::MailToken;
use crate::error::Error;

/// Marks the address verified that the token was sent to. The token stays good for its time, so a second click succeeds.
pub async fn verify_email(app: &App, token: &MailToken, client: &ClientInfo) -> Result<(), Error> {
    let (token, now) = (&token.hash(), app.clock.now());
    let verified = db::retry::execute(&app.db, |mut connection, _| async move {
        db::mail_tokens::verify_email(&mut *connection, token, now).await
    });
    let user_id = verified.await?;
    audit(client, "email_verify", if user_id.is_some() { "success" } else { "invalid" }, user_id, None);
    user_id.map(|_| ()).ok_or(Error::InvalidMailToken)
}

/// Sends the bearer another mail to verify the address with, unless it is verified.
pub async fn resend(app: &App, bearer: &Bearer, client: &ClientInfo) -> Result<(), Error> {
    let user = &bearer.user;
    let recipient = Recipient::User(user.id);
    let mail = NewMail::new(Template::VerifyEmail, client.locale, recipient, app.clock.now());
    let email = Email::from_stored(user.email.clone());
    mail::request(app, "email_verify_resend", Some(user.id), &email, &mail, client).await
}
