//! The public keys that verify access tokens.

use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};

use super::openapi::Unavailable;
use crate::app::App;

/// For how long a copy is good. A new key is published for longer than this before it signs.
const PUBLIC_FOR_FIVE_MINUTES: &str = "public, max-age=300";

/// The public keys that verify access tokens, as a JWK Set (RFC 7517)
///
/// Empty where the secret signs access tokens and no other key is accepted.
#[utoipa::path(get, path = "/auth/.well-known/jwks.json", tag = "operation",
    responses((status = 200, description = "The keys", body = serde_json::Value,
        content_type = "application/jwk-set+json"),
        (status = 304, description = "The keys are those of `If-None-Match`"), Unavailable))]
pub(super) async fn jwks(State(app): State<App>, headers: HeaderMap) -> Response {
    let keys = app.tokens.published();
    let tag = format!("\"{}\"", keys.digest);
    let known = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let same = |known: &str| known == "*" || known.trim_start_matches("W/") == tag;
    let known = known.flat_map(|list| list.split(',')).any(|known| same(known.trim()));
    let head = [(CACHE_CONTROL, PUBLIC_FOR_FIVE_MINUTES), (ETAG, tag.as_str())];
    if known {
        return (StatusCode::NOT_MODIFIED, head).into_response();
    }
    (head, [(CONTENT_TYPE, "application/jwk-set+json")], keys.json.clone()).into_response()
}
