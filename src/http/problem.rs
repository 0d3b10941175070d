//! One entry of a 422 answer, in the shape of pydantic's: where it is, what is wrong, and what was sent there.
//!
//! What makes a field wrong is not decided here; see `fields`.
//!
//! Each problem repeats its `input`, as pydantic's do, except that a password never comes back. What an object holds
//! under a name with "password" in it is replaced by asterisks, at any depth. A text that mentions a password is
//! replaced as a whole, because it may be a body in another format, or one encoded twice.

use std::borrow::Cow;

use serde::{Serialize, Serializer};
use serde_json::Value;

/// Stands where a password stood.
const PLACEHOLDER: &str = "**********";

/// One entry of a 422 answer's `detail`, with the keys in pydantic's order.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Problem {
    #[serde(rename = "type")]
    kind: &'static str,
    loc: Location,
    msg: Cow<'static, str>,
    /// What was sent, without passwords.
    input: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
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
    /// `name` is what the input stands under in the request; empty where it stands under none.
    pub(super) fn new(
        kind: &'static str,
        loc: Location,
        msg: impl Into<Cow<'static, str>>,
        ctx: Option<Context>,
        name: &str,
        mut input: Value,
    ) -> Self {
        match loc {
            Location::Body => conceal_all(&mut input),
            _ => conceal_member(name, &mut input),
        }
        Self { kind, loc, msg: msg.into(), input, ctx }
    }
}

/// Replaces the passwords in a body that is no object, and all of it where a text in it mentions one: then there is no
/// telling which text is the password.
fn conceal_all(body: &mut Value) {
    if has_text_on_password(body) {
        *body = placeholder();
    } else {
        conceal(body);
    }
}

/// Replaces the passwords in a value.
fn conceal(value: &mut Value) {
    match value {
        Value::String(text) if is_on_password(text) => *value = placeholder(),
        Value::Array(items) => {
            for item in items {
                conceal(item);
            }
        }
        Value::Object(members) => {
            for (name, value) in members {
                conceal_member(name, value);
            }
        }
        _ => {}
    }
}

/// Replaces the passwords in the value of a member, which may be one itself. That a password is null is no secret.
fn conceal_member(name: &str, value: &mut Value) {
    if !is_on_password(name) {
        conceal(value);
    } else if !matches!(value, Value::Null) {
        *value = placeholder();
    }
}

fn placeholder() -> Value {
    Value::String(PLACEHOLDER.into())
}

/// Whether any text in a value, names of members aside, mentions a password.
fn has_text_on_password(value: &Value) -> bool {
    match value {
        Value::String(text) => is_on_password(text),
        Value::Array(items) => items.iter().any(has_text_on_password),
        Value::Object(members) => members.values().any(has_text_on_password),
        _ => false,
    }
}

fn is_on_password(text: &str) -> bool {
    text.to_ascii_lowercase().contains("password")
}
