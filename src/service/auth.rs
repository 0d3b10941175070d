//! Registering, signing in and out, and changing the password.
//!
//! What a refused login tells an outsider: nothing. An unknown address and a wrong password cost one real hash each and
//! say the same sentence; while accounts with bcrypt hashes are left, every refusal is held back until one of theirs
//! would have come ([`crate::passwords::hasher::Hasher::refusal_delay`]). A throttled attempt is answered before any hash, for
//! known and unknown accounts alike.

use chrono::{DateTime, Utc};

use super::users::Bearer;
use super::{TokenPair, audit};
use crate::app::App;
use crate::config::Throttle;
use crate::db;
use crate::db::queue::Batched as _;
use crate::db::sessions::{NewSession, Which};
use crate::db::users::{Account, Lookup, User};
use crate::domain::email::Email;
use crate::domain::ids::SessionId;
use crate::domain::password::{Password, PasswordHash, Verdict};
use crate::domain::role::Role;
use crate::domain::session::{Device, EndReason};
use crate::domain::throttle::{Bucket, BucketKey};
use crate::domain::tokens::{Jti, RefreshToken, TokenHash};
use crate::error::Error;

/// How often a login starts over because the account's hash changed beneath it.
const ATTEMPTS: usize = 3;

/// Which sessions a log-out ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    This,
    Others,
    All,
}

/// Registers a user. `bearer` is asked for only if the role is not open to everybody.
pub async fn register(
    app: &App,
    email: &Email,
    password: Password,
    role: &Role,
    bearer: Option<&str>,
    device: &Device,
) -> Result<(), Error> {
    if !app.config.register_open_roles.contains(role) {
        // Whoever is not an administrator learns no more than that.
        super::users::require_admin(app, bearer).await.map_err(|error| match error {
            Error::Database(_) => error,
            _ => Error::RoleNotOpen,
        })?;
    }
    let slot = app.hasher.acquire().await?;
    let now = app.clock.now();
    let throttle = app.config.throttle.iter();
    let bucket =
        |throttle: &Throttle| Bucket { key: BucketKey::register_network(device.ip), limit: throttle.register_network };
    let buckets: Vec<Bucket> = throttle.map(bucket).collect();
    let found = app.lookups.call(Lookup { email: email.clone(), buckets: buckets.clone() }).await?;
    if let Err(error) = wait_for(&buckets, &found.tats, now) {
        audit("register", "throttled", None, None, device.ip);
        return Err(error);
    }
    if let Some(account) = found.account {
        db::throttle::count(&app.db, &buckets, now).await?;
        audit("register", "email_taken", Some(account.user.id), None, device.ip);
        return Err(Error::EmailTaken);
    }
    let hash = slot.hash(password).await?;
    let created = db::users::insert(&app.db, email, &hash, role, &buckets, now).await?;
    audit("register", if created.is_some() { "success" } else { "email_taken" }, created, None, device.ip);
    created.map(|_| ()).ok_or(Error::EmailTaken)
}

