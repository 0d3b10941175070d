//! `/auth/password/forgot`, `/auth/password/reset`, `/auth/email/verify`: what mails are for. Only where mail is on.
//!
//! A link in a mail goes to a page of the shop, which sends the token here. Nothing is consumed by GET or HEAD.

use axum::extract::State;
use axum::http::StatusCode;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::Json;
use super::auth::{Status, choose};
use super::body::{Body, FromBody};
use super::error::ApiError;
use super::extract::SignedIn;
use super::fields::{FieldError, Fields};
use super::openapi::{BodyErrors, MailTokenErrors, Throttled, Unauthorized, Unavailable};
use super::problem::Problem;
use crate::app::App;
use crate::domain::client::ClientInfo;
use crate::domain::email::Email;
use crate::domain::mail::Locale;
use crate::domain::mail_token::MailToken;
use crate::domain::password::Password;
use crate::service::{forgot_password, reset_password, verify_email};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(forgot)).routes(routes!(reset)).routes(routes!(verify)).routes(routes!(resend))
}

/// Asks for a mail to reset the password with.
#[derive(ToSchema)]
pub(super) struct ForgotRequest {
    #[schema(value_type = String, format = Email, example = "cust@example.com")]
    email: Email,
    /// The language of the mail, as a tag such as `de` or `de-AT`. Without one, or where there are no texts in it, that of
    /// `Accept-Language` counts, and then English.
    #[schema(value_type = Option<String>, example = "en")]
    locale: Option<Locale>,
}

impl FromBody for ForgotRequest {
    fn from_fields(mut fields: Fields) -> Result<Self, Vec<Problem>> {
        let email = fields.required("email", Email::parse);
        let locale = fields.optional("locale", |tag| Ok::<_, FieldError>(Locale::from_tag(tag)));
        fields.finish(|| Ok(Self { email: email?, locale: locale?.flatten() }))
    }
}

/// Chooses a new password.
#[derive(ToSchema)]
pub(super) struct ResetRequest {
    /// From the mail.
    #[schema(value_type = String)]
    token: MailToken,
    #[schema(value_type = String, format = Password, min_length = 8, max_length = 1024)]
    new_password: Password,
}

impl FromBody for ResetRequest {
    fn from_fields(mut fields: Fields) -> Result<Self, Vec<Problem>> {
        let token = fields.string("token").map(MailToken::presented);
        let new = fields.required("new_password", choose);
        fields.finish(|| Ok(Self { token: token?, new_password: new? }))
    }
}

/// Shows that a mail was read.
#[derive(ToSchema)]
pub(super) struct VerifyRequest {
    /// From the mail.
    #[schema(value_type = String)]
    token: MailToken,
}

impl FromBody for VerifyRequest {
    fn from_fields(mut fields: Fields) -> Result<Self, Vec<Problem>> {
        let token = fields.string("token").map(MailToken::presented);
        fields.finish(|| Ok(Self { token: token? }))
    }
}

/// Ask for a mail to reset a forgotten password with
///
/// The answer is the same whether or not the address has an account.
#[utoipa::path(post, path = "/auth/password/forgot", tag = "auth", request_body = ForgotRequest,
    responses(
        (status = 202, description = "Accepted; a mail is sent if the address has an account", body = Status),
        BodyErrors, Throttled, Unavailable,
    ))]
pub(super) async fn forgot(
    State(app): State<App>,
    client: ClientInfo,
    Body(request): Body<ForgotRequest>,
) -> Result<(StatusCode, Json<Status>), ApiError> {
    let locale = request.locale.unwrap_or(client.locale);
    forgot_password::forgot_password(&app, &request.email, locale, &client).await?;
    Ok((StatusCode::ACCEPTED, Json(Status { status: "accepted" })))
}

/// Choose a new password with the token from a mail
///
/// The token works once. All sessions of the user end, and the address counts as verified.
#[utoipa::path(post, path = "/auth/password/reset", tag = "auth", request_body = ResetRequest,
    responses((status = 200, description = "The password is changed", body = Status), BodyErrors, MailTokenErrors, Unavailable))]
pub(super) async fn reset(
    State(app): State<App>,
    client: ClientInfo,
    Body(request): Body<ResetRequest>,
) -> Result<Json<Status>, ApiError> {
    reset_password::reset_password(&app, &request.token, request.new_password, &client).await?;
    Ok(Json(Status { status: "ok" }))
}

/// Verify an address with the token from a mail
///
/// The token works as often as it is presented, until it expires.
#[utoipa::path(post, path = "/auth/email/verify", tag = "auth", request_body = VerifyRequest,
    responses((status = 200, description = "The address is verified", body = Status), BodyErrors, MailTokenErrors, Unavailable))]
pub(super) async fn verify(
    State(app): State<App>,
    client: ClientInfo,
    Body(request): Body<VerifyRequest>,
) -> Result<Json<Status>, ApiError> {
    verify_email::verify_email(&app, &request.token, &client).await?;
    Ok(Json(Status { status: "ok" }))
}

/// Ask for another mail to verify the bearer's address with
///
/// None is sent where the address is verified already.
#[utoipa::path(post, path = "/auth/email/verify/resend", tag = "auth",
    security(("bearer" = [])),
    responses((status = 202, description = "Accepted", body = Status), Unauthorized, Throttled, Unavailable))]
pub(super) async fn resend(
    State(app): State<App>,
    SignedIn(bearer): SignedIn,
    client: ClientInfo,
) -> Result<(StatusCode, Json<Status>), ApiError> {
    verify_email::resend(&app, &bearer, &client).await?;
    Ok((StatusCode::ACCEPTED, Json(Status { status: "accepted" })))
}
