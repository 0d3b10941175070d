//! The part after the @: rules of names. Host names (RFC 952, RFC 1123), UTS #46 and IDNA 2008 for names beyond ASCII,
//! and no names that cannot be sent to. Nothing here asks the DNS.
//!
//! Sentences are those of the service this one replaces, as in [`super::email`].

use std::borrow::Cow;
use std::iter;

use icu_normalizer::uts46::Uts46MapperBorrowed;
use icu_properties::CodePointMapData;
use icu_properties::props::{
    BidiClass, GeneralCategory as Category, GeneralCategoryGroup as Group, JoiningType, Script,
};

use super::email::{EmailError, NFC, category, check_periods, check_unsafe, excess, is_graphic, refuse, refuse_each};

const UTS46: Uts46MapperBorrowed<'static> = Uts46MapperBorrowed::new();

/// Octets of the domain in its ASCII form (RFC 1035 §2.3.4, less the root label).
const MAX_DOMAIN: usize = 253;
/// Octets of one label in its ASCII form (RFC 1035 §2.3.1).
const MAX_LABEL: usize = 63;

const ZWNJ: char = '\u{200C}';
const ZWJ: char = '\u{200D}';

/// Top-level names that no mail can be sent to (RFC 6761, RFC 6762, RFC 7686).
const SPECIAL_USE: [&str; 6] = ["arpa", "invalid", "local", "localhost", "onion", "test"];

/// A name in both of its spellings.
pub(super) struct Domain {
    pub(super) ascii: String,
    pub(super) unicode: String,
}

/// Checks and normalises the part after the @.
pub(super) fn check_domain(domain: &str) -> Result<Domain, EmailError> {
    if let Some(literal) = domain.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return refuse_literal(literal);
    }
    if domain.is_empty() {
        return refuse("There must be something after the @-sign.");
    }
    let is_odd = |c: &char| c.is_ascii() && !(c.is_ascii_alphanumeric() || matches!(c, '-' | '.'));
    let odd = "The part after the @-sign contains invalid characters";
    refuse_each(odd, domain.chars().filter(is_odd))?;
    check_unsafe(domain, false)?;
    let mapped = map_domain(domain)?;
    refuse_each(&format!("{odd} after Unicode normalization"), mapped.chars().filter(is_odd))?;
    check_hostname(&mapped)?;

    let ascii = if mapped.is_ascii() {
        mapped
    } else {
        let labels: Result<Vec<_>, _> = mapped.split('.').map(label_to_ascii).collect();
        labels.or_else(|e| refuse(format!("The part after the @-sign is invalid ({e}).")))?.join(".")
    };
    if let Some(over) = ascii.len().checked_sub(MAX_DOMAIN).filter(|&over| over > 0) {
        let excess = if ascii == domain {
            excess(over, "character")
        } else {
            excess(over, "byte").replace(')', " after IDNA encoding)")
        };
        return refuse(format!("The email address is too long after the @-sign {excess}."));
    }
    if let Some(label) = ascii.split('.').find(|label| label.len() > MAX_LABEL) {
        let excess = excess(label.len() - MAX_LABEL, "character");
        let sentence = "After the @-sign, periods cannot be separated by so many characters";
        return refuse(format!("{sentence} {excess}."));
    }
    let Some((_, top)) = ascii.rsplit_once('.') else {
        return refuse("The part after the @-sign is not valid. It should have a period.");
    };
    if !top.ends_with(|c: char| c.is_ascii_alphabetic()) {
        return refuse("The part after the @-sign is not valid. It is not within a valid top-level domain.");
    }
    if SPECIAL_USE.contains(&top) {
        return refuse("The part after the @-sign is a special-use or reserved name that cannot be used with email.");
    }
    let labels: Result<Vec<_>, _> = ascii.split('.').map(label_to_unicode).collect();
    let unicode = labels.map(|labels| labels.join("."));
    let unicode = unicode.or_else(|e| refuse(format!("The part after the @-sign is not valid IDNA ({e}).")))?;
    Ok(Domain { ascii, unicode })
}

