//! `/auth/verify`: a gateway asks before each request of the shop whether it may pass, and whose it is.
//!
//! What a gateway gets, and how it is set up, stands in `deploy/forward-auth.md`.

use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::error::ApiError;
use super::extract::{BearerToken, Query};
use super::openapi::{Forbidden, QueryErrors, Unauthorized, Unavailable};
use super::problem::{Location, Problem};
use crate::app::App;
use crate::domain::role::Role;
use crate::domain::tokens::AccessClaims;
use crate::service::verify::{self, Requirement};

/// The paths, with any method: without the client's path behind it, with `/`, and with any other.
pub(super) const VERIFY: &str = "/auth/verify";
pub(super) const VERIFY_ROOT: &str = "/auth/verify/";
pub(super) const VERIFY_PATH: &str = "/auth/verify/{*rest}";

/// Who sends the request.
type Identity = [(HeaderName, HeaderValue); 4];

const X_AUTH_EMAIL: HeaderName = HeaderName::from_static("x-auth-email");
const X_AUTH_ROLE: HeaderName = HeaderName::from_static("x-auth-role");
const X_AUTH_SESSION: HeaderName = HeaderName::from_static("x-auth-session");
const X_AUTH_EXPIRES: HeaderName = HeaderName::from_static("x-auth-expires");

/// The request's address as the client sent it, which gateways add to what they ask.
const X_FORWARDED_URI: &str = "x-forwarded-uri";

/// May this request pass? For gateways
///
/// With any method; a body is not read. The answer has no body, but `X-Auth-Email`, `X-Auth-Role`, `X-Auth-Session` and
/// `X-Auth-Expires`, which are empty where there is no token and none is needed.
#[utoipa::path(get, path = "/auth/verify", tag = "operation",
    security((), ("bearer" = [])),
    params(
        ("role" = Option<String>, Query, description = "The role that the token must name"),
        ("optional" = Option<String>, Query, description = "`1`: a request without a token may pass, too", pattern = "^1$"),
    ),
    responses(
        (status = 200, description = "It may", headers(
            ("X-Auth-Email" = String, description = "Percent-encoded"),
            ("X-Auth-Role" = String, description = "Percent-encoded"),
            ("X-Auth-Session" = String, description = "The session's id"),
            ("X-Auth-Expires" = String, description = "When the token expires, in seconds since 1970"),
        )),
        Unauthorized, Forbidden, QueryErrors, Unavailable,
    ))]
pub(super) async fn verify(
    State(app): State<App>,
    BearerToken(token): BearerToken,
    Asked(required): Asked,
) -> Result<Identity, ApiError> {
    Ok(identity(verify::verify(&app, token.as_deref(), &required)?.as_ref()))
}

/// As `verify`, for gateways that put the client's path behind ours: its query is the client's, too, and is not ours to read.
pub(super) async fn verify_path(State(app): State<App>, BearerToken(token): BearerToken) -> Result<Identity, ApiError> {
    Ok(identity(verify::verify(&app, token.as_deref(), &Requirement::default())?.as_ref()))
}

/// What the gateway asks for in the query. A mistake must open nothing, so all that is not understood is refused; and so is a
/// query that the gateway has handed on from the client, who could ask for `optional=1`.
pub(super) struct Asked(Requirement);

impl FromRequestParts<App> for Asked {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let mut required = Requirement::default();
        let Ok(query) = Query::from_request_parts(parts, app).await;
        let Some(asked) = parts.uri.query().filter(|query| !query.is_empty()) else { return Ok(Self(required)) };
        let refuse = |input: &str, msg: &'static str| {
            ApiError::from(Problem::new("value_error", Location::Query("*"), msg, None, input.into()))
        };
        let forwarded = parts.headers.get_all(X_FORWARDED_URI).iter();
        let mut of_client = forwarded.filter_map(|uri| uri.as_bytes().splitn(2, |byte| *byte == b'?').nth(1));
        if of_client.any(|query| query == asked.as_bytes()) {
            return Err(refuse(asked, "The query is the client's own"));
        }
        for (name, value) in query.pairs() {
            match (name, value) {
                ("role", text) if required.role.is_none() && !text.is_empty() => {
                    required.role = Some(Role::parse(text).map_err(|_| refuse(name, "Input should be a role"))?);
                }
                ("optional", "1") if !required.optional => required.optional = true,
                _ => return Err(refuse(name, "Only role=... and optional=1 are understood, once each")),
            }
        }
        Ok(Self(required))
    }
}

/// What cannot stand in a header: everything but visible ASCII; and `%`, so that decoding is unambiguous.
const ESCAPED: &AsciiSet = &CONTROLS.add(b' ').add(b'%');

fn identity(claims: Option<&AccessClaims>) -> Identity {
    let [email, role, session, expires] = match claims {
        Some(claims) => [
            escaped(&claims.subject),
            escaped(&claims.role),
            plain(&claims.session_id.to_string()),
            HeaderValue::from(claims.expires_at),
        ],
        None => [const { HeaderValue::from_static("") }; 4],
    };
    [(X_AUTH_EMAIL, email), (X_AUTH_ROLE, role), (X_AUTH_SESSION, session), (X_AUTH_EXPIRES, expires)]
}

fn escaped(text: &str) -> HeaderValue {
    plain(&utf8_percent_encode(text, ESCAPED).to_string())
}

fn plain(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("BUG: visible ASCII can stand in a header")
}
