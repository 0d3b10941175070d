//! Reading the body of a request: how much of it, as which format, and into what.

use std::time::Duration;

use axum::body::Body as RawBody;
use axum::extract::{FromRequest, Request};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, EXPECT};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue};
use http_body_util::BodyExt as _;
use serde_json::{Map, Value};
use tokio::sync::Semaphore;

use super::error::ApiError;
use super::fields::{FieldError, Fields};
use super::json::{self, JsonError};
use super::problem::{Context, Location, Problem};
use crate::app::App;
use crate::error::Error;

/// Largest body that is read.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// A larger body takes one of [`LARGE_BODIES`]. None that this service has a use for is as large.
const SMALL_BODY_BYTES: usize = 8 * 1024;
/// How many larger bodies are held at once: else those of many slow clients would fill the memory.
static LARGE_BODIES: Semaphore = Semaphore::const_new(128);
/// How much of a larger body is received and thrown away, so that its sender gets to see the answer: one who is still
/// sending when the connection closes mostly sees only that.
pub(super) const MAX_DISCARDED_BYTES: usize = 4 * 1024 * 1024;

/// A request that is read from a body.
pub(super) trait FromBody: Sized {
    /// Reads the fields in the order in which their problems are to be listed.
    fn from_fields(fields: Fields) -> Result<Self, Vec<Problem>>;
}

/// The request that was in the body.
pub(super) struct Body<T>(pub T);

impl<T: FromBody> FromRequest<App> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &App) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let bytes = read(&parts, body).await?;
        let content_type = parts.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
        Ok(Self(T::from_fields(members(content_type.unwrap_or_default(), &bytes)?)?))
    }
}

async fn read(parts: &Parts, mut body: RawBody) -> Result<Vec<u8>, ApiError> {
    let announced = content_length(&parts.headers).unwrap_or(0);
    // Who waits to be asked for the body needs not be asked for one that is too large.
    let waits = parts.headers.contains_key(EXPECT);
    if announced > MAX_DISCARDED_BYTES || (waits && announced > MAX_BODY_BYTES) {
        return Err(ApiError::BodyTooLarge);
    }
    let mut bytes = Vec::new();
    let mut received = 0;
    let mut permit = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| ApiError::UnreadableBody)?;
        let Ok(data) = frame.into_data() else { continue };
        received += data.len();
        if received > MAX_DISCARDED_BYTES {
            break;
        }
        if received > SMALL_BODY_BYTES && permit.is_none() {
            permit = Some(LARGE_BODIES.try_acquire().map_err(|_| Error::Busy(Duration::from_secs(1)))?);
        }
        if received <= MAX_BODY_BYTES {
            bytes.extend_from_slice(&data);
        }
    }
    if received > MAX_BODY_BYTES { Err(ApiError::BodyTooLarge) } else { Ok(bytes) }
}

/// The length of a body as its sender says it.
pub(super) fn content_length(headers: &HeaderMap) -> Option<usize> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The fields of a body, which has to be an object. `content_type` is empty where the request names none.
fn members(content_type: &[u8], body: &[u8]) -> Result<Fields, ApiError> {
    let value = if body.is_empty() {
        Value::Null
    } else if is_json(content_type) {
        json::parse(body)?
    } else {
        Value::String(String::from_utf8_lossy(body).into_owned())
    };
    let problem = match value {
        Value::Object(members) => return Ok(Fields::new(members)),
        Value::Null => FieldError::Missing.at(Location::Body, Value::Null),
        input => {
            let msg = "Input should be a valid dictionary or object to extract fields from";
            Problem::new("model_attributes_type", Location::Body, msg, None, input)
        }
    };
    Err(problem.into())
}

/// No content type and an empty one are JSON too; parameters do not matter, not even a charset.
fn is_json(content_type: &[u8]) -> bool {
    let essence = content_type.split(|byte| *byte == b';').next().unwrap_or_default();
    match essence.trim_ascii().to_ascii_lowercase().strip_prefix(b"application/") {
        Some(subtype) => !subtype.contains(&b'/') && (subtype == b"json" || subtype.ends_with(b"+json")),
        None => content_type.is_empty(),
    }
}

impl From<JsonError> for ApiError {
    fn from(error: JsonError) -> Self {
        match error {
            JsonError::Syntax { position, message } => {
                let (loc, ctx) = (Location::Position(position), Some(Context::Error(message)));
                let input = Value::Object(Map::new());
                Problem::new("json_invalid", loc, "JSON decode error", ctx, input).into()
            }
            JsonError::Unreadable => Self::UnreadableBody,
        }
    }
}
