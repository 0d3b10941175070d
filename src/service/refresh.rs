//! Exchanging a refresh token (RFC 9700 §4.14.2, refresh token rotation).
//!
//! One statement decides whether a token is exchanged ([`crate::db::refresh_tokens::Rotation`]); what remains is to say
//! why one was not. A token that was used a moment ago is its owner's own retry: the response was lost, or a second tab
//! was faster. Depending on the configuration the retry is turned away or gets the identical successor, and the session
//! lives either way. A token that was used longer ago has two holders, and nobody can tell which is the thief: the
//! session ends.

use std::net::IpAddr;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::audit::audit;
use super::tokens::TokenPair;
use crate::app::App;
use crate::config::GraceAnswer;
use crate::db;
use crate::db::batch::BatchError;
use crate::db::refresh_tokens::{Rotation, TokenState, Used};
use crate::db::sessions::Which;
use crate::domain::client::ClientInfo;
use crate::domain::ids::SessionId;
use crate::domain::session::EndReason;
use crate::domain::tokens::{Jti, RefreshClaims};
use crate::error::Error;

impl From<BatchError> for Error {
    fn from(error: BatchError) -> Self {
        match error {
            BatchError::Full => Self::Busy(Duration::from_secs(1)),
            BatchError::Database(error) => Self::Database(error),
        }
    }
}

/// What became of a refresh.
enum Outcome {
    Rotated(TokenPair),
    /// The owner's own retry, answered with the identical successor.
    ReplayedAnswer(TokenPair),
    /// The owner's own retry, turned away; the session lives.
    GraceRefused,
    /// A stolen token; the session has ended.
    ReplayDetected,
    /// A token that is not valid any more, with the reason if its session has ended.
    Refused(Option<EndReason>),
    /// Nothing could be decided.
    Failed(Error),
}

impl Outcome {
    /// The name in the metrics and in the audit log.
    fn label(&self) -> &'static str {
        match self {
            Self::Rotated(_) => "rotated",
            Self::ReplayedAnswer(_) => "replayed_answer",
            Self::GraceRefused => "grace_refused",
            Self::ReplayDetected => "replay_detected",
            Self::Refused(_) => "refused",
            Self::Failed(_) => "failed",
        }
    }

    fn into_answer(self) -> Result<TokenPair, Error> {
        match self {
            Self::Rotated(pair) | Self::ReplayedAnswer(pair) => Ok(pair),
            Self::GraceRefused => Err(Error::RefreshRefused(None)),
            Self::ReplayDetected => Err(Error::RefreshRefused(Some(EndReason::ReplayDetected))),
            Self::Refused(reason) => Err(Error::RefreshRefused(reason)),
            Self::Failed(error) => Err(error),
        }
    }
}

/// Exchanges a refresh token for a new pair.
pub async fn refresh(app: &App, token: &str, client: ClientInfo) -> Result<TokenPair, Error> {
    let now = app.clock.now();
    let presented = app.tokens.verify_refresh(token, now).map_err(Error::RefreshToken)?;
    let outcome = rotate(app, &presented, client, now).await.unwrap_or_else(Outcome::Failed);
    app.metrics.refreshes.with_label_values(&[outcome.label()]).inc();
    outcome.into_answer()
}

async fn rotate(
    app: &App,
    presented: &RefreshClaims,
    client: ClientInfo,
    now: DateTime<Utc>,
) -> Result<Outcome, Error> {
    let session_id = presented.session_id.unwrap_or_else(SessionId::generate);
    let jti = Jti::generate();
    let expires_at = app.tokens.refresh_expiry(now);
    let successor = app.tokens.sign_refresh(&presented.subject, &jti, session_id, expires_at);
    let ip = client.ip;
    let rotation = Rotation {
        presented: presented.clone(),
        session_id,
        next_jti: jti,
        next_hash: successor.hash(),
        next_expires_at: expires_at,
        client,
        now,
    };
    if let Some(rotated) = app.token_rotations.submit(rotation).await? {
        let access = app.tokens.sign_access(&presented.subject, &rotated.role, session_id, now);
        return Ok(Outcome::Rotated(TokenPair { access, refresh: successor }));
    }
    let outcome = match db::refresh_tokens::classify_refused(&app.db, presented, now).await? {
        TokenState::Used(used) => reused(app, presented, &used, ip, now).await?,
        TokenState::SessionEnded(reason) => Outcome::Refused(Some(reason)),
        TokenState::Unknown | TokenState::Expired | TokenState::Revoked => Outcome::Refused(None),
    };
    if matches!(outcome, Outcome::GraceRefused | Outcome::Refused(_)) {
        audit("refresh", outcome.label(), None, presented.session_id, ip);
    }
    Ok(outcome)
}

/// Answers a token that was exchanged before.
async fn reused(
    app: &App,
    presented: &RefreshClaims,
    used: &Used,
    client: IpAddr,
    now: DateTime<Utc>,
) -> Result<Outcome, Error> {
    if now - used.used_at >= app.config.refresh_grace {
        end_stolen_session(app, used, client).await?;
        return Ok(Outcome::ReplayDetected);
    }
    Ok(repeat_answer(app, presented, used, now).map_or(Outcome::GraceRefused, Outcome::ReplayedAnswer))
}

/// The identical successor, where the configuration says so and it can be signed again.
fn repeat_answer(app: &App, presented: &RefreshClaims, used: &Used, now: DateTime<Utc>) -> Option<TokenPair> {
    if app.config.refresh_grace_answer == GraceAnswer::Reject {
        return None;
    }
    let successor = used.successor.as_ref()?;
    let refresh = app.tokens.resign_refresh(
        &presented.subject,
        &successor.jti,
        used.session_id,
        successor.expires_at,
        &successor.token_hash,
    )?;
    let access = app.tokens.sign_access(&presented.subject, &used.role, used.session_id, now);
    Some(TokenPair { access, refresh })
}

/// Committed before the refusal leaves, so that whoever is told has already lost the session.
async fn end_stolen_session(app: &App, used: &Used, client: IpAddr) -> sqlx::Result<()> {
    let now = app.clock.now();
    let mut connection = app.db.acquire().await?;
    let which = Which::One(used.session_id);
    let ended = db::sessions::end(&mut connection, used.user_id, which, EndReason::ReplayDetected, now).await?;
    if ended > 0 {
        app.metrics.replays_detected.inc();
        tracing::warn!(
            user.id = used.user_id.0,
            session.id = %used.session_id,
            "a used refresh token came back: session ended"
        );
        audit("refresh", "replay_detected", Some(used.user_id), Some(used.session_id), client);
    }
    Ok(())
}
