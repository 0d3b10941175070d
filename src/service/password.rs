//! Changing a password.

use chrono::{DateTime, Utc};
use sqlx::{Connection as _, PgConnection, PgPool};

use super::audit::{Actor, audit};
use super::bearer::Bearer;
use super::login::verify_password;
use super::mail;
use super::tokens::new_session;
use crate::app::App;
use crate::config::MailSettings;
use crate::db;
use crate::db::batch::BatchedCall as _;
use crate::db::mail_outbox::NewMail;
use crate::db::revocations::{Ending, Revocations};
use crate::db::sessions::NewSession;
use crate::db::sign_out::Except;
use crate::domain::client::ClientInfo;
use crate::domain::email::Email;
use crate::domain::ids::UserId;
use crate::domain::mail::{Locale, Template};
use crate::domain::password::{Password, PasswordHash};
use crate::domain::session::EndReason;
use crate::domain::tokens::TokenPair;
use crate::error::Error;

/// Changes the password of the bearer. All sessions end, and the caller gets a new one. So no token that was
/// stolen before, no refresh in progress, and no token in a mail is valid after the change.
pub async fn change_password(
    app: &App,
    bearer: &Bearer,
    current: &Password,
    new: Password,
    client: &ClientInfo,
) -> Result<TokenPair, Error> {
    let email = Email::from_stored(bearer.user.email.clone());
    let verified = verify_password(app, "password_change", &email, current, client).await?;
    let user = verified.account.user;
    if user.id != bearer.user.id {
        return Err(Error::InvalidCredentials);
    }
    let hash = app.hasher.acquire().await?.hash(new).await?;
    let (session, tokens) = new_session(app, &user, client, verified.account.password_hash, Some(hash), Vec::new());
    // All others end, and are to say why.
    let session = NewSession { max_sessions: i64::MAX, ..session };
    let (user_id, others, session) = (user.id, Except::Session(session.id), &session);
    let notice = &mail::notice(&app.config.mail, Template::PasswordChanged, user_id, client.locale, session.now);
    let ending = &Ending::new(&app.revocations, EndReason::PasswordChanged, session.now);
    let answer = app.unanswered_logins.expect(session.opened());
    let changed = db::retry::execute(&app.db, |mut connection, again| async move {
        let mut transaction = connection.begin().await?;
        let mut opened = NewSession::execute(&mut transaction, &[session]).await?;
        if again && opened != [true] {
            // Perhaps an earlier attempt has changed the password, which was being committed just then.
            opened = NewSession::execute(&mut transaction, &[session]).await?;
        }
        if opened == [true] {
            after_new_password(&mut transaction, ending, user_id, others, notice.as_ref()).await?;
            transaction.commit().await?;
        }
        Ok(opened == [true])
    });
    let changed = changed.await?;
    answer.answered();
    if !changed {
        return Err(Error::InvalidCredentials);
    }
    app.mail_inserted.notify_one();
    ending.committed();
    audit(client, "password_change", "success", Some(user.id), Some(session.id));
    Ok(tokens)
}

/// What follows a new password, in its transaction: sessions end, tokens in mails are void, and the user is told. Returns how
/// many sessions there were.
pub(super) async fn after_new_password(
    connection: &mut PgConnection,
    ending: &Ending,
    user_id: UserId,
    except: Except<'_>,
    notice: Option<&NewMail>,
) -> sqlx::Result<u64> {
    let ended = db::sign_out::end_all(connection, ending, user_id, except).await?;
    db::mail_tokens::void(&mut *connection, user_id).await?;
    if let Some(notice) = notice {
        db::mail_outbox::insert(connection, notice, &[]).await?;
    }
    Ok(ended)
}

/// Sets a user's password and ends all of the user's sessions, for the command line. The user gets the same notice as of
/// a change of their own. Returns how many sessions there were.
pub async fn set_password(
    db: &PgPool,
    actor: Actor,
    user_id: UserId,
    hash: &PasswordHash,
    mail: &MailSettings,
    locale: Locale,
    now: DateTime<Utc>,
) -> Result<u64, Error> {
    let notice = mail::notice(mail, Template::PasswordChanged, user_id, locale, now);
    let mut transaction = db.begin().await?;
    db::users::set_password_hash(&mut *transaction, user_id, hash, now).await?;
    let ending = Ending::new(&Revocations::default(), EndReason::PasswordChanged, now);
    let ended = after_new_password(&mut transaction, &ending, user_id, Except::Nothing, notice.as_ref()).await?;
    transaction.commit().await?;
    audit(actor, "password_change", "success", Some(user_id), None);
    Ok(ended)
}
