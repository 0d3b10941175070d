//! The JSON reader behind every request body: accepts and refuses what Python's `json.loads` does, in its words.
//!
//! The service this one replaces read bodies with `json.loads`, and its clients know that reader by the 422 answers.
//! `serde_json` alone cannot stand in for it: it counts lines, columns and bytes where clients are told one position in
//! characters; it has wording of its own; it refuses `NaN`, `Infinity`, numbers beyond an `f64`, UTF-16 and the lone
//! surrogates of `"\ud800"`; it stops at 128 levels; and it rounds integers that have to be echoed digit for digit.
//! The words are those of Python 3.8 to 3.12: 3.13 has one more message, for a trailing comma.
//!
//! Python also reads UTF-16 and UTF-32, which it tells by where the zero bytes are, and so does this reader: a client
//! that sends them (some Windows scripts do, unknowingly) must not break, though RFC 8259 §8.1 asks for UTF-8.
//!
//! What the values mean is not decided here; see `fields`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;

use serde::ser::{Error as _, Serialize, SerializeMap, SerializeSeq, Serializer};
use serde_json::value::RawValue;

/// How many arrays and objects may stand inside one another. Python gives up where its call stack ends, which is at 961
/// for a bare `FastAPI` application and some less behind middleware.
pub(super) const MAX_DEPTH: usize = 960;

/// How many digits an integer may have: Python's own limit (`sys.get_int_max_str_digits`).
pub(super) const MAX_INTEGER_DIGITS: usize = 4_300;

/// Why a body is not JSON.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum JsonError {
    /// The text breaks JSON's grammar. `position` counts characters from 0, a byte order mark not included.
    #[error("{message} (character {position})")]
    Syntax { position: usize, message: &'static str },
    /// The bytes are not text in the encoding that they seem to be in.
    #[error("the body is not text")]
    Undecodable,
    /// More than [`MAX_DEPTH`] arrays and objects inside one another.
    #[error("the body is nested too deeply")]
    TooDeep,
    /// An integer of more than [`MAX_INTEGER_DIGITS`] digits.
    #[error("the body holds an integer of too many digits")]
    IntegerTooLong,
}

/// A JSON value as read. Serializes to the same value again, but for what an answer could not hold: a number that is
/// not finite becomes `null`, a lone surrogate U+FFFD.
///
/// `Debug` shows no content, because a body holds passwords and tokens.
#[derive(Clone)]
pub(super) enum Value {
    Null,
    Bool(bool),
    /// The digits as sent, of any length; `-0` is `0`.
    Integer(String),
    /// A number with a fraction or an exponent, or `NaN`, `Infinity`, `-Infinity`.
    Float(f64),
    String(Text),
    Array(Vec<Value>),
    /// Members in the order in which their names first appear, each with its last value.
    Object(Vec<(Text, Value)>),
}

/// A JSON string: Unicode text, but for the lone surrogates that an escape like `\ud800` may leave in it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Text(
    /// See [`Text::as_bytes`].
    Vec<u8>,
);

impl Text {
    /// The text, or nothing where it holds a lone surrogate.
    pub(super) fn as_str(&self) -> Option<&str> {
        str::from_utf8(&self.0).ok()
    }

    /// The text in UTF-8, with surrogates encoded as if they were characters.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The text with U+FFFD for each lone surrogate.
    fn to_string_lossy(&self) -> String {
        let mut text = String::with_capacity(self.0.len());
        for chunk in self.0.utf8_chunks() {
            text.push_str(chunk.valid());
            // The first byte of an encoded surrogate; each of its three bytes comes in a chunk of its own.
            if chunk.invalid().first() == Some(&0xED) {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        text
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Text(..)")
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Value(..)")
    }
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.as_str() {
            Some(text) => serializer.serialize_str(text),
            None => serializer.serialize_str(&self.to_string_lossy()),
        }
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Integer(digits) => {
                serde_json::from_str::<&RawValue>(digits).map_err(S::Error::custom)?.serialize(serializer)
            }
            Self::Float(number) if number.is_finite() => serializer.serialize_f64(*number),
            Self::Null | Self::Float(_) => serializer.serialize_unit(),
            Self::String(text) => text.serialize(serializer),
            Self::Array(items) => {
                let mut array = serializer.serialize_seq(Some(items.len()))?;
                for item in items {
                    array.serialize_element(item)?;
                }
                array.end()
            }
            Self::Object(members) => {
                let mut object = serializer.serialize_map(Some(members.len()))?;
                for (name, value) in members {
                    object.serialize_entry(name, value)?;
                }
                object.end()
            }
        }
    }
}

