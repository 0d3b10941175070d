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

use super::{TokenPair, audit};
use crate::app::App;
use crate::config::GraceAnswer;
use crate::db;
use crate::db::queue::QueueError;
use crate::db::refresh_tokens::{Refused, Rotation, Used};
use crate::db::sessions::Which;
use crate::domain::ids::SessionId;
use crate::domain::session::{Device, EndReason};
use crate::domain::tokens::{Jti, RefreshClaims};
use crate::error::Error;

impl From<QueueError> for Error {
    fn from(error: QueueError) -> Self {
        match error {
            QueueError::Full => Self::Busy(Duration::from_secs(1)),
            QueueError::Database(error) => Self::Database(error),
        }
    }
}

/// Exchanges a refresh token for a new pair.
pub async fn refresh(app: &App, token: &str, device: Device) -> Result<TokenPair, Error> {
    let now = app.clock.now();
    let presented = app.tokens.verify_refresh(token, now).map_err(Error::RefreshToken)?;
    let session_id = presented.session_id.unwrap_or_else(SessionId::generate);
    let jti = Jti::generate();
    let expires_at = app.tokens.refresh_expiry(now);
    let successor = app.tokens.sign_refresh(&presented.subject, &jti, session_id, expires_at);
    let client = device.ip;
    let rotation = Rotation {
        presented: presented.clone(),
        session_id,
        next_jti: jti,
        next_hash: successor.hash(),
        next_expires_at: expires_at,
        device,
        now,
    };
    let outcome = match app.refreshes.call(rotation).await {
        Ok(Some(rotated)) => {
            let access = app.tokens.sign_access(&presented.subject, &rotated.role, session_id, now);
            Ok((TokenPair { access, refresh: successor }, "rotated"))
        }
        Ok(None) => not_rotated(app, &presented, now, client).await,
        Err(error) => Err((error.into(), "failed")),
    };
    let (answer, label) = match outcome {
        Ok((pair, label)) => (Ok(pair), label),
        Err((error, label)) => (Err(error), label),
    };
    app.metrics.refreshes.with_label_values(&[label]).inc();
    answer
}

type Outcome = Result<(TokenPair, &'static str), (Error, &'static str)>;

async fn not_rotated(app: &App, presented: &RefreshClaims, now: DateTime<Utc>, client: IpAddr) -> Outcome {
    let failed = |error: sqlx::Error| (Error::from(error), "failed");
    let (reason, label) = match db::refresh_tokens::explain(&app.db, presented, now).await.map_err(failed)? {
        Refused::Used(used) if now - used.used_at < app.config.refresh_grace => {
            if let Some(pair) = repeat_answer(app, presented, &used, now) {
                return Ok((pair, "replayed_answer"));
            }
            (None, "grace_refused")
        }
        Refused::Used(used) => {
            end_stolen_session(app, &used, client).await.map_err(failed)?;
            (Some(EndReason::ReplayDetected), "replay_detected")
        }
        Refused::SessionEnded(reason) => (Some(reason), "refused"),
        Refused::Unknown | Refused::Expired | Refused::Revoked => (None, "refused"),
    };
    if label != "replay_detected" {
        audit("refresh", label, None, presented.session_id, client);
    }
    Err((Error::RefreshRefused(reason), label))
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
