//! The one error of the services. It knows no HTTP; `http::error` says what each becomes there.

use std::sync::Arc;
use std::time::Duration;

use crate::db::batch::BatchError;
use crate::db::{database_message, sqlstate};
use crate::domain::session::EndReason;
use crate::domain::tokens::TokenError;
use crate::passwords::pool::Overloaded;

/// Why a service did not do what it was asked to.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// No account with that address, or not its password; not distinguished, to prevent account enumeration.
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
    #[error("access token refused: {}", .0.label())]
    InvalidAccessToken(AccessRefusal),
    /// A token from a mail that is unknown, spent or expired.
    #[error("invalid or expired token")]
    InvalidMailToken,
    /// A login with the right password, where the address must be verified first.
    #[error("e-mail not verified")]
    EmailNotVerified,
    /// A bearer who may not do this.
    #[error("not permitted")]
    Forbidden,
    /// No such user or session.
    #[error("not found")]
    NotFound,
    /// The only administrator is to be deleted or demoted.
    #[error("the last administrator")]
    LastAdmin,
    /// A user is to be deleted to whom a row of another table refers.
    #[error("other data still refers to this user: {}", database_message(.0))]
    StillReferenced(#[source] Arc<sqlx::Error>),
    /// The database refuses a write, and would refuse it again: the data (class 22 or 23) or the privilege (42501).
    #[error("the database refuses this change: {}", database_message(.0))]
    RefusedByDatabase(#[source] Arc<sqlx::Error>),
    /// Too many failed logins or registrations; one more fits after this long.
    #[error("throttled")]
    Throttled(Duration),
    /// The queue for hashing is full, or there are too many connections; there may be room again after this long.
    #[error("too busy")]
    Busy(Duration),
    /// It is not known which sessions have ended.
    #[error("the ended sessions are not known")]
    RevocationsUnknown,
    /// The process has been asked to stop.
    #[error("stopping")]
    Stopping,
    /// The database failed or cannot be reached.
    #[error("the database failed: {}", database_message(.0))]
    Database(#[source] Arc<sqlx::Error>),
}

/// Why an access token is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessRefusal {
    /// Not genuine, or not an access token.
    Invalid,
    Expired,
    /// Its session has ended, or its user is gone.
    Ended,
}

impl AccessRefusal {
    /// The name that is sent and counted.
    pub fn label(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Expired => "expired",
            Self::Ended => "ended",
        }
    }
}

impl From<AccessRefusal> for Error {
    fn from(refusal: AccessRefusal) -> Self {
        Self::InvalidAccessToken(refusal)
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Arc::new(error).into()
    }
}

impl From<Arc<sqlx::Error>> for Error {
    /// A row that a foreign key asks for may have been deleted a moment ago; a retry then gets the right answer.
    fn from(error: Arc<sqlx::Error>) -> Self {
        let for_good =
            |code: &str| code == "42501" || (code.starts_with("22") || code.starts_with("23")) && code != FOREIGN_KEY;
        if sqlstate(&error).is_some_and(|code| for_good(&code)) {
            Self::RefusedByDatabase(error)
        } else {
            Self::Database(error)
        }
    }
}

const FOREIGN_KEY: &str = "23503";

impl Error {
    /// Of the deletion of a user, where a foreign key means that the user is referred to.
    pub(crate) fn of_deletion(error: sqlx::Error) -> Self {
        if sqlstate(&error).as_deref() == Some(FOREIGN_KEY) {
            Self::StillReferenced(Arc::new(error))
        } else {
            error.into()
        }
    }
}

impl From<BatchError> for Error {
    fn from(error: BatchError) -> Self {
        match error {
            BatchError::Full => Self::Busy(Duration::from_secs(1)),
            BatchError::Database(error) | BatchError::InDoubt(error) => error.into(),
        }
    }
}

impl From<Overloaded> for Error {
    fn from(overloaded: Overloaded) -> Self {
        Self::Busy(overloaded.retry_after)
    }
}
