//! `/users/`, `/users/me`, `/users/{id}` and a user's sessions, for administrators.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use serde::Serialize;
use utoipa::ToSchema;

use super::answer::{Json, link_to_next, rfc3339};
use super::body::{Body, FromBody};
use super::error::ApiError;
use super::extract::{Admin, MayListUsers, PathSegment, Query, SignedIn, whole_number};
use super::fields::Fields;
use super::openapi::{BodyErrors, Conflict, Forbidden, NotFound, PathErrors, QueryErrors, Unauthorized, Unavailable};
use super::problem::{Location, Problem};
use super::sessions::{Session, listed};
use crate::app::App;
use crate::domain::client::ClientInfo;
use crate::domain::email::Email;
use crate::domain::ids::{SessionId, UserId};
use crate::domain::role::Role;
use crate::service::{sessions, users};

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

/// A user with what administrators see of one.
#[derive(Serialize, ToSchema)]
pub(super) struct UserDetails {
    #[schema(example = 1)]
    id: i64,
    #[schema(example = "cust@example.com")]
    email: String,
    #[schema(example = "customer")]
    role: String,
    /// RFC 3339, UTC.
    #[schema(format = DateTime)]
    created_at: String,
    email_verified: bool,
}

impl From<users::UserDetails> for UserDetails {
    fn from(details: users::UserDetails) -> Self {
        let User { id, email, role } = details.user.into();
        Self { id, email, role, created_at: rfc3339(details.created_at), email_verified: details.email_verified }
    }
}

/// A user's new role.
#[derive(ToSchema)]
pub(super) struct RoleRequest {
    #[schema(value_type = String, max_length = 32, example = "admin")]
    role: Role,
}

impl FromBody for RoleRequest {
    fn from_fields(mut fields: Fields) -> Result<Self, Vec<Problem>> {
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
    whole_number(Location::Path("id"), text, &(i64::MIN..=i64::MAX)).map(UserId)
}

/// List users
///
/// By id. While more follow, a `Link` header with `rel="next"` names the next page.
#[utoipa::path(get, path = "/users/", tag = "users",
    security((), ("bearer" = [])),
    params(
        ("limit" = Option<i64>, Query, description = "Users on a page", minimum = 1, maximum = 1000),
        ("after" = Option<i64>, Query, description = "Only users with a greater id"),
        ("email" = Option<String>, Query, description = "Only the user with this address, in any case"),
    ),
    responses(
        (status = 200, description = "Users", body = Vec<User>, headers(("Link" = String, description = "The next page"))),
        Unauthorized, Forbidden, QueryErrors, Unavailable,
    ))]
pub(super) async fn list(
    State(app): State<App>,
    _: MayListUsers,
    query: Query,
) -> Result<(HeaderMap, Json<Vec<User>>), ApiError> {
    let size = query.page_size()?;
    let after = query.number("after", i64::MIN..=i64::MAX)?.unwrap_or(i64::MIN);
    // An address with a NUL cannot be stored, so no user has it.
    let email = query.text("email").map(|email| Email::from_stored(email.replace('\0', "\u{fffd}")));
    let page = users::list(&app.db, UserId(after), size, email.as_ref()).await?;
    let link = link_to_next("/users/", size, page.next_after().map(|user| user.id));
    Ok((link, Json(page.entries.into_iter().map(User::from).collect())))
}

/// Who am I?
#[utoipa::path(get, path = "/users/me", tag = "users",
    security(("bearer" = [])),
    responses((status = 200, description = "The user of the token", body = User), Unauthorized, Unavailable))]
pub(super) async fn me(SignedIn(bearer): SignedIn) -> Json<User> {
    Json(bearer.user.into())
}

/// Show a user
#[utoipa::path(get, path = "/users/{id}", tag = "users",
    security(("bearer" = [])),
    params(("id" = i64, Path)),
    responses(
        (status = 200, description = "The user", body = UserDetails),
        Unauthorized, Forbidden, NotFound, PathErrors, Unavailable,
    ))]
