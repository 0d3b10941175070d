//! Mails: how they get into the outbox, and the worker that sends them.
//!
//! A mail is inserted in the transaction of its cause. The worker of any replica claims it for the time of a lease, and
//! then draws its token, stores the token's hash, and sends it; no connection is held meanwhile. What becomes of it:
//!
//! - The server accepts it: it is sent.
//! - The server refuses it for good: it is a dead letter, for an operator to look at (`auth mail list`).
//! - It fails: it is tried again, for a day. It may have arrived all the same. So it keeps its `Message-ID`, by which the
//!   recipient's program can tell that it is the same, and the tokens of the last two attempts are valid.
//! - The replica dies: another one sends it when the lease is over.
//! - Nobody is to get it, because no account has the address or the address is verified already: it is deleted.
//!
//! Sending a mail takes more work than deleting one. So that the time of other requests does not tell which it was, the
//! worker begins after a random delay, and takes one mail after the other at a fixed pace, which leaves it idle mostly.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgPool;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use uuid::Uuid;

use super::audit::{Actor, audit};
use super::cleanup::jittered;
use crate::app::App;
use crate::config::MailSettings;
use crate::db;
pub use crate::db::mail_outbox::Unsent;
use crate::db::mail_outbox::{Claimed, NewMail, Recipient};
use crate::db::users::User;
use crate::domain::client::ClientInfo;
use crate::domain::email::Email;
use crate::domain::ids::UserId;
use crate::domain::mail::{Locale, Template};
use crate::domain::mail_token::MailToken;
use crate::domain::page::{Page, PageSize};
use crate::domain::throttle;
use crate::error::Error;
use crate::mail::{Content, Mailer, Message, SendError};

/// Mails that a replica sends at once.
const AT_ONCE: usize = 4;
/// From one mail to the next.
const PACE: Duration = Duration::from_millis(50);
/// The longest time until the worker begins with a mail of its replica.
const LONGEST_DELAY: Duration = Duration::from_millis(250);
/// How often a replica looks for mails of which it was not told: those of other replicas, and those that are due again.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// How long a replica may take for a mail before another one may have it. Longer than sending and marking it takes.
const LEASE: Duration = Duration::from_mins(5);
/// The pause before the second attempt; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_mins(10);
/// The pause before what became of a mail is noted again, while the database is away.
const NOTE_PAUSE: Duration = Duration::from_secs(1);
/// How long a process that has been asked to stop waits for mails that are being sent.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Inserts a mail that a client asks for, within the limits.
pub(super) async fn request(
    app: &App,
    event: &'static str,
    user_id: Option<UserId>,
    email: &Email,
    mail: &NewMail,
    client: &ClientInfo,
) -> Result<(), Error> {
    let limited = app.config.throttle;
    let buckets = &if limited { throttle::mail(mail.template, email, client.ip) } else { Vec::new() };
    let wait = db::retry::execute(&app.db, |mut connection, _| async move {
        db::mail_outbox::insert(&mut *connection, mail, buckets).await
    });
    let wait = wait.await?;
    audit(client, event, if wait.is_some() { "throttled" } else { "accepted" }, user_id, None);
    app.mail_inserted.notify_one();
    wait.map_or(Ok(()), |wait| Err(Error::Throttled(wait)))
}

/// The notice that a user gets, where there are notices, also of what an operator does.
pub(super) fn notice(
    settings: &MailSettings,
    template: Template,
    user_id: UserId,
    locale: Locale,
    now: DateTime<Utc>,
) -> Option<NewMail> {
    settings.has_notices().then(|| NewMail::new(template, locale, Recipient::User(user_id), now))
}

/// A mail that this replica is to send.
#[derive(Debug)]
pub struct Outgoing {
    pub message: Message,
    pub claimed: Claimed,
}