/// No address in brackets is accepted; the sentence still tells an IP address from what only resembles one.
fn refuse_literal<T>(literal: &str) -> Result<T, EmailError> {
    if let Some(v6) = literal.strip_prefix("IPv6:") {
        ipv6(v6).or_else(|e| refuse(format!("The IPv6 address in brackets after the @-sign is not valid ({e}).")))?;
    } else if !literal.is_empty() && literal.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        ipv4(literal).or_else(|e| {
            refuse(format!(
                "The address in brackets after the @-sign is not valid: It is not an IPv4 address ({e}) or is missing an address literal tag."
            ))
        })?;
    } else if !literal.contains(':') {
        return refuse("The part after the @-sign in brackets is not an IPv4 address and has no address literal tag.");
    } else {
        let odd = literal.chars().filter(|c| !('!'..='\u{FA}').contains(c));
        refuse_each("The part after the @-sign contains invalid characters in brackets", odd)?;
        return refuse("The part after the @-sign contains an invalid address literal tag in brackets.");
    }
    refuse("A bracketed IP address after the @-sign is not allowed here.")
}

/// What Python's `ipaddress` says of an IPv4 address.
fn ipv4(text: &str) -> Result<(), String> {
    let octets: Vec<&str> = text.split('.').collect();
    if octets.len() != 4 {
        return Err(format!("Expected 4 octets in {}", repr(text)));
    }
    for octet in octets {
        let fault = match octet {
            "" => "Empty octet not permitted".to_owned(),
            _ if !octet.bytes().all(|b| b.is_ascii_digit()) => {
                format!("Only decimal digits permitted in {}", repr(octet))
            }
            _ if octet.len() > 3 => format!("At most 3 characters permitted in {}", repr(octet)),
            _ if octet != "0" && octet.starts_with('0') => {
                format!("Leading zeros are not permitted in {}", repr(octet))
            }
            _ if octet.parse::<u8>().is_err() => format!("Octet {octet} (> 255) not permitted"),
            _ => continue,
        };
        return Err(format!("{fault} in {}", repr(text)));
    }
    Ok(())
}

/// What Python's `ipaddress` says of an IPv6 address.
fn ipv6(text: &str) -> Result<(), String> {
    if text.contains('/') {
        return Err(format!("Unexpected '/' in {}", repr(text)));
    }
    let (address, scope) = text.split_once('%').map_or((text, None), |(address, scope)| (address, Some(scope)));
    if scope.is_some_and(|scope| scope.is_empty() || scope.contains('%')) {
        return Err(format!("Invalid IPv6 address: \"{}\"", repr(text)));
    }
    let fault = |fault: &str| Err(format!("{fault} in {}", repr(address)));
    if address.is_empty() {
        return Err("Address cannot be empty".to_owned());
    }
    let mut parts: Vec<&str> = address.split(':').collect();
    if parts.len() < 3 {
        return fault("At least 3 parts expected");
    }
    if let Some(last) = parts.pop_if(|last| last.contains('.')) {
        ipv4(last).or_else(|e| fault(&e))?;
        parts.extend(["0", "0"]);
    }
    if parts.len() > 9 {
        return fault("At most 8 colons permitted");
    }
    let inner = 1..parts.len() - 1;
    let gaps: Vec<usize> = inner.filter(|&at| parts.get(at).is_some_and(|part| part.is_empty())).collect();
    let (leading, trailing) = (parts.first() == Some(&""), parts.last() == Some(&""));
    match gaps[..] {
        [_, _, ..] => return fault("At most one '::' permitted"),
        [] if parts.len() != 8 => return fault("Exactly 8 parts expected without '::'"),
        [gap] if leading && gap > 1 => return fault("Leading ':' only permitted as part of '::'"),
        [] if leading => return fault("Leading ':' only permitted as part of '::'"),
        [gap] if trailing && gap + 2 < parts.len() => return fault("Trailing ':' only permitted as part of '::'"),
        [] if trailing => return fault("Trailing ':' only permitted as part of '::'"),
        [_] if parts.iter().filter(|part| !part.is_empty()).count() > 7 => {
            return fault("Expected at most 7 other parts with '::'");
        }
        _ => {}
    }
    for part in parts {
        if !part.bytes().all(|b| b.is_ascii_hexdigit()) {
            return fault(&format!("Only hex digits permitted in {}", repr(part)));
        }
        if part.len() > 4 {
            return fault(&format!("At most 4 characters permitted in {}", repr(part)));
        }
    }
    Ok(())
}

