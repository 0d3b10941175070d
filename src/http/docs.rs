//! The OpenAPI document and the page on which it can be tried, served from the binary.

use std::borrow::Cow;
use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::body::Bytes;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use utoipa_swagger_ui::{Config, serve};

use super::error::ApiError;
use super::extract::PathSegment;
use crate::app::App;

/// The page needs its own scripts and styles, and nothing else from anywhere.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; \
     frame-ancestors 'none'";

const PAGE: &str = r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>auth: API</title>
<link rel="stylesheet" href="/auth/docs/swagger-ui.css">
<link rel="icon" type="image/png" href="/auth/docs/favicon-32x32.png" sizes="32x32">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/auth/docs/swagger-ui-bundle.js"></script>
<script src="/auth/docs/swagger-ui-standalone-preset.js"></script>
<script src="/auth/docs/swagger-initializer.js"></script>
</body>
</html>
"#;

static CONFIG: LazyLock<Arc<Config<'static>>> = LazyLock::new(|| {
    // Without the bar that asks for the address of another document.
    Arc::new(Config::from("/auth/openapi.json").use_base_layout().default_models_expand_depth(0))
});

static DOCUMENT: LazyLock<Bytes> =
    LazyLock::new(|| serde_json::to_vec(&super::openapi()).expect("BUG: the document is plain JSON").into());

/// The document and the page, each behind the gateway's prefix and without it.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/auth/openapi.json", get(document))
        .route("/openapi.json", get(document))
        .route("/auth/docs", get(page))
        .route("/docs", get(page))
        .route("/auth/docs/{file}", get(asset))
}

async fn document() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], DOCUMENT.clone())
}

async fn page() -> impl IntoResponse {
    ([(CONTENT_SECURITY_POLICY, PAGE_POLICY)], Html(PAGE))
}

async fn asset(PathSegment(file): PathSegment) -> Result<Response, ApiError> {
    let asset = serve(&file, Arc::clone(&CONFIG)).map_err(|_| ApiError::Internal)?.ok_or(ApiError::NotFound)?;
    let bytes = match asset.bytes {
        Cow::Borrowed(bytes) => Bytes::from_static(bytes),
        Cow::Owned(bytes) => bytes.into(),
    };
    let headers = [(CONTENT_TYPE, asset.content_type), (CACHE_CONTROL, "public, max-age=3600".to_owned())];
    Ok((headers, bytes).into_response())
}