/// Signs in with a password: a new session, and its first tokens.
pub async fn login(app: &App, email: &Email, password: Password, device: &Device) -> Result<TokenPair, Error> {
    let outcome = try_login(app, email, &password, device).await;
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

async fn try_login(app: &App, email: &Email, password: &Password, device: &Device) -> Result<TokenPair, Error> {
    for _ in 0..ATTEMPTS {
        let verified = verify_password(app, "login", email, password, device).await?;
        let user = verified.account.user;
        let pair = NewPair::issue(app, &user, SessionId::generate());
        let session = pair.session(&user, device, verified.account.password_hash, verified.replacement);
        if app.openings.call(session).await? {
            audit("login", "success", Some(user.id), Some(pair.session_id), device.ip);
            return Ok(pair.sign(app, &user));
        }
    }
    // Three changes of one password during three logins: whatever that is, it is not signing in.
    Err(Error::InvalidCredentials)
}

/// Changes the password of the bearer. All sessions end, the one that asked is replaced by a new one; so nothing that
/// was stolen before, and no refresh in flight, outlives the change.
pub async fn change_password(
    app: &App,
    bearer: &Bearer,
    current: &Password,
    new: Password,
    device: &Device,
) -> Result<TokenPair, Error> {
    let email = Email::from_stored(bearer.user.email.clone());
    let verified = verify_password(app, "password_change", &email, current, device).await?;
    let user = verified.account.user;
    if user.id != bearer.user.id {
        return Err(Error::InvalidCredentials);
    }
    let hash = app.hasher.acquire().await?.hash(new).await?;
    let pair = NewPair::issue(app, &user, SessionId::generate());
    let session = pair.session(&user, device, verified.account.password_hash, Some(hash));
    let mut transaction = app.db.begin().await?;
    if NewSession::decide(&mut transaction, &[&session]).await? != [true] {
        return Err(Error::InvalidCredentials);
    }
    let others = Which::AllBut(pair.session_id);
    db::sessions::end(&mut transaction, user.id, others, EndReason::PasswordChanged, pair.now).await?;
    db::refresh_tokens::revoke_sessionless(&mut *transaction, user.id, None).await?;
    transaction.commit().await?;
    audit("password_change", "success", Some(user.id), Some(pair.session_id), device.ip);
    Ok(pair.sign(app, &user))
}

/// Signs out with a refresh token. A genuine one is enough to end its own session, whatever has become of it; for more
/// than that it must still be good.
pub async fn logout(app: &App, token: &str, scope: Scope, device: &Device) -> Result<(), Error> {
    let now = app.clock.now();
    let presented = app.tokens.verify_refresh(token, now).map_err(Error::RefreshToken)?;
    if scope == Scope::This {
        let mut connection = app.db.acquire().await?;
        let user = db::refresh_tokens::log_out(&mut connection, &presented, now).await?;
        audit("logout", "success", user, presented.session_id, device.ip);
        return Ok(());
    }
    let owner = db::refresh_tokens::owner(&app.db, &presented, now).await?;
    let owner = owner.filter(|owner| owner.current).ok_or(Error::RefreshRefused(None))?;
    let others = owner.session_id.map_or(Which::All, Which::AllBut);
    let mut transaction = app.db.begin().await?;
    db::sessions::end(&mut transaction, owner.user_id, others, EndReason::LoggedOutElsewhere, now).await?;
    db::refresh_tokens::revoke_sessionless(&mut *transaction, owner.user_id, Some(&presented.jti)).await?;
    if scope == Scope::All {
        db::refresh_tokens::log_out(&mut transaction, &presented, now).await?;
    }
    transaction.commit().await?;
    let event = if scope == Scope::All { "logout_all" } else { "logout_others" };
    audit(event, "success", Some(owner.user_id), owner.session_id, device.ip);
    Ok(())
}

/// An account whose password was right.
struct Verified {
    account: Account,
    replacement: Option<PasswordHash>,
}

/// Throttle, look-up and password check: the part that logging in and changing the password share. No connection is
/// held while the password is hashed or waits to be.
async fn verify_password(
    app: &App,
    event: &'static str,
    email: &Email,
    password: &Password,
    device: &Device,
) -> Result<Verified, Error> {
    let slot = app.hasher.acquire().await?;
    let now = app.clock.now();
    let buckets: Vec<Bucket> =
        app.config.throttle.iter().flat_map(|throttle| login_buckets(throttle, email, device)).collect();
    let found = app.lookups.call(Lookup { email: email.clone(), buckets: buckets.clone() }).await?;
    let user_id = found.account.as_ref().map(|account| account.user.id);
    if let Err(error) = wait_for(&buckets, &found.tats, now) {
        audit(event, "throttled", user_id, None, device.ip);
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
    audit(event, "invalid", user_id, None, device.ip);
    Err(Error::InvalidCredentials)
}

fn login_buckets(throttle: &Throttle, email: &Email, device: &Device) -> [Bucket; 2] {
    [
        Bucket { key: BucketKey::login_account(email, device.ip), limit: throttle.login_account },
        Bucket { key: BucketKey::login_network(device.ip), limit: throttle.login_network },
    ]
}

/// Refuses while any of the buckets is empty.
fn wait_for(buckets: &[Bucket], tats: &[Option<DateTime<Utc>>], now: DateTime<Utc>) -> Result<(), Error> {
    let waits = buckets.iter().zip(tats).filter_map(|(bucket, tat)| bucket.limit.wait(*tat, now));
    match waits.max() {
        None => Ok(()),
        Some(wait) => Err(Error::Throttled(wait.to_std().unwrap_or_default())),
    }
}

/// The tokens of a session that is about to be opened.
struct NewPair {
    session_id: SessionId,
    jti: Jti,
    refresh: RefreshToken,
    token_hash: TokenHash,
    expires_at: DateTime<Utc>,
    now: DateTime<Utc>,
}

impl NewPair {
    fn issue(app: &App, user: &User, session_id: SessionId) -> Self {
        let now = app.clock.now();
        let jti = Jti::generate();
        let expires_at = app.tokens.refresh_expiry(now);
        let refresh = app.tokens.sign_refresh(&user.email, &jti, session_id, expires_at);
        Self { session_id, token_hash: refresh.hash(), jti, refresh, expires_at, now }
    }

    fn session(
        &self,
        user: &User,
        device: &Device,
        verified: PasswordHash,
        replacement: Option<PasswordHash>,
    ) -> NewSession {
        NewSession {
            id: self.session_id,
            user_id: user.id,
            verified,
            replacement,
            device: device.clone(),
            jti: self.jti.clone(),
            token_hash: self.token_hash.clone(),
            expires_at: self.expires_at,
            now: self.now,
        }
    }

    fn sign(self, app: &App, user: &User) -> TokenPair {
        let access = app.tokens.sign_access(&user.email, &user.role, self.session_id, self.now);
        TokenPair { access, refresh: self.refresh }
    }
}
