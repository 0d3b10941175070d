//! From a request body to typed fields, or to the list of everything that is wrong with it, as pydantic words it.
//!
//! A request type reads its fields one after the other, and builds itself if none was refused:
//!
//! ```ignore
//! let mut fields = Fields::read(content_type, body)?;
//! let email = fields.required("email", Email::parse);
//! let role = fields.optional("role", Role::parse);
//! fields.finish(|| Ok(RegisterRequest { email: email?, role: role? }))
//! ```
//!
//! What makes an e-mail or a role a good one is not decided here: fields take the parse functions of domain types,
//! whose errors become a [`Refusal`]. Nor are status codes: [`BodyError`] says which of two answers it is, and the
//! error type of `http` gives it.
//!
//! Each problem repeats its `input`, as pydantic's do, except that a password never comes back. What an object holds
//! under a name with "password" in it is replaced by asterisks, at any depth. A text that mentions a password is
//! replaced as a whole, because it may be a body in another format, or one encoded twice.

use std::borrow::Cow;

use serde::{Serialize, Serializer};

use super::json::{self, JsonError, Text, Value};

/// Stands where a password stood.
const PLACEHOLDER: &str = "**********";

/// Why a body did not become a request.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    /// It could not be read at all: it is not text, or is nested too deeply, or holds an absurdly long number. Answered
    /// with 400 and this very sentence.
    #[error("There was an error parsing the body")]
    Unparsable,
    /// It is not JSON, or not what was asked for. Answered with 422 and this list, which is never empty.
    #[error("the body is not what was asked for")]
    Invalid(Vec<Problem>),
}

impl From<JsonError> for BodyError {
    fn from(error: JsonError) -> Self {
        match error {
            JsonError::Syntax { position, message } => Problem {
                kind: "json_invalid",
                loc: Place::Position(position),
                msg: "JSON decode error".into(),
                input: Value::Object(Vec::new()),
                ctx: Some(Context::Error(message)),
            }
            .into(),
            JsonError::Undecodable | JsonError::TooDeep | JsonError::IntegerTooLong => Self::Unparsable,
        }
    }
}

impl From<Problem> for BodyError {
    fn from(problem: Problem) -> Self {
        Self::Invalid(vec![problem])
    }
}

/// One entry of a 422 answer's `detail`, in pydantic's shape and with the keys in its order.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Problem {
    #[serde(rename = "type")]
    kind: &'static str,
    loc: Place,
    msg: Cow<'static, str>,
    /// What was sent, without passwords.
    input: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    ctx: Option<Context>,
}

