//! E-mail addresses: which ones are accepted, and how they are spelt.
//!
//! RFC 5322 atoms without quotes and comments, RFC 6531 for characters beyond ASCII, IDNA 2008 for the domain. Nothing
//! here asks the DNS. Which addresses are accepted, their normal form and the sentences of everyday mistakes are those of
//! the Python service (`tests/data/emails.json`). Rare mistakes have shorter sentences of our own.

use std::collections::BTreeSet;
use std::fmt;

use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};
use unicode_normalization::UnicodeNormalization;
use unicode_properties::{GeneralCategory as Category, GeneralCategoryGroup as Group, UnicodeGeneralCategory};

/// Code points of the whole input. This bounds the work, too.
const MAX_INPUT: usize = 2048;
/// Code points before the @ (RFC 5321 §4.5.3.1.1 counts octets, the Python service did not).
const MAX_LOCAL: usize = 64;
/// Octets of the address (RFC 5321 §4.5.3.1.3).
const MAX_ADDRESS: usize = 254;
/// Octets of the domain in its ASCII form (RFC 1035 §2.3.4, without the root label).
const MAX_DOMAIN: usize = 253;
/// Octets of one label in its ASCII form (RFC 1035 §2.3.1).
const MAX_LABEL: usize = 63;

/// Mailboxes whose case never mattered (RFC 2142).
const ROLE_MAILBOXES: [&str; 15] = [
    "info", "marketing", "sales", "support", "abuse", "noc", "security", "postmaster", "hostmaster", "usenet", "news",
    "webmaster", "www", "uucp", "ftp",
];

/// Top-level names that no mail can be sent to (RFC 6761, RFC 6762, RFC 7686).
const SPECIAL_USE: [&str; 6] = ["arpa", "invalid", "local", "localhost", "onion", "test"];

/// A valid e-mail address. `Debug` hides it, and there is no `Display`: addresses do not belong in logs.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Email {
    normalized: String,
    lowered: String,
}

impl Email {
    /// An address as it stands in the database. It is not parsed again: some that are accepted in their ASCII form are
    /// stored in a Unicode form that is not.
    pub fn from_stored(stored: String) -> Self {
        Self { lowered: lower(&stored), normalized: stored }
    }

