//! The form of a signed token: header, payload and signature, each in base64url (RFC 7515 §7.1).
//!
//! `jsonwebtoken` signs and verifies. Its `decode` reads the header and the claims twice, 2.2 µs for a token in place of
//! 1.0, and `/auth/verify` is asked before every request of a shop; so they are read here.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, crypto};
use secrecy::SecretString;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

/// A token, and what its header says of it: nothing is verified yet.
pub(super) struct Unverified<'a> {
    pub(super) header: UnverifiedHeader,
    /// What is signed: header and payload.
    message: &'a str,
    payload: &'a str,
    signature: &'a str,
}

/// What decides about a key. serde refuses one of them that stands twice.
#[derive(Deserialize)]
pub(super) struct UnverifiedHeader {
    pub(super) alg: Algorithm,
    pub(super) kid: Option<String>,
    crit: Option<IgnoredAny>,
}

impl<'a> Unverified<'a> {
    /// The parts of a token; `None` of what is none, or has a `crit` header (§4.1.11).
    pub(super) fn parse(token: &'a str) -> Option<Self> {
        let (message, signature) = token.rsplit_once('.')?;
        let (header, payload) = message.split_once('.')?;
        let header: UnverifiedHeader = from_json(header)?;
        header.crit.is_none().then_some(Self { header, message, payload, signature })
    }

    /// Whether the header names the algorithm of this key, and the signature is the key's.
    pub(super) fn is_signed_by(&self, key: &DecodingKey, algorithm: Algorithm) -> bool {
        self.header.alg == algorithm
            && crypto::verify(self.signature, self.message.as_bytes(), key, algorithm).unwrap_or(false)
    }

    /// The claims. Only for tokens whose signature was verified.
    pub(super) fn claims<T: DeserializeOwned>(&self) -> Option<T> {
        from_json(self.payload)
    }
}

fn from_json<T: DeserializeOwned>(part: &str) -> Option<T> {
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

/// A signed token. The key must be one of the header's algorithm.
pub(super) fn sign(header: &Header, payload: &impl Serialize, key: &EncodingKey) -> SecretString {
    jsonwebtoken::encode(header, payload, key)
        .expect("BUG: the key was read as one of this algorithm, and the payload is plain strings and numbers")
        .into()
}
