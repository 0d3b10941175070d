//! The one error of the services. It knows no HTTP; `http::error` says what each becomes there.

use std::sync::Arc;
use std::time::Duration;

use crate::domain::session::EndReason;
use crate::domain::tokens::TokenError;
use crate::passwords::pool::Overloaded;

/// Why a service did not do what it was asked to.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// No account with that address, or not its password; which of the two is nobody's business.
    #[error("invalid credentials")]
    InvalidCredentials,
    /// A registration for an address that has an account, in any spelling.
    #[error("e-mail already registered")]
    EmailTaken,
    /// A registration for a role that is not open to everybody, without an administrator's token.
    #[error("role not open for registration")]
    RoleNotOpen,
    /// A refresh token that is not genuine, of the wrong kind, or expired.
    #[error("refresh token: {0}")]
    RefreshToken(TokenError),
    /// A genuine refresh token that is not valid any more, with the reason if its session has ended.
    #[error("refresh token not valid")]
    RefreshRefused(Option<EndReason>),
    /// No access token where one is needed.
    #[error("not authenticated")]
    NotAuthenticated,
    /// An access token that is not genuine, expired, of the wrong kind, or whose session or user is gone.
    #[error("invalid access token")]
    InvalidAccessToken,
    /// A bearer who may not do this.
    #[error("not permitted")]
    Forbidden,
    /// No such user or session.
    #[error("not found")]
    NotFound,
    /// Too many failed logins or registrations; one more fits after this long.
    #[error("throttled")]
    Throttled(Duration),
    /// The queue for hashing is full, or there are too many connections; there may be room again after this long.
    #[error("too busy")]
    Busy(Duration),
    /// The database failed or cannot be reached.
    #[error("database failure")]
    Database(#[source] Arc<sqlx::Error>),
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(Arc::new(error))
    }
}

impl From<Overloaded> for Error {
    fn from(overloaded: Overloaded) -> Self {
        Self::Busy(overloaded.retry_after)
    }
}