/// RFC 952 and RFC 1123 §2.1, and no labels reserved by RFC 5890 §2.3.1.
fn check_hostname(domain: &str) -> Result<(), EmailError> {
    let at_start = "An email address cannot have a period immediately after the @-sign.";
    check_periods(domain, at_start, "An email address cannot end with a period.")?;
    if domain.ends_with('-') {
        return refuse("An email address cannot end with a hyphen.");
    }
    if domain.starts_with('-') {
        return refuse("An email address cannot have a hyphen immediately after the @-sign.");
    }
    if domain.contains(".-") || domain.contains("-.") {
        return refuse("An email address cannot have a period and a hyphen next to each other.");
    }
    if domain.split('.').any(|label| !label.starts_with("xn") && has_third_and_fourth_hyphen(label)) {
        return refuse(
            "An email address cannot have two letters followed by two dashes immediately after the @-sign or after a period, except Punycode.",
        );
    }
    Ok(())
}

fn has_third_and_fourth_hyphen(label: &str) -> bool {
    label.chars().skip(2).take(2).eq(['-', '-'])
}

/// The mapping of UTS #46, non-transitional: lower case, NFC, one kind of full stop.
fn map_domain(domain: &str) -> Result<String, EmailError> {
    let mut mapped = String::with_capacity(domain.len());
    for (at, c) in domain.chars().enumerate() {
        let before = mapped.len();
        mapped.extend(UTS46.map_normalize(iter::once(c)));
        if mapped.get(before..) == Some("\u{FFFD}") || is_mapped_since_unicode_16(c) {
            let (code, position, domain) = (u32::from(c), at + 1, repr(domain));
            return refuse(format!(
                "The part after the @-sign contains invalid characters (Codepoint U+{code:04X} not allowed at position {position} in {domain})."
            ));
        }
    }
    Ok(NFC.normalize(&mapped).into_owned())
}

/// Characters that UTS #46 maps or drops since Unicode 16. The replaced service, one version behind, refused them.
fn is_mapped_since_unicode_16(c: char) -> bool {
    matches!(c, '\u{4C0}' | '\u{10A0}'..='\u{10C5}' | '\u{115F}' | '\u{1160}' | '\u{17B4}' | '\u{17B5}' | '\u{1806}')
        || matches!(c, '\u{2132}' | '\u{2183}' | '\u{3164}' | '\u{FFA0}')
        || matches!(c, '\u{2F868}' | '\u{2F874}' | '\u{2F91F}' | '\u{2F95F}' | '\u{2F9BF}')
}

fn label_to_ascii(label: &str) -> Result<Cow<'_, str>, String> {
    let ascii = if label.is_ascii() {
        label_to_unicode(label)?;
        Cow::Borrowed(label)
    } else {
        check_label(label)?;
        Cow::Owned(format!("xn--{}", idna::punycode::encode_str(label).unwrap_or_default()))
    };
    if ascii.len() > MAX_LABEL { Err("Label too long".to_owned()) } else { Ok(ascii) }
}

