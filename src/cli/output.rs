//! What a command prints. Texts that clients may have chosen (addresses, roles, user agents) are escaped: a control
//! or bidirectional character in one of them would change what the operator sees.

use std::fmt::Write as _;
use std::io::Write;

use super::CliError;

/// Prints a text of our own.
pub(super) fn print_text(text: &str) -> Result<(), CliError> {
    match writeln!(std::io::stdout(), "{text}") {
        // The reader has closed the pipe, as `head` does.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        outcome => Ok(outcome?),
    }
}

/// Prints one line.
pub(super) fn print(line: &str) -> Result<(), CliError> {
    print_text(&escape(line))
}

/// Prints one line of a table, with tabs between its cells.
pub(super) fn print_row(cells: &[&str]) -> Result<(), CliError> {
    print_text(&cells.iter().map(|cell| escape(cell)).collect::<Vec<_>>().join("\t"))
}

/// Prints a value as JSON. What could change the rest of the terminal is escaped there, too.
pub(super) fn print_json(value: &impl serde::Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value).map_err(std::io::Error::from)?;
    let is_safe = |c: char| c == '\n' || c == ' ' || c.is_ascii_graphic() || c.is_alphanumeric();
    let mut escaped = String::new();
    for c in text.chars() {
        if is_safe(c) {
            escaped.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            let _ = write!(escaped, "\\u{unit:04x}");
        }
    }
    print_text(&escaped)
}

/// Prints an error, a line at a time.
pub(super) fn print_error(text: &str) {
    for line in text.lines() {
        // Where standard error is closed, the failure cannot be reported.
        let _ = writeln!(std::io::stderr(), "auth: {}", escape(line));
    }
}

/// Every character that is not printable as `\u{...}`, or `\t` and the like.
fn escape(text: &str) -> String {
    text.escape_debug().to_string().replace(r"\'", "'").replace("\\\"", "\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_change_the_rest_of_the_terminal_is_escaped() {
        assert_eq!(escape("\u{1b}[2J\u{9b}1m\u{7f}"), r"\u{1b}[2J\u{9b}1m\u{7f}");
        assert_eq!(escape("a\tb\nc\rd\0"), r"a\tb\nc\rd\0");
        assert_eq!(
            escape("\u{202e}nimda\u{2066}\u{200f}\u{61c}\u{2028}"),
            r"\u{202e}nimda\u{2066}\u{200f}\u{61c}\u{2028}"
        );
        assert_eq!(escape("\u{feff}\u{200b}\u{ad}"), r"\u{feff}\u{200b}\u{ad}");
    }

    #[test]
    fn what_people_write_stays() {
        for text in ["O'Brien \"Bob\"", "用户@例子.广告", "Zoë", "Mozilla/5.0 (X11; Linux x86_64)"] {
            assert_eq!(escape(text), text);
        }
        assert_eq!(escape(r"back\slash"), r"back\\slash");
    }
}
