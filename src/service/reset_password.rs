//! Choosing a new password with a token from a mail.

use sqlx::Connection as _;

use super::audit::audit;
use super::mail;
use super::password::after_new_password;
use crate::app::App;
use crate::db;
use crate::db::revocations::Ending;
use crate::db::sign_out::Except;
use crate::domain::client::ClientInfo;
use crate::domain::ids::UserId;
use crate::domain::mail::Template;
use crate::domain::mail_token::MailToken;
use crate::domain::password::Password;
use crate::domain::session::EndReason;
use crate::domain::throttle;
use crate::error::Error;

const EVENT: &str = "password_reset";

/// Resets a password. All sessions of the user end, all tokens in mails are void, and the address is verified, because the
/// mail was read. Failed logins from this network do not count any more.
pub async fn reset_password(app: &App, token: &MailToken, new: Password, client: &ClientInfo) -> Result<(), Error> {
    let token = &token.hash();
    // So that only a good token buys a hash, or a place in the queue for one. Whether it is still good is decided when it
    // is spent.
    let Some((user_id, email)) = &db::mail_tokens::find_reset(&app.db, token, app.clock.now()).await? else {
        return refused(None, client);
    };
    let user_id = *user_id;
    let hash = &app.hasher.acquire().await?.hash(new).await?;
    let now = app.clock.now();
    let notice = &mail::notice(&app.config.mail, Template::PasswordReset, user_id, client.locale, now);
    let failed_logins = &app.config.throttle.then(|| throttle::login_of_account(email, client.ip));
    let ending = &Ending::new(&app.revocations, EndReason::PasswordReset, now);
    let reset = db::retry::execute(&app.db, |mut connection, again| async move {
        let mut transaction = connection.begin().await?;
        if !db::mail_tokens::spend_reset(&mut *transaction, user_id, token, hash, now).await? {
            // Perhaps an earlier attempt has spent it, which may have been committed just then.
            return Ok(again && db::users::has_password_hash(&mut *transaction, user_id, hash).await?);
        }
        after_new_password(&mut transaction, ending, user_id, Except::Nothing, notice.as_ref()).await?;
        if let Some(buckets) = failed_logins {
            db::throttle::empty(&mut *transaction, buckets).await?;
        }
        transaction.commit().await?;
        Ok(true)
    });
    if !reset.await? {
        return refused(Some(user_id), client);
    }
    ending.committed();
    app.mail_inserted.notify_one();
    audit(client, EVENT, "success", Some(user_id), None);
    Ok(())
}

fn refused(user_id: Option<UserId>, client: &ClientInfo) -> Result<(), Error> {
    audit(client, EVENT, "invalid", user_id, None);
    Err(Error::InvalidMailToken)
}