/// Reads a whole body, in time linear in its length.
pub(super) fn parse(body: &[u8]) -> Result<Value, JsonError> {
    let text = decode(body)?;
    let mut reader = Reader { text: &text, at: 0 };
    reader.skip_space();
    let value = reader.value()?;
    if reader.at < text.len() {
        return Err(reader.error(reader.at, "Extra data"));
    }
    Ok(value)
}

/// From the bytes of a body to UTF-8 in which surrogates may stand, as [`Text`] holds it. The encoding is told by the
/// byte order mark or, as JSON starts with ASCII, by where the zero bytes are.
fn decode(body: &[u8]) -> Result<Cow<'_, [u8]>, JsonError> {
    match body {
        [0xFF, 0xFE, 0, 0, text @ ..] => utf32(text, u32::from_le_bytes),
        [0, 0, 0xFE, 0xFF, text @ ..] => utf32(text, u32::from_be_bytes),
        [0xFF, 0xFE, text @ ..] => utf16(text, u16::from_le_bytes),
        [0xFE, 0xFF, text @ ..] => utf16(text, u16::from_be_bytes),
        [0xEF, 0xBB, 0xBF, text @ ..] => utf8(text),
        [0, 0, _, _, ..] => utf32(body, u32::from_be_bytes),
        [0, _] | [0, _, _, _, ..] => utf16(body, u16::from_be_bytes),
        [_, 0, 0, 0, ..] => utf32(body, u32::from_le_bytes),
        [_, 0] | [_, 0, _, _, ..] => utf16(body, u16::from_le_bytes),
        _ => utf8(body),
    }
}

fn utf8(bytes: &[u8]) -> Result<Cow<'_, [u8]>, JsonError> {
    let mut unchecked = bytes;
    while let Err(error) = str::from_utf8(unchecked) {
        unchecked = match &unchecked[error.valid_up_to()..] {
            [0xED, 0xA0..=0xBF, 0x80..=0xBF, rest @ ..] => rest,
            _ => return Err(JsonError::Undecodable),
        };
    }
    Ok(Cow::Borrowed(bytes))
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Result<Cow<'_, [u8]>, JsonError> {
    let (units, []) = bytes.as_chunks() else {
        return Err(JsonError::Undecodable);
    };
    let mut text = Vec::with_capacity(bytes.len());
    for decoded in char::decode_utf16(units.iter().copied().map(unit)) {
        let code_point = decoded.map_or_else(|error| u32::from(error.unpaired_surrogate()), u32::from);
        push_code_point(&mut text, code_point)?;
    }
    Ok(Cow::Owned(text))
}

fn utf32(bytes: &[u8], code_point: fn([u8; 4]) -> u32) -> Result<Cow<'_, [u8]>, JsonError> {
    let (code_points, []) = bytes.as_chunks() else {
        return Err(JsonError::Undecodable);
    };
    let mut text = Vec::with_capacity(bytes.len());
    for bytes in code_points {
        push_code_point(&mut text, code_point(*bytes))?;
    }
    Ok(Cow::Owned(text))
}

/// Appends a code point, which may be a surrogate.
fn push_code_point(text: &mut Vec<u8>, code_point: u32) -> Result<(), JsonError> {
    if let Some(character) = char::from_u32(code_point) {
        text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
    } else if let surrogate @ 0xD800..=0xDFFF = code_point {
        let [high, low] = ((surrogate & 0xFFF) as u16).to_be_bytes();
        text.extend_from_slice(&[0xED, 0x80 | (high << 2) | (low >> 6), 0x80 | (low & 0x3F)]);
    } else {
        return Err(JsonError::Undecodable);
    }
    Ok(())
}

/// A place in a text, in bytes.
struct Reader<'a> {
    text: &'a [u8],
    at: usize,
}

/// An array or object of which the end has not been read.
enum Open {
    Array(Vec<Value>),
    /// And the name of the member being read.
    Object(Members, Text),
}