    /// Reads an address, also out of `Name <address>`. The error is the sentence for the client.
    pub fn parse(input: &str) -> Result<Self, EmailError> {
        refuse_if(input.chars().nth(MAX_INPUT).is_some(), "Length must not exceed 2048 characters")?;
        let (local, domain) = split(in_angle_brackets(input).unwrap_or(input).trim_matches(is_space))?;
        check_local(local)?;
        let mut mailbox: String = local.nfc().collect();
        check_local(&mailbox)?;
        if ROLE_MAILBOXES.iter().any(|name| name.eq_ignore_ascii_case(local)) {
            mailbox.make_ascii_lowercase();
        }
        let (ascii, unicode) = check_domain(domain)?;
        let normalized = format!("{mailbox}@{unicode}");
        check_length(&format!("{local}@{domain}"), &normalized, &format!("{mailbox}@{ascii}"))?;
        Ok(Self::from_stored(normalized))
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

fn refuse<T>(sentence: impl Into<String>) -> Result<T, EmailError> {
    Err(EmailError(sentence.into()))
}

fn refuse_if(fault: bool, sentence: &str) -> Result<(), EmailError> {
    if fault { refuse(sentence) } else { Ok(()) }
}

fn refuse_above(limit: usize, count: usize, sentence: &str) -> Result<(), EmailError> {
    match count.saturating_sub(limit) {
        0 => Ok(()),
        1 => refuse(format!("{sentence} (1 character too many).")),
        excess => refuse(format!("{sentence} ({excess} characters too many).")),
    }
}

/// Refuses the given characters, if there are any, each shown once.
fn refuse_each(characters: impl Iterator<Item = char>, sentence: &str) -> Result<(), EmailError> {
    let shown: BTreeSet<String> = characters.map(show).collect();
    let shown = Vec::from_iter(shown).join(", ");
    refuse_if(!shown.is_empty(), &format!("{sentence}: {shown}."))
}

/// A character in quotes, or by its name or number where it would not be seen.
fn show(c: char) -> String {
    match c {
        ' ' => "SPACE".to_owned(),
        '\u{A0}' => "NO-BREAK SPACE".to_owned(),
        '\u{AD}' => "SOFT HYPHEN".to_owned(),
        '\u{200B}' => "ZERO WIDTH SPACE".to_owned(),
        '\\' | '\'' => format!("\"{c}\""),
        _ if is_graphic(c) => format!("'{c}'"),
        _ => format!("U+{:04X}", u32::from(c)),
    }
}

/// Lower case, one character for one, as the database's `lower` does it, so that both agree on who is the same user.
/// Composed again after it: "J̌" has no composed form, "ǰ" has.
fn lower(normalized: &str) -> String {
    normalized.chars().map(|c| c.to_lowercase().next().unwrap_or(c)).nfc().collect()
}

/// What Python's `str.strip` takes for space: four separators more than `char::is_whitespace`.
fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\x1C'..='\x1F')
}

/// RFC 5322 §3.2.3.
fn is_atext(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(c)
}

fn is_alphanumeric(c: char) -> bool {
    matches!(c.general_category_group(), Group::Letter | Group::Number)
}

/// What is safe to print.
fn is_graphic(c: char) -> bool {
    is_alphanumeric(c) || matches!(c.general_category_group(), Group::Punctuation | Group::Symbol)
}

/// The address in `Name <address>`, `"Name" <address>` or `<address>`.
fn in_angle_brackets(input: &str) -> Option<&str> {
    let text = input.trim_matches(is_space).strip_suffix('>')?;
    let rest = match text.strip_prefix('"') {
        None => text.trim_start_matches(|c| is_atext(c) || is_space(c) || is_alphanumeric(c)),
        Some(quoted) => quoted.rsplit_once('"').filter(|(name, _)| !name.is_empty())?.1,
    };
    let address = rest.trim_start_matches(is_space).strip_prefix('<')?;
    (!address.is_empty() && !address.contains('\n')).then_some(address)
}

/// Splits at the first @ outside quotes.
fn split(address: &str) -> Result<(&str, &str), EmailError> {
    let (mut quoted, mut escaped) = (false, false);
    let mark = address.find(|c| {
        let found = !quoted && matches!(c, '@' | '<');
        quoted ^= c == '"' && !escaped;
        escaped = quoted && c == '\\' && !escaped;
        found
    });
    let Some((left, right)) = mark.and_then(|mark| address.split_at_checked(mark)) else {
        return refuse("An email address must have an @-sign.");
    };
    let quoted = left.starts_with('"');
    if let Some(domain) = right.strip_prefix('@') {
        refuse_if(quoted, "Quoting the part before the @-sign is not allowed here.")?;
        return Ok((left, domain));
    }
    // A display name that is not well-formed, or more than one pair of brackets.
    let odd = left.trim_end_matches(is_space).chars().filter(|&c| !quoted && !is_atext(c) && c != ' ');
    refuse_each(odd, "The display name contains invalid characters when not quoted")?;
    let open = "An open angle bracket at the start of the email address has to be followed by a close angle bracket at the end.";
    refuse_if(!right.contains('>'), open)?;
    refuse_if(!right.trim_end_matches(' ').ends_with('>'), "There can't be anything after the email address.")?;
    refuse("A display name and angle brackets around the email address are not permitted here.")
}

fn check_local(local: &str) -> Result<(), EmailError> {
    refuse_if(local.is_empty(), "There must be something before the @-sign.")?;
    refuse_above(MAX_LOCAL, local.chars().count(), "The email address is too long before the @-sign")?;
    // RFC 6531 §3.3 adds every character beyond ASCII to atext.
    let odd = local.chars().filter(|&c| c.is_ascii() && !is_atext(c) && c != '.');
    refuse_each(odd, "The email address contains invalid characters before the @-sign")?;
    let at_end = "An email address cannot have a period immediately before the @-sign.";
    check_periods(local, "An email address cannot start with a period.", at_end)?;
    check_unsafe(local)
}

fn check_periods(text: &str, at_start: &str, at_end: &str) -> Result<(), EmailError> {
    refuse_if(text.ends_with('.'), at_end)?;
    refuse_if(text.starts_with('.'), at_start)?;
    refuse_if(text.contains(".."), "An email address cannot have two periods in a row.")
}

/// Refuses what cannot be seen, and a mark that would change the character before the text.
fn check_unsafe(text: &str) -> Result<(), EmailError> {
    let is_safe = |at, c: char| is_graphic(c) || at > 0 && c.general_category_group() == Group::Mark;
    let odd = text.char_indices().filter(|&(at, c)| !is_safe(at, c)).map(|(_, c)| c);
    refuse_each(odd, "The email address contains unsafe characters")
}

/// Checks the domain, and gives its ASCII and its Unicode form.
fn check_domain(domain: &str) -> Result<(String, String), EmailError> {
    refuse_if(domain.is_empty(), "There must be something after the @-sign.")?;
    let bracketed = domain.starts_with('[') && domain.ends_with(']');
    refuse_if(bracketed, "A bracketed IP address after the @-sign is not allowed here.")?;
    let odd = domain.chars().filter(|&c| c.is_ascii() && !c.is_ascii_alphanumeric() && !matches!(c, '-' | '.'));
    refuse_each(odd, "The part after the @-sign contains invalid characters")?;
    check_unsafe(domain)?;
    check_hostname(domain)?;

    // One label at a time, so that the direction of writing in one says nothing of the others.
    let labels = domain.split(['.', '\u{3002}', '\u{FF0E}', '\u{FF61}']);
    let Some((ascii, unicode)) = labels.map(convert_label).collect::<Option<(Vec<_>, Vec<_>)>>() else {
        return refuse("The part after the @-sign is not a valid internationalized domain name.");
    };
    let (ascii, unicode) = (ascii.join("."), unicode.join("."));
    check_hostname(&ascii)?;
    refuse_above(MAX_DOMAIN, ascii.len(), "The email address is too long after the @-sign")?;
    for label in ascii.split('.') {
        refuse_above(MAX_LABEL, label.len(), "After the @-sign, periods cannot be separated by so many characters")?;
    }
    let Some((_, top)) = ascii.rsplit_once('.') else {
        return refuse("The part after the @-sign is not valid. It should have a period.");
    };
    let numeric = !top.ends_with(|c: char| c.is_ascii_alphabetic());
    refuse_if(numeric, "The part after the @-sign is not valid. It is not within a valid top-level domain.")?;
    let special = "The part after the @-sign is a special-use or reserved name that cannot be used with email.";
    refuse_if(SPECIAL_USE.contains(&top), special)?;
    Ok((ascii, unicode))
}

/// RFC 952 and RFC 1123 §2.1, and no labels reserved by RFC 5890 §2.3.1.
fn check_hostname(domain: &str) -> Result<(), EmailError> {
    let at_start = "An email address cannot have a period immediately after the @-sign.";
    check_periods(domain, at_start, "An email address cannot end with a period.")?;
    refuse_if(domain.ends_with('-'), "An email address cannot end with a hyphen.")?;
    refuse_if(domain.starts_with('-'), "An email address cannot have a hyphen immediately after the @-sign.")?;
    let adjacent = domain.contains(".-") || domain.contains("-.");
    refuse_if(adjacent, "An email address cannot have a period and a hyphen next to each other.")?;
    let is_reserved = |label: &str| {
        let mut chars = label.chars();
        let start = [chars.next(), chars.next()].map(|c| c.map(|c| c.to_ascii_lowercase()));
        start != [Some('x'), Some('n')] && chars.as_str().starts_with("--")
    };
    let reserved = "An email address cannot have two letters followed by two dashes immediately after the @-sign or after a period, except Punycode.";
    refuse_if(domain.split('.').any(is_reserved), reserved)
}

/// The ASCII and the Unicode form of a label (UTS #46), or none where it is not valid.
fn convert_label(label: &str) -> Option<(String, String)> {
    let uts46 = Uts46::new();
    let ascii = uts46.to_ascii(label.as_bytes(), AsciiDenyList::STD3, Hyphens::Check, DnsLength::Ignore).ok()?;
    let (unicode, _) = uts46.to_unicode(ascii.as_bytes(), AsciiDenyList::STD3, Hyphens::Check);
    is_idna_2008(&unicode).then(|| (ascii.to_string(), unicode.to_string()))
}

/// Whether IDNA 2008 allows every character (RFC 5892). UTS #46 lets symbols pass, too.
fn is_idna_2008(label: &str) -> bool {
    label.chars().all(|c| match c {
        // What only stretches a word, and marks for symbols.
        '\u{640}' | '\u{20D0}'..='\u{20FF}' => false,
        // Between two l in Catalan, and within a word in Japanese.
        '\u{B7}' => !label.replace("l\u{B7}l", "").contains('\u{B7}'),
        '\u{30FB}' => label.chars().any(|c| !c.is_ascii() && c != '\u{30FB}'),
        // Ideographic zero, and signs and joiners that depend on their neighbours.
        '-' | '.' | '\u{3007}' | '\u{375}' | '\u{5F3}' | '\u{5F4}' | '\u{200C}' | '\u{200D}' => true,
        _ => matches!(
            c.general_category(),
            Category::LowercaseLetter
                | Category::UppercaseLetter // of Cherokee, which UTS #46 does not map
                | Category::OtherLetter
                | Category::ModifierLetter
                | Category::DecimalNumber
                | Category::NonspacingMark
                | Category::SpacingMark
        ),
    })
}

/// Checks the address in octets, in every form it may travel in: as given, normalized, with an ASCII domain.
fn check_length(given: &str, normalized: &str, ascii: &str) -> Result<(), EmailError> {
    // People count characters, not octets, so the sentence says how many characters that may be.
    let octets = given.len().saturating_sub(MAX_ADDRESS);
    let widest = given.chars().map(char::len_utf8).max().unwrap_or(1);
    let fewest = (octets / widest).max(1);
    if fewest < octets {
        return refuse(format!("The email address is too long ({fewest}-{octets} characters too many)."));
    }
    refuse_above(MAX_ADDRESS, given.len(), "The email address is too long")?;
    refuse_above(MAX_ADDRESS, normalized.len().max(ascii.len()), "The email address is too long after normalization")
}
