//! Reads JSON with `serde_json`, and words what is wrong with it as Python's `json` does: clients know those words, and
//! the position in characters. What the values mean is not decided here; see `fields`.
//!
//! `serde_json` tells mistakes apart only in the text of its error, hence the table of texts here; tests hold it against
//! the version in use. Mistakes that are not in the table, such as half a surrogate pair, are [`OTHER`].

use serde_json::Value;

/// What is said of a rare mistake.
const OTHER: &str = "Invalid JSON";

/// How many digits an integer may have: Python's own limit (`sys.get_int_max_str_digits`).
const MAX_INTEGER_DIGITS: usize = 4_300;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum JsonError {
    /// It breaks JSON's grammar. `position` counts characters from 0, a byte order mark not included.
    Syntax { position: usize, message: &'static str },
    /// It is not UTF-8, has more than 127 arrays and objects inside one another, or an integer of too many digits.
    Unreadable,
}

pub(super) fn parse(body: &[u8]) -> Result<Value, JsonError> {
    let text = str::from_utf8(body).map_err(|_| JsonError::Unreadable)?;
    // JSON begins with ASCII: a NUL among the first two bytes is a sign of UTF-16 or UTF-32.
    if text.bytes().take(2).any(|byte| byte == 0) {
        return Err(JsonError::Unreadable);
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match serde_json::from_str(text) {
        Ok(value) if has_long_integer(&value) => Err(JsonError::Unreadable),
        Ok(value) => Ok(value),
        Err(error) if text_of(&error) == "recursion limit exceeded" => Err(JsonError::Unreadable),
        Err(_) => {
            let (at, message) = mistake(text);
            let position = text.char_indices().take_while(|(start, _)| *start < at).count();
            Err(JsonError::Syntax { position, message })
        }
    }
}

fn has_long_integer(value: &Value) -> bool {
    match value {
        Value::Number(number) => {
            let digits = number.as_str().trim_start_matches('-');
            digits.len() > MAX_INTEGER_DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit())
        }
        Value::Array(items) => items.iter().any(has_long_integer),
        Value::Object(members) => members.values().any(has_long_integer),
        _ => false,
    }
}

/// Where a text breaks JSON's grammar, in bytes, and Python's words for it.
fn mistake(text: &str) -> (usize, &'static str) {
    let (mut at, mut found) = first_mistake(text);
    if ["expected ident", "invalid number", "trailing comma"].contains(&found.as_str()) {
        // Python says what it expects in place of a misspelt word, behind the good part of a number, and behind a comma.
        let good = text[..at].trim_end_matches(|last: char| last.is_ascii_alphabetic() || "+-.".contains(last));
        (at, found) = first_mistake(good);
    }
    match found.as_str() {
        "expected value" => (at, "Expecting value"),
        "key must be a string" => (at, "Expecting property name enclosed in double quotes"),
        "expected `:`" => (at, "Expecting ':' delimiter"),
        "expected `,` or `]`" | "expected `,` or `}`" => (at, "Expecting ',' delimiter"),
        "trailing characters" => (at, "Extra data"),
        "control character (\\u0000-\\u001F) found while parsing a string" => (at, "Invalid control character at"),
        "EOF while parsing a string" => (last_quote(text), "Unterminated string starting at"),
        "invalid escape" => {
            let before = text.bytes().take(at);
            let backslash = before.len() - 1 - before.rev().position(|byte| byte == b'\\').unwrap_or_default();
            match text.as_bytes().get(backslash + 1) {
                Some(b'u') => (backslash + 1, "Invalid \\uXXXX escape"),
                Some(_) => (backslash, "Invalid \\escape"),
                None => (last_quote(text), "Unterminated string starting at"),
            }
        }
        _ => (at, OTHER),
    }
}

/// The first mistake in a text, in bytes from its start and in the words of `serde_json`.
///
/// Behind the text stands what can stand nowhere in JSON, so that of a text that ends too early the error says what is
/// missing. These are four characters because an escape may want as many.
fn first_mistake(text: &str) -> (usize, String) {
    let marked = format!("{text}????");
    let error = serde_json::from_str::<Value>(&marked).expect_err("BUG: a question mark ends no JSON");
    let lines_before = marked.split_inclusive('\n').take(error.line().saturating_sub(1));
    let line_start: usize = lines_before.map(str::len).sum();
    // The column counts from one; of a newline it is the zeroth of the line behind it.
    ((line_start + error.column()).saturating_sub(1), text_of(&error))
}

/// What an error says, without the place.
fn text_of(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split_once(" at line ").map_or(text.as_str(), |(message, _)| message).to_owned()
}

/// The last quote that is not escaped: of a string without end, the opening one.
fn last_quote(text: &str) -> usize {
    let is_escaped = |at: usize| text[..at].bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1;
    text.rmatch_indices('"').map(|(at, _)| at).find(|at| !is_escaped(*at)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo(body: impl AsRef<[u8]>) -> String {
        serde_json::to_string(&parse(body.as_ref()).unwrap()).unwrap()
    }

    #[test]
    fn a_value_is_echoed_as_it_was_sent() {
        for (body, expected) in [
            (" [null, true, false] ", "[null,true,false]"),
            (r#"{"b":[{}],"a":[]}"#, r#"{"b":[{}],"a":[]}"#),
            ("1000000000000000000000000000000", "1000000000000000000000000000000"),
            ("[0,-1,10,18446744073709551616]", "[0,-1,10,18446744073709551616]"),
            ("[-0.0,1.50,1e-7]", "[-0.0,1.50,1e-7]"),
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
}
