//! One entry of a 422 answer, in the shape of pydantic's: where it is, what is wrong, and what was sent there.
//!
//! What makes a field wrong is not decided here; see `fields`.
//!
//! Each problem repeats its `input`, as pydantic's do, but no secret. Anything may be one, in any spelling, so only values
//! that stand under a name in [`SHOWN`] are repeated, and a whole body that is no object only where no password is as short.

use std::borrow::Cow;

use serde::{Serialize, Serializer};
use serde_json::Value;
use utoipa::ToSchema;
use utoipa::openapi::schema::{ArrayBuilder, OneOfBuilder, Schema};
use utoipa::openapi::{Object, Type};

use crate::domain::password::Password;

const PLACEHOLDER: &str = "**********";

/// The fields and parameters whose values are no secrets.
const SHOWN: [&str; 6] = ["after", "email", "id", "limit", "role", "scope"];

/// How every JWT begins: `{"`, in base64url. A client may have put one into the wrong field.
const JWT: &str = "eyJ";

/// An input that is longer, as JSON, is not repeated. The longest address that is read is half as long.
const MAX_INPUT_BYTES: usize = 4096;

/// The name of a member that is longer may be a value that was put there.
const MAX_NAME_BYTES: usize = 32;

/// One problem with a request, as pydantic describes it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(super) struct Problem {
    #[serde(rename = "type")]
    #[schema(example = "missing")]
    kind: &'static str,
    #[schema(schema_with = Location::schema)]
    loc: Location,
    #[schema(value_type = String, example = "Field required")]
    msg: Cow<'static, str>,
    /// What was sent, without secrets.
    input: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    ctx: Option<Context>,
}

/// Where in a request a problem is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Location {
    Body,
    /// A character of a body that is not JSON.
    Position(usize),
    Field(&'static str),
    Path(&'static str),
    Query(&'static str),
}

impl Location {
    fn schema() -> Schema {
        let step = OneOfBuilder::new().item(Object::with_type(Type::String)).item(Object::with_type(Type::Integer));
        let where_it_is = "Where: `[\"body\", \"email\"]`, or `[\"body\", 17]` for the 17th character.";
        ArrayBuilder::new().items(step).description(Some(where_it_is)).build().into()
    }
}

impl Serialize for Location {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Body => ["body"].serialize(serializer),
            Self::Position(position) => ("body", position).serialize(serializer),
            Self::Field(name) => ("body", name).serialize(serializer),
            Self::Path(name) => ("path", name).serialize(serializer),
            Self::Query(name) => ("query", name).serialize(serializer),
        }
    }
}

/// What a program needs to say the same in its own words.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Context {
    Error(&'static str),
    Expected(String),
    MaxLength(usize),
    MinLength(usize),
    Reason(String),
}

impl Problem {
    /// `input` is what stands there in the request.
    pub(super) fn new(
        kind: &'static str,
        loc: Location,
        msg: impl Into<Cow<'static, str>>,
        ctx: Option<Context>,
        mut input: Value,
    ) -> Self {
        let length = input.to_string().len();
        match loc {
            _ if length > MAX_INPUT_BYTES => input = PLACEHOLDER.into(),
            // The input is the object that the field is missing from.
            Location::Field(_) if kind == "missing" => mask("", &mut input),
            Location::Field(name) | Location::Path(name) | Location::Query(name) if is_shown(name) => {
                mask(name, &mut input);
            }
            Location::Body | Location::Position(_) if length < Password::MIN_CHARACTERS => {}
            _ if input.is_null() => {}
            _ => input = PLACEHOLDER.into(),
        }
        Self { kind, loc, msg: msg.into(), input, ctx }
    }
}

fn is_shown(name: &str) -> bool {
    SHOWN.iter().any(|shown| shown.eq_ignore_ascii_case(name))
}

/// Masks every value in this one that stands under no shown name. An absent value is no secret.
fn mask(name: &str, value: &mut Value) {
    match value {
        Value::Null => {}
        Value::Array(items) => items.iter_mut().for_each(|item| mask("", item)),
        Value::Object(members) if members.keys().all(|name| is_name(name)) => {
            members.iter_mut().for_each(|(name, value)| mask(name, value));
        }
        Value::Number(_) | Value::Bool(_) if is_shown(name) => {}
        Value::String(text) if is_shown(name) && !text.contains(JWT) => {}
        _ => *value = PLACEHOLDER.into(),
    }
}

fn is_name(text: &str) -> bool {
    text.len() <= MAX_NAME_BYTES && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}
