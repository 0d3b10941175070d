//! E-mail addresses: what the service accepts as one, and how it spells it.
//!
//! The rules, their order and the sentences are those of the service this one replaces, where pydantic's `EmailStr`
//! applied them: RFC 5322 atoms without comments, RFC 6531 for characters beyond ASCII, and for the domain what
//! [`super::idna`] says. Clients show the sentences to people, so they are part of the contract.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;

use icu_normalizer::ComposingNormalizerBorrowed;
use icu_properties::CodePointMapData;
use icu_properties::props::{GeneralCategory as Category, GeneralCategoryGroup as Group};

use super::idna::check_domain;

pub(super) const NFC: ComposingNormalizerBorrowed<'static> = ComposingNormalizerBorrowed::new_nfc();

/// Code points of the whole input. Bounds the work, too: nothing below looks at a longer text.
const MAX_INPUT: usize = 2048;
/// Code points before the @ (RFC 5321 §4.5.3.1.1 counts octets; the replaced service did not).
const MAX_LOCAL: usize = 64;
/// Octets of the address (RFC 5321 §4.5.3.1.3).
const MAX_ADDRESS: usize = 254;

/// Mailboxes whose case never mattered (RFC 2142).
const ROLE_MAILBOXES: &str =
    "info marketing sales support abuse noc security postmaster hostmaster usenet news webmaster www uucp ftp";

/// A valid e-mail address. `Debug` hides it, and there is no `Display`: addresses do not belong in logs.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Email {
    normalized: String,
    lowered: String,
}

impl Email {
    /// An address as it stands in the database. It is not parsed again: some that are accepted in their ASCII form are
    /// stored in a Unicode form that is not.
    #[must_use]
    pub fn from_stored(stored: String) -> Self {
        Self { lowered: lower(&stored), normalized: stored }
    }

    /// Reads an address, also out of `Name <address>`. The error is the sentence for the client.
    pub fn parse(input: &str) -> Result<Self, EmailError> {
        if input.chars().nth(MAX_INPUT).is_some() {
            return Err(EmailError(format!("Length must not exceed {MAX_INPUT} characters")));
        }
        let address = without_display_name(input).unwrap_or(input).trim_matches(is_space);
        let Parts { local, quoted, domain, bracketed } = split(address)?;

        let written = check_local(&local, quoted)?;
        let composed = NFC.normalize(&written);
        if composed != written {
            check_local(&composed, quoted).map_err(|e| EmailError(format!("After Unicode normalization: {e}")))?;
        }
        if quoted {
            return refuse("Quoting the part before the @-sign is not allowed here.");
        }
        let role = local.to_ascii_lowercase();
        let mailbox = if ROLE_MAILBOXES.split(' ').any(|name| name == role) { role.as_str() } else { &*composed };

        let name = check_domain(domain)?;
        let normalized = format!("{mailbox}@{}", name.unicode);
        check_length(&format!("{local}@{domain}"), &normalized, &format!("{mailbox}@{}", name.ascii))?;
        if bracketed {
            return refuse("A display name and angle brackets around the email address are not permitted here.");
        }
        let lowered = lower(&normalized);
        Ok(Self { normalized, lowered })
    }

    /// The address as its owner spelt it: the local part in NFC with its case kept, the domain lower-cased, in Unicode.
    ///
    /// It is for keeping, not for parsing once more: a domain with joiners, say, is only accepted as `xn--`.
    pub fn as_str(&self) -> &str {
        &self.normalized
    }

    /// The whole address lower-cased: how new accounts are stored and all are looked up.
    pub fn lowered(&self) -> &str {
        &self.lowered
    }
}

impl fmt::Debug for Email {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Email([redacted])")
    }
}

/// Why a text is not an address: the sentence that follows "value is not a valid email address: ". It may quote parts
/// of the text, so it is for the client, not for the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EmailError(String);

pub(super) fn refuse<T>(sentence: impl Into<String>) -> Result<T, EmailError> {
    Err(EmailError(sentence.into()))
}

/// Refuses the offending characters, if there are any, each named once.
pub(super) fn refuse_each(sentence: &str, offenders: impl Iterator<Item = char>) -> Result<(), EmailError> {
    let names: BTreeSet<String> = offenders.map(display).collect();
    if names.is_empty() {
        return Ok(());
    }
    let names = Vec::from_iter(names).join(", ");
    refuse(format!("{sentence}: {names}."))
}

