//! Keys that sign and verify access tokens (`domain::keys`): which texts are one.

use auth::domain::keys::{KeyAlgorithm, KeyError, TokenKey, generate};
use p256::pkcs8::der::Encode;
use p256::pkcs8::der::asn1::{BitStringRef, Null};
use p256::pkcs8::{
    AlgorithmIdentifierRef, Document, LineEnding, ObjectIdentifier, PrivateKeyInfo, SubjectPublicKeyInfoRef,
};
use secrecy::ExposeSecret;

fn pem(label: &'static str, der: &[u8]) -> String {
    Document::try_from(der).unwrap().to_pem(label, LineEnding::LF).unwrap()
}

/// A private key of another kind; its content does not matter.
fn foreign(oid: &str, curve: Option<&str>) -> String {
    let curve = curve.map(ObjectIdentifier::new_unwrap);
    let parameters = curve.as_ref().map_or(Null.into(), Into::into);
    let algorithm = AlgorithmIdentifierRef { oid: ObjectIdentifier::new_unwrap(oid), parameters: Some(parameters) };
    pem("PRIVATE KEY", &PrivateKeyInfo::new(algorithm, &[4, 1, 0]).to_der().unwrap())
}

/// RFC 8037 appendix A.2 and A.3.
#[test]
fn the_id_of_a_key_is_its_thumbprint() {
    let text = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n\
                -----END PUBLIC KEY-----\n";
    let key = TokenKey::parse(text).unwrap();
    assert_eq!(key.kid(), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    assert_eq!((key.algorithm(), key.is_private()), ("EdDSA", false));
    let windows = TokenKey::parse(&format!("A note of its owner\r\n{}", text.replace('\n', "\r\n"))).unwrap();
    assert_eq!(windows.kid(), key.kid());
}

#[test]
fn a_new_key_can_be_read_and_is_another_each_time() {
    for (algorithm, name) in [(KeyAlgorithm::Ed25519, "EdDSA"), (KeyAlgorithm::Es256, "ES256")] {
        let keys = [generate(algorithm), generate(algorithm)].map(|pem| TokenKey::parse(pem.expose_secret()).unwrap());
        assert_ne!(keys[0].kid(), keys[1].kid());
        assert!(keys.iter().all(|key| key.is_private() && key.algorithm() == name && key.kid().len() == 43));
        let shown = format!("{:?}", keys[0]);
        assert!(shown.contains("redacted"), "{shown}");
    }
}

#[test]
fn what_is_no_key_for_tokens_is_refused_for_what_it_is() {
    let good = generate(KeyAlgorithm::Ed25519).expose_secret().to_owned();
    let label = |label: &str| good.replace("PRIVATE KEY", label);
    for (text, problem) in [
        (String::new(), KeyError::Empty),
        (" \n".to_owned(), KeyError::Empty),
        ("secret".to_owned(), KeyError::NotPem),
        (good.replace("PRIVATE", "OPENSSH PRIVATE"), KeyError::NotPem),
        (format!("{good}{good}"), KeyError::Several),
        (label("ENCRYPTED PRIVATE KEY"), KeyError::Encrypted),
        (label("EC PRIVATE KEY").replace("KEY-----\n", "KEY-----\nProc-Type: 4,ENCRYPTED\n\n"), KeyError::Encrypted),
        (label("RSA PRIVATE KEY"), KeyError::Rsa),
        (label("EC PRIVATE KEY"), KeyError::NotPkcs8),
        (label("CERTIFICATE"), KeyError::Certificate),
        (label("PUBLIC KEY"), KeyError::Damaged),
        (good.replace("MC4C", "MC4D"), KeyError::Damaged),
        (good[..good.len() - 30].to_owned(), KeyError::Damaged),
        (foreign("1.2.840.113549.1.1.1", None), KeyError::Rsa),
        // Ed448, and P-384.
        (foreign("1.3.101.113", None), KeyError::OtherKind),
        (foreign("1.2.840.10045.2.1", Some("1.3.132.0.34")), KeyError::OtherKind),
        (foreign("1.2.840.10045.2.1", Some("1.2.840.10045.3.1.7")), KeyError::Damaged),
    ] {
        assert_eq!(TokenKey::parse(&text).unwrap_err(), problem, "{text}");
    }
}

#[test]
fn a_public_key_of_another_kind_or_of_small_order_is_refused() {
    let spki = |oid: &str, curve: Option<&str>, key: &[u8]| {
        let curve = curve.map(ObjectIdentifier::new_unwrap);
        let algorithm = AlgorithmIdentifierRef {
            oid: ObjectIdentifier::new_unwrap(oid),
            parameters: curve.as_ref().map(Into::into),
        };
        let subject_public_key = BitStringRef::from_bytes(key).unwrap();
        pem("PUBLIC KEY", &SubjectPublicKeyInfoRef { algorithm, subject_public_key }.to_der().unwrap())
    };
    let mut identity = [0; 32];
    identity[0] = 1;
    for (text, problem) in [
        (spki("1.3.101.112", None, &identity), KeyError::Damaged),
        (spki("1.3.101.112", None, &[1; 31]), KeyError::Damaged),
        (spki("1.2.840.113549.1.1.1", None, &[1; 32]), KeyError::Rsa),
        (spki("1.2.840.10045.2.1", Some("1.3.132.0.34"), &[4; 97]), KeyError::OtherKind),
        (spki("1.2.840.10045.2.1", Some("1.2.840.10045.3.1.7"), &[4; 65]), KeyError::Damaged),
    ] {
        assert_eq!(TokenKey::parse(&text).unwrap_err(), problem, "{text}");
    }
}
