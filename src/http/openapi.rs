//! The OpenAPI document: all that no handler says of itself, and the refusals that many routes share.

use std::collections::BTreeMap;

use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::schema::{ArrayBuilder, OneOfBuilder, Schema};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Header, Object, Ref, RefOr, Type};
use utoipa::{IntoResponses, Modify, OpenApi, ToSchema};

use super::error::Detail;

/// Everything about the document that no handler says.
#[derive(OpenApi)]
#[openapi(
    info(title = "auth", description = "Sign-in service of the storefront."),
    components(schemas(Detail, ProblemsSchema)),
    modifiers(&Bearer),
    tags(
        (name = "auth", description = "Signing up, in and out"),
        (name = "sessions", description = "Where somebody is signed in"),
        (name = "users", description = "Users"),
        (name = "operation", description = "For machines"),
    ),
)]
pub(super) struct Base;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let mut scheme = Http::new(HttpAuthScheme::Bearer);
        scheme.bearer_format = Some("JWT".to_owned());
        let components = document.components.get_or_insert_with(Default::default);
        components.add_security_scheme("bearer", SecurityScheme::Http(scheme));
    }
}

/// 400, 413 and 422: the body is not what was asked for; 403: a page of another site made a browser send it.
pub(super) struct BodyErrors;
/// 422: a parameter is not what was asked for.
pub(super) struct ParameterErrors;
/// 401: no token, or not a good one.
pub(super) struct Unauthorized;
/// 403: the bearer is no administrator.
pub(super) struct Forbidden;
/// 404: no such user or session.
pub(super) struct NotFound;
/// 429: too many attempts.
pub(super) struct Throttled;
/// 503: overloaded, or without its database.
pub(super) struct Unavailable;

/// One problem with a request, as pydantic describes it.
#[derive(ToSchema)]
#[schema(as = Problem)]
#[expect(dead_code, reason = "describes http::problem::Problem to readers of the document")]
pub(super) struct ProblemSchema {
    #[schema(example = "missing")]
    r#type: String,
    #[schema(schema_with = location)]
    loc: (),
    #[schema(example = "Field required")]
    msg: String,
    /// What was sent, with passwords masked.
    #[schema(value_type = Value)]
    input: (),
    #[schema(value_type = Option<Object>)]
    ctx: Option<()>,
}

fn location() -> Schema {
    let step = OneOfBuilder::new().item(Object::with_type(Type::String)).item(Object::with_type(Type::Integer));
    ArrayBuilder::new()
        .items(step)
        .description(Some("Where: `[\"body\", \"email\"]`, or `[\"body\", 17]` for the 17th character."))
        .build()
        .into()
}

/// The body of a 422.
#[derive(ToSchema)]
#[schema(as = Problems)]
#[expect(dead_code, reason = "as above")]
pub(super) struct ProblemsSchema {
    detail: Vec<ProblemSchema>,
}

type Responses = BTreeMap<String, RefOr<Response>>;

fn refusal(description: &str, schema: &str, headers: &[&str]) -> RefOr<Response> {
    let schema = Ref::from_schema_name(schema);
    let content = ContentBuilder::new().schema(Some(schema)).build();
    let mut builder = ResponseBuilder::new().description(description).content("application/json", content);
    for name in headers {
        let text = Object::with_type(Type::String);
        builder = builder.header(*name, Header::new(text));
    }
    builder.build().into()
}

fn one(status: &str, description: &str, headers: &[&str]) -> Responses {
    BTreeMap::from([(status.to_owned(), refusal(description, "Detail", headers))])
}

impl IntoResponses for BodyErrors {
    fn responses() -> Responses {
        BTreeMap::from([
            ("400".to_owned(), refusal("The body cannot be read", "Detail", &[])),
            ("403".to_owned(), refusal("Not permitted, or sent by a page of another site", "Detail", &[])),
            ("413".to_owned(), refusal("The body is larger than 64 KiB", "Detail", &[])),
            ("422".to_owned(), refusal("The body is not what was asked for", "Problems", &[])),
        ])
    }
}

impl IntoResponses for ParameterErrors {
    fn responses() -> Responses {
        BTreeMap::from([("422".to_owned(), refusal("A parameter is not what was asked for", "Problems", &[]))])
    }
}

impl IntoResponses for Unauthorized {
    fn responses() -> Responses {
        one("401", "Credentials or token refused", &["WWW-Authenticate", "X-Auth-Reason"])
    }
}

impl IntoResponses for Forbidden {
    fn responses() -> Responses {
        one("403", "Not permitted", &[])
    }
}

impl IntoResponses for NotFound {
    fn responses() -> Responses {
        one("404", "Not found", &[])
    }
}

impl IntoResponses for Throttled {
    fn responses() -> Responses {
        one("429", "Too many attempts", &["Retry-After"])
    }
}

impl IntoResponses for Unavailable {
    fn responses() -> Responses {
        one("503", "Busy, or without its database", &["Retry-After"])
    }
}
