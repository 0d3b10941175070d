//! Keys that sign and verify access tokens: Ed25519 (RFC 8037) and P-256 (RFC 7518 §3.4), read from PEM.
//!
//! A key is good for one algorithm, which is its own and not that of a token's header. Its id (`kid`) is the thumbprint of
//! its public half (RFC 7638), so the same key has the same id everywhere, in a private file as in a public one.

use std::iter;

use ed25519_dalek::pkcs8::KeypairBytes;
use jsonwebtoken::jwk::{Jwk, JwkSet, PublicKeyUse, ThumbprintHash};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header};
use p256::elliptic_curve::sec1::ToEncodedPoint;
use p256::pkcs8::der::Decode;
use p256::pkcs8::{EncodePrivateKey, LineEnding, ObjectIdentifier, PrivateKeyInfo, SecretDocument};
use p256::pkcs8::{SubjectPublicKeyInfoRef, spki};
use secrecy::SecretString;
use sha2::{Digest, Sha256};

use super::jws::{Unverified, UnverifiedHeader};

const ED25519: ObjectIdentifier = ed25519_dalek::pkcs8::ALGORITHM_OID;
const ELLIPTIC_CURVE: ObjectIdentifier = p256::elliptic_curve::ALGORITHM_OID;
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

/// What a new key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyAlgorithm {
    Ed25519,
    Es256,
}

/// A key of one file: a public one verifies, a private one signs too.
#[derive(Clone, Debug)]
pub struct TokenKey {
    algorithm: Algorithm,
    decoding: DecodingKey,
    /// Where the file holds the private key.
    encoding: Option<EncodingKey>,
    jwk: Jwk,
}

/// The keys of access tokens.
#[derive(Clone, Debug)]
pub struct KeySet {
    pub(super) signing: Option<(Header, EncodingKey)>,
    keys: Vec<TokenKey>,
    pub(super) refuses_secret: bool,
    pub(super) published: PublishedKeys,
}

/// The public halves as a JWK Set (RFC 7517 §5), and a name for that very set.
#[derive(Clone, Debug)]
pub struct PublishedKeys {
    pub json: String,
    pub digest: String,
}

impl KeySet {
    /// `signing` is a private key; without one the secret signs. With `refuses_secret` it verifies no access token.
    pub fn new(signing: Option<TokenKey>, verifying: Vec<TokenKey>, refuses_secret: bool) -> Self {
        let header = |key: &TokenKey| Header { kid: Some(key.kid().to_owned()), ..Header::new(key.algorithm) };
        let signer = signing.as_ref().and_then(|key| Some((header(key), key.encoding.clone()?)));
        let mut keys: Vec<TokenKey> = Vec::new();
        for key in signing.into_iter().chain(verifying) {
            if keys.iter().all(|known| known.kid() != key.kid()) {
                keys.push(key);
            }
        }
        let set = JwkSet { keys: keys.iter().map(|key| key.jwk.clone()).collect() };
        let json = serde_json::to_string(&set).expect("BUG: keys are strings");
        let digest = base16ct::lower::encode_string(&Sha256::digest(&json));
        Self { signing: signer, keys, refuses_secret, published: PublishedKeys { json, digest } }
    }

    /// The key that has the header's algorithm and id.
    pub(super) fn find(&self, header: &UnverifiedHeader) -> Option<&TokenKey> {
        self.keys.iter().find(|key| key.algorithm == header.alg && Some(key.kid()) == header.kid.as_deref())
    }
}

/// Why the text of a file is no key for access tokens. The sentence goes on where the file is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("is empty")]
    Empty,
    #[error("is not a key in PEM; `auth key generate --out FILE` makes one")]
    NotPem,
    #[error("holds several keys; give each a file of its own")]
    Several,
    #[error("is encrypted, and nobody is there to type its pass phrase; `openssl pkcs8 -in FILE` decrypts it")]
    Encrypted,
    #[error("is not in PKCS#8; `openssl pkcs8 -topk8 -nocrypt -in FILE` converts it")]
    NotPkcs8,
    #[error("holds a certificate; `openssl x509 -noout -pubkey -in FILE` takes the public key out")]
    Certificate,
    #[error("holds an RSA key; the service takes Ed25519 and P-256, and `auth key generate --out FILE` makes one")]
    Rsa,
    #[error("holds a key that is neither Ed25519 nor P-256; `auth key generate --out FILE` makes one")]
    OtherKind,
    #[error("is damaged")]
    Damaged,
}

impl TokenKey {
    /// Reads a private key (PKCS#8) or a public one (SPKI) from the text of a PEM file.
    pub fn parse(pem: &str) -> Result<Self, KeyError> {
        match pem.matches("-----BEGIN ").count() {
            _ if pem.trim().is_empty() => return Err(KeyError::Empty),
            0 => return Err(KeyError::NotPem),
            1 => {}
            _ => return Err(KeyError::Several),
        }
        let label = pem.split_once("-----BEGIN ").and_then(|(_, rest)| rest.split_once("-----"));
        match label.map_or("", |(label, _)| label) {
            "PRIVATE KEY" => private(&document(pem)?),
            "PUBLIC KEY" => public(&document(pem)?),
            "ENCRYPTED PRIVATE KEY" => Err(KeyError::Encrypted),
            _ if pem.contains("Proc-Type: 4,ENCRYPTED") => Err(KeyError::Encrypted),
            "RSA PRIVATE KEY" | "RSA PUBLIC KEY" => Err(KeyError::Rsa),
            "EC PRIVATE KEY" => Err(KeyError::NotPkcs8),
            "CERTIFICATE" => Err(KeyError::Certificate),
            _ => Err(KeyError::NotPem),
        }
    }

