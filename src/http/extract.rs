//! What handlers take from a request: a validated body, the bearer's token, the client, parameters.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};

use axum::body::Body as RawBody;
use axum::extract::{FromRequest, FromRequestParts, RawQuery, Request};
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, LINK, USER_AGENT};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, SecondsFormat, Utc};
use http_body_util::BodyExt as _;
use serde::Serialize;

use super::error::ApiError;
use super::validation::{BodyError, Fields, Place, Problem};
use crate::app::App;
use crate::config::UsersListAccess;
use crate::domain::client::ClientInfo;
use crate::domain::page::PageSize;
use crate::service::bearer::{self, Bearer};

/// Largest body that is read.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// How much of a larger body is received and thrown away, so that its sender gets to see the answer: one who is still
/// sending when the connection closes mostly sees only that.
const MAX_DISCARDED_BYTES: u64 = 4 * 1024 * 1024;

/// An answer in JSON. (Axum's own type is banned: as an extractor its refusals would not have the contract's shape.)
pub(super) struct Json<T>(pub T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.0) {
            Ok(bytes) => {
                let json = HeaderValue::from_static("application/json");
                ([(CONTENT_TYPE, json)], bytes).into_response()
            }
            // Only a map with keys that are no strings could fail, and none is ever answered.
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        }
    }
}

/// How a time is written: RFC 3339, UTC, whole seconds.
pub(super) fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// A `Link` header that names the next page of the list at `path`, if there is one (RFC 8288).
pub(super) fn link_to_next(path: &str, size: PageSize, after: Option<impl std::fmt::Display>) -> HeaderMap {
    let link = after.map(|after| format!("<{path}?limit={}&after={after}>; rel=\"next\"", size.get()));
    link.and_then(|link| HeaderValue::try_from(link).ok()).map(|link| (LINK, link)).into_iter().collect()
}

/// A request that is read from a body.
pub(super) trait FromBody: Sized {
    /// Reads the fields in the order in which their problems are to be listed.
    fn from_fields(fields: Fields) -> Result<Self, BodyError>;
}

/// The request that was in the body.
pub(super) struct Body<T>(pub T);

impl<T: FromBody> FromRequest<App> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &App) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let bytes = read(&parts, body).await?;
        let content_type = parts.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
        Ok(Self(T::from_fields(Fields::read(content_type, &bytes)?)?))
    }
}

async fn read(parts: &Parts, mut body: RawBody) -> Result<Vec<u8>, ApiError> {
    let announced = parts.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let announced = announced.unwrap_or(0);
    // Who waits to be asked for the body needs not be asked for one that is too large.
    let waits = parts.headers.contains_key(EXPECT);
    if announced > MAX_DISCARDED_BYTES || (waits && announced > MAX_BODY_BYTES as u64) {
        return Err(ApiError::BodyTooLarge);
    }
    let mut bytes = Vec::new();
    let mut received = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| ApiError::Body(BodyError::Unparsable))?;
        let Ok(data) = frame.into_data() else { continue };
        received += data.len() as u64;
        if received > MAX_DISCARDED_BYTES {
            break;
        }
        if received <= MAX_BODY_BYTES as u64 {
            bytes.extend_from_slice(&data);
        }
    }
    if received > MAX_BODY_BYTES as u64 { Err(ApiError::BodyTooLarge) } else { Ok(bytes) }
}

/// The token of `Authorization: Bearer`, if there is exactly one such header and it is well formed (RFC 6750 §2.1).
pub(super) struct BearerToken(pub Option<String>);

impl FromRequestParts<App> for BearerToken {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, ApiError> {
        let mut values = parts.headers.get_all(AUTHORIZATION).iter();
        let token = match (values.next(), values.next()) {
            (Some(value), None) => value.to_str().ok().and_then(token68),
            _ => None,
        };
        Ok(Self(token))
    }
}

/// The bearer of an access token. Handlers take it, or [`Admin`], before everything else: 401 and 403 come before the
/// body is read.
pub(super) struct SignedIn(pub Bearer);

impl FromRequestParts<App> for SignedIn {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let BearerToken(token) = BearerToken::from_request_parts(parts, app).await?;
        Ok(Self(bearer::authenticate(app, token.as_deref()).await?))
    }
}

/// A bearer who is an administrator.
pub(super) struct Admin(pub Bearer);