impl Reader<'_> {
    /// Reads a value and the space behind it. What is open is kept in a list, not on the call stack: that might end
    /// before [`MAX_DEPTH`].
    fn value(&mut self) -> Result<Value, JsonError> {
        let mut open = Vec::new();
        loop {
            let mut value = match self.peek() {
                Some(b'[' | b'{') if open.len() == MAX_DEPTH => return Err(JsonError::TooDeep),
                Some(b'[') => {
                    self.pass();
                    if !self.eat(b']') {
                        open.push(Open::Array(Vec::new()));
                        continue;
                    }
                    Value::Array(Vec::new())
                }
                Some(b'{') => {
                    self.pass();
                    if !self.eat(b'}') {
                        open.push(Open::Object(Members::default(), self.name()?));
                        continue;
                    }
                    Value::Object(Vec::new())
                }
                Some(b'"') => Value::String(self.string()?),
                _ => self.constant_or_number()?,
            };
            // A value may be the last one of what it is in, which then is a value itself.
            loop {
                self.skip_space();
                match open.pop() {
                    None => return Ok(value),
                    Some(Open::Array(mut items)) => {
                        items.push(value);
                        if !self.eat(b']') {
                            self.delimiter(b',', "Expecting ',' delimiter")?;
                            open.push(Open::Array(items));
                            break;
                        }
                        value = Value::Array(items);
                    }
                    Some(Open::Object(mut members, name)) => {
                        members.set(name, value);
                        if !self.eat(b'}') {
                            self.delimiter(b',', "Expecting ',' delimiter")?;
                            open.push(Open::Object(members, self.name()?));
                            break;
                        }
                        value = Value::Object(members.in_order);
                    }
                }
            }
        }
    }

    /// Reads the name of a member and the colon behind it.
    fn name(&mut self) -> Result<Text, JsonError> {
        if self.peek() != Some(b'"') {
            return Err(self.error(self.at, "Expecting property name enclosed in double quotes"));
        }
        let name = self.string()?;
        self.skip_space();
        self.delimiter(b':', "Expecting ':' delimiter")?;
        Ok(name)
    }

    fn string(&mut self) -> Result<Text, JsonError> {
        let opening_quote = self.at;
        self.at += 1;
        let mut text = Vec::new();
        loop {
            let rest = &self.text[self.at..];
            let plain = rest.iter().take_while(|byte| !matches!(byte, b'"' | b'\\' | 0..=0x1F)).count();
            text.extend_from_slice(&rest[..plain]);
            self.at += plain;
            match rest[plain..] {
                [b'"', ..] => {
                    self.at += 1;
                    return Ok(Text(text));
                }
                [b'\\', kind, ..] => self.escape(kind, &mut text)?,
                [] | [b'\\'] => return Err(self.error(opening_quote, "Unterminated string starting at")),
                [..] => return Err(self.error(self.at, "Invalid control character at")),
            }
        }
    }

    /// Reads an escape, of which `kind` is the character after the backslash.
    fn escape(&mut self, kind: u8, text: &mut Vec<u8>) -> Result<(), JsonError> {
        let backslash = self.at;
        self.at += 2;
        let character = match kind {
            b'"' | b'\\' | b'/' => kind,
            b'b' => 0x08,
            b'f' => 0x0C,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let Some(code_point) = self.escaped_code_point() else {
                    return Err(self.error(backslash + 1, "Invalid \\uXXXX escape"));
                };
                return push_code_point(text, code_point);
            }
            _ => return Err(self.error(backslash, "Invalid \\escape")),
        };
        text.push(character);
        Ok(())
    }

    /// Reads the digits after `\u`, and a second escape where the two make a surrogate pair.
    fn escaped_code_point(&mut self) -> Option<u32> {
        let first = self.code_unit(self.at)?;
        self.at += 4;
        if let 0xD800..=0xDBFF = first
            && self.text[self.at..].starts_with(b"\\u")
            && let Some(second @ 0xDC00..=0xDFFF) = self.code_unit(self.at + 2)
        {
            self.at += 6;
            return Some(0x1_0000 + ((first - 0xD800) << 10) + (second - 0xDC00));
        }
        Some(first)
    }

    /// Four hexadecimal digits. The text must not end with them: then Python finds fault with the escape, not with the
    /// string.
    fn code_unit(&self, at: usize) -> Option<u32> {
        let [digits @ .., _] = self.text.get(at..at + 5)? else {
            return None;
        };
        digits.iter().try_fold(0, |unit, digit| Some(unit * 16 + char::from(*digit).to_digit(16)?))
    }

    fn constant_or_number(&mut self) -> Result<Value, JsonError> {
        let (word, value) = match self.peek().unwrap_or_default() {
            b'n' => ("null", Value::Null),
            b't' => ("true", Value::Bool(true)),
            b'f' => ("false", Value::Bool(false)),
            b'N' => ("NaN", Value::Float(f64::NAN)),
            b'I' => ("Infinity", Value::Float(f64::INFINITY)),
            b'-' => ("-Infinity", Value::Float(f64::NEG_INFINITY)),
            _ => return self.number(),
        };
        if !self.text[self.at..].starts_with(word.as_bytes()) {
            return self.number();
        }
        self.at += word.len();
        Ok(value)
    }

    /// Reads as much as makes a number: what follows it, as in `01` or `1.`, is for the caller to refuse.
    fn number(&mut self) -> Result<Value, JsonError> {
        let start = self.at;
        let first_digit = start + usize::from(self.peek() == Some(b'-'));
        let whole = match self.text.get(first_digit) {
            Some(b'0') => first_digit + 1,
            Some(b'1'..=b'9') => self.end_of_digits(first_digit),
            _ => return Err(self.error(start, "Expecting value")),
        };
        self.at = self.end_of_exponent(self.end_of_fraction(whole));
        let number = String::from_utf8_lossy(&self.text[start..self.at]);
        if self.at > whole {
            // Never fails: Rust reads every number of JSON's grammar, and one too large as infinite, as Python does.
            return Ok(Value::Float(number.parse().unwrap_or(f64::NAN)));
        }
        if whole - first_digit > MAX_INTEGER_DIGITS {
            return Err(JsonError::IntegerTooLong);
        }
        let digits = if number == "-0" { "0".to_owned() } else { number.into_owned() };
        Ok(Value::Integer(digits))
    }

    fn end_of_fraction(&self, at: usize) -> usize {
        let end = self.end_of_digits(at + 1);
        if self.text.get(at) == Some(&b'.') && end > at + 1 { end } else { at }
    }

    fn end_of_exponent(&self, at: usize) -> usize {
        let first_digit = match self.text.get(at..) {
            Some([b'e' | b'E', b'+' | b'-', ..]) => at + 2,
            Some([b'e' | b'E', ..]) => at + 1,
            _ => return at,
        };
        let end = self.end_of_digits(first_digit);
        if end > first_digit { end } else { at }
    }

    fn end_of_digits(&self, at: usize) -> usize {
        let rest = self.text.get(at..).unwrap_or_default();
        at + rest.iter().take_while(|byte| byte.is_ascii_digit()).count()
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn eat(&mut self, expected: u8) -> bool {
        let found = self.peek() == Some(expected);
        self.at += usize::from(found);
        found
    }

    /// Passes a delimiter and the space behind it.
    fn delimiter(&mut self, expected: u8, message: &'static str) -> Result<(), JsonError> {
        if !self.eat(expected) {
            return Err(self.error(self.at, message));
        }
        self.skip_space();
        Ok(())
    }

    /// Passes one character and the space behind it.
    fn pass(&mut self) {
        self.at += 1;
        self.skip_space();
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    /// A syntax error at a byte, of which the character position is worked out.
    fn error(&self, at: usize, message: &'static str) -> JsonError {
        let is_first_of_character = |byte: &&u8| !matches!(byte, 0x80..=0xBF);
        JsonError::Syntax { position: self.text[..at].iter().filter(is_first_of_character).count(), message }
    }
}

/// The members of an object being read, with the place of each name among them.
#[derive(Default)]
struct Members {
    in_order: Vec<(Text, Value)>,
    places: HashMap<Text, usize>,
}

impl Members {
    /// Adds a member, or gives the one of that name a new value where it stands.
    fn set(&mut self, name: Text, value: Value) {
        match self.places.entry(name.clone()) {
            Entry::Occupied(place) => self.in_order[*place.get()].1 = value,
            Entry::Vacant(place) => {
                place.insert(self.in_order.len());
                self.in_order.push((name, value));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo(body: impl AsRef<[u8]>) -> String {
        serde_json::to_string(&parse(body.as_ref()).unwrap()).unwrap()
    }

    fn utf16(text: &str) -> Vec<u8> {
        text.encode_utf16().flat_map(u16::to_le_bytes).collect()
    }

    #[test]
    fn a_value_is_echoed_as_it_was_sent() {
        for (body, expected) in [
            (" [null, true, false] ", "[null,true,false]"),
            (r#"{"b":[{}],"a":[]}"#, r#"{"b":[{}],"a":[]}"#),
            ("1000000000000000000000000000000", "1000000000000000000000000000000"),
            ("[0,-0,-1,10]", "[0,0,-1,10]"),
            ("[-0.0,1.50,1e-7,1E+2]", "[-0.0,1.5,1e-7,100.0]"),
            ("[NaN,Infinity,-Infinity,1e400,-1e400]", "[null,null,null,null,null]"),
            (r#""\"\\\/\b\f\n\r\t\u0001\u00e9""#, r#""\"\\/\b\f\n\r\t\u0001é""#),
            (r#""\ud83d\ude00 😀""#, r#""😀 😀""#),
            ("\"\u{7f}\u{2028}\"", "\"\u{7f}\u{2028}\""),
        ] {
            assert_eq!(echo(body), expected, "{body}");
        }
    }

    #[test]
    fn of_members_with_one_name_the_last_value_counts_in_the_place_of_the_first() {
        assert_eq!(echo(r#"{"a":1,"b":2,"\u0061":3,"":4,"b":5}"#), r#"{"a":3,"b":5,"":4}"#);
    }

    #[test]
    fn a_lone_surrogate_is_read_but_is_not_text() {
        for (body, shown) in [
            (r#""\ud800""#.as_bytes(), "\"\u{fffd}\""),
            (r#""a\udc00b""#.as_bytes(), "\"a\u{fffd}b\""),
            (r#""\ud83d\ud83d\ude00""#.as_bytes(), "\"\u{fffd}😀\""),
            (r#""\ud83d\n\ude00""#.as_bytes(), "\"\u{fffd}\\n\u{fffd}\""),
            (b"\"\xED\xA0\xBD\xED\xB8\x80\"", "\"\u{fffd}\u{fffd}\""),
            (b"\"\xED\xA0\xBD\\ude00\"", "\"\u{fffd}\u{fffd}\""),
        ] {
            let Ok(Value::String(text)) = parse(body) else { panic!("not a string: {}", body.escape_ascii()) };
            assert_eq!(text.as_str(), None);
            assert_eq!(echo(body), shown);
        }
    }

    #[test]
    fn the_encoding_is_told_from_the_bytes() {
        let text = r#"{"é":"😀"}"#;
        let big_endian =
            |bytes: &[u8], width| bytes.chunks(width).flat_map(|unit| unit.iter().rev().copied()).collect();
        let utf32: Vec<u8> = text.chars().flat_map(|character| u32::from(character).to_le_bytes()).collect();
        let bodies: [Vec<u8>; 8] = [
            [b"\xEF\xBB\xBF", text.as_bytes()].concat(),
            utf16(text),
            big_endian(&utf16(text), 2),
            [b"\xFF\xFE".to_vec(), utf16(text)].concat(),
            [b"\xFE\xFF".to_vec(), big_endian(&utf16(text), 2)].concat(),
            utf32.clone(),
            big_endian(&utf32, 4),
            [b"\xFF\xFE\0\0".to_vec(), utf32].concat(),
        ];
        for body in bodies {
            assert_eq!(echo(&body), text, "{}", body.escape_ascii());
        }
    }

    #[test]
    fn an_error_has_pythons_words_and_counts_characters() {
        for (body, position, message) in [
            ("", 0, "Expecting value"),
            ("  \n", 3, "Expecting value"),
            ("[", 1, "Expecting value"),
            ("[1,]", 3, "Expecting value"),
            ("[1 2]", 3, "Expecting ',' delimiter"),
            ("[é, 1]", 1, "Expecting value"),
            (r#"["é😀", x]"#, 7, "Expecting value"),
            ("{'a':1}", 1, "Expecting property name enclosed in double quotes"),
            (r#"{"a":1,}"#, 7, "Expecting property name enclosed in double quotes"),
            (r#"{"a" "x"}"#, 5, "Expecting ':' delimiter"),
            (r#"{"a":1 "b":2}"#, 7, "Expecting ',' delimiter"),
            ("01", 1, "Extra data"),
            ("1.", 1, "Extra data"),
            ("1e+", 1, "Extra data"),
            ("-", 0, "Expecting value"),
            ("+1", 0, "Expecting value"),
            ("-Infinit", 0, "Expecting value"),
            ("{} é", 3, "Extra data"),
            (r#"{"é":"nobody"#, 5, "Unterminated string starting at"),
            (r#""\"#, 0, "Unterminated string starting at"),
            (r#""é\x41""#, 2, "Invalid \\escape"),
            (r#""é\u12g4""#, 3, "Invalid \\uXXXX escape"),
            (r#""\u+123""#, 2, "Invalid \\uXXXX escape"),
            (r#""\u1234"#, 2, "Invalid \\uXXXX escape"),
            (r#""\ud83d\ude00"#, 8, "Invalid \\uXXXX escape"),
            ("\"a\u{1}b\"", 2, "Invalid control character at"),
            ("\"é\n\"", 2, "Invalid control character at"),
            ("\u{feff}\"é\" x", 4, "Extra data"),
            ("\u{feff}\u{feff}1", 0, "Expecting value"),
        ] {
            assert_eq!(parse(body.as_bytes()).unwrap_err(), JsonError::Syntax { position, message }, "{body}");
        }
        let body = utf16("[\"😀\" x]");
        let message = "Expecting ',' delimiter";
        assert_eq!(parse(&body).unwrap_err(), JsonError::Syntax { position: 5, message });
    }

    #[test]
    fn bytes_that_are_no_text_are_undecodable() {
        for body in [
            b"\"\xFF\"".as_slice(),
            b"x\xFF",
            b"\"\xC0\x80\"",
            b"\"\xE2\x82\"",
            b"\"\xED\xA0\"",
            b"\"\xF4\x90\x80\x80\"",
            b"\xFF\xFE1",
            b"\xFF\xFE\0\x001\0\0",
            b"1\0\0\0\0\0\x11\0",
        ] {
            assert_eq!(parse(body).unwrap_err(), JsonError::Undecodable, "{}", body.escape_ascii());
        }
    }

    #[test]
    fn an_integer_has_at_most_as_many_digits_as_python_reads() {
        let longest = "7".repeat(MAX_INTEGER_DIGITS);
        assert_eq!(echo(&longest), longest);
        assert_eq!(echo(format!("-{longest}")), format!("-{longest}"));
        assert_eq!(parse(format!("[{longest}7,").as_bytes()).unwrap_err(), JsonError::IntegerTooLong);
        assert_eq!(echo(format!("{longest}7e9")), "null");
    }

    #[test]
    fn the_deepest_value_fits_on_half_of_a_threads_stack() {
        let on_small_stack = || {
            for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
                let body = |depth| [open.repeat(depth), "[]".to_owned(), close.repeat(depth)].concat();
                let deepest = parse(body(MAX_DEPTH - 1).as_bytes()).unwrap();
                assert_eq!(serde_json::to_string(&deepest.clone()).unwrap(), body(MAX_DEPTH - 1));
                assert_eq!(parse(body(MAX_DEPTH).as_bytes()).unwrap_err(), JsonError::TooDeep);
                assert_eq!(parse(open.repeat(30_000).as_bytes()).unwrap_err(), JsonError::TooDeep);
            }
        };
        std::thread::Builder::new().stack_size(1 << 20).spawn(on_small_stack).unwrap().join().unwrap();
    }

    #[test]
    fn a_truncated_or_altered_body_is_answered_without_panic() {
        let body = r#"{"é":["\u00e9\ud83d\ude00",-1.5e+3,{"a":null}],"n":[true,-Infinity]}"#.as_bytes();
        for end in 0..body.len() {
            assert!(parse(&body[..end]).is_err());
            for byte in 0..=u8::MAX {
                let mut altered = body.to_vec();
                altered[end] = byte;
                let _ = parse(&altered);
            }
        }
    }

    #[test]
    fn debug_output_shows_nothing_of_a_body() {
        let value = parse(br#"{"password":"hunter2"}"#).unwrap();
        assert_eq!(format!("{value:?}"), "Value(..)");
    }
}