    /// The id of the key: its thumbprint.
    pub fn kid(&self) -> &str {
        self.jwk.common.key_id.as_deref().unwrap_or_default()
    }

    /// The algorithm as a token's header names it.
    pub fn algorithm(&self) -> &'static str {
        if self.algorithm == Algorithm::EdDSA { "EdDSA" } else { "ES256" }
    }

    pub fn is_private(&self) -> bool {
        self.encoding.is_some()
    }

    fn ed25519(key: &ed25519_dalek::VerifyingKey, encoding: Option<EncodingKey>) -> Result<Self, KeyError> {
        // Anybody could sign for a key of small order.
        if key.is_weak() {
            return Err(KeyError::Damaged);
        }
        Self::new(Algorithm::EdDSA, DecodingKey::from_ed_der(key.as_bytes()), encoding)
    }

    fn p256(key: &p256::PublicKey, encoding: Option<EncodingKey>) -> Result<Self, KeyError> {
        let point = key.to_encoded_point(false);
        Self::new(Algorithm::ES256, DecodingKey::from_ec_der(point.as_bytes()), encoding)
    }

    fn new(algorithm: Algorithm, decoding: DecodingKey, encoding: Option<EncodingKey>) -> Result<Self, KeyError> {
        let jwk = Jwk::from_decoding_key(&decoding, Some(algorithm)).and_then(|mut jwk| {
            jwk.common.public_key_use = Some(PublicKeyUse::Signature);
            jwk.common.key_id = Some(jwk.thumbprint(ThumbprintHash::SHA256)?);
            Ok(jwk)
        });
        let jwk = jwk.map_err(|_| KeyError::Damaged)?;
        Ok(Self { algorithm, decoding, encoding, jwk })
    }

    pub(super) fn verifies(&self, token: &Unverified) -> bool {
        token.is_signed_by(&self.decoding, self.algorithm)
    }
}

fn document(pem: &str) -> Result<SecretDocument, KeyError> {
    SecretDocument::from_pem(pem).map(|(_, document)| document).map_err(|_| KeyError::Damaged)
}

fn private(document: &SecretDocument) -> Result<TokenKey, KeyError> {
    let der = document.as_bytes();
    let info = PrivateKeyInfo::from_der(der).map_err(|_| KeyError::Damaged)?;
    match info.algorithm.oid {
        ED25519 => {
            let key = ed25519_dalek::SigningKey::try_from(info).map_err(|_| KeyError::Damaged)?;
            TokenKey::ed25519(&key.verifying_key(), Some(EncodingKey::from_ed_der(der)))
        }
        ELLIPTIC_CURVE => {
            let key = p256::SecretKey::try_from(info).map_err(of_curve)?;
            TokenKey::p256(&key.public_key(), Some(EncodingKey::from_ec_der(der)))
        }
        RSA => Err(KeyError::Rsa),
        _ => Err(KeyError::OtherKind),
    }
}

fn public(document: &SecretDocument) -> Result<TokenKey, KeyError> {
    let info = SubjectPublicKeyInfoRef::from_der(document.as_bytes()).map_err(|_| KeyError::Damaged)?;
    match info.algorithm.oid {
        ED25519 => {
            let key = ed25519_dalek::VerifyingKey::try_from(info).map_err(|_| KeyError::Damaged)?;
            TokenKey::ed25519(&key, None)
        }
        ELLIPTIC_CURVE => {
            let key = p256::PublicKey::try_from(info).map_err(|error| of_curve(error.into()))?;
            TokenKey::p256(&key, None)
        }
        RSA => Err(KeyError::Rsa),
        _ => Err(KeyError::OtherKind),
    }
}

/// Another curve has another parameter.
fn of_curve(error: p256::pkcs8::Error) -> KeyError {
    match error {
        p256::pkcs8::Error::ParametersMalformed
        | p256::pkcs8::Error::PublicKey(spki::Error::OidUnknown { .. } | spki::Error::AlgorithmParametersMissing) => {
            KeyError::OtherKind
        }
        _ => KeyError::Damaged,
    }
}

/// A new private key in PEM, of 32 random bytes.
pub fn generate(algorithm: KeyAlgorithm) -> SecretString {
    let pem = match algorithm {
        // Without the public half, which some programs do not expect in PKCS#8.
        KeyAlgorithm::Ed25519 => {
            KeypairBytes { secret_key: rand::random(), public_key: None }.to_pkcs8_pem(LineEnding::LF)
        }
        KeyAlgorithm::Es256 => {
            // One in four billion is no key of the curve.
            let mut keys = iter::repeat_with(|| p256::SecretKey::from_bytes(&rand::random::<[u8; 32]>().into()));
            let key = keys.find_map(Result::ok).expect("BUG: the iterator has no end");
            key.to_pkcs8_pem(LineEnding::LF)
        }
    };
    pem.expect("BUG: 32 bytes can be written as PEM").as_str().into()
}

#[cfg(test)]
mod tests {
    use p256::pkcs8::der::{Encode, asn1::Null};
    use p256::pkcs8::{AlgorithmIdentifierRef, Document};
    use secrecy::ExposeSecret;

    use super::*;

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
            let keys =
                [generate(algorithm), generate(algorithm)].map(|pem| TokenKey::parse(pem.expose_secret()).unwrap());
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
            (
                label("EC PRIVATE KEY").replace("KEY-----\n", "KEY-----\nProc-Type: 4,ENCRYPTED\n\n"),
                KeyError::Encrypted,
            ),
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
            let subject_public_key = p256::pkcs8::der::asn1::BitStringRef::from_bytes(key).unwrap();
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
}
