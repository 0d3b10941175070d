//! The page on which the OpenAPI document can be tried, served from the binary.

use std::sync::{Arc, LazyLock};

use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::{Html, IntoResponse, Response};
use utoipa_swagger_ui::{Config, serve};

use super::error::ApiError;
use super::extract::PathSegment;

/// The page needs its own scripts and styles, and nothing else from anywhere.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; \
     frame-ancestors 'none'";

const PAGE: &str = r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>auth</title>
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

static CONFIG: LazyLock<Arc<Config<'static>>> = LazyLock::new(|| Arc::new(Config::from("/auth/openapi.json")));

/// The page.
pub(super) async fn page() -> impl IntoResponse {
    ([(CONTENT_SECURITY_POLICY, PAGE_POLICY)], Html(PAGE))
}

/// What the page is made of.
pub(super) async fn asset(PathSegment(file): PathSegment) -> Result<Response, ApiError> {
    match serve(&file, Arc::clone(&CONFIG)) {
        Ok(Some(asset)) => {
            let headers = [(CONTENT_TYPE, asset.content_type), (CACHE_CONTROL, "public, max-age=3600".to_owned())];
            Ok((headers, asset.bytes.into_owned()).into_response())
        }
        Ok(None) => Err(ApiError::NotFound),
        Err(_) => Err(ApiError::Internal),
    }
}
