//! The OpenAPI document: all that no handler says of itself, and the refusals that many routes share.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::http::StatusCode;
use serde_json::{Value, json};
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Header, Object, Ref, RefOr, Type};
use utoipa::{IntoResponses, Modify, OpenApi, ToSchema};

use super::error::{ApiError, Refusal};
use super::extract::whole_number;
use super::fields::FieldError;
use super::problem::{Location, Problem};
use crate::domain::tokens::TokenError;
use crate::error::Error;

const DESCRIPTION: &str = "The sign-in service of a storefront. It registers users, signs them in, and issues short access \
    tokens and rotating refresh tokens.

To try it on this page: register a user and sign in by *Try it out*. Copy the `access_token` of the answer, without its \
    quotes, to **Authorize**. Then the routes with a lock take you for that user.";

/// Everything about the document that no handler says.
#[derive(OpenApi)]
#[openapi(
    info(title = "auth", description = DESCRIPTION),
    components(schemas(DetailSchema, ProblemsSchema)),
    modifiers(&Bearer),
    tags(
        (name = "auth", description = "Register, sign in and out"),
        (name = "sessions", description = "Where you are signed in"),
        (name = "users", description = "Yourself; for administrators, everybody"),
        (name = "operation", description = "Health, metrics, version"),
    ),
)]
pub(super) struct Base;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        // Cargo.toml names none, of which the macro makes one without a name.
        document.info.license = None;
        let mut scheme = Http::new(HttpAuthScheme::Bearer);
        scheme.bearer_format = Some("JWT".to_owned());
        scheme.description = Some("The `access_token` of a sign-in".to_owned());
        let components = document.components.get_or_insert_with(Default::default);
        components.add_security_scheme("bearer", SecurityScheme::Http(scheme));
    }
}

/// Gives each operation an id of its own, as clients made from the document and Swagger UI need: handlers of different
/// files may have one name, so the tag goes before it.
pub(super) fn complete(mut document: utoipa::openapi::OpenApi) -> utoipa::openapi::OpenApi {
    for item in document.paths.paths.values_mut() {
        let methods = [&mut item.get, &mut item.post, &mut item.patch, &mut item.put, &mut item.delete];
        for operation in methods.into_iter().flatten() {
            let tag = operation.tags.iter().flatten().next();
            operation.operation_id =
                tag.zip(operation.operation_id.as_ref()).map(|(tag, name)| format!("{tag}_{name}"));
        }
    }
    document
}

/// The body of an error.
#[derive(ToSchema)]
#[schema(as = Detail)]
#[expect(dead_code, reason = "describes what http::error answers to readers of the document")]
pub(super) struct DetailSchema {
    /// One sentence.
    detail: String,
}

/// The body of a 422.
#[derive(ToSchema)]
#[schema(as = Problems)]
#[expect(dead_code, reason = "as above")]
pub(super) struct ProblemsSchema {
    detail: Vec<Problem>,
}

/// Defines what stands among the responses of an operation: refusals, each an error and what it means.
macro_rules! refusals {
    ($($name:ident { $($error:expr => $meaning:literal,)+ })+) => {$(
        pub(super) struct $name;

        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<Response>> {
                BTreeMap::from([$(refusal($error, $meaning)),+])
            }
        }
    )+};
}

refusals! {
    // Goes before `RoleNotOpen`, `Forbidden`, `EmailNotVerified` and `MailTokenErrors`, which have another 403 or 400.
    BodyErrors {
        ApiError::UnreadableBody => "The body cannot be read",
        ApiError::ForeignOrigin => "A page of another site sent this",
        ApiError::BodyTooLarge => "The body is larger than 64 KiB",
        FieldError::Missing.at(Location::Body, Value::Null) => "The body is not what was asked for",
    }
    PathErrors {
        not_a_number(Location::Path("id")) => "The path is not what was asked for",
    }
    QueryErrors {
        not_a_number(Location::Query("limit")) => "The query is not what was asked for",
    }
    Unauthorized { Error::NotAuthenticated => "No access token, or not a good one", }
    InvalidCredentials { Error::InvalidCredentials => "No account with this address, or not its password", }
    InvalidRefreshToken { Error::RefreshToken(TokenError::Expired) => "Not a refresh token, or not a good one", }
    Forbidden { Error::Forbidden => "Not permitted, or a page of another site sent this", }
    RoleNotOpen { Error::RoleNotOpen => "The role is not open for registration, or a page of another site sent this", }
    NotFound { Error::NotFound => "No such user or session", }
    Conflict { Error::LastAdmin => "The last administrator, or a user to whom other data refers", }
    MailTokenErrors { Error::InvalidMailToken => "The token is unknown, spent or expired, or the body cannot be read", }
    EmailNotVerified {
        Error::EmailNotVerified => "The address must be verified first, or a page of another site sent this",
    }
    EmailTaken { Error::EmailTaken => "The address has an account", }
    Throttled { Error::Throttled(Duration::from_mins(1)) => "Too many attempts", }
    Unavailable { Error::Busy(Duration::from_secs(1)) => "Busy, or without its database", }
}

fn not_a_number(loc: Location) -> ApiError {
    whole_number(loc, "x", &(0..=0)).expect_err("BUG: it is not a number")
}

/// A response as the error itself is answered: its status, the names of its headers, and its body as the example.
fn refusal(error: impl Into<ApiError>, meaning: &str) -> (String, RefOr<Response>) {
    let Refusal { status, headers, body } = error.into().into();
    let schema = if status == StatusCode::UNPROCESSABLE_ENTITY { "Problems" } else { "Detail" };
    let schema = Ref::from_schema_name(schema);
    let content = ContentBuilder::new().schema(Some(schema)).example(Some(json!(body))).build();
    let mut response = ResponseBuilder::new().description(meaning).content("application/json", content);
    for name in headers.keys() {
        response = response.header(name.as_str(), Header::new(Object::with_type(Type::String)));
    }
    (status.as_str().to_owned(), response.build().into())
}