/// The next mail that is due, with its token, whose hash has been stored.
pub async fn next(app: &App) -> Result<Option<Outgoing>, Error> {
    loop {
        let now = app.clock.now();
        let Some(claimed) = db::mail_outbox::claim(&app.db, now, now + LEASE).await? else { return Ok(None) };
        if claimed.give_up_at <= now {
            let reason = claimed.last_error.clone().unwrap_or_else(|| "it waited for too long".to_owned());
            finish(app, &claimed, &Err(SendError::Rejected(reason))).await?;
            continue;
        }
        if let Some(message) = write(app, &claimed, now).await? {
            return Ok(Some(Outgoing { message, claimed }));
        }
        db::mail_outbox::delete(&app.db, Some(claimed.id)).await?;
        count(app, "dropped", claimed.template);
        tokio::time::sleep(PACE).await;
    }
}

/// Writes a mail, if somebody is to get it.
async fn write(app: &App, claimed: &Claimed, now: DateTime<Utc>) -> sqlx::Result<Option<Message>> {
    let user_id = match &claimed.recipient {
        Recipient::User(id) => Some(*id),
        Recipient::Address(email) => db::users::find(&app.db, email).await?.map(|user| user.id),
    };
    let Some(user_id) = user_id else { return Ok(None) };
    let Some(details) = db::users::get(&app.db, user_id).await? else { return Ok(None) };
    let content = match claimed.template {
        Template::VerifyEmail if details.email_verified => None,
        Template::VerifyEmail => {
            draw(app, claimed, &details.user, now).await?.map(|token| Content::VerifyEmail { token })
        }
        Template::ResetPassword => {
            draw(app, claimed, &details.user, now).await?.map(|token| Content::ResetPassword { token })
        }
        Template::PasswordChanged => Some(Content::PasswordChanged),
        Template::PasswordReset => Some(Content::PasswordReset),
        Template::NewSignIn => match claimed.session_id {
            Some(id) => db::sessions::origin(&app.db, id).await?.map(|(at, ip)| Content::NewSignIn { at, ip }),
            None => None,
        },
    };
    // The address that the account has, whatever was typed.
    let to = Email::from_stored(details.user.email);
    Ok(content.map(|content| Message { id: claimed.id, to, locale: claimed.locale, content }))
}

/// Draws the token of a mail and stores its hash, unless a later mail has taken its place.
async fn draw(app: &App, claimed: &Claimed, user: &User, now: DateTime<Utc>) -> sqlx::Result<Option<MailToken>> {
    let token = MailToken::generate();
    let expires_at = now + claimed.template.token_lifetime().unwrap_or_default();
    let put = db::mail_tokens::put(&app.db, user, claimed.template, claimed.id, &token.hash(), expires_at).await?;
    Ok(put.then_some(token))
}

/// Notes what became of a mail.
pub async fn finish(app: &App, mail: &Claimed, outcome: &Result<(), SendError>) -> Result<(), Error> {
    let now = app.clock.now();
    let due_at = now + TimeDelta::from_std(pause_after(mail.attempts)).unwrap_or_default();
    let (label, due_at, reason) = match outcome {
        Ok(()) => ("sent", None, None),
        Err(SendError::Failed(reason)) if due_at < mail.give_up_at => ("retried", Some(due_at), Some(reason)),
        Err(SendError::Failed(reason) | SendError::Rejected(reason)) => ("dead", None, Some(reason)),
    };
    let noted = db::retry::execute(&app.db, |mut connection, _| async move {
        match reason {
            None => db::mail_outbox::sent(&mut *connection, mail.id, now).await,
            Some(reason) => db::mail_outbox::failed(&mut *connection, mail, reason, due_at, now).await,
        }
    });
    noted.await?;
    count(app, label, mail.template);
    let (template, reason) = (mail.template.label(), reason.map(tracing::field::display));
    if label == "dead" {
        tracing::warn!(mail.id = %mail.id, template, reason, "a mail is given up; see `auth mail list`");
    } else {
        tracing::info!(mail.id = %mail.id, template, reason, "mail {label}");
    }
    Ok(())
}

