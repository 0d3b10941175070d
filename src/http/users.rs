//! `/users/`, `/users/me`, `/users/{id}` and a user's sessions, for administrators.

use axum::extract::State;
use axum::http::header::LINK;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use serde::Serialize;
use utoipa::ToSchema;

use super::error::ApiError;
use super::extract::{BearerToken, Body, FromBody, Json, PathSegment, Query, whole_number};
use super::responses::{BodyErrors, Forbidden, NotFound, ParameterErrors, Unauthorized, Unavailable};
use super::sessions::Session;
use super::validation::{BodyError, Fields, Place};
use crate::app::App;
use crate::domain::client::ClientInfo;
use crate::domain::ids::UserId;
use crate::domain::role::Role;
use crate::service::users::Page;
use crate::service::{bearer, sessions, users};

const DEFAULT_LIMIT: i64 = 100;
const MAX_LIMIT: i64 = 1000;

/// A user.
#[derive(Serialize, ToSchema)]
pub(super) struct User {
    #[schema(example = 1)]
    id: i64,
    #[schema(example = "cust@example.com")]
    email: String,
    #[schema(example = "customer")]
    role: String,
}

impl From<users::User> for User {
    fn from(user: users::User) -> Self {
        Self { id: user.id.0, email: user.email, role: user.role.as_str().to_owned() }
    }
}

/// A user's new role.
#[derive(ToSchema)]
pub(super) struct RoleRequest {
    #[schema(value_type = String, max_length = 32, example = "admin")]
    role: Role,
}

impl FromBody for RoleRequest {
    fn from_fields(mut fields: Fields) -> Result<Self, BodyError> {
        let role = fields.required("role", Role::parse);
        fields.finish(|| Ok(Self { role: role? }))
    }
}

/// How many sessions ended.
#[derive(Serialize, ToSchema)]
pub(super) struct Ended {
    #[schema(example = 2)]
    ended: u64,
}

fn user_id(text: &str) -> Result<UserId, ApiError> {
    whole_number(Place::Path("id"), text, &(i64::MIN..=i64::MAX)).map(UserId)
}

/// List users
///
/// By id. While more follow, a `Link` header with `rel="next"` names the next page.
#[utoipa::path(get, path = "/users/", tag = "users",
    security((), ("bearer" = [])),
    params(
        ("limit" = Option<i64>, Query, description = "Users on a page", minimum = 1, maximum = 1000),
        ("after" = Option<i64>, Query, description = "Only users with a greater id"),
        ("email" = Option<String>, Query, description = "Only the user with exactly this address"),
    ),
    responses(
        (status = 200, description = "Users", body = Vec<User>, headers(("Link" = String, description = "The next page"))),
        Unauthorized, Forbidden, ParameterErrors, Unavailable,
    ))]
pub(super) async fn list(
    State(app): State<App>,
    bearer: BearerToken,
    query: Query,
) -> Result<(HeaderMap, Json<Vec<User>>), ApiError> {
    let limit = query.number("limit", 1..=MAX_LIMIT)?.unwrap_or(DEFAULT_LIMIT);
    let after = query.number("after", i64::MIN..=i64::MAX)?.unwrap_or(i64::MIN);
    // An address with a NUL cannot be stored, so nobody has it.
    let email = query.text("email").map(|email| email.replace('\0', "\u{fffd}"));
    let page = Page { limit: u32::try_from(limit).unwrap_or(u32::MAX), after: UserId(after), email };
    let found = users::list(&app, bearer.as_deref(), &page).await?;
    let mut headers = HeaderMap::new();
    if let Some(next) = found.next_after {
        let link = format!("</users/?limit={limit}&after={next}>; rel=\"next\"");
        headers.extend(HeaderValue::try_from(link).ok().map(|value| (LINK, value)));
    }
    Ok((headers, Json(found.users.into_iter().map(User::from).collect())))
}

/// The bearer
#[utoipa::path(get, path = "/users/me", tag = "users",
    security(("bearer" = [])),
    responses((status = 200, description = "The user the token speaks for", body = User), Unauthorized, Unavailable))]
pub(super) async fn me(State(app): State<App>, bearer: BearerToken) -> Result<Json<User>, ApiError> {
    Ok(Json(bearer::authenticate(&app, bearer.as_deref()).await?.user.into()))
}

/// Give a user another role
#[utoipa::path(patch, path = "/users/{id}", tag = "users", request_body = RoleRequest,
    security(("bearer" = [])),
    params(("id" = i64, Path)),
    responses(
        (status = 200, description = "The user as it is now", body = User),
        Unauthorized, Forbidden, NotFound, BodyErrors, Unavailable,
    ))]
pub(super) async fn set_role(
    State(app): State<App>,
    bearer: BearerToken,
    client: ClientInfo,
    PathSegment(id): PathSegment,
    Body(request): Body<RoleRequest>,
) -> Result<Json<User>, ApiError> {
    let admin = bearer::require_admin(&app, bearer.as_deref()).await?;
    Ok(Json(users::set_role(&app, &admin, user_id(&id)?, &request.role, &client).await?.into()))
}

/// Delete a user
#[utoipa::path(delete, path = "/users/{id}", tag = "users",
    security(("bearer" = [])),
    params(("id" = i64, Path)),
    responses(
        (status = 204, description = "Deleted, and signed out everywhere"),
        Unauthorized, Forbidden, NotFound, ParameterErrors, Unavailable,
    ))]
pub(super) async fn delete(
    State(app): State<App>,
    bearer: BearerToken,
    client: ClientInfo,
    PathSegment(id): PathSegment,
) -> Result<StatusCode, ApiError> {
    let admin = bearer::require_admin(&app, bearer.as_deref()).await?;
    users::delete(&app, &admin, user_id(&id)?, &client).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A user's live sessions
#[utoipa::path(get, path = "/users/{id}/sessions", tag = "users",
    security(("bearer" = [])),
    params(("id" = i64, Path)),
    responses(
        (status = 200, description = "Latest first", body = Vec<Session>),
        Unauthorized, Forbidden, NotFound, ParameterErrors, Unavailable,
    ))]
pub(super) async fn list_sessions(
    State(app): State<App>,
    bearer: BearerToken,
    PathSegment(id): PathSegment,
) -> Result<Json<Vec<Session>>, ApiError> {
    let admin = bearer::require_admin(&app, bearer.as_deref()).await?;
    let sessions = sessions::list_of(&app, user_id(&id)?).await?;
    Ok(Json(sessions.into_iter().map(|session| Session::new(session, admin.session_id)).collect()))
}

/// Sign a user out everywhere
#[utoipa::path(delete, path = "/users/{id}/sessions", tag = "users",
    security(("bearer" = [])),
    params(("id" = i64, Path)),
    responses(
        (status = 200, description = "How many sessions ended", body = Ended),
        Unauthorized, Forbidden, NotFound, ParameterErrors, Unavailable,
    ))]
pub(super) async fn end_sessions(
    State(app): State<App>,
    bearer: BearerToken,
    client: ClientInfo,
    PathSegment(id): PathSegment,
) -> Result<Json<Ended>, ApiError> {
    let admin = bearer::require_admin(&app, bearer.as_deref()).await?;
    let ended = sessions::end_all_of(&app, &admin, user_id(&id)?, &client).await?;
    Ok(Json(Ended { ended }))
}
