//! What handlers take from the head of a request: the bearer's token, the client, parameters. For its body see `body`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Once;

use axum::extract::{FromRequestParts, RawQuery};
use axum::http::header::{ACCEPT_LANGUAGE, AUTHORIZATION, USER_AGENT};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName};
use uuid::Uuid;

use super::error::ApiError;
use super::problem::{Location, Problem};
use crate::app::App;
use crate::domain::client::ClientInfo;
use crate::domain::mail::Locale;
use crate::domain::page::PageSize;
use crate::service::bearer::{self, Bearer};

/// The token of `Authorization: Bearer`, if there is exactly one such header and it is well formed (RFC 6750 §2.1).
pub(super) struct BearerToken(pub Option<String>);

impl FromRequestParts<App> for BearerToken {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, ApiError> {
        Ok(Self(single_header(&parts.headers, &AUTHORIZATION).and_then(token68)))
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
        if !app.config.users_list_is_public {
            Admin::from_request_parts(parts, app).await?;
        }
        Ok(Self)
    }
}

/// The text of a header that stands there exactly once.
pub(super) fn single_header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    value.to_str().ok().filter(|_| values.next().is_none())
}

fn token68(credentials: &str) -> Option<String> {
    let (scheme, token) = credentials.split_once(' ')?;
    // RFC 9110 §11.4 has any number of blanks here.
    let token = token.trim_start_matches(' ');
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && token.bytes().all(plain)).then(|| token.to_owned())
}

/// The address at the other end of the connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

impl FromRequestParts<App> for ClientInfo {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Self::Rejection> {
        let user_agent = parts.headers.get(USER_AGENT).map(|value| String::from_utf8_lossy(value.as_bytes()));
        let languages = parts.headers.get(ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok());
        let locale = languages.and_then(Locale::accepted).unwrap_or_default();
        // PostgreSQL stores no NUL, and a header cannot hold one anyway.
        Ok(Self::new(user_agent.as_deref(), client_address(parts, app), locale))
    }
}

fn client_address(parts: &Parts, app: &App) -> IpAddr {
    // Only a request that came through no socket has no peer.
    let peer = parts.extensions.get::<Peer>().map_or(IpAddr::from([127, 0, 0, 1]), |peer| peer.0.ip());
    // Each entry by itself, so that one that is no text does not hide those that a proxy has added. Empty ones do not
    // count (RFC 9110 §5.6.1.2).
    let lines = parts.headers.get_all("x-forwarded-for").iter();
    let entries: Vec<&[u8]> = lines
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .filter(|entry| !entry.trim_ascii().is_empty())
        .collect();
    let proxies = &app.config.trusted_proxies;
    if !entries.is_empty() && !proxies.trusts(peer) {
        app.metrics.forwarded_for_ignored.inc();
        warn_once_of_untrusted_proxy(peer);
    }
    proxies.client_address(peer, entries.iter().map(|entry| std::str::from_utf8(entry).unwrap_or_default()))
}

/// Behind a proxy that is not trusted, all clients look like one and share one throttle.
fn warn_once_of_untrusted_proxy(peer: IpAddr) {
    static WARNED: Once = Once::new();
    WARNED.call_once(|| {
        tracing::warn!(
            %peer,
            "requests carry X-Forwarded-For but their sender is not in TRUSTED_PROXIES: all its clients count as one"
        );
    });
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
        Ok(Self(url::form_urlencoded::parse(query.as_bytes()).into_owned().collect()))
    }
}

impl Query {
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// How many entries a page is to have.
    pub(super) fn page_size(&self) -> Result<PageSize, ApiError> {
        let size = self.number("limit", 1..=PageSize::MAX.get())?;
        Ok(size.and_then(PageSize::new).unwrap_or_default())
    }

    /// An id of a session, refused in pydantic's words.
    pub(super) fn id(&self, name: &'static str) -> Result<Option<Uuid>, ApiError> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let msg = "Input should be a valid UUID";
        let refuse = |_| Problem::new("uuid_parsing", Location::Query(name), msg, None, text.into());
        Ok(Some(Uuid::try_parse(text).map_err(refuse)?))
    }

    pub(super) fn number(
        &self,
        name: &'static str,
        bounds: std::ops::RangeInclusive<i64>,
    ) -> Result<Option<i64>, ApiError> {
        self.text(name).map(|text| whole_number(Location::Query(name), text, &bounds)).transpose()
    }
}

/// A number from a path or query, refused in pydantic's words.
pub(super) fn whole_number(loc: Location, text: &str, bounds: &std::ops::RangeInclusive<i64>) -> Result<i64, ApiError> {
    let (kind, msg) = match text.parse::<i64>() {
        Ok(number) if bounds.contains(&number) => return Ok(number),
        Ok(number) if number < *bounds.start() => {
            ("greater_than_equal", format!("Input should be greater than or equal to {}", bounds.start()))
        }
        Ok(_) => ("less_than_equal", format!("Input should be less than or equal to {}", bounds.end())),
        Err(_) => ("int_parsing", "Input should be a valid integer, unable to parse string as an integer".to_owned()),
    };
    Err(Problem::new(kind, loc, msg, None, text.into()).into())
}
