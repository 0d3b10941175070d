//! Exchanging a refresh token (RFC 9700 §4.14.2, refresh token rotation).
//!
//! One statement decides whether a token is exchanged ([`crate::db::refresh_tokens::Rotation`]); what remains is to say
//! why one was not: [`Outcome`] has the cases, and ARCHITECTURE.md goes through them. A token that comes back late is known
//! to two parties, and it cannot be told which of them is the thief: the session ends.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::audit::{Actor, audit, audit_with_reason};
use super::tokens::verify_refresh;
use crate::app::App;
use crate::db;
use crate::db::batch::BatchError;
use crate::db::refresh_tokens::{Decision, Exchange, Rotation, TokenState, Used};
use crate::db::revocations::Ending;
use crate::domain::client::ClientInfo;
use crate::domain::ids::SessionId;
use crate::domain::session::EndReason;
use crate::domain::throttle::REFRESH_SESSION;
use crate::domain::tokens::{RefreshClaims, TokenPair};
use crate::error::Error;

/// The longest time that an answer may be on its way. A token that comes back later than this, after the grace, was
/// not sent by a client that waits for its answer.
const ANSWER_TIME: TimeDelta = TimeDelta::minutes(1);

/// The name of [`Outcome::Overlapped`], also for those who wait for the same decision.
const OVERLAPPED: &str = "overlapped";

enum Outcome {
    Rotated(TokenPair),
    /// Another request with the same token was being decided; both get the identical successor.
    Overlapped(TokenPair),
    /// The owner's own retry within the grace, answered with the identical successor.
    ReplayedAnswer(TokenPair),
    /// The owner's own retry after an answer that the database's failure prevented: no client had the successor yet.
    Recovered(TokenPair),
    /// A retry soon after the answer or the grace, refused; the session lives.
    GraceRefused,
    /// A stolen token; the session has ended.
    ReplayDetected,
    /// A good token of a session that refreshes too often.
    Throttled(Duration),
    /// A token that is not valid any more, with the reason if its session has ended.
    Refused(Option<EndReason>),
    Failed(Error),
}

impl Outcome {
    /// The name in the metrics and in the audit log.
    fn label(&self) -> &'static str {
        match self {
            Self::Rotated(_) => "rotated",
            Self::Overlapped(_) => OVERLAPPED,
            Self::ReplayedAnswer(_) => "replayed_answer",
            Self::Recovered(_) => "recovered",
            Self::GraceRefused => "grace_refused",
            Self::ReplayDetected => "replay_detected",
            Self::Throttled(_) => "throttled",
            Self::Refused(_) => "refused",
            Self::Failed(_) => "failed",
        }
    }

    fn into_answer(self) -> Result<TokenPair, Error> {
        match self {
            Self::Rotated(pair) | Self::Overlapped(pair) | Self::ReplayedAnswer(pair) | Self::Recovered(pair) => {
                Ok(pair)
            }
            Self::GraceRefused => Err(Error::RefreshRefused(None)),
            Self::ReplayDetected => Err(Error::RefreshRefused(Some(EndReason::ReplayDetected))),
            Self::Throttled(wait) => Err(Error::Throttled(wait)),
            Self::Refused(reason) => Err(Error::RefreshRefused(reason)),
            Self::Failed(error) => Err(error),
        }
    }
}

pub async fn refresh(app: &App, token: &str, client: ClientInfo) -> Result<TokenPair, Error> {
    let now = app.clock.now();
    let presented = verify_refresh(app, token, now).map_err(Error::RefreshToken)?;
    let key = presented.hash.clone();
    let decide = async {
        let outcome = rotate(app, presented, client, now).await.unwrap_or_else(Outcome::Failed);
        (outcome.label(), outcome.into_answer())
    };
    let ((label, answer), shared) = app.refreshes.decide(key, decide).await;
    let label = if shared && answer.is_ok() { OVERLAPPED } else { label };
    app.metrics.refreshes.with_label_values(&[label]).inc();
    answer
}

async fn rotate(app: &App, presented: RefreshClaims, client: ClientInfo, now: DateTime<Utc>) -> Result<Outcome, Error> {
    let session_id = presented.session_id.unwrap_or_else(SessionId::generate);
    let (successor, next) = app.tokens.issue_refresh(&presented.subject, session_id, now);
    let actor = Actor::from(&client);
    let answer = app.unanswered_refreshes.expect(Exchange { presented: presented.jti.clone(), next: next.jti.clone() });
    let rotation = Rotation {
        presented: presented.clone(),
        session_id,
        next,
        client,
        max_sessions: app.config.max_sessions_per_user,
        revocations: app.revocations.clone(),
        limit: app.config.throttle.then_some(REFRESH_SESSION),
        now,
    };
    let overlapped = match app.token_rotations.submit(rotation).await {
        Ok(Decision::Rotated(role)) => {
            answer.answered();
            let access = app.tokens.sign_access(&presented.subject, &role, session_id, now);
            return Ok(Outcome::Rotated(TokenPair { access, refresh: successor }));
        }
        Ok(Decision::Refused { overlapped }) => overlapped,
        Err(error @ BatchError::InDoubt(_)) => {
            answer.failed();
            return Err(error.into());
        }
        Err(error) => {
            answer.answered();
            return Err(error.into());
        }
    };
    // Seldom needed, and large.
    let outcome = Box::pin(refused(app, &presented, overlapped, actor, now)).await?;
    answer.answered();
    Ok(outcome)
}

