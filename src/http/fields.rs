//! From the members of a JSON object to typed fields, or to the list of everything that is wrong with them, in
//! pydantic's words.
//!
//! A request type reads its fields one after the other, and builds itself if none was refused (see
//! `http::auth::RegisterRequest`). What makes an e-mail or a role a good one is not decided here: fields take the parse
//! functions of domain types, whose errors become a [`FieldError`].

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::problem::{Context, Location, Problem};

/// Why a field was refused. Parse functions say the last four.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FieldError {
    Missing,
    NotString,
    /// None of the words allowed, which are listed in a phrase.
    NotAmong(String),
    /// Not an e-mail address, for a reason that is a sentence for the client.
    Email(String),
    TooShort(usize),
    /// More characters than this (or bytes, where bytes are counted).
    TooLong(usize),
    /// A NUL character. Not one of pydantic's problems: the Python service failed on it.
    Nul,
}

impl FieldError {
    /// The problem with what stands at `loc`.
    pub(super) fn at(self, loc: Location, input: Value) -> Problem {
        let (kind, msg, ctx) = match self {
            Self::Missing => ("missing", Cow::from("Field required"), None),
            Self::NotString => ("string_type", "Input should be a valid string".into(), None),
            Self::NotAmong(expected) => {
                let msg = format!("Input should be {expected}");
                ("literal_error", msg.into(), Some(Context::Expected(expected)))
            }
            Self::Email(reason) => {
                let msg = format!("value is not a valid email address: {reason}");
                ("value_error", msg.into(), Some(Context::Reason(reason)))
            }
            Self::TooShort(min) => {
                let msg = format!("String should have at least {min} characters");
                ("string_too_short", msg.into(), Some(Context::MinLength(min)))
            }
            Self::TooLong(max) => {
                let msg = format!("String should have at most {max} characters");
                ("string_too_long", msg.into(), Some(Context::MaxLength(max)))
            }
            Self::Nul => {
                let error = "String should not contain NUL characters";
                ("value_error", format!("Value error, {error}").into(), Some(Context::Error(error)))
            }
        };
        Problem::new(kind, loc, msg, ctx, input)
    }
}

/// Stands for the value of a field that was refused. There is a problem in the list for each one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rejected(());

/// The members of an object, and what has been found wrong with them so far.
pub(super) struct Fields {
    members: Map<String, Value>,
    problems: Vec<Problem>,
}

impl Fields {
    pub(super) fn new(members: Map<String, Value>) -> Self {
        Self { members, problems: Vec::new() }
    }

    /// A field that has to be there, as text that `parse` takes.
    pub(super) fn required<T, E: Into<FieldError>>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<T, Rejected> {
        let text = self
            .members
            .get(name)
            .ok_or(FieldError::Missing)
            .and_then(|value| value.as_str().ok_or(FieldError::NotString));
        let parsed = text.and_then(|text| parse(text).map_err(Into::into));
        parsed.map_err(|error| self.refuse(name, error))
    }

    /// A field that may be absent or null.
    pub(super) fn optional<T, E: Into<FieldError>>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, Rejected> {
        match self.members.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(_) => self.required(name, parse).map(Some),
        }
    }

    /// A field that has to be there, as any text.
    pub(super) fn string(&mut self, name: &'static str) -> Result<String, Rejected> {
        self.required(name, |text| Ok::<_, FieldError>(text.to_owned()))
    }

    /// A field that may be absent or null, and else is one of a few words, each with what it stands for.
    pub(super) fn choice<T: Copy>(
        &mut self,
        name: &'static str,
        choices: &[(&'static str, T)],
    ) -> Result<Option<T>, Rejected> {
        let value = match self.members.get(name) {
            None | Some(Value::Null) => return Ok(None),
            Some(value) => value,
        };
        match choices.iter().find(|(word, _)| value == word) {
            Some((_, meaning)) => Ok(Some(*meaning)),
            None => Err(self.refuse(name, FieldError::NotAmong(list(choices)))),
        }
    }

    /// Builds the request, unless a field was refused: then all that were are in the error, in the order of reading.
    pub(super) fn finish<T>(self, build: impl FnOnce() -> Result<T, Rejected>) -> Result<T, Vec<Problem>> {
        match build() {
            Ok(request) if self.problems.is_empty() => Ok(request),
            _ => Err(self.problems),
        }
    }

    fn refuse(&mut self, name: &'static str, error: FieldError) -> Rejected {
        let loc = Location::Field(name);
        let input = self.members.get(name).cloned().unwrap_or_else(|| Value::Object(self.members.clone()));
        self.problems.push(error.at(loc, input));
        Rejected(())
    }
}

/// The words of a choice, as in `'this', 'others' or 'all'`.
fn list<T>(choices: &[(&str, T)]) -> String {
    let words: Vec<_> = choices.iter().map(|(word, _)| format!("'{word}'")).collect();
    words.split_last().map_or_else(String::new, |(last, others)| format!("{} or {last}", others.join(", ")))
}
