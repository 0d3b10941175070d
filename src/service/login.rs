//! Signing in with a password.
//!
//! A refused login does not tell whether the account exists: an unknown address and a wrong password cost one real hash
//! each and get the same answer. While accounts with bcrypt hashes are left, every refusal is delayed until one of
//! theirs would have come ([`crate::passwords::hasher::Hasher::refusal_delay`]). A throttled attempt is answered before any
//! hash, for known and unknown accounts alike.

use chrono::{DateTime, Utc};

use super::audit::audit;
use super::tokens::{IssuedSession, TokenPair};
use crate::app::App;
use crate::config::Throttle;
use crate::db;
use crate::db::users::{Account, Lookup};
use crate::domain::client::ClientInfo;
use crate::domain::email::Email;
use crate::domain::ids::SessionId;
use crate::domain::password::{Password, PasswordHash, Verdict};
use crate::domain::throttle::{Bucket, BucketKey};
use crate::error::Error;

/// How often a login starts over because the account's hash changed beneath it.
const ATTEMPTS: usize = 3;

/// Signs in with a password: a new session, and its first tokens.
pub async fn login(app: &App, email: &Email, password: Password, client: &ClientInfo) -> Result<TokenPair, Error> {
    let outcome = try_login(app, email, &password, client).await;
    let label = match &outcome {
        Ok(_) => "success",
        Err(Error::InvalidCredentials) => "invalid",
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
        let user = verified.account.user;
        let issued = IssuedSession::issue(app, &user, SessionId::generate());
        let session = issued.session(&user, client, verified.account.password_hash, verified.replacement);
        if app.session_inserts.submit(session).await? {
            audit("login", "success", Some(user.id), Some(issued.session_id), client.ip);
            return Ok(issued.sign(app, &user));
        }
    }
    // The password was changed during each of the attempts.
    Err(Error::InvalidCredentials)
}

/// An account whose password was right.
pub(super) struct Verified {
    pub account: Account,
    pub replacement: Option<PasswordHash>,
}

/// Throttle, look-up and password check: the part that logging in and changing the password share. No connection is
/// held while the password is hashed or waits to be.
pub(super) async fn verify_password(
    app: &App,
    event: &'static str,
    email: &Email,
    password: &Password,
    client: &ClientInfo,
) -> Result<Verified, Error> {
    let slot = app.hasher.acquire().await?;
    let now = app.clock.now();
    let buckets: Vec<Bucket> =
        app.config.throttle.iter().flat_map(|throttle| login_buckets(throttle, email, client)).collect();
    let found = app.account_lookups.submit(Lookup { email: email.clone(), buckets: buckets.clone() }).await?;
    let user_id = found.account.as_ref().map(|account| account.user.id);
    if let Err(error) = refuse_throttled(&buckets, &found.tats, now) {
        audit(event, "throttled", user_id, None, client.ip);
        return Err(error);
    }
    let stored = found.account.as_ref().map(|account| account.password_hash.clone());
    let checked = slot.verify(password.clone(), stored).await?;
    if let (Verdict::Match { .. }, Some(account)) = (checked.verdict, found.account) {
        return Ok(Verified { account, replacement: checked.replacement });
    }
    if checked.verdict == Verdict::Unusable {
        tracing::warn!(
            user.id = user_id.map(|id| id.0),
            "the stored password hash is unusable; the user cannot sign in"
        );
    }
    let delay = tokio::time::sleep(app.hasher.refusal_delay(&checked));
    let (counted, ()) = tokio::join!(db::throttle::count(&app.db, &buckets, now), delay);
    counted?;
    audit(event, "invalid", user_id, None, client.ip);
    Err(Error::InvalidCredentials)
}

fn login_buckets(throttle: &Throttle, email: &Email, client: &ClientInfo) -> [Bucket; 2] {
    [
        Bucket { key: BucketKey::login_account(email, client.ip), limit: throttle.login_account },
        Bucket { key: BucketKey::login_network(client.ip), limit: throttle.login_network },
    ]
}

/// Refuses while any of the buckets is empty.
pub(super) fn refuse_throttled(
    buckets: &[Bucket],
    tats: &[Option<DateTime<Utc>>],
    now: DateTime<Utc>,
) -> Result<(), Error> {
    let waits = buckets.iter().zip(tats).filter_map(|(bucket, tat)| bucket.limit.wait(*tat, now));
    match waits.max() {
        None => Ok(()),
        Some(wait) => Err(Error::Throttled(wait.to_std().unwrap_or_default())),
    }
}
