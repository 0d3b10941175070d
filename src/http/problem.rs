//! One entry of a 422 answer, in the shape of pydantic's: where it is, what is wrong, and what was sent there.
//!
//! What makes a field wrong is not decided here; see `fields`.
//!
//! Each problem repeats its `input`, as pydantic's do, but no secret: a value is masked where its name or a text in it
//! mentions a password, a token or the like, or where a text may hold a JWT.

use std::borrow::Cow;

use serde::{Serialize, Serializer};
use serde_json::Value;

/// Stands where a secret stood.
const PLACEHOLDER: &str = "**********";

/// What the names of secrets have in them.
const SECRETS: [&str; 5] = ["pass", "pwd", "secret", "token", "jwt"];

/// How every JWT begins: `{"`, in base64url.
const JWT: &str = "eyJ";

/// One entry of a 422 answer's `detail`, with the keys in pydantic's order.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Problem {
    #[serde(rename = "type")]
    kind: &'static str,
    loc: Location,
    msg: Cow<'static, str>,
    /// What was sent, without secrets.
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
        mask(name, &mut input);
        Self { kind, loc, msg: msg.into(), input, ctx }
    }
}

/// Masks the secrets in a value that stands under a name, or under none. That a secret is null is none.
fn mask(name: &str, value: &mut Value) {
    let is_secret = match value {
        Value::Null => false,
        _ if mentions_secret(name) => true,
        Value::String(text) => mentions_secret(text),
        // There is no telling which of the others is the secret that one of the texts speaks of.
        Value::Array(items) => items.iter().any(has_secret_text),
        Value::Object(members) => members.keys().any(|name| name.contains(JWT)),
        _ => false,
    };
    match value {
        _ if is_secret => *value = PLACEHOLDER.into(),
        Value::Array(items) => items.iter_mut().for_each(|item| mask("", item)),
        Value::Object(members) => members.iter_mut().for_each(|(name, value)| mask(name, value)),
        _ => {}
    }
}

/// Whether any text in a value, names aside, mentions a secret.
fn has_secret_text(value: &Value) -> bool {
    match value {
        Value::String(text) => mentions_secret(text),
        Value::Array(items) => items.iter().any(has_secret_text),
        Value::Object(members) => members.values().any(has_secret_text),
        _ => false,
    }
}

fn mentions_secret(text: &str) -> bool {
    // A text in UTF-16 that was read as UTF-8 has a NUL after each letter.
    let text = text.replace('\0', "");
    let lower = text.to_ascii_lowercase();
    text.contains(JWT) || SECRETS.iter().any(|word| lower.contains(word))
}
