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
