//! `/auth/register`, `/auth/login`, `/auth/refresh`, `/auth/logout`, `/auth/password`.

use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use super::answer::Json;
use super::body::{Body, FromBody};
use super::error::ApiError;
use super::extract::{BearerToken, SignedIn};
use super::fields::{FieldError, Fields};
use super::openapi::{
    BodyErrors, EmailNotVerified, EmailTaken, InvalidCredentials, InvalidRefreshToken, RoleNotOpen, Throttled,
    Unauthorized, Unavailable,
};
use super::problem::Problem;
use crate::app::App;
use crate::domain::client::ClientInfo;
use crate::domain::email::{Email, EmailError};
use crate::domain::password::{Password, PasswordError};
use crate::domain::role::{Role, RoleError};
use crate::domain::tokens::TokenPair;
use crate::service::logout::Scope;
use crate::service::{login, logout, password, refresh, register};

impl From<EmailError> for FieldError {
    fn from(error: EmailError) -> Self {
        Self::Email(error.to_string())
    }
}

impl From<PasswordError> for FieldError {
    fn from(error: PasswordError) -> Self {
        match error {
            PasswordError::TooShort => Self::TooShort(Password::MIN_CHARACTERS),
            PasswordError::TooLong => Self::TooLong(Password::MAX_BYTES),
            PasswordError::Nul => Self::Nul,
        }
    }
}

impl From<RoleError> for FieldError {
    fn from(error: RoleError) -> Self {
        match error {
            RoleError::TooLong => Self::TooLong(Role::MAX_CHARACTERS),
            RoleError::Nul => Self::Nul,
        }
    }
}

pub(super) fn choose(text: &str) -> Result<Password, PasswordError> {
    Password::choose(text.to_owned())
}

/// Asks for an account.
#[derive(ToSchema)]
pub(super) struct RegisterRequest {
    #[schema(value_type = String, format = Email, example = "cust@example.com")]
    email: Email,
    #[schema(value_type = String, format = Password, min_length = 8, max_length = 1024, example = "Cust-pass1")]
    password: Password,
    /// `customer` if absent, null or empty. Which others are open to everybody is configured; an administrator's
    /// bearer token may register any.
    #[schema(value_type = Option<String>, max_length = 32, example = "customer")]
    role: Role,
}

impl FromBody for RegisterRequest {
    fn from_fields(mut fields: Fields) -> Result<Self, Vec<Problem>> {
        let email = fields.required("email", Email::parse);
        let password = fields.required("password", choose);
        let role = fields.optional("role", Role::parse);
        fields.finish(|| Ok(Self { email: email?, password: password?, role: role?.unwrap_or_else(Role::customer) }))
    }
}

/// Asks for a session.
#[derive(ToSchema)]
pub(super) struct LoginRequest {
    #[schema(value_type = String, format = Email, example = "cust@example.com")]
    email: Email,
    #[schema(value_type = String, format = Password, example = "Cust-pass1")]
    password: Password,
}

impl FromBody for LoginRequest {
    fn from_fields(mut fields: Fields) -> Result<Self, Vec<Problem>> {
        let email = fields.required("email", Email::parse);
        let password = fields.string("password").map(Password::attempt);
        fields.finish(|| Ok(Self { email: email?, password: password? }))
    }
}

/// Asks for a new pair.
#[derive(ToSchema)]
pub(super) struct RefreshRequest {
    refresh_token: String,
}

impl FromBody for RefreshRequest {
    fn from_fields(mut fields: Fields) -> Result<Self, Vec<Problem>> {
        let refresh_token = fields.string("refresh_token");
        fields.finish(|| Ok(Self { refresh_token: refresh_token? }))
    }
}

/// Ends sessions.
#[derive(ToSchema)]
pub(super) struct LogoutRequest {
    refresh_token: String,
    /// `this` session (the default), all `others` of the user, or `all`.
    #[schema(value_type = Option<String>, pattern = "^(this|others|all)$", example = "this")]
    scope: Scope,
}

impl FromBody for LogoutRequest {
    fn from_fields(mut fields: Fields) -> Result<Self, Vec<Problem>> {
        let refresh_token = fields.string("refresh_token");
        let choices = [("this", Scope::This), ("others", Scope::Others), ("all", Scope::All)];
        let scope = fields.choice("scope", &choices);
        fields.finish(|| Ok(Self { refresh_token: refresh_token?, scope: scope?.unwrap_or(Scope::This) }))
    }
}