/// "(3 characters too many)".
pub(super) fn excess(count: usize, unit: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("({count} {unit}{plural} too many)")
}

/// What Python's `str.strip` and `\s` take for space: four separators more than `char::is_whitespace`.
fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\x1C'..='\x1F')
}

/// RFC 5322 §3.2.3.
fn is_atext(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(c)
}

pub(super) fn category(c: char) -> Category {
    CodePointMapData::<Category>::new().get(c)
}

/// Lower case, one character for one, as the database's `lower` does it, so that both agree on who is the same user.
/// Composed again after it: "J̌" has no composed form, "ǰ" has.
fn lower(normalized: &str) -> String {
    let lowered: String = normalized.chars().map(|c| c.to_lowercase().next().unwrap_or(c)).collect();
    NFC.normalize(&lowered).into_owned()
}

/// Letters, digits, punctuation and symbols: what is safe to print.
pub(super) fn is_graphic(c: char) -> bool {
    let text = Group::Letter.union(Group::Number);
    text.union(Group::Punctuation).union(Group::Symbol).contains(category(c))
}

/// A character as a sentence shows it: in quotes, or by its name or number where it would not be seen.
fn display(c: char) -> String {
    match c {
        '\\' | '\'' => format!("\"{c}\""),
        _ if is_graphic(c) => format!("'{c}'"),
        _ => match unicode_names2::name(c) {
            Some(name) => name.to_string(),
            None if c < '\u{FFFF}' => format!("U+{:04X}", u32::from(c)),
            None => format!("U+{:08X}", u32::from(c)),
        },
    }
}

// ---- Splitting ----

struct Parts<'a> {
    local: Cow<'a, str>,
    /// The local part was a quoted string.
    quoted: bool,
    domain: &'a str,
    /// The address stood in angle brackets that [`without_display_name`] had not taken off.
    bracketed: bool,
}

/// The text between the angle brackets of `Name <...>`, `"Name" <...>` or `<...>`, where the rest is well-formed.
///
/// Forgiving, as it always was: the text may hold brackets itself, and a quoted name reaches to the last quote.
fn without_display_name(input: &str) -> Option<&str> {
    fn after_bracket(text: &str) -> Option<&str> {
        let inner = text.trim_start_matches(is_space).strip_prefix('<')?;
        (!inner.is_empty() && !inner.contains('\n')).then_some(inner)
    }
    let is_name = |c: char| {
        let word = Group::Letter.union(Group::Number);
        is_atext(c) || is_space(c) || word.contains(category(c))
    };
    let text = input.trim_matches(is_space).strip_suffix('>')?;
    match text.strip_prefix('"') {
        None => after_bracket(text.trim_start_matches(is_name)),
        Some(name) => {
            let mut closing = name.rmatch_indices('"').filter(|&(at, _)| at > 0);
            closing.find_map(|(at, quote)| after_bracket(name.get(at + quote.len()..)?))
        }
    }
}

/// Splits at the @ outside quotes, after taking off what still looks like a display name.
fn split<'a>(address: &'a str) -> Result<Parts<'a>, EmailError> {
    let parts = |(left, right): (&'a str, &'a str), bracketed| {
        let (local, quoted) = unquote(left)?;
        let domain = right.strip_prefix('@').unwrap_or(right);
        Ok(Parts { local, quoted, domain, bracketed })
    };
    let (left, right) = split_unquoted(address, &['@', '<'])?;
    let Some(bracket) = right.strip_prefix('<') else {
        return parts((left, right), false);
    };
    let (name, quoted) = unquote(left.trim_end_matches(is_space))?;
    if !quoted {
        let odd = name.chars().filter(|&c| !(is_atext(c) || c == ' '));
        refuse_each("The display name contains invalid characters when not quoted", odd)?;
    }
    check_unsafe(&name, true)?;
    if !bracket.contains('>') {
        return refuse(
            "An open angle bracket at the start of the email address has to be followed by a close angle bracket at the end.",
        );
    }
    let inner = bracket.trim_end_matches(' ');
    if !inner.ends_with('>') {
        return refuse("There can't be anything after the email address.");
    }
    parts(split_unquoted(inner.trim_end_matches('>'), &['@'])?, true)
}