/// Says why a token was not exchanged, and answers it.
async fn refused(
    app: &App,
    presented: &RefreshClaims,
    overlapped: bool,
    actor: Actor,
    now: DateTime<Utc>,
) -> Result<Outcome, Error> {
    let limit = app.config.throttle.then_some(REFRESH_SESSION);
    let state = db::retry::execute(&app.db, |mut connection, _| async move {
        db::refresh_tokens::classify_refused(&mut *connection, presented, limit, now).await
    });
    let state = state.await?;
    let reason = state.label();
    let outcome = match state {
        TokenState::Used(used) => reused(app, presented, &used, overlapped, actor, now).await?,
        TokenState::Throttled(wait) => Outcome::Throttled(wait.to_std().unwrap_or_default()),
        TokenState::SessionEnded(reason) => Outcome::Refused(Some(reason)),
        TokenState::Unknown | TokenState::Expired | TokenState::Revoked => Outcome::Refused(None),
    };
    if matches!(outcome, Outcome::GraceRefused | Outcome::Throttled(_) | Outcome::Refused(_)) {
        audit_with_reason(actor, "refresh", outcome.label(), Some(reason), None, presented.session_id);
    }
    Ok(outcome)
}

/// Answers a token that was exchanged before.
async fn reused(
    app: &App,
    presented: &RefreshClaims,
    used: &Used,
    overlapped: bool,
    actor: Actor,
    now: DateTime<Utc>,
) -> Result<Outcome, Error> {
    let pair = sign_again(app, presented, used, now);
    if overlapped {
        return Ok(pair.map_or(Outcome::GraceRefused, Outcome::Overlapped));
    }
    // How long ago it was used; `None` while no client was told of it.
    let Some(age) = used_since(app, presented, used).map(|since| (now - since).max(TimeDelta::zero())) else {
        return Ok(pair.map_or(Outcome::GraceRefused, Outcome::Recovered));
    };
    if age >= app.config.refresh_grace + ANSWER_TIME {
        end_stolen_session(app, used, actor).await?;
        return Ok(Outcome::ReplayDetected);
    }
    Ok(match pair {
        Some(pair) if age < app.config.refresh_grace => Outcome::ReplayedAnswer(pair),
        _ => Outcome::GraceRefused,
    })
}

/// Since when a token counts as used: since its exchange, or, where no client was told of that, since the use of its
/// successor.
fn used_since(app: &App, presented: &RefreshClaims, used: &Used) -> Option<DateTime<Utc>> {
    let Some(successor) = &used.successor else { return used.used_at };
    let exchange = Exchange { presented: presented.jti.clone(), next: successor.token.jti.clone() };
    used.used_at.filter(|_| !app.unanswered_refreshes.contains(&exchange)).or(successor.used_at)
}

/// The identical successor and a new access token, if the successor can be signed again.
fn sign_again(app: &App, presented: &RefreshClaims, used: &Used, now: DateTime<Utc>) -> Option<TokenPair> {
    let successor = used.successor.as_ref()?;
    let refresh = app.tokens.resign_refresh(&presented.subject, used.session_id, &successor.token)?;
    let access = app.tokens.sign_access(&presented.subject, &used.role, used.session_id, now);
    Some(TokenPair { access, refresh })
}

/// Committed before the refusal is sent, so that the session has ended when a client learns of it.
async fn end_stolen_session(app: &App, used: &Used, actor: Actor) -> sqlx::Result<()> {
    let (user_id, id) = (used.user_id, used.session_id);
    let ending = &Ending::new(&app.revocations, EndReason::ReplayDetected, app.clock.now());
    let ended = db::retry::execute(&app.db, |mut connection, _| async move {
        db::sign_out::end_one(&mut connection, ending, user_id, id).await
    });
    let ended = ended.await?;
    // It has, in whichever attempt.
    app.revocations.add(&[id]);
    if ended {
        app.metrics.replays_detected.inc();
        tracing::warn!(
            user.id = user_id.0,
            session.id = %id,
            "a used refresh token came back: session ended"
        );
        audit(actor, "refresh", "replay_detected", Some(user_id), Some(id));
    }
    Ok(())
}
