//! Reading the body of a request: how much of it, as which format, and into what.

use axum::body::Body as RawBody;
use axum::extract::{FromRequest, Request};
use axum::http::HeaderValue;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, EXPECT};
use axum::http::request::Parts;
use http_body_util::BodyExt as _;
use serde_json::{Map, Value};

use super::error::ApiError;
use super::fields::{FieldError, Fields};
use super::json::{self, JsonError};
use super::problem::{Context, Location, Problem};
use crate::app::App;

/// Largest body that is read.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// How much of a larger body is received and thrown away, so that its sender gets to see the answer: one who is still
/// sending when the connection closes mostly sees only that.
const MAX_DISCARDED_BYTES: u64 = 4 * 1024 * 1024;

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
    let announced = parts.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let announced = announced.unwrap_or(0);
    // Who waits to be asked for the body needs not be asked for one that is too large.
    let waits = parts.headers.contains_key(EXPECT);
    if announced > MAX_DISCARDED_BYTES || (waits && announced > MAX_BODY_BYTES as u64) {
        return Err(ApiError::BodyTooLarge);
    }
    let mut bytes = Vec::new();
    let mut received = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| ApiError::UnreadableBody)?;
        let Ok(data) = frame.into_data() else { continue };
        received += data.len() as u64;
        if received > MAX_DISCARDED_BYTES {
            break;
        }
        if received <= MAX_BODY_BYTES as u64 {
            bytes.extend_from_slice(&data);
        }
    }
    if received > MAX_BODY_BYTES as u64 { Err(ApiError::BodyTooLarge) } else { Ok(bytes) }
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
    Err(vec![problem].into())
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
                vec![Problem::new("json_invalid", loc, "JSON decode error", ctx, input)].into()
            }
            JsonError::Unreadable => Self::UnreadableBody,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::{Value as Json, json};

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Case {
        path: String,
        #[serde(default = "json_content_type")]
        content_type: Option<String>,
        body: Option<String>,
        hex: Option<String>,
        repeat: Option<Vec<(String, usize)>>,
        status: u16,
        #[serde(default)]
        detail: Vec<Json>,
    }

    #[expect(clippy::unnecessary_wraps, reason = "serde wants the type of the field")]
    fn json_content_type() -> Option<String> {
        Some("application/json".to_owned())
    }

    impl Case {
        fn bytes(&self) -> Vec<u8> {
            if let Some(body) = &self.body {
                return body.clone().into_bytes();
            }
            if let Some(parts) = &self.repeat {
                return parts.iter().map(|(text, times)| text.repeat(*times)).collect::<String>().into_bytes();
            }
            let digits: Vec<char> = self.hex.as_deref().unwrap_or_default().chars().collect();
            digits.chunks(2).map(|pair| u8::from_str_radix(&String::from_iter(pair), 16).unwrap()).collect()
        }
    }

    /// As much of the rules for addresses as the cases need.
    fn email(text: &str) -> Result<(), FieldError> {
        if text.contains('@') {
            Ok(())
        } else {
            Err(FieldError::Email("An email address must have an @-sign.".to_owned()))
        }
    }

    fn new_password(text: &str) -> Result<(), FieldError> {
        if text.chars().count() < 8 { Err(FieldError::TooShort(8)) } else { Ok(()) }
    }

    fn read(path: &str, content_type: Option<&str>, body: &[u8]) -> Result<(), ApiError> {
        let mut fields = members(content_type.unwrap_or_default().as_bytes(), body)?;
        let result = match path {
            "/register" => {
                let email = fields.required("email", email);
                let password = fields.required("password", new_password);
                let role = fields.optional("role", |text| Ok::<_, FieldError>(text.to_owned()));
                fields.finish(|| email.and(password).and(role).map(|_| ()))
            }
            "/login" => {
                let email = fields.required("email", email);
                let password = fields.string("password");
                fields.finish(|| email.and(password).map(|_| ()))
            }
            _ => {
                let token = fields.string("refresh_token");
                let scope = match path {
                    "/logout" => fields.choice("scope", &[("this", 1), ("others", 2), ("all", 3)]),
                    _ => Ok(None),
                };
                fields.finish(|| token.and(scope).map(|_| ()))
            }
        };
        result.map_err(Into::into)
    }

    fn problems(path: &str, content_type: Option<&str>, body: &[u8]) -> String {
        match read(path, content_type, body) {
            Err(ApiError::Invalid(problems)) => serde_json::to_string(&problems).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    /// The `input` of the first problem.
    fn input(path: &str, content_type: Option<&str>, body: &str) -> Json {
        let problems: Json = serde_json::from_str(&problems(path, content_type, body.as_bytes())).unwrap();
        problems[0]["input"].clone()
    }

    #[test]
    fn a_body_is_judged_as_the_python_service_judged_it() {
        let cases: Vec<Case> = serde_json::from_str(include_str!("../../tests/data/bodies.json")).unwrap();
        let mut wrong = Vec::new();
        for case in cases {
            let (status, detail) = match read(&case.path, case.content_type.as_deref(), &case.bytes()) {
                Ok(()) => (200, Vec::new()),
                Err(ApiError::UnreadableBody) => (400, Vec::new()),
                Err(ApiError::Invalid(problems)) => (422, problems),
                Err(other) => panic!("{other:?} {case:?}"),
            };
            let in_short = |problem: &Problem| {
                let problem = serde_json::to_value(problem).unwrap();
                let mut short = json!({ "type": problem["type"], "loc": problem["loc"] });
                if problem["type"] == "json_invalid" {
                    short["error"] = problem["ctx"]["error"].clone();
                }
                short
            };
            let detail: Vec<Json> = detail.iter().map(in_short).collect();
            if (status, &detail) != (case.status, &case.detail) {
                wrong.push(format!("{case:?}\n  is {status} {detail:?}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn a_problem_has_pydantics_keys_in_its_order() {
        for (path, body, expected) in [
            ("/login", "null", r#"[{"type":"missing","loc":["body"],"msg":"Field required","input":null}]"#),
            (
                "/refresh",
                "{not json",
                r#"[{"type":"json_invalid","loc":["body",1],"msg":"JSON decode error","input":{},"ctx":{"error":"Expecting property name enclosed in double quotes"}}]"#,
            ),
            (
                "/refresh",
                "[1]",
                r#"[{"type":"model_attributes_type","loc":["body"],"msg":"Input should be a valid dictionary or object to extract fields from","input":[1]}]"#,
            ),
            (
                "/logout",
                r#"{"refresh_token":"x","scope":"every"}"#,
                r#"[{"type":"literal_error","loc":["body","scope"],"msg":"Input should be 'this', 'others' or 'all'","input":"every","ctx":{"expected":"'this', 'others' or 'all'"}}]"#,
            ),
            (
                "/login",
                r#"{"email":"x","password":1}"#,
                r#"[{"type":"value_error","loc":["body","email"],"msg":"value is not a valid email address: An email address must have an @-sign.","input":"x","ctx":{"reason":"An email address must have an @-sign."}},{"type":"string_type","loc":["body","password"],"msg":"Input should be a valid string","input":"**********"}]"#,
            ),
            (
                "/register",
                r#"{"role":1e-7,"password":"short"}"#,
                r#"[{"type":"missing","loc":["body","email"],"msg":"Field required","input":{"role":1e-7,"password":"**********"}},{"type":"string_too_short","loc":["body","password"],"msg":"String should have at least 8 characters","input":"**********","ctx":{"min_length":8}},{"type":"string_type","loc":["body","role"],"msg":"Input should be a valid string","input":1e-7}]"#,
            ),
        ] {
            assert_eq!(problems(path, None, body.as_bytes()), expected, "{body}");
        }
    }

    #[test]
    fn only_what_is_no_secret_comes_back() {
        for (body, shown) in [
            (r#"{"password":"hunter2"}"#, json!({ "password": "**********" })),
            (r#"{"password":null}"#, json!({ "password": null })),
            (r#"{"pass\u0077ord":"hunter2"}"#, json!({ "password": "**********" })),
            (r#"{"Email":"a@example.com","ROLE":"x"}"#, json!({ "Email": "a@example.com", "ROLE": "x" })),
            (r#"{"pw":"x","pin":1234,"credential":true}"#, {
                json!({ "pw": "**********", "pin": "**********", "credential": "**********" })
            }),
            (r#"{"a":[{"b":{"password":"x","email":"y"}}]}"#, {
                json!({ "a": [{ "b": { "password": "**********", "email": "y" } }] })
            }),
            (r#"{"form":[{"name":"password","value":"x"}]}"#, {
                json!({ "form": [{ "name": "**********", "value": "**********" }] })
            }),
            (r#"{"role":["hunter2",{"email":[7]}]}"#, json!({ "role": ["**********", { "email": ["**********"] }] })),
            (r#"{"a":{"eyJhbGciOiJIUzI1NiJ9.e30.x":1},"b":null}"#, json!({ "a": "**********", "b": null })),
            (r#"{"password=hunter2":""}"#, json!("**********")),
            (r#"["hunter2"]"#, json!("**********")),
            (r#""hunter2""#, json!("**********")),
            ("12345678", json!("**********")),
            ("1234", json!(1234)),
            (r#"{"a":{"b":{}}}"#, json!({ "a": { "b": {} } })),
        ] {
            assert_eq!(input("/login", Some("application/json"), body), shown, "{body}");
        }
        for value in [r#""hunter2""#, "1", "[1]", "{}", r#"{"email":"hunter2"}"#] {
            let body = format!(r#"{{"email":"a@example.com","password":{value}}}"#);
            assert_eq!(input("/register", None, &body), json!("**********"), "{value}");
        }
        for text in ["email=a%40example.com&%70assword=x", "refresh_token=x", "r\0e\0f\0r\0e\0s\0h\0", "pin: 1234"] {
            assert_eq!(input("/refresh", Some("text/plain"), text), json!("**********"), "{text}");
        }
        assert_eq!(input("/refresh", Some("text/plain"), "<a/>"), json!("<a/>"));
    }

    #[test]
    fn a_long_input_does_not_come_back() {
        let long = "x".repeat(4_094);
        assert_eq!(input("/login", None, &format!(r#"{{"email":"{long}"}}"#)), json!(long));
        for body in [
            format!(r#"{{"email":"{long}x"}}"#),
            format!(r#"{{"email":"{}"}}"#, r"\u0001".repeat(683)),
            format!(r#"{{"role":"{long}"}}"#),
            format!("{{{}}}", (0..600).map(|number| format!(r#""a{number}":1"#)).collect::<Vec<_>>().join(",")),
        ] {
            assert_eq!(input("/register", None, &body), json!("**********"), "{body}");
        }
    }
}
