//! Signing in with a password.
//!
//! A refused login does not tell whether the account exists: an unknown address and a wrong password cost one real hash
//! each and get the same answer at the same time, also while hashes of other schemes or costs are left
//! ([`crate::passwords::hasher`]). A throttled attempt is answered before any hash, for known and unknown accounts alike.

use uuid::Uuid;

use super::audit::audit;
use super::tokens::new_session;
use crate::app::App;
use crate::db;
use crate::db::batch::BatchError;
use crate::db::sessions::NewSession;
use crate::db::users::{Account, Counted, Lookup};
use crate::domain::client::ClientInfo;
use crate::domain::email::Email;
use crate::domain::password::{Password, PasswordHash, Verdict};
use crate::domain::throttle::{self, Bucket};
use crate::domain::tokens::TokenPair;
use crate::error::Error;
use crate::passwords::hasher::HashSlot;

/// How often a login starts over because the account's hash changed meanwhile.
const ATTEMPTS: usize = 3;

/// Signs in with a password: a new session, and its first tokens.
pub async fn login(app: &App, email: &Email, password: Password, client: &ClientInfo) -> Result<TokenPair, Error> {
    let outcome = try_login(app, email, &password, client).await;
    let label = match &outcome {
        Ok(_) => "success",
        Err(Error::InvalidCredentials) => "invalid",
        Err(Error::EmailNotVerified) => "unverified",
        Err(Error::Throttled(_)) => "throttled",
        Err(Error::Busy(_)) => "shed",
        Err(_) => "failed",
    };
    app.metrics.logins.with_label_values(&[label]).inc();
    outcome
}

async fn try_login(app: &App, email: &Email, password: &Password, client: &ClientInfo) -> Result<TokenPair, Error> {
    for _ in 0..ATTEMPTS {
        let verified = verify_password(app, "login", email, password, client).await?;
        let Account { user, password_hash, email_verified } = verified.account;
        if app.config.mail.login_requires_verified_email && !email_verified {
            // The password was right, which counts as little as where it opens a session.
            db::throttle::take_back(&app.db, &verified.counted).await?;
            audit(client, "login", "unverified", Some(user.id), None);
            return Err(Error::EmailNotVerified);
        }
        let (session, tokens) = new_session(app, &user, client, password_hash, verified.replacement, verified.counted);
        // Ordered by time, as all ids of mails.
        let session = NewSession { notice: app.config.mail.has_notices().then(Uuid::now_v7), ..session };
        let id = session.id;
        let answer = app.unanswered_logins.expect(session.opened());
        let opened = app.session_inserts.submit(session).await;
        // A refused one may be an earlier attempt's, if that was being committed just then.
        if matches!(opened, Ok(true) | Err(BatchError::Full | BatchError::Database(_))) {
            answer.answered();
        }
        if opened? {
            audit(client, "login", "success", Some(user.id), Some(id));
            return Ok(tokens);
        }
    }
    // The password was changed during each of the attempts.
    Err(Error::InvalidCredentials)
}

pub(super) struct VerifiedAccount {
    pub account: Account,
    pub replacement: Option<PasswordHash>,
    /// Where the attempt was counted.
    pub counted: Vec<Bucket>,
}

/// Throttle, look-up and password check: the part that logging in and changing the password share. No connection is
/// held while the password is hashed or waits to be.
pub(super) async fn verify_password(
    app: &App,
    event: &'static str,
    email: &Email,
    password: &Password,
    client: &ClientInfo,
) -> Result<VerifiedAccount, Error> {
    app.hasher.check_room()?;
    let buckets = if app.config.throttle { throttle::login(email, client.ip) } else { Vec::new() };
    let lookup = Lookup { email: email.clone(), client: client.ip, buckets, now: app.clock.now() };
    let found = app.account_lookups.submit(lookup).await?;
    let user_id = found.account.as_ref().map(|account| account.user.id);
    let counted = match found.counted {
        Counted::In(buckets) => buckets,
        Counted::Refused(wait) => {
            audit(client, event, "throttled", user_id, None);
            return Err(Error::Throttled(wait));
        }
    };
    let slot = slot_for_counted(app, &counted).await?;
    let stored = found.account.as_ref().map(|account| account.password_hash.clone());
    let checked = slot.verify(password.clone(), stored).await?;
    if let (Verdict::Match { .. }, Some(account)) = (checked.verdict, found.account) {
        return Ok(VerifiedAccount { account, replacement: checked.replacement, counted });
    }
    if checked.verdict == Verdict::Unusable {
        tracing::warn!(
            user.id = user_id.map(|id| id.0),
            "the stored password hash is unusable; the user cannot sign in"
        );
    }
    audit(client, event, "invalid", user_id, None);
    Err(Error::InvalidCredentials)
}

/// A slot in the queue for hashing, for an attempt that fits in its buckets. One that does not fit takes none: it costs its
/// sender nothing, and many of them would keep the queue full. Where the queue is full by now, it was no attempt.
pub(super) async fn slot_for_counted<'a>(app: &'a App, counted: &[Bucket]) -> Result<HashSlot<'a>, Error> {
    match app.hasher.acquire().await {
        Ok(slot) => Ok(slot),
        Err(overloaded) => {
            db::throttle::take_back(&app.db, counted).await?;
            Err(overloaded.into())
        }
    }
}
