//! Access and refresh tokens: JWTs signed with HMAC, as the cart, catalog and order services verify them.
//!
//! What RFC 8725 (JWT best practices) asks, point by point:
//! - §3.1, §3.2 algorithm: pinned to the configured one; the header's `alg` is compared, never obeyed, and `none` is no
//!   algorithm the library knows. §3.3: every signature is verified before a claim is read.
//! - §3.5 keys: at least 32 bytes outside development, known defaults refused (`config`).
//! - §3.7 UTF-8 only, §3.10: `kid`, `jku` and `x5u` are not looked at; a `crit` header is refused (RFC 7515 §4.1.11).
//! - §3.8, §3.9 issuer, audience: the consumers share one secret and call PyJWT without an audience, so tokens carry no
//!   `aud`, and one that has it is refused here as it is there.
//! - §3.11, §3.12 explicit typing: the `type` claim keeps access and refresh tokens apart; each is accepted only where
//!   its kind is expected. `exp` is required and must be an integer. A claim that stands twice makes the token invalid.
//!
//! What RFC 9700 (OAuth security) asks of refresh tokens, §4.14.2: they rotate, reuse is detected, detection ends the
//! session (`service::refresh`); the store holds their SHA-256 only (§2.2.2, a leaked table opens no session).
//!
//! `iat` is left out on purpose: PyJWT refuses a token from a host whose clock is a second ahead.

use std::fmt;

use chrono::{DateTime, TimeDelta, Utc};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use secrecy::{ExposeSecret, SecretString};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::ids::SessionId;
use super::role::Role;

/// The HMAC algorithms the consumers can be configured for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenAlgorithm {
    Hs256,
    Hs384,
    Hs512,
}

/// How long tokens live.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    pub access: TimeDelta,
    pub refresh: TimeDelta,
}

/// A refresh token in plain: leaves in an answer, is never stored, and does not show in logs.
#[derive(Clone, Debug)]
pub struct RefreshToken(SecretString);

impl RefreshToken {
    /// What the store knows the token by.
    #[must_use]
    pub fn hash(&self) -> TokenHash {
        TokenHash::of(self.0.expose_secret())
    }

    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

/// An access token in plain; valid by its signature alone until it expires.
#[derive(Clone, Debug)]
pub struct AccessToken(SecretString);

impl AccessToken {
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

/// An access token, and the refresh token to get the next one with.
#[derive(Clone, Debug)]
pub struct TokenPair {
    pub access: AccessToken,
    pub refresh: RefreshToken,
}

/// SHA-256 of a refresh token in 64 hex digits: the only form that is stored.
#[derive(Clone, Debug, PartialEq, Eq, Hash, sqlx::Type)]
#[sqlx(transparent)]
pub struct TokenHash(String);

impl TokenHash {
    fn of(token: &str) -> Self {
        Self(base16ct::lower::encode_string(&Sha256::digest(token)))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// `jti`: which refresh token this is; 32 random hex digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, sqlx::Type)]
#[sqlx(transparent)]
pub struct Jti(String);

impl Jti {
    #[must_use]
    pub fn generate() -> Self {
        Self(format!("{:032x}", rand::random::<u128>()))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a verified access token says. The database says whether its user and session still exist.
#[derive(Clone, Debug)]
pub struct AccessClaims {
    pub subject: String,
    pub session_id: SessionId,
}

/// What a verified refresh token says. The database says whether it is still valid.
#[derive(Clone, Debug)]
pub struct RefreshClaims {
    pub subject: String,
    pub jti: Jti,
    /// Absent from the Python service's tokens.
    pub session_id: Option<SessionId>,
    pub hash: TokenHash,
}

/// Why a token is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not decodable, wrongly signed, or without a claim it must have.
    #[error("not a valid token")]
    Invalid,
    /// Genuine, but past its `exp`.
    #[error("token expired")]
    Expired,
    /// Genuine, but of the other kind.
    #[error("token of the wrong type")]
    WrongType,
}

#[derive(Serialize)]
struct AccessPayload<'a> {
    sub: &'a str,
    role: &'a str,
    exp: i64,
    r#type: &'static str,
    sid: Uuid,
}

#[derive(Serialize)]
struct RefreshPayload<'a> {
    sub: &'a str,
    jti: &'a str,
    exp: i64,
    r#type: &'static str,
    sid: Uuid,
}

/// The claims of either kind as they arrive; serde refuses a claim that stands twice.
#[derive(Deserialize)]
struct Payload {
    sub: Option<String>,
    jti: Option<String>,
    exp: i64,
    r#type: Option<serde_json::Value>,
    sid: Option<Uuid>,
    nbf: Option<i64>,
    iat: Option<i64>,
    aud: Option<IgnoredAny>,
}

const ACCESS: &str = "access";
const REFRESH: &str = "refresh";

struct Key {
    encoding: EncodingKey,
    decoding: DecodingKey,
}

impl Key {
    fn new(secret: &SecretString) -> Self {
        let secret = secret.expose_secret().as_bytes();
        Self { encoding: EncodingKey::from_secret(secret), decoding: DecodingKey::from_secret(secret) }
    }
}

/// Signs and verifies tokens. The first key signs; the others only verify, so that a secret can be changed without
/// signing anybody out.
pub struct TokenKeys {
    keys: Vec<Key>,
    header: Header,
    validation: Validation,
    lifetimes: Lifetimes,
}

impl fmt::Debug for TokenKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenKeys").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

impl TokenKeys {
    #[must_use]
    pub fn new(
        algorithm: TokenAlgorithm,
        secret: &SecretString,
        previous: &[SecretString],
        lifetimes: Lifetimes,
    ) -> Self {
        let algorithm = match algorithm {
            TokenAlgorithm::Hs256 => Algorithm::HS256,
            TokenAlgorithm::Hs384 => Algorithm::HS384,
            TokenAlgorithm::Hs512 => Algorithm::HS512,
        };
        let mut validation = Validation::new(algorithm);
        // Times are compared here, with the injected clock; the library would read the system's and allow a minute.
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        Self {
            keys: std::iter::once(secret).chain(previous).map(Key::new).collect(),
            header: Header::new(algorithm),
            validation,
            lifetimes,
        }
    }

