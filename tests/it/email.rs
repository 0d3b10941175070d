//! Which addresses are accepted, and how they are spelt then.

use auth::domain::email::Email;
use proptest::prelude::*;

/// What pydantic 2.11 with email-validator 2.2.0 and idna 3.10 answered, and where this service differs.
#[derive(serde::Deserialize)]
struct Recorded {
    same: Vec<Answer>,
    /// Refused by both. The sentences are ours.
    words_differ: Vec<Answer>,
    /// Refused there, accepted here: characters that Unicode 16 began to map to others in domains.
    verdict_differs: Vec<Answer>,
}

#[derive(serde::Deserialize)]
struct Answer {
    input: String,
    normalized: Option<String>,
    reason: Option<String>,
}

#[test]
fn recorded_addresses_have_the_recorded_answers() {
    let recorded: Recorded = serde_json::from_str(include_str!("../data/emails.json")).unwrap();
    let Recorded { same, words_differ, verdict_differs } = recorded;
    assert_eq!((same.len(), words_differ.len(), verdict_differs.len()), (132, 86, 2));
    for Answer { input, normalized, reason } in same.into_iter().chain(words_differ).chain(verdict_differs) {
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
