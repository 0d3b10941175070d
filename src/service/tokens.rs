//! The tokens that a login issues, and those that clients present.

use chrono::{DateTime, Utc};

use crate::app::App;
use crate::db::sessions::NewSession;
use crate::db::users::User;
use crate::domain::client::ClientInfo;
use crate::domain::ids::SessionId;
use crate::domain::password::PasswordHash;
use crate::domain::throttle::Bucket;
use crate::domain::tokens::{AccessClaims, RefreshClaims, TokenError, TokenPair, Verified};

pub(super) fn new_session(
    app: &App,
    user: &User,
    client: &ClientInfo,
    verified: PasswordHash,
    replacement: Option<PasswordHash>,
    counted: Vec<Bucket>,
) -> (NewSession, TokenPair) {
    let now = app.clock.now();
    let id = SessionId::generate();
    let (refresh, token) = app.tokens.issue_refresh(&user.email, id, now);
    let access = app.tokens.sign_access(&user.email, &user.role, id, now);
    let session = NewSession {
        id,
        user_id: user.id,
        verified,
        replacement,
        client: client.clone(),
        token,
        counted,
        max_sessions: app.config.max_sessions_per_user,
        notice: None,
        revocations: app.revocations.clone(),
        now,
    };
    (session, TokenPair { access, refresh })
}

/// What a genuine access token says; counted by the key that verified it.
pub(super) fn verify_access(app: &App, token: &str, now: DateTime<Utc>) -> Result<AccessClaims, TokenError> {
    counted(app, "access", app.tokens.verify_access(token, now))
}

/// What a genuine refresh token says; counted by the key that verified it.
pub(super) fn verify_refresh(app: &App, token: &str, now: DateTime<Utc>) -> Result<RefreshClaims, TokenError> {
    counted(app, "refresh", app.tokens.verify_refresh(token, now))
}

fn counted<T>(app: &App, kind: &str, verified: Verified<'_, T>) -> Result<T, TokenError> {
    let outcome = verified.claims.as_ref().err().map_or("valid", |error| error.label());
    app.metrics.tokens_verified.with_label_values(&[kind, verified.key, outcome]).inc();
    verified.claims
}
