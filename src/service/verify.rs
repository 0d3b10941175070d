//! Whether an access token is good, decided in memory: for gateways that ask before every request of the shop, and for our
//! own routes.

use std::time::Duration;

use super::tokens::verify_access;
use crate::app::App;
use crate::domain::role::Role;
use crate::domain::tokens::{AccessClaims, TokenError};
use crate::error::{AccessRefusal, Error};

/// A list of ended sessions that is older than this is out of date.
pub const MAX_AGE: Duration = Duration::from_secs(2);

/// What a gateway asks of a request.
#[derive(Clone, Debug, Default)]
pub struct Requirement {
    /// The role that the token must name.
    pub role: Option<Role>,
    /// Whether a request without a token is allowed, too.
    pub optional: bool,
}

/// Decides about a request to another service: whose it is, or `None` if it has no token and needs none. Counts the
/// outcome.
pub fn verify(app: &App, bearer: Option<&str>, required: &Requirement) -> Result<Option<AccessClaims>, Error> {
    let outcome = decide(app, bearer, required);
    let label = match &outcome {
        Ok(Some(_)) => "allowed",
        Ok(None) => "anonymous",
        Err(Error::NotAuthenticated) => "missing",
        Err(Error::InvalidAccessToken(refusal)) => refusal.label(),
        Err(Error::Forbidden) => "forbidden",
        Err(_) => "unavailable",
    };
    app.metrics.verifications.with_label_values(&[label]).inc();
    outcome
}

fn decide(app: &App, bearer: Option<&str>, required: &Requirement) -> Result<Option<AccessClaims>, Error> {
    up_to_date(app)?;
    let Some(token) = bearer else {
        return if required.optional { Ok(None) } else { Err(Error::NotAuthenticated) };
    };
    let claims = access_token(app, token)?;
    if required.role.as_ref().is_some_and(|role| role.as_str() != claims.role) {
        return Err(Error::Forbidden);
    }
    Ok(Some(claims))
}

/// What a good access token says. A session that is not known to have ended may have ended all the same, elsewhere and
/// less than a second ago.
pub(super) fn access_token(app: &App, token: &str) -> Result<AccessClaims, Error> {
    let claims = verify_access(app, token, app.clock.now()).map_err(|error| match error {
        TokenError::Expired => AccessRefusal::Expired,
        TokenError::Invalid | TokenError::WrongType => AccessRefusal::Invalid,
    })?;
    if app.revocations.contains(claims.session_id) { Err(AccessRefusal::Ended.into()) } else { Ok(claims) }
}

/// Whether it is known which sessions have ended, as far as the configuration asks for it.
pub(super) fn up_to_date(app: &App) -> Result<(), Error> {
    let age = app.revocations.age_if_complete();
    let is_known = age.is_some_and(|age| age <= MAX_AGE || app.config.serves_when_stale);
    if is_known { Ok(()) } else { Err(Error::RevocationsUnknown) }
}
