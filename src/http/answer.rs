//! How answers are written: their JSON, times, and links. What they hold is said beside the handlers.

use axum::http::header::{CONTENT_TYPE, LINK};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;

use crate::domain::page::PageSize;

/// An answer in JSON. (Axum's own type is banned: as an extractor its refusals would not have the contract's shape.)
pub(super) struct Json<T>(pub T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.0) {
            Ok(bytes) => {
                let json = HeaderValue::from_static("application/json");
                ([(CONTENT_TYPE, json)], bytes).into_response()
            }
            // Only a map with keys that are no strings could fail, and none is ever answered.
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        }
    }
}

/// How a time is written: RFC 3339, UTC, whole seconds.
pub(super) fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// A `Link` header that names the next page of the list at `path`, if there is one (RFC 8288).
pub(super) fn link_to_next(path: &str, size: PageSize, after: Option<impl std::fmt::Display>) -> HeaderMap {
    let link = after.map(|after| format!("<{path}?limit={}&after={after}>; rel=\"next\"", size.get()));
    link.and_then(|link| HeaderValue::try_from(link).ok()).map(|link| (LINK, link)).into_iter().collect()
}