fn pause_after(attempts: i32) -> Duration {
    let doublings = u32::try_from(attempts - 1).unwrap_or(0).min(10);
    jittered((FIRST_PAUSE * 2_u32.pow(doublings)).min(LONGEST_PAUSE))
}

fn count(app: &App, outcome: &str, template: Template) {
    app.metrics.mails.with_label_values(&[outcome, template.label()]).inc();
}

/// Sends mails until the process is asked to stop, and then those that it has claimed.
pub async fn run(app: App, mailer: Arc<Mailer>) {
    let mut sending = JoinSet::new();
    let mut poll = tokio::time::interval(POLL_INTERVAL);
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let has_room = sending.len() < AT_ONCE;
        if has_room {
            match next(&app).await {
                Ok(Some(outgoing)) => {
                    sending.spawn(send(app.clone(), Arc::clone(&mailer), outgoing));
                    tokio::time::sleep(PACE).await;
                    continue;
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "could not look for mails"),
            }
        }
        tokio::select! {
            biased;
            () = app.stopping.cancelled() => break,
            Some(sent) = sending.join_next() => {
                if let Err(panic) = sent {
                    // The mail is sent again when its lease is over.
                    tracing::error!(error = &panic as &dyn std::error::Error, "sending a mail panicked");
                }
            }
            () = app.mail_inserted.notified(), if has_room => {
                tokio::time::sleep(LONGEST_DELAY.mul_f64(rand::random_range(0.0..1.0))).await;
            }
            _ = poll.tick() => {}
        }
    }
    let rest = async { while sending.join_next().await.is_some() {} };
    if tokio::time::timeout(STOP_TIMEOUT, rest).await.is_err() {
        tracing::warn!("mails that were being sent were cut off; they will be sent again");
    }
}

async fn send(app: App, mailer: Arc<Mailer>, outgoing: Outgoing) {
    let outcome = mailer.send(&outgoing.message).await;
    let started = Instant::now();
    // While the database is away. When the lease is over, the mail is another replica's.
    while let Err(error) = finish(&app, &outgoing.claimed, &outcome).await {
        if started.elapsed() > LEASE {
            tracing::warn!(error = &error as &dyn std::error::Error, "could not note what became of a mail");
            return;
        }
        tokio::time::sleep(NOTE_PAUSE).await;
    }
}

/// Updates the age of the oldest mail that waits, for ever. Apart from the worker, so that it tells when that stands still.
pub async fn measure(app: App) {
    let mut ticks = tokio::time::interval(POLL_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Ok(oldest) = db::mail_outbox::oldest_unsent(&app.db).await {
            let age = oldest.map_or(0.0, |oldest| (app.clock.now() - oldest).as_seconds_f64().max(0.0));
            app.metrics.mail_oldest_unsent.set(age);
        }
    }
}

/// A page of the mails that wait or were given up, the oldest first.
pub async fn list_unsent(db: &PgPool, after: Uuid, size: PageSize) -> Result<Page<Unsent>, Error> {
    Ok(size.page(db::mail_outbox::list_unsent(db, after, size.rows()).await?))
}

/// Has one unsent mail sent at once, or all. Returns how many there are; one that is being sent is left alone.
pub async fn retry(db: &PgPool, actor: Actor, only: Option<Uuid>, now: DateTime<Utc>) -> Result<u64, Error> {
    found(only, db::mail_outbox::retry(db, only, now).await?, actor, "mail_retry")
}

/// Deletes one unsent mail, or all that were given up. Returns how many there were.
pub async fn delete_unsent(db: &PgPool, actor: Actor, only: Option<Uuid>) -> Result<u64, Error> {
    found(only, db::mail_outbox::delete(db, only).await?, actor, "mail_drop")
}

/// Writes the audit line, unless the one mail is not there that was meant.
fn found(only: Option<Uuid>, count: u64, actor: Actor, event: &'static str) -> Result<u64, Error> {
    if only.is_some() && count == 0 {
        return Err(Error::NotFound);
    }
    audit(actor, event, "success", None, None);
    Ok(count)
}