/// Replaces a password.
#[derive(ToSchema)]
pub(super) struct PasswordRequest {
    #[schema(value_type = String, format = Password, example = "Cust-pass1")]
    current_password: Password,
    #[schema(value_type = String, format = Password, min_length = 8, max_length = 1024, example = "Cust-pass2")]
    new_password: Password,
}

impl FromBody for PasswordRequest {
    fn from_fields(mut fields: Fields) -> Result<Self, Vec<Problem>> {
        let current = fields.string("current_password").map(Password::attempt);
        let new = fields.required("new_password", choose);
        fields.finish(|| Ok(Self { current_password: current?, new_password: new? }))
    }
}

/// What was done.
#[derive(Serialize, ToSchema)]
pub(super) struct Status {
    #[schema(example = "ok")]
    pub status: &'static str,
}

/// An access token for the services, and the refresh token to get the next one with.
#[derive(Serialize, ToSchema)]
pub(super) struct Tokens {
    access_token: String,
    refresh_token: String,
    #[schema(example = "bearer")]
    token_type: &'static str,
}

impl From<TokenPair> for Tokens {
    fn from(pair: TokenPair) -> Self {
        Self {
            access_token: pair.access.expose().to_owned(),
            refresh_token: pair.refresh.expose().to_owned(),
            token_type: "bearer",
        }
    }
}

/// Register a user
#[utoipa::path(post, path = "/auth/register", tag = "auth", request_body = RegisterRequest,
    security((), ("bearer" = [])),
    responses(
        (status = 201, description = "Registered", body = Status),
        BodyErrors, RoleNotOpen, EmailTaken, Throttled, Unavailable,
    ))]
pub(super) async fn register(
    State(app): State<App>,
    BearerToken(bearer): BearerToken,
    client: ClientInfo,
    Body(request): Body<RegisterRequest>,
) -> Result<(StatusCode, Json<Status>), ApiError> {
    let RegisterRequest { email, password, role } = request;
    register::register(&app, &email, password, &role, bearer.as_deref(), &client).await?;
    Ok((StatusCode::CREATED, Json(Status { status: "created" })))
}

/// Sign in
#[utoipa::path(post, path = "/auth/login", tag = "auth", request_body = LoginRequest,
    responses(
        (status = 200, description = "Signed in", body = Tokens),
        InvalidCredentials, BodyErrors, EmailNotVerified, Throttled, Unavailable,
    ))]
pub(super) async fn login(
    State(app): State<App>,
    client: ClientInfo,
    Body(request): Body<LoginRequest>,
) -> Result<Json<Tokens>, ApiError> {
    Ok(Json(login::login(&app, &request.email, request.password, &client).await?.into()))
}

/// Exchange a refresh token
#[utoipa::path(post, path = "/auth/refresh", tag = "auth", request_body = RefreshRequest,
    responses(
        (status = 200, description = "A new pair; the presented token is used up. Requests with one token that overlap, \
            and a retry within the grace or after a 503, get the same refresh token", body = Tokens),
        InvalidRefreshToken, BodyErrors, Throttled, Unavailable,
    ))]
pub(super) async fn refresh(
    State(app): State<App>,
    client: ClientInfo,
    Body(request): Body<RefreshRequest>,
) -> Result<Json<Tokens>, ApiError> {
    Ok(Json(refresh::refresh(&app, &request.refresh_token, client).await?.into()))
}

/// Sign out
#[utoipa::path(post, path = "/auth/logout", tag = "auth", request_body = LogoutRequest,
    responses(
        (status = 200, description = "Signed out, now or before", body = Status),
        InvalidRefreshToken, BodyErrors, Unavailable,
    ))]
pub(super) async fn logout(
    State(app): State<App>,
    client: ClientInfo,
    Body(request): Body<LogoutRequest>,
) -> Result<Json<Status>, ApiError> {
    logout::logout(&app, &request.refresh_token, request.scope, &client).await?;
    Ok(Json(Status { status: "ok" }))
}

/// Change the password
///
/// All sessions of the user end; the answer opens a new one for the caller.
#[utoipa::path(post, path = "/auth/password", tag = "auth", request_body = PasswordRequest,
    security(("bearer" = [])),
    responses(
        (status = 200, description = "Changed; a fresh pair", body = Tokens),
        Unauthorized, BodyErrors, Throttled, Unavailable,
    ))]
pub(super) async fn password(
    State(app): State<App>,
    SignedIn(bearer): SignedIn,
    client: ClientInfo,
    Body(request): Body<PasswordRequest>,
) -> Result<Json<Tokens>, ApiError> {
    let PasswordRequest { current_password, new_password } = request;
    Ok(Json(password::change_password(&app, &bearer, &current_password, new_password, &client).await?.into()))
}