/// Splits before the first of the marks that stands outside quotes.
fn split_unquoted<'a>(text: &'a str, marks: &[char]) -> Result<(&'a str, &'a str), EmailError> {
    // "<" and U+0338 read as "≮": what composes with its successors is not the mark that it seems to be. 32 characters
    // are more than real text combines (UAX #15, Stream-Safe Text) and keep the work linear.
    let composes = |at: usize, c| {
        let window = text.get(at..).unwrap_or_default().chars().take(32);
        NFC.normalize_iter(window).next() != Some(c)
    };
    let (mut inside, mut escaped) = (false, false);
    for (at, c) in text.char_indices() {
        if (c == '<' || escaped) && composes(at, c) {
            continue;
        }
        if inside {
            inside = c != '"' || escaped;
            escaped = c == '\\' && !escaped;
        } else if c == '"' {
            inside = true;
        } else if marks.contains(&c) {
            return Ok(text.split_at(at));
        }
    }
    refuse("An email address must have an @-sign.")
}

/// Takes the quotes and escapes off a quoted string, and says whether it was one.
fn unquote(text: &str) -> Result<(Cow<'_, str>, bool), EmailError> {
    let Some(inner) = text.strip_prefix('"') else {
        return Ok((Cow::Borrowed(text), false));
    };
    let mut plain = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => plain.extend(chars.next()),
            '"' if chars.as_str().is_empty() => break,
            '"' => {
                let rest = chars.map(display).collect::<Vec<_>>().join(", ");
                return refuse(format!("Extra character(s) found after close quote: {rest}"));
            }
            _ => plain.push(c),
        }
    }
    Ok((Cow::Owned(plain), true))
}

// ---- Checks on either part ----

/// Checks the local part, and gives it as it is written: quoted again where it needs the quotes.
fn check_local(local: &str, quoted: bool) -> Result<Cow<'_, str>, EmailError> {
    let length = local.chars().count();
    if length == 0 {
        return refuse("There must be something before the @-sign.");
    }
    if length > MAX_LOCAL {
        let excess = excess(length - MAX_LOCAL, "character");
        return refuse(format!("The email address is too long before the @-sign {excess}."));
    }
    // RFC 6531 §3.3 adds every character beyond ASCII to atext.
    let odd = local.chars().filter(|&c| c.is_ascii() && !is_atext(c) && c != '.');
    let at_start = "An email address cannot start with a period.";
    let at_end = "An email address cannot have a period immediately before the @-sign.";
    let dot_atom = refuse_each("The email address contains invalid characters before the @-sign", odd)
        .and_then(|()| check_periods(local, at_start, at_end));
    if quoted && dot_atom.is_err() {
        let odd = local.chars().filter(char::is_ascii_control);
        let sentence = "The email address contains invalid characters in quotes before the @-sign";
        refuse_each(sentence, odd)?;
        check_unsafe(local, true)?;
        let escaped = local.replace('\\', "\\\\").replace('"', "\\\"");
        return Ok(Cow::Owned(format!("\"{escaped}\"")));
    }
    dot_atom?;
    check_unsafe(local, false)?;
    Ok(Cow::Borrowed(local))
}

/// Refuses what cannot be seen or would change its neighbours when the address is printed.
pub(super) fn check_unsafe(text: &str, allow_space: bool) -> Result<(), EmailError> {
    let is_unsafe = |&(at, c): &(usize, char)| match category(c) {
        Category::SpaceSeparator => !allow_space,
        other if Group::Mark.contains(other) => at == 0,
        _ => !is_graphic(c),
    };
    let found: BTreeSet<char> = text.char_indices().filter(is_unsafe).map(|(_, c)| c).collect();
    if found.is_empty() {
        return Ok(());
    }
    let names = found.into_iter().map(display).collect::<Vec<_>>().join(", ");
    refuse(format!("The email address contains unsafe characters: {names}."))
}

