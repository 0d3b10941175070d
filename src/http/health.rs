//! For machines: health, readiness, metrics, version.

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use serde::Serialize;
use utoipa::ToSchema;

use super::answer::Json;
use super::auth::Status;
use super::error::ApiError;
use super::openapi::Unavailable;
use crate::app::App;
use crate::service::health;

/// Which service this is.
#[derive(Serialize, ToSchema)]
pub(super) struct Info {
    #[schema(example = "auth")]
    service: &'static str,
    #[schema(example = "1.0.0")]
    version: &'static str,
}

/// The process is up and accepts requests
///
/// Never touches the database.
#[utoipa::path(get, path = "/auth/health", tag = "operation",
    responses((status = 200, description = "Up", body = Status), Unavailable))]
pub(super) async fn health(State(app): State<App>) -> Result<Json<Status>, ApiError> {
    health::accepting(&app)?;
    Ok(Json(Status { status: "ok" }))
}

/// The service can do its work
#[utoipa::path(get, path = "/auth/ready", tag = "operation",
    responses((status = 200, description = "The database answers", body = Status), Unavailable))]
pub(super) async fn ready(State(app): State<App>) -> Result<Json<Status>, ApiError> {
    health::ready(&app).await?;
    Ok(Json(Status { status: "ok" }))
}

/// Metrics for Prometheus
#[utoipa::path(get, path = "/auth/metrics", tag = "operation",
    responses((status = 200, description = "Metrics", body = String, content_type = "text/plain"), Unavailable))]
pub(super) async fn metrics(State(app): State<App>) -> impl IntoResponse {
    let (text, content_type) = health::metrics(&app);
    ([(CONTENT_TYPE, content_type)], text)
}

/// Name and version
#[utoipa::path(get, path = "/v1/_info", tag = "operation",
    responses((status = 200, description = "Name and version", body = Info), Unavailable))]
pub(super) async fn info() -> Json<Info> {
    Json(Info { service: env!("CARGO_PKG_NAME"), version: env!("CARGO_PKG_VERSION") })
}
