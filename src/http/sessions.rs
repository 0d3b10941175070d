//! `/auth/sessions`: where somebody is signed in, and ending it.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::answer::{Json, link_to_next, rfc3339};
use super::error::ApiError;
use super::extract::{PathSegment, Query, SignedIn};
use super::openapi::{NotFound, QueryErrors, Unauthorized, Unavailable};
use crate::app::App;
use crate::domain::client::ClientInfo;
use crate::domain::ids::SessionId;
use crate::domain::page::{Page, PageSize};
use crate::error::Error;
use crate::service::sessions;

/// A session that can still refresh.
#[derive(Serialize, ToSchema)]
pub(super) struct Session {
    id: Uuid,
    /// RFC 3339, UTC.
    #[schema(format = DateTime)]
    created_at: String,
    /// When it was opened or last refreshed.
    #[schema(format = DateTime)]
    last_seen_at: String,
    user_agent: Option<String>,
    /// The address it was opened from.
    #[schema(example = "203.0.113.9")]
    ip: Option<String>,
    /// Whether it is the caller's.
    current: bool,
}

impl Session {
    pub(super) fn new(session: sessions::Session, current: SessionId) -> Self {
        Self {
            id: session.id.0,
            created_at: rfc3339(session.created_at),
            last_seen_at: rfc3339(session.last_seen_at),
            user_agent: session.user_agent,
            ip: session.ip.map(|ip| ip.to_string()),
            current: current == session.id,
        }
    }
}

/// Answers with a page of sessions, and the way to the next one.
pub(super) fn listed(
    path: &str,
    size: PageSize,
    page: Page<sessions::Session>,
    current: SessionId,
) -> (HeaderMap, Json<Vec<Session>>) {
    let link = link_to_next(path, size, page.next_after().map(|session| session.id));
    (link, Json(page.entries.into_iter().map(|session| Session::new(session, current)).collect()))
}

/// List your sessions
///
/// By the time they were opened, latest first. While more follow, a `Link` header with `rel="next"` names the next page.
#[utoipa::path(get, path = "/auth/sessions", tag = "sessions",
    security(("bearer" = [])),
    params(
        ("limit" = Option<i64>, Query, description = "Sessions on a page", minimum = 1, maximum = 1000),
        ("after" = Option<Uuid>, Query, description = "Only sessions that were opened before this one"),
    ),
    responses(
        (status = 200, description = "Latest first", body = Vec<Session>, headers(("Link" = String, description = "The next page"))),
        Unauthorized, QueryErrors, Unavailable,
    ))]
pub(super) async fn list(
    State(app): State<App>,
    SignedIn(bearer): SignedIn,
    query: Query,
) -> Result<(HeaderMap, Json<Vec<Session>>), ApiError> {
    let (size, after) = (query.page_size()?, query.id("after")?.map(SessionId));
    let page = sessions::list(&app.db, bearer.user.id, after, size, app.clock.now()).await?;
    Ok(listed("/auth/sessions", size, page, bearer.session_id))
}

/// End one of your sessions
#[utoipa::path(delete, path = "/auth/sessions/{id}", tag = "sessions",
    security(("bearer" = [])),
    params(("id" = Uuid, Path)),
    responses((status = 204, description = "Ended"), Unauthorized, NotFound, Unavailable))]
pub(super) async fn end(
    State(app): State<App>,
    SignedIn(bearer): SignedIn,
    client: ClientInfo,
    PathSegment(id): PathSegment,
) -> Result<StatusCode, ApiError> {
    // A text that is no id is the id of no session.
    let id = Uuid::try_parse(&id).map_err(|_| Error::NotFound)?;
    sessions::end(&app, &bearer, SessionId(id), &client).await?;
    Ok(StatusCode::NO_CONTENT)
}
