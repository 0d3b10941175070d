//! HTTP: routes, and the layers around them. The only place that knows axum.

mod answer;
mod auth;
mod body;
mod connection;
mod connection_limits;
mod docs;
mod error;
mod extract;
mod fields;
mod health;
mod json;
mod keys;
mod mail;
mod observe;
mod openapi;
mod origin;
mod problem;
mod server;
mod sessions;
mod users;
mod verify;

pub use extract::Peer;
pub use server::{listen, probe_health, serve};

use axum::Router;
use axum::extract::Request;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderName, Method, Uri};
use axum::middleware::from_fn_with_state;
use axum::response::Response;
use axum::routing::{any, get};
use tower::ServiceBuilder;
use tower::util::{MapRequest, MapRequestLayer, MapResponse, MapResponseLayer};
use tower_http::cors::{AllowOrigin, CorsLayer};
use tower_http::validate_request::ValidateRequestHeaderLayer;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::config::CorsOrigins;
use error::ApiError;
use origin::OwnOriginOnly;

/// The whole service as one `tower::Service`.
pub type HttpService = MapRequest<MapResponse<Router, fn(Response) -> Response>, fn(Request) -> Request>;

fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(openapi::Base::openapi())
        .routes(routes!(auth::register))
        .routes(routes!(auth::login))
        .routes(routes!(auth::refresh))
        .routes(routes!(auth::logout))
        .routes(routes!(auth::password))
        .routes(routes!(sessions::list))
        .routes(routes!(sessions::end))
        .routes(routes!(users::list))
        .routes(routes!(users::me))
        .routes(routes!(users::get, users::set_role, users::delete))
        .routes(routes!(users::list_sessions, users::end_sessions))
        .routes(routes!(keys::jwks))
        .routes(routes!(health::health))
        .routes(routes!(health::ready))
        .routes(routes!(health::metrics))
        .routes(routes!(health::info))
}

pub fn openapi() -> utoipa::openapi::OpenApi {
    // The last is served with any method, which the document cannot say.
    let documented = routes().merge(mail::routes()).routes(routes!(verify::verify));
    openapi::complete(documented.into_openapi())
}

/// Puts routes and layers together.
pub fn build(app: App) -> HttpService {
    let mail = if app.config.mail.is_on() { mail::routes() } else { OpenApiRouter::new() };
    let (router, _) = routes().merge(mail).split_for_parts();
    let observe = from_fn_with_state(app.clone(), observe::observe);
    // A gateway hands on any request, whatever it is and wherever it comes from.
    let verify = Router::new()
        .route(verify::VERIFY, any(verify::verify))
        .route(verify::VERIFY_ROOT, any(verify::verify_path))
        .route(verify::VERIFY_PATH, any(verify::verify_path))
        .layer(observe.clone());
    let router = router
        .route("/health", get(health::health))
        .merge(if app.config.api_docs { docs::routes() } else { Router::new() })
        .fallback(|| std::future::ready(ApiError::NotFound))
        .method_not_allowed_fallback(|| std::future::ready(ApiError::MethodNotAllowed))
        .layer(
            ServiceBuilder::new()
                .layer(observe)
                .option_layer(app.config.cors_allowed_origins.as_ref().map(cors))
                .layer(ValidateRequestHeaderLayer::custom(OwnOriginOnly(app.clone()))),
        )
        .merge(verify)
        .with_state(app);
    let normalise: fn(Request) -> Request = normalise_path;
    let space_allow: fn(Response) -> Response = observe::space_allow;
    ServiceBuilder::new()
        .layer(MapRequestLayer::new(normalise))
        .layer(MapResponseLayer::new(space_allow))
        .service(router)
}

/// A trailing slash more or less makes no difference; the route of the user list is the one that has it.
fn normalise_path(mut request: Request) -> Request {
    let path = request.uri().path();
    // What follows is the path of a gateway's client: without its slash, its query would be taken for the gateway's.
    if path.starts_with(verify::VERIFY_ROOT) {
        return request;
    }
    let trimmed = path.trim_end_matches('/');
    let canonical = match trimmed {
        "/users" => "/users/",
        "" => "/",
        other => other,
    };
    if canonical != path {
        let query = request.uri().query().map_or(String::new(), |query| format!("?{query}"));
        let mut parts = request.uri().clone().into_parts();
        // A part of a valid path is a valid path.
        parts.path_and_query = PathAndQuery::try_from(format!("{canonical}{query}")).ok();
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    }
    request
}

fn cors(origins: &CorsOrigins) -> CorsLayer {
    let origins = match origins {
        CorsOrigins::Any => AllowOrigin::any(),
        CorsOrigins::List(list) => AllowOrigin::list(list.iter().filter_map(|origin| origin.parse().ok())),
    };
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST, Method::PATCH, Method::DELETE])
        .allow_headers([AUTHORIZATION, CONTENT_TYPE, HeaderName::from_static("x-request-id")])
        .expose_headers(["link", "retry-after", "x-auth-reason", "x-request-id"].map(HeaderName::from_static))
        .max_age(std::time::Duration::from_hours(1))
}