pub(super) async fn get(
    State(app): State<App>,
    _: Admin,
    PathSegment(id): PathSegment,
) -> Result<Json<UserDetails>, ApiError> {
    Ok(Json(users::get(&app.db, user_id(&id)?).await?.into()))
}

/// Give a user another role
#[utoipa::path(patch, path = "/users/{id}", tag = "users", request_body = RoleRequest,
    security(("bearer" = [])),
    params(("id" = i64, Path)),
    responses(
        (status = 200, description = "The user as it is now", body = User),
        BodyErrors, Unauthorized, Forbidden, NotFound, Conflict, Unavailable,
    ))]
pub(super) async fn set_role(
    State(app): State<App>,
    Admin(admin): Admin,
    client: ClientInfo,
    PathSegment(id): PathSegment,
    Body(request): Body<RoleRequest>,
) -> Result<Json<User>, ApiError> {
    let actor = admin.as_admin_at(&client);
    Ok(Json(users::set_role(&app.db, actor, user_id(&id)?, &request.role, app.clock.now()).await?.into()))
}

/// Delete a user
#[utoipa::path(delete, path = "/users/{id}", tag = "users",
    security(("bearer" = [])),
    params(("id" = i64, Path)),
    responses(
        (status = 204, description = "Deleted, and signed out everywhere"),
        Unauthorized, Forbidden, NotFound, Conflict, PathErrors, Unavailable,
    ))]
pub(super) async fn delete(
    State(app): State<App>,
    Admin(admin): Admin,
    client: ClientInfo,
    PathSegment(id): PathSegment,
) -> Result<StatusCode, ApiError> {
    let (actor, id) = (admin.as_admin_at(&client), user_id(&id)?);
    users::delete(&app.db, &app.revocations, actor, id, app.clock.now()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// List a user's live sessions
///
/// By the time they were opened, latest first. While more follow, a `Link` header with `rel="next"` names the next page.
#[utoipa::path(get, path = "/users/{id}/sessions", tag = "users",
    security(("bearer" = [])),
    params(
        ("id" = i64, Path),
        ("limit" = Option<i64>, Query, description = "Sessions on a page", minimum = 1, maximum = 1000),
        ("after" = Option<Uuid>, Query, description = "Only sessions that were opened before this one"),
    ),
    responses(
        (status = 200, description = "Latest first", body = Vec<Session>, headers(("Link" = String, description = "The next page"))),
        Unauthorized, Forbidden, NotFound, PathErrors, Unavailable,
    ))]
pub(super) async fn list_sessions(
    State(app): State<App>,
    Admin(admin): Admin,
    PathSegment(id): PathSegment,
    query: Query,
) -> Result<(HeaderMap, Json<Vec<Session>>), ApiError> {
    let id = user_id(&id)?;
    let (size, after) = (query.page_size()?, query.id("after")?.map(SessionId));
    let page = sessions::list(&app.db, id, after, size, app.clock.now()).await?;
    Ok(listed(&format!("/users/{id}/sessions"), size, page, admin.session_id))
}

/// Sign a user out everywhere
#[utoipa::path(delete, path = "/users/{id}/sessions", tag = "users",
    security(("bearer" = [])),
    params(("id" = i64, Path)),
    responses(
        (status = 200, description = "How many sessions ended", body = Ended),
        Unauthorized, Forbidden, NotFound, PathErrors, Unavailable,
    ))]
pub(super) async fn end_sessions(
    State(app): State<App>,
    Admin(admin): Admin,
    client: ClientInfo,
    PathSegment(id): PathSegment,
) -> Result<Json<Ended>, ApiError> {
    let (actor, id, now) = (admin.as_admin_at(&client), user_id(&id)?, app.clock.now());
    let ended = sessions::end_of(&app.db, &app.revocations, actor, id, None, now).await?;
    Ok(Json(Ended { ended }))
}