fn label_to_unicode(label: &str) -> Result<Cow<'_, str>, String> {
    let Some(encoded) = label.strip_prefix("xn--") else {
        return Ok(Cow::Borrowed(label));
    };
    // A delimiter with nothing before it is no digit of the encoding. RFC 3492 §6.2 refuses it, the replaced service
    // skipped it.
    let encoded = encoded.strip_prefix('-').filter(|rest| !rest.contains('-')).unwrap_or(encoded);
    let decoded = idna::punycode::decode_to_string(encoded).ok_or("Invalid A-label")?;
    check_label(&decoded)?;
    Ok(Cow::Owned(decoded))
}

/// The rules for a U-label (RFC 5891 §4.2.3), stricter than UTS #46: no symbols, joiners only in their context.
fn check_label(label: &str) -> Result<(), String> {
    if !NFC.is_normalized(label) {
        return Err("Label must be in Normalization Form C".to_owned());
    }
    if has_third_and_fourth_hyphen(label) {
        return Err("Label has disallowed hyphens in 3rd and 4th position".to_owned());
    }
    if label.starts_with('-') || label.ends_with('-') {
        return Err("Label must not start or end with a hyphen".to_owned());
    }
    if label.starts_with(|c| Group::Mark.contains(category(c))) {
        return Err("Label begins with an illegal combining character".to_owned());
    }
    let chars: Vec<char> = label.chars().collect();
    for (at, &c) in chars.iter().enumerate() {
        let context = context_allows(&chars, at, c);
        if context.unwrap_or_else(|| is_protocol_valid(c)) {
            continue;
        }
        let (code, position, label) = (u32::from(c), at + 1, repr(label));
        return Err(match (context, c) {
            (None, _) => format!("Codepoint U+{code:04X} at position {position} of {label} not allowed"),
            // "Unknown" is not the reason, but it is the sentence that clients have always got.
            (_, ZWNJ | ZWJ) => {
                format!("Unknown codepoint adjacent to joiner U+{code:04X} at position {position} in {label}")
            }
            _ => format!("Codepoint U+{code:04X} not allowed at position {position} in {label}"),
        });
    }
    check_bidi(label)
}

/// Whether the neighbours of a character allow it, where that decides (RFC 5892, Appendix A).
fn context_allows(label: &[char], at: usize, c: char) -> Option<bool> {
    let before = at.checked_sub(1).and_then(|at| label.get(at)).copied();
    let after = label.get(at + 1).copied();
    let has_script = |c: char, scripts: &[Script]| scripts.contains(&CodePointMapData::<Script>::new().get(c));
    let after_virama = || before.is_some_and(|c| UTS46.is_virama(c));
    Some(match c {
        ZWNJ => after_virama() || joins(label, at),
        ZWJ => after_virama(),
        '\u{B7}' => before == Some('l') && after == Some('l'),
        '\u{375}' => after.is_some_and(|c| has_script(c, &[Script::Greek])),
        '\u{5F3}' | '\u{5F4}' => before.is_some_and(|c| has_script(c, &[Script::Hebrew])),
        '\u{30FB}' => label.iter().any(|&c| has_script(c, &[Script::Hiragana, Script::Katakana, Script::Han])),
        '\u{660}'..='\u{669}' => !label.iter().any(|c| ('\u{6F0}'..='\u{6F9}').contains(c)),
        '\u{6F0}'..='\u{6F9}' => !label.iter().any(|c| ('\u{660}'..='\u{669}').contains(c)),
        _ => return None,
    })
}

/// Whether the letters around a ZWNJ would join without it (RFC 5892 §A.1).
fn joins(label: &[char], at: usize) -> bool {
    let joining = |c: &char| CodePointMapData::<JoiningType>::new().get(*c);
    let visible = |joining: &JoiningType| *joining != JoiningType::Transparent;
    let before = label.iter().take(at).rev().map(joining).find(visible);
    let after = label.iter().skip(at + 1).map(joining).find(visible);
    matches!(before, Some(JoiningType::LeftJoining | JoiningType::DualJoining))
        && matches!(after, Some(JoiningType::RightJoining | JoiningType::DualJoining))
}

