//! What each error becomes in HTTP: status, sentence, headers. FastAPI's shape, `{"detail": ...}`, throughout.

use std::time::Duration;

use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::answer::Json;
use super::problem::Problem;
use crate::domain::tokens::TokenError;
use crate::error::Error;

/// Why a token is refused. Why a session has ended is sent only to a client that presents a genuine refresh token of it.
const X_AUTH_REASON: HeaderName = HeaderName::from_static("x-auth-reason");

/// `Retry-After` while the database is away.
const DATABASE_RETRY: Duration = Duration::from_secs(2);

/// Why a request is answered with an error.
#[derive(Debug)]
pub(super) enum ApiError {
    Service(Error),
    /// The body broke off, is not text, is nested too deeply, or holds an absurdly long number.
    UnreadableBody,
    BodyTooLarge,
    /// The body or a parameter is not what was asked for. The list is never empty.
    Invalid(Vec<Problem>),
    /// A page of another site made a browser send this.
    ForeignOrigin,
    NotFound,
    MethodNotAllowed,
    /// The request took longer than it may.
    TimedOut,
    /// A defect of ours.
    Internal,
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        Self::Service(error)
    }
}

impl From<Problem> for ApiError {
    fn from(problem: Problem) -> Self {
        Self::Invalid(vec![problem])
    }
}

impl From<Vec<Problem>> for ApiError {
    fn from(problems: Vec<Problem>) -> Self {
        Self::Invalid(problems)
    }
}

pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: ErrorBody,
}

#[derive(Serialize)]
pub(super) struct ErrorBody {
    detail: Detail,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Detail {
    Sentence(&'static str),
    Problems(Vec<Problem>),
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Refusal { status, headers, body } = self.into();
        (status, headers, Json(body)).into_response()
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        match error {
            ApiError::Service(error) => service(&error),
            ApiError::UnreadableBody => detail(StatusCode::BAD_REQUEST, "There was an error parsing the body"),
            ApiError::Invalid(problems) => refusal(StatusCode::UNPROCESSABLE_ENTITY, Detail::Problems(problems)),
            ApiError::BodyTooLarge => detail(StatusCode::PAYLOAD_TOO_LARGE, "Request body too large"),
            ApiError::ForeignOrigin => detail(StatusCode::FORBIDDEN, "Cross-site request refused"),
            ApiError::NotFound => detail(StatusCode::NOT_FOUND, "Not Found"),
            ApiError::MethodNotAllowed => detail(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed"),
            ApiError::TimedOut => retry(StatusCode::SERVICE_UNAVAILABLE, "Request timed out", Duration::from_secs(1)),
            ApiError::Internal => detail(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error"),
        }
    }
}

fn service(error: &Error) -> Refusal {
    match error {
        Error::InvalidCredentials => unauthorized("Invalid credentials"),
        Error::EmailTaken => detail(StatusCode::CONFLICT, "Email already registered"),
        Error::RoleNotOpen => detail(StatusCode::FORBIDDEN, "Role not open for registration"),
        Error::RefreshToken(TokenError::Invalid) => unauthorized("Invalid refresh token"),
        Error::RefreshToken(TokenError::Expired) => because(unauthorized("Invalid refresh token"), "expired"),
        Error::RefreshToken(TokenError::WrongType) => unauthorized("Invalid token type"),
        Error::RefreshRefused(None) => unauthorized("Refresh token not valid"),
        Error::RefreshRefused(Some(reason)) => because(unauthorized("Refresh token not valid"), reason.label()),
        Error::NotAuthenticated => because(unauthorized("Not authenticated"), "missing"),
        Error::InvalidAccessToken(refusal) => because(unauthorized("Invalid access token"), refusal.label()),
        Error::InvalidMailToken => detail(StatusCode::BAD_REQUEST, "Invalid or expired token"),
        Error::EmailNotVerified => detail(StatusCode::FORBIDDEN, "Email not verified"),
        Error::Forbidden => detail(StatusCode::FORBIDDEN, "Not permitted"),
        Error::NotFound => detail(StatusCode::NOT_FOUND, "Not Found"),
        Error::LastAdmin => detail(StatusCode::CONFLICT, "The last administrator cannot be deleted or demoted"),
        Error::StillReferenced(_) => detail(StatusCode::CONFLICT, "Other data still refers to this user"),
        Error::RefusedByDatabase(_) => {
            tracing::error!(%error, "the database refused a change");
            detail(StatusCode::CONFLICT, "The database refuses this change")
        }
        Error::Throttled(wait) => retry(StatusCode::TOO_MANY_REQUESTS, "Too many attempts, try again later", *wait),
        Error::Busy(wait) => retry(StatusCode::SERVICE_UNAVAILABLE, "Service busy, try again later", *wait),
        // Every gateway's every request would get it, so it is not logged here.
        Error::RevocationsUnknown => {
            retry(StatusCode::SERVICE_UNAVAILABLE, "Service unavailable, try again later", Duration::from_secs(1))
        }
        Error::Stopping => retry(StatusCode::SERVICE_UNAVAILABLE, "Shutting down", Duration::from_secs(1)),
        Error::Database(_) => {
            tracing::error!(%error, "the database failed");
            retry(StatusCode::SERVICE_UNAVAILABLE, "Service unavailable, try again later", DATABASE_RETRY)
        }
    }
}

fn refusal(status: StatusCode, detail: Detail) -> Refusal {
    Refusal { status, headers: HeaderMap::new(), body: ErrorBody { detail } }
}

fn detail(status: StatusCode, sentence: &'static str) -> Refusal {
    refusal(status, Detail::Sentence(sentence))
}

/// RFC 9110 §11.6.1: a 401 says how to authenticate.
fn unauthorized(sentence: &'static str) -> Refusal {
    with(detail(StatusCode::UNAUTHORIZED, sentence), WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
}

fn because(refusal: Refusal, reason: &'static str) -> Refusal {
    with(refusal, X_AUTH_REASON, HeaderValue::from_static(reason))
}

/// RFC 9110 §10.2.3; whole seconds, rounded up, so that coming back on time is never too early.
fn retry(status: StatusCode, sentence: &'static str, after: Duration) -> Refusal {
    let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
    with(detail(status, sentence), RETRY_AFTER, HeaderValue::from(seconds.max(1)))
}

fn with(mut refusal: Refusal, name: HeaderName, value: HeaderValue) -> Refusal {
    refusal.headers.insert(name, value);
    refusal
}