pub(super) fn check_periods(text: &str, at_start: &str, at_end: &str) -> Result<(), EmailError> {
    if text.ends_with('.') {
        refuse(at_end)
    } else if text.starts_with('.') {
        refuse(at_start)
    } else if text.contains("..") {
        refuse("An email address cannot have two periods in a row.")
    } else {
        Ok(())
    }
}

/// Checks the address in octets, in every form it may travel in: as given, normalised, with an ASCII domain.
fn check_length(given: &str, normalized: &str, ascii: &str) -> Result<(), EmailError> {
    let over = |text: &str| text.len().checked_sub(MAX_ADDRESS).filter(|&over| over > 0);
    let reason = if let Some(octets) = over(given) {
        // Nobody counts octets, so the sentence says how many characters that may be.
        let widest = given.chars().map(char::len_utf8).max().unwrap_or(1);
        let characters = (octets / widest).max(1);
        if characters == octets {
            excess(octets, "character")
        } else {
            format!("({characters}-{octets} characters too many)")
        }
    } else if let Some(octets) = over(normalized) {
        format!("after normalization {}", excess(octets, "byte"))
    } else if let Some(octets) = over(ascii) {
        let excess = excess(octets, "byte");
        format!("when the part after the @-sign is converted to IDNA ASCII {excess}")
    } else {
        return Ok(());
    };
    refuse(format!("The email address is too long {reason}."))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(serde::Deserialize)]
    struct Recorded {
        input: String,
        normalized: Option<String>,
        reason: Option<String>,
    }

    /// `tests/data/emails.json` holds what pydantic 2.11 with email-validator 2.2.0 and idna 3.10 answered.
    #[test]
    fn the_answers_are_those_of_the_replaced_service() {
        let table: Vec<Recorded> = serde_json::from_str(include_str!("../../tests/data/emails.json")).unwrap();
        assert!(table.len() > 100);
        for Recorded { input, normalized, reason } in table {
            let answer = Email::parse(&input);
            assert_eq!(answer.as_ref().map(Email::as_str).ok(), normalized.as_deref(), "{input:?}");
            assert_eq!(answer.err().map(|e| e.to_string()), reason, "{input:?}");
        }
    }

    #[test]
    fn lowering_is_one_character_for_one_and_stays_composed() {
        let lowered = |input| Email::parse(input).unwrap().lowered().to_owned();
        assert_eq!(lowered("John.DOE+Tag@Example.COM"), "john.doe+tag@example.com");
        assert_eq!(lowered("ΟΔΟΣ@x.com"), "οδοσ@x.com");
        assert_eq!(lowered("İnfo@x.com"), "info@x.com");
        assert_eq!(lowered("J\u{30C}@x.com"), "\u{1F0}@x.com");
    }

    #[test]
    fn debug_hides_the_address() {
        let email = Email::parse("john@example.com").unwrap();
        assert_eq!(format!("{email:?}"), "Email([redacted])");
    }

    /// Text made of what the rules care about, so that a good part of it is an address.
    fn address() -> impl Strategy<Value = String> {
        let local = r#"[a-cA-Z0-9éÉΣİ+_'"\\.@<]{1,8}"#;
        let domain = r"[a-cX-Z0-9üÜßאب例٠・\u{30D}-]{1,5}|xn--[a-c0-9-]{1,6}";
        let top = r"(com|рф|測試|Test|c-m)";
        (local, domain, top).prop_map(|(local, domain, top)| format!("{local}@{domain}.{top}"))
    }

    proptest! {
        #[test]
        fn any_text_has_an_answer(text in any::<String>(), name in "[<>\"@ \\\\a\u{338}\n]{0,40}") {
            let _ = Email::parse(&text);
            let _ = Email::parse(&name);
            let _ = Email::parse(&format!("a@{text}.com"));
        }

        #[test]
        fn reading_an_answer_again_changes_nothing(text in address()) {
            if let Ok(email) = Email::parse(&text) {
                prop_assert_eq!(Email::parse(email.as_str()), Ok(email));
            }
        }

        #[test]
        fn the_lowered_form_is_an_address_and_lowers_to_itself(text in address()) {
            if let Ok(email) = Email::parse(&text) {
                let again = Email::parse(email.lowered());
                prop_assert_eq!(again.as_ref().map(Email::lowered), Ok(email.lowered()));
            }
        }
    }
}