/// Where in a request a problem is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    Body,
    /// A character of a body that is not JSON.
    Position(usize),
    Field(&'static str),
    Path(&'static str),
    Query(&'static str),
}

impl Problem {
    /// A path or query parameter that is not a number within bounds.
    pub(super) fn parameter(kind: &'static str, loc: Place, msg: Cow<'static, str>, input: &str) -> Self {
        Self { kind, loc, msg, input: Value::String(input.into()), ctx: None }
    }
}

impl Serialize for Place {
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
enum Context {
    Error(&'static str),
    Expected(String),
    MaxLength(usize),
    MinLength(usize),
    Reason(String),
}

/// Why a field was refused. Parse functions say the last four.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    Missing,
    NotString,
    /// A lone surrogate. Python lets some of them pass here, only to fail where the text is encoded.
    NotUnicode,
    /// None of the words allowed, which are listed in a phrase.
    NotAmong(String),
    /// Not an e-mail address, for a reason that is a sentence for the client.
    Email(String),
    /// Fewer characters than this.
    TooShort(usize),
    /// More characters than this (or bytes, where bytes are counted).
    TooLong(usize),
    /// A NUL character. Not one of pydantic's problems: the Python service failed on it.
    Nul,
}

impl Refusal {
    fn at(self, loc: Place, input: Value) -> Problem {
        let (kind, msg, ctx) = match self {
            Self::Missing => ("missing", "Field required".into(), None),
            Self::NotString => ("string_type", "Input should be a valid string".into(), None),
            Self::NotUnicode => {
                let msg = "Input should be a valid string, unable to parse raw data as a unicode string";
                ("string_unicode", msg.into(), None)
            }
            Self::NotAmong(expected) => {
                let msg = format!("Input should be {expected}");
                ("literal_error", msg.into(), Some(Context::Expected(expected)))
            }
            Self::Email(reason) => {
                let msg = format!("value is not a valid email address: {reason}");
                ("value_error", msg.into(), Some(Context::Reason(reason)))
            }
            Self::TooShort(min) => {
                let msg = format!("String should have at least {}", characters(min));
                ("string_too_short", msg.into(), Some(Context::MinLength(min)))
            }
            Self::TooLong(max) => {
                let msg = format!("String should have at most {}", characters(max));
                ("string_too_long", msg.into(), Some(Context::MaxLength(max)))
            }
            Self::Nul => {
                let error = "String should not contain NUL characters";
                ("value_error", format!("Value error, {error}").into(), Some(Context::Error(error)))
            }
        };
        Problem { kind, loc, msg, input, ctx }
    }
}

fn characters(count: usize) -> String {
    format!("{count} character{}", if count == 1 { "" } else { "s" })
}

/// Stands for the value of a field that was refused. There is a problem in the list for each one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refused(());

/// The object that is the body of a request, and what has been found wrong with it so far.
#[derive(Debug)]
pub(super) struct Fields {
    members: Vec<(Text, Value)>,
    problems: Vec<Problem>,
}

impl Fields {
    /// Reads a body that has to be an object. `content_type` is the value of the header, if there is one.
    pub(super) fn read(content_type: Option<&[u8]>, body: &[u8]) -> Result<Self, BodyError> {
        let value = if body.is_empty() {
            Value::Null
        } else if is_json(content_type.unwrap_or_default()) {
            json::parse(body)?
        } else {
            Value::String(String::from_utf8_lossy(body).as_ref().into())
        };
        match value {
            Value::Object(members) => Ok(Self { members, problems: Vec::new() }),
            Value::Null => Err(Refusal::Missing.at(Place::Body, Value::Null).into()),
            mut input => {
                conceal_all(&mut input);
                Err(Problem {
                    kind: "model_attributes_type",
                    loc: Place::Body,
                    msg: "Input should be a valid dictionary or object to extract fields from".into(),
                    input,
                    ctx: None,
                }
                .into())
            }
        }
    }

    /// A field that has to be there, as text that `parse` takes.
    pub(super) fn required<T, E: Into<Refusal>>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<T, Refused> {
        let text = self.get(name).ok_or(Refusal::Missing).and_then(text_of);
        let parsed = text.and_then(|text| parse(text).map_err(Into::into));
        parsed.map_err(|refusal| self.refuse(name, refusal))
    }

    /// A field that may be absent or null.
    pub(super) fn optional<T, E: Into<Refusal>>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, Refused> {
        match self.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(_) => self.required(name, parse).map(Some),
        }
    }

    /// A field that has to be there, as any text.
    pub(super) fn string(&mut self, name: &'static str) -> Result<String, Refused> {
        self.required(name, |text| Ok::<_, Refusal>(text.to_owned()))
    }

    /// A field that may be absent or null, and else is one of a few words, each with what it stands for.
    pub(super) fn choice<T: Copy>(
        &mut self,
        name: &'static str,
        choices: &[(&'static str, T)],
    ) -> Result<Option<T>, Refused> {
        let value = match self.get(name) {
            None | Some(Value::Null) => return Ok(None),
            Some(value) => value,
        };
        let refusal = match text_of(value) {
            Err(Refusal::NotUnicode) => Refusal::NotUnicode,
            text => match choices.iter().find(|(word, _)| text == Ok(*word)) {
                Some((_, meaning)) => return Ok(Some(*meaning)),
                None => Refusal::NotAmong(list(choices)),
            },
        };
        Err(self.refuse(name, refusal))
    }

    /// Builds the request, unless a field was refused: then all that were are in the error, in the order of reading.
    pub(super) fn finish<T>(self, build: impl FnOnce() -> Result<T, Refused>) -> Result<T, BodyError> {
        match build() {
            Ok(request) if self.problems.is_empty() => Ok(request),
            _ => Err(BodyError::Invalid(self.problems)),
        }
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.members.iter().find(|(member, _)| member.as_str() == Some(name)).map(|(_, value)| value)
    }

    fn refuse(&mut self, name: &'static str, refusal: Refusal) -> Refused {
        let mut input;
        if let Some(value) = self.get(name) {
            input = value.clone();
            conceal_member(name.as_bytes(), &mut input);
        } else {
            input = Value::Object(self.members.clone());
            conceal(&mut input);
        }
        self.problems.push(refusal.at(Place::Field(name), input));
        Refused(())
    }
}

fn text_of(value: &Value) -> Result<&str, Refusal> {
    match value {
        Value::String(text) => text.as_str().ok_or(Refusal::NotUnicode),
        _ => Err(Refusal::NotString),
    }
}

/// The words of a choice, as in `'this', 'others' or 'all'`.
fn list<T>(choices: &[(&str, T)]) -> String {
    let mut phrase = String::new();
    for (at, (word, _)) in choices.iter().enumerate() {
        let separator = match choices.len() - at {
            _ if at == 0 => "",
            1 => " or ",
            _ => ", ",
        };
        phrase.extend([separator, "'", word, "'"]);
    }
    phrase
}

/// No content type and an empty one are JSON too; parameters do not matter, not even a charset.
fn is_json(content_type: &[u8]) -> bool {
    let essence = content_type.split(|byte| *byte == b';').next().unwrap_or_default();
    match essence.trim_ascii().to_ascii_lowercase().strip_prefix(b"application/") {
        Some(subtype) => !subtype.contains(&b'/') && (subtype == b"json" || subtype.ends_with(b"+json")),
        None => content_type.is_empty(),
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
        Value::String(text) if is_on_password(text.as_bytes()) => *value = placeholder(),
        Value::Array(items) => {
            for item in items {
                conceal(item);
            }
        }
        Value::Object(members) => {
            for (name, value) in members {
                conceal_member(name.as_bytes(), value);
            }
        }
        _ => {}
    }
}

/// Replaces the passwords in the value of a member, which may be one itself. That a password is null is no secret.
fn conceal_member(name: &[u8], value: &mut Value) {
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
        Value::String(text) => is_on_password(text.as_bytes()),
        Value::Array(items) => items.iter().any(has_text_on_password),
        Value::Object(members) => members.iter().any(|(_, value)| has_text_on_password(value)),
        _ => false,
    }
}

fn is_on_password(text: &[u8]) -> bool {
    const WORD: &[u8] = b"password";
    text.windows(WORD.len()).any(|window| window.eq_ignore_ascii_case(WORD))
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
    fn email(text: &str) -> Result<(), Refusal> {
        if text.contains('@') {
            Ok(())
        } else {
            Err(Refusal::Email("An email address must have an @-sign.".to_owned()))
        }
    }

    fn new_password(text: &str) -> Result<(), Refusal> {
        if text.chars().count() < 8 { Err(Refusal::TooShort(8)) } else { Ok(()) }
    }

    fn read(path: &str, content_type: Option<&str>, body: &[u8]) -> Result<(), BodyError> {
        let mut fields = Fields::read(content_type.map(str::as_bytes), body)?;
        match path {
            "/register" => {
                let email = fields.required("email", email);
                let password = fields.required("password", new_password);
                let role = fields.optional("role", |text| Ok::<_, Refusal>(text.to_owned()));
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
        }
    }

    fn problems(path: &str, content_type: Option<&str>, body: &[u8]) -> String {
        match read(path, content_type, body) {
            Err(BodyError::Invalid(problems)) => serde_json::to_string(&problems).unwrap(),
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
        for case in cases {
            let (status, detail) = match read(&case.path, case.content_type.as_deref(), &case.bytes()) {
                Ok(()) => (200, Vec::new()),
                Err(BodyError::Unparsable) => (400, Vec::new()),
                Err(BodyError::Invalid(problems)) => (422, problems),
            };
            let in_short = |problem: &Problem| {
                let mut short = json!({ "type": problem.kind, "loc": problem.loc });
                if let Some(Context::Error(error)) = problem.ctx {
                    short["error"] = json!(error);
                }
                short
            };
            let detail: Vec<Json> = detail.iter().map(in_short).collect();
            assert_eq!((status, detail), (case.status, case.detail.clone()), "{case:?}");
        }
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
    fn a_password_never_comes_back() {
        for (body, shown) in [
            (r#"{"password":"hunter2"}"#, json!({ "password": "**********" })),
            (r#"{"password":null}"#, json!({ "password": null })),
            (
                r#"{"PassWord":12345,"old_password_2":{"a":["hunter2"]}}"#,
                json!({ "PassWord": "**********", "old_password_2": "**********" }),
            ),
            (
                r#"{"a":[{"b":{"password":"hunter2","c":"kept"}}]}"#,
                json!({ "a": [{ "b": { "password": "**********", "c": "kept" } }] }),
            ),
            (r#"{"pass\u0077ord":"hunter2"}"#, json!({ "password": "**********" })),
            (r#"{"\ud800password":"hunter2"}"#, json!({ "\u{fffd}password": "**********" })),
            (r#"{"payload":"{\"password\":\"hunter2\"}","b":1}"#, json!({ "payload": "**********", "b": 1 })),
            (r#""PASSWORD=hunter2""#, json!("**********")),
            (r#"["password","hunter2"]"#, json!("**********")),
            (r#"[1,["a",{"b":"password: hunter2"}]]"#, json!("**********")),
            (r#"[{"password":"hunter2","a":1}]"#, json!([{ "password": "**********", "a": 1 }])),
            (r#"["hunter2"]"#, json!(["hunter2"])),
        ] {
            assert_eq!(input("/login", Some("application/json"), body), shown, "{body}");
        }
        for value in [r#""hunter2""#, "1", "[1]", r#"{"a":"hunter2"}"#, "NaN"] {
            let body = format!(r#"{{"email":"a@example.com","password":{value}}}"#);
            assert_eq!(input("/register", None, &body), json!("**********"), "{value}");
        }
        let form = "email=a%40example.com&Password=hunter2";
        assert_eq!(input("/login", Some("application/x-www-form-urlencoded"), form), json!("**********"));
        assert_eq!(input("/refresh", Some("text/plain"), "refresh_token=x"), json!("refresh_token=x"));
    }

    #[test]
    fn a_field_with_a_lone_surrogate_is_refused_before_it_is_parsed() {
        for (path, body, fields) in [
            ("/register", r#"{"email":"\ud800@example.com","password":"\ud800longenough","role":"\ud800"}"#, 3),
            ("/refresh", r#"{"refresh_token":"\ud800"}"#, 1),
            ("/logout", r#"{"refresh_token":"\ud800","scope":"\ud800"}"#, 2),
        ] {
            assert_eq!(problems(path, None, body.as_bytes()).matches("string_unicode").count(), fields, "{body}");
        }
    }

    #[test]
    fn a_parse_function_names_what_pydantic_has_no_field_for() {
        for (refusal, expected) in [
            (
                Refusal::TooLong(32),
                r#"{"type":"string_too_long","loc":["body","role"],"msg":"String should have at most 32 characters","input":"x","ctx":{"max_length":32}}"#,
            ),
            (
                Refusal::TooShort(1),
                r#"{"type":"string_too_short","loc":["body","role"],"msg":"String should have at least 1 character","input":"x","ctx":{"min_length":1}}"#,
            ),
            (
                Refusal::Nul,
                r#"{"type":"value_error","loc":["body","role"],"msg":"Value error, String should not contain NUL characters","input":"x","ctx":{"error":"String should not contain NUL characters"}}"#,
            ),
        ] {
            let mut fields = Fields::read(None, br#"{"role":"x"}"#).unwrap();
            let role = fields.optional("role", |_| Err::<(), _>(refusal));
            let Err(BodyError::Invalid(problems)) = fields.finish(|| role) else { panic!("accepted") };
            assert_eq!(serde_json::to_string(&problems[0]).unwrap(), expected);
        }
    }

    #[test]
    fn values_reach_the_request() {
        let body = r#"{"refresh_token":"\u00e9","scope":"all","role":null}"#;
        let mut fields = Fields::read(None, body.as_bytes()).unwrap();
        let token = fields.string("refresh_token");
        let scope = fields.choice("scope", &[("this", 1), ("all", 3)]);
        let none = fields.choice("absent", &[("this", 1)]);
        let role = fields.optional("role", |text| Ok::<_, Refusal>(text.to_owned()));
        let request = fields.finish(|| Ok((token?, scope?, none?, role?))).unwrap();
        assert_eq!(request, ("é".to_owned(), Some(3), None, None));
    }

    #[test]
    fn a_refused_field_fails_the_request_even_if_it_is_not_used() {
        let mut fields = Fields::read(None, b"{}").unwrap();
        let _ = fields.string("refresh_token");
        assert!(matches!(fields.finish(|| Ok(())), Err(BodyError::Invalid(problems)) if problems.len() == 1));
    }

    #[test]
    fn choices_are_listed_as_a_phrase() {
        assert_eq!(list(&[("a", ())]), "'a'");
        assert_eq!(list(&[("a", ()), ("b", ())]), "'a' or 'b'");
        assert_eq!(list(&[("a", ()), ("b", ()), ("c", ())]), "'a', 'b' or 'c'");
    }
}