/// The derived property PVALID (RFC 5892 §3).
fn is_protocol_valid(c: char) -> bool {
    if matches!(c, '-' | '\u{DF}' | '\u{3C2}' | '\u{6FD}' | '\u{6FE}' | '\u{F0B}' | '\u{3007}') {
        return true;
    }
    let exception = matches!(c, '\u{640}' | '\u{7FA}' | '\u{302E}' | '\u{302F}' | '\u{3031}'..='\u{3035}' | '\u{303B}');
    let symbol_block = matches!(c, '\u{20D0}'..='\u{20FF}' | '\u{1D100}'..='\u{1D24F}');
    let old_hangul = matches!(c, '\u{1100}'..='\u{11FF}' | '\u{A960}'..='\u{A97F}' | '\u{D7B0}'..='\u{D7FF}');
    let letter_digit = matches!(
        category(c),
        Category::LowercaseLetter
            | Category::UppercaseLetter
            | Category::OtherLetter
            | Category::ModifierLetter
            | Category::DecimalNumber
            | Category::NonspacingMark
            | Category::SpacingMark
    );
    // What UTS #46 maps is what §2.2 calls unstable or §2.3 ignorable.
    let stable = || UTS46.map_normalize(iter::once(c)).eq(iter::once(c));
    letter_digit && !exception && !symbol_block && !old_hangul && stable()
}

/// The Bidi rule (RFC 5893 §2), for a label with a right-to-left character.
fn check_bidi(label: &str) -> Result<(), String> {
    use BidiClass as B;
    let classes: Vec<B> = label.chars().map(|c| CodePointMapData::<B>::new().get(c)).collect();
    let is_rtl = |class: &B| matches!(*class, B::RightToLeft | B::ArabicLetter | B::ArabicNumber);
    if !classes.iter().any(is_rtl) {
        return Ok(());
    }
    let rtl = match classes.first() {
        Some(&(B::RightToLeft | B::ArabicLetter)) => true,
        Some(&B::LeftToRight) => false,
        _ => {
            return Err(format!("First codepoint in label {} must be directionality L, R or AL", repr(label)));
        }
    };
    let (mut ends_well, mut number) = (false, None);
    for (class, position) in classes.into_iter().zip(1..) {
        let (allowed, ending) = match class {
            B::RightToLeft | B::ArabicLetter | B::ArabicNumber => (rtl, true),
            B::LeftToRight => (!rtl, true),
            B::EuropeanNumber => (true, true),
            B::EuropeanSeparator
            | B::CommonSeparator
            | B::EuropeanTerminator
            | B::OtherNeutral
            | B::BoundaryNeutral => (true, false),
            B::NonspacingMark => (true, ends_well),
            _ => (false, false),
        };
        ends_well = ending;
        if !allowed {
            let direction = if rtl { "right-to-left" } else { "left-to-right" };
            return Err(format!("Invalid direction for codepoint at position {position} in a {direction} label"));
        }
        if rtl && matches!(class, B::ArabicNumber | B::EuropeanNumber) && *number.get_or_insert(class) != class {
            return Err("Can not mix numeral types in a right-to-left label".to_owned());
        }
    }
    if ends_well { Ok(()) } else { Err("Label ends with illegal codepoint directionality".to_owned()) }
}

/// A label or domain as Python's `repr` shows it. Neither holds quotes or backslashes by the time it is shown.
fn repr(text: &str) -> String {
    let escape = |c: char| match u32::from(c) {
        _ if is_graphic(c) || Group::Mark.contains(category(c)) => c.to_string(),
        n @ ..=0xFF => format!("\\x{n:02x}"),
        n @ ..=0xFFFF => format!("\\u{n:04x}"),
        n => format!("\\U{n:08x}"),
    };
    format!("'{}'", text.chars().map(escape).collect::<String>())
}