impl FromRequestParts<App> for Admin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let BearerToken(token) = BearerToken::from_request_parts(parts, app).await?;
        Ok(Self(bearer::require_admin(app, token.as_deref()).await?))
    }
}

/// Somebody who may list the users: anybody or an administrator, as `USERS_LIST_ACCESS` says.
pub(super) struct MayListUsers;

impl FromRequestParts<App> for MayListUsers {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        if app.config.users_list_access == UsersListAccess::Admin {
            Admin::from_request_parts(parts, app).await?;
        }
        Ok(Self)
    }
}

fn token68(credentials: &str) -> Option<String> {
    let (scheme, token) = credentials.split_once(' ')?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && token.bytes().all(plain)).then(|| token.to_owned())
}

/// The address of whoever opened the connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

impl FromRequestParts<App> for ClientInfo {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Self::Rejection> {
        let user_agent = parts.headers.get(USER_AGENT).map(|value| String::from_utf8_lossy(value.as_bytes()));
        // PostgreSQL stores no NUL, and a header cannot hold one anyway.
        Ok(Self::new(user_agent.as_deref(), client_address(parts, app)))
    }
}

fn client_address(parts: &Parts, app: &App) -> IpAddr {
    // Only a request that came through no socket has no peer.
    let peer = parts.extensions.get::<Peer>().map_or(IpAddr::from([127, 0, 0, 1]), |peer| peer.0.ip());
    let values: Vec<&str> =
        parts.headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok()).collect();
    let proxies = &app.config.trusted_proxies;
    if !values.is_empty() && proxies.distrusts(peer) {
        warn_once_of_untrusted_proxy(peer);
    }
    proxies.client_address(peer, values.iter().flat_map(|value| value.split(',')))
}

/// Behind a proxy that is not trusted, all clients look like one and share one throttle.
fn warn_once_of_untrusted_proxy(peer: IpAddr) {
    static WARNED: AtomicBool = AtomicBool::new(false);
    if !WARNED.swap(true, Ordering::Relaxed) {
        tracing::warn!(
            %peer,
            "requests carry X-Forwarded-For but their sender is not in TRUSTED_PROXIES: all its clients count as one"
        );
    }
}

/// The part of the path that the route leaves open. What is not UTF-8 names nothing here.
pub(super) struct PathSegment(pub String);

impl<S: Send + Sync> FromRequestParts<S> for PathSegment {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = axum::extract::Path::from_request_parts(parts, state).await.map_err(|_| ApiError::NotFound)?;
        Ok(Self(path.0))
    }
}

/// The query parameters. Of one that stands twice the last counts, as in FastAPI.
pub(super) struct Query(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        let RawQuery(query) = RawQuery::from_request_parts(parts, state).await?;
        let query = query.unwrap_or_default();
        Ok(Self(form_urlencoded::parse(query.as_bytes()).into_owned().collect()))
    }
}

impl Query {
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// How many entries a page is to have.
    pub(super) fn page_size(&self) -> Result<PageSize, ApiError> {
        let size = self.number("limit", 1..=PageSize::MAX.get())?;
        Ok(size.and_then(PageSize::new).unwrap_or_default())
    }

    /// A whole number within bounds.
    pub(super) fn number(
        &self,
        name: &'static str,
        bounds: std::ops::RangeInclusive<i64>,
    ) -> Result<Option<i64>, ApiError> {
        self.text(name).map(|text| whole_number(Place::Query(name), text, &bounds)).transpose()
    }
}

/// A number from a path or query, refused in pydantic's words.
pub(super) fn whole_number(place: Place, text: &str, bounds: &std::ops::RangeInclusive<i64>) -> Result<i64, ApiError> {
    let refuse =
        |kind, msg: Cow<'static, str>| ApiError::Parameter(Box::new(Problem::parameter(kind, place, msg, text)));
    let number: i64 = text.parse().map_err(|_| {
        refuse("int_parsing", "Input should be a valid integer, unable to parse string as an integer".into())
    })?;
    if number < *bounds.start() {
        let msg = format!("Input should be greater than or equal to {}", bounds.start());
        return Err(refuse("greater_than_equal", msg.into()));
    }
    if number > *bounds.end() {
        let msg = format!("Input should be less than or equal to {}", bounds.end());
        return Err(refuse("less_than_equal", msg.into()));
    }
    Ok(number)
}