    /// When a refresh token issued at `now` expires; whole seconds, as `exp` has them.
    #[must_use]
    pub fn refresh_expiry(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        let expiry = now + self.lifetimes.refresh;
        DateTime::from_timestamp(expiry.timestamp(), 0).unwrap_or(expiry)
    }

    #[must_use]
    pub fn sign_access(&self, subject: &str, role: &Role, session_id: SessionId, now: DateTime<Utc>) -> AccessToken {
        let exp = (now + self.lifetimes.access).timestamp();
        let payload = AccessPayload { sub: subject, role: role.as_str(), exp, r#type: ACCESS, sid: session_id.0 };
        AccessToken(self.sign(&payload, &self.keys[0]))
    }

    #[must_use]
    pub fn sign_refresh(
        &self,
        subject: &str,
        jti: &Jti,
        session_id: SessionId,
        expires_at: DateTime<Utc>,
    ) -> RefreshToken {
        self.sign_refresh_with(&self.keys[0], subject, jti, session_id, expires_at)
    }

    /// Signs a token again that was issued before: signing is deterministic, so the very same bytes come out, which
    /// `expected` proves. It may have been signed before the secret was changed, so every key is tried.
    #[must_use]
    pub fn resign_refresh(
        &self,
        subject: &str,
        jti: &Jti,
        session_id: SessionId,
        expires_at: DateTime<Utc>,
        expected: &TokenHash,
    ) -> Option<RefreshToken> {
        self.keys
            .iter()
            .map(|key| self.sign_refresh_with(key, subject, jti, session_id, expires_at))
            .find(|token| token.hash() == *expected)
    }

    fn sign_refresh_with(
        &self,
        key: &Key,
        subject: &str,
        jti: &Jti,
        session_id: SessionId,
        expires_at: DateTime<Utc>,
    ) -> RefreshToken {
        let exp = expires_at.timestamp();
        let payload = RefreshPayload { sub: subject, jti: jti.as_str(), exp, r#type: REFRESH, sid: session_id.0 };
        RefreshToken(self.sign(&payload, key))
    }

    fn sign(&self, payload: &impl Serialize, key: &Key) -> SecretString {
        jsonwebtoken::encode(&self.header, payload, &key.encoding)
            .expect("BUG: HMAC signing of plain strings and numbers cannot fail")
            .into()
    }

    pub fn verify_access(&self, token: &str, now: DateTime<Utc>) -> Result<AccessClaims, TokenError> {
        let payload = self.verify(token, ACCESS, now)?;
        let subject = payload.sub.ok_or(TokenError::Invalid)?;
        // The Python service's have none; it had no route that took one. Nothing could end one.
        let session_id = payload.sid.map(SessionId).ok_or(TokenError::Invalid)?;
        Ok(AccessClaims { subject, session_id })
    }

    pub fn verify_refresh(&self, token: &str, now: DateTime<Utc>) -> Result<RefreshClaims, TokenError> {
        let payload = self.verify(token, REFRESH, now)?;
        let subject = payload.sub.filter(|text| !text.is_empty()).ok_or(TokenError::Invalid)?;
        let jti = payload.jti.filter(|text| !text.is_empty()).ok_or(TokenError::Invalid)?;
        Ok(RefreshClaims { subject, jti: Jti(jti), session_id: payload.sid.map(SessionId), hash: TokenHash::of(token) })
    }

    /// Without leeway for clocks that differ (RFC 8725).
    fn verify(&self, token: &str, expected_type: &str, now: DateTime<Utc>) -> Result<Payload, TokenError> {
        let payload = self.decode(token)?;
        let now = now.timestamp();
        if payload.exp <= now {
            return Err(TokenError::Expired);
        }
        let from_the_future = |time: Option<i64>| time.is_some_and(|time| time > now);
        if from_the_future(payload.nbf) || from_the_future(payload.iat) || payload.aud.is_some() {
            return Err(TokenError::Invalid);
        }
        // A NUL can be signed but not stored, so no token of ours has one.
        let texts = [&payload.sub, &payload.jti];
        if texts.into_iter().flatten().any(|text| text.contains('\0')) {
            return Err(TokenError::Invalid);
        }
        match &payload.r#type {
            Some(serde_json::Value::String(kind)) if kind == expected_type => Ok(payload),
            _ => Err(TokenError::WrongType),
        }
    }

    fn decode(&self, token: &str) -> Result<Payload, TokenError> {
        for key in &self.keys {
            match jsonwebtoken::decode::<Payload>(token, &key.decoding, &self.validation) {
                Ok(data) if data.header.crit.is_none() => return Ok(data.claims),
                Err(error) if matches!(error.kind(), ErrorKind::InvalidSignature) => {}
                _ => return Err(TokenError::Invalid),
            }
        }
        Err(TokenError::Invalid)
    }
}
