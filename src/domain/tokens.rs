//! Access and refresh tokens: JWTs, as the cart, catalog and order services verify them. Refresh tokens are signed with
//! the secret (HMAC), access tokens with the secret or with a private key ([`super::keys`]).
//!
//! What RFC 8725 (JWT best practices) asks, point by point:
//! - §3.1, §3.2 algorithm: every key is good for one, and there is no list of them. The header's `alg` and `kid` together
//!   choose a key of ours; its `alg` is compared, never obeyed, and `none` is no algorithm the library knows. So a public
//!   key is never a secret. §3.3: every signature is verified before a claim is read.
//! - §3.5 keys: at least 32 bytes outside development, known defaults refused (`config`).
//! - §3.7 UTF-8 only, §3.10: `jwk`, `jku`, `x5c` and `x5u` are not looked at; a `crit` header is refused (RFC 7515 §4.1.11).
//! - §3.8, §3.9 issuer, audience: the consumers share one secret and call PyJWT without an audience, so tokens carry no
//!   `aud`, and one that has it is refused here as it is there.
//! - §3.11, §3.12 explicit typing: the `type` claim keeps access and refresh tokens apart; each is accepted only where
//!   its kind is expected. `exp` is required and must be an integer. A claim that stands twice makes the token invalid.
//!
//! What RFC 9700 (OAuth security) asks of refresh tokens, §4.14.2: they rotate, reuse is detected, detection ends the
//! session (`service::refresh`); the store holds their SHA-256 only (§2.2.2, a leaked table opens no session).
//!
//! `iat` is left out on purpose: PyJWT refuses a token from a host whose clock is a second ahead.

use std::{fmt, iter};

use chrono::{DateTime, SubsecRound as _, TimeDelta, Utc};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header};
use secrecy::{ExposeSecret, SecretString};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::ids::SessionId;
use super::jws::{Unverified, sign};
use super::keys::{KeySet, PublishedKeys};
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
    pub fn hash(&self) -> TokenHash {
        TokenHash::of(self.0.expose_secret())
    }

    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

/// An access token in plain; valid by its signature alone until it expires.
#[derive(Clone, Debug)]
pub struct AccessToken(SecretString);

impl AccessToken {
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

/// A refresh token as the store knows it: enough to sign the very same token again.
#[derive(Clone, Debug)]
pub struct StoredToken {
    pub jti: Jti,
    pub hash: TokenHash,
    /// Whole seconds, as `exp` has them.
    pub expires_at: DateTime<Utc>,
}

/// SHA-256 of a refresh token in 64 hex digits: the only form that is stored.
#[derive(Clone, Debug, PartialEq, Eq, Hash, sqlx::Type)]
#[sqlx(transparent)]
pub struct TokenHash(String);

impl TokenHash {
    fn of(token: &str) -> Self {
        Self(base16ct::lower::encode_string(&Sha256::digest(token)))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// `jti`: which refresh token this is; 32 random hex digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, sqlx::Type)]
#[sqlx(transparent)]
pub struct Jti(String);

impl Jti {
    pub fn generate() -> Self {
        Self(format!("{:032x}", rand::random::<u128>()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a verified access token says. The database says whether its user and session still exist.
#[derive(Clone, Debug)]
pub struct AccessClaims {
    pub subject: String,
    /// At the time when it was issued.
    pub role: String,
    pub session_id: SessionId,
    /// Seconds since 1970.
    pub expires_at: i64,
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

/// What became of a token.
#[derive(Debug)]
pub struct Verified<'a, T> {
    /// The name of the key that verified it, see [`TokenSigner`].
    pub key: &'a str,
    pub claims: Result<T, TokenError>,
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
    role: Option<String>,
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

// Names of keys that have no `kid`.
const SECRET: &str = "secret";
const PREVIOUS: &str = "previous";
const UNKNOWN: &str = "unknown";

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

/// Signs and verifies tokens. The first secret signs; the others only verify, so that a secret can be changed without
/// signing anybody out.
///
/// A key is named by its `kid`, the secret `secret`, a former one `previous`, and what is none of these `unknown`.
pub struct TokenSigner {
    secrets: Vec<Key>,
    header: Header,
    /// For access tokens only.
    keys: KeySet,
    lifetimes: Lifetimes,
}

impl fmt::Debug for TokenSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenSigner").field("secrets", &self.secrets.len()).finish_non_exhaustive()
    }
}

impl TokenSigner {
    pub fn new(
        algorithm: TokenAlgorithm,
        secret: &SecretString,
        previous: &[SecretString],
        keys: KeySet,
        lifetimes: Lifetimes,
    ) -> Self {
        let algorithm = match algorithm {
            TokenAlgorithm::Hs256 => Algorithm::HS256,
            TokenAlgorithm::Hs384 => Algorithm::HS384,
            TokenAlgorithm::Hs512 => Algorithm::HS512,
        };
        Self {
            secrets: iter::once(secret).chain(previous).map(Key::new).collect(),
            header: Header::new(algorithm),
            keys,
            lifetimes,
        }
    }

    pub fn published(&self) -> &PublishedKeys {
        &self.keys.published
    }

    pub fn sign_access(&self, subject: &str, role: &Role, session_id: SessionId, now: DateTime<Utc>) -> AccessToken {
        let exp = (now + self.lifetimes.access).timestamp();
        let payload = AccessPayload { sub: subject, role: role.as_str(), exp, r#type: ACCESS, sid: session_id.0 };
        AccessToken(match &self.keys.signing {
            Some((header, key)) => sign(header, &payload, key),
            None => sign(&self.header, &payload, &self.secrets[0].encoding),
        })
    }

    /// A new refresh token, in plain and as it is to be stored.
    pub fn issue_refresh(
        &self,
        subject: &str,
        session_id: SessionId,
        now: DateTime<Utc>,
    ) -> (RefreshToken, StoredToken) {
        let (jti, expires_at) = (Jti::generate(), (now + self.lifetimes.refresh).trunc_subsecs(0));
        let token = self.sign_refresh(&self.secrets[0], subject, session_id, &jti, expires_at);
        let stored = StoredToken { jti, hash: token.hash(), expires_at };
        (token, stored)
    }

    /// Signs a token again that was issued before: signing is deterministic, so the very same bytes come out, which
    /// the hash proves. It may have been signed before the secret was changed, so every key is tried.
    pub fn resign_refresh(&self, subject: &str, session_id: SessionId, stored: &StoredToken) -> Option<RefreshToken> {
        let sign = |key| self.sign_refresh(key, subject, session_id, &stored.jti, stored.expires_at);
        self.secrets.iter().map(sign).find(|token| token.hash() == stored.hash)
    }

    fn sign_refresh(
        &self,
        key: &Key,
        subject: &str,
        session_id: SessionId,
        jti: &Jti,
        expires_at: DateTime<Utc>,
    ) -> RefreshToken {
        let exp = expires_at.timestamp();
        let payload = RefreshPayload { sub: subject, jti: jti.as_str(), exp, r#type: REFRESH, sid: session_id.0 };
        RefreshToken(sign(&self.header, &payload, &key.encoding))
    }

    pub fn verify_access(&self, token: &str, now: DateTime<Utc>) -> Verified<'_, AccessClaims> {
        let (key, payload) = Unverified::parse(token).map_or((UNKNOWN, None), |token| self.decode_access(&token));
        let claims = payload.ok_or(TokenError::Invalid).and_then(|payload| {
            let payload = payload.check(ACCESS, now)?;
            let subject = payload.sub.ok_or(TokenError::Invalid)?;
            // The Python service's have none; it had no route that took one. Nothing could end one.
            let session_id = payload.sid.map(SessionId).ok_or(TokenError::Invalid)?;
            let role = payload.role.unwrap_or_default();
            Ok(AccessClaims { subject, role, session_id, expires_at: payload.exp })
        });
        Verified { key, claims }
    }

    pub fn verify_refresh(&self, token: &str, now: DateTime<Utc>) -> Verified<'_, RefreshClaims> {
        let (key, payload) = Unverified::parse(token).map_or((UNKNOWN, None), |token| self.decode_with_secret(&token));
        let claims = payload.ok_or(TokenError::Invalid).and_then(|payload| {
            let payload = payload.check(REFRESH, now)?;
            let subject = payload.sub.filter(|text| !text.is_empty()).ok_or(TokenError::Invalid)?;
            let jti = payload.jti.filter(|text| !text.is_empty()).ok_or(TokenError::Invalid)?;
            let session_id = payload.sid.map(SessionId);
            Ok(RefreshClaims { subject, jti: Jti(jti), session_id, hash: TokenHash::of(token) })
        });
        Verified { key, claims }
    }

    /// By the one key that has the header's `alg` and `kid`. All that names none of them is left to the secret, which takes
    /// no other algorithm than its own.
    fn decode_access(&self, token: &Unverified) -> (&str, Option<Payload>) {
        match self.keys.find(&token.header) {
            Some(key) => (key.kid(), key.verifies(token).then(|| token.claims()).flatten()),
            None if self.keys.refuses_secret => (UNKNOWN, None),
            None => self.decode_with_secret(token),
        }
    }

    fn decode_with_secret(&self, token: &Unverified) -> (&'static str, Option<Payload>) {
        let mut keys = self.secrets.iter().zip(iter::once(SECRET).chain(iter::repeat(PREVIOUS)));
        match keys.find(|(key, _)| token.is_signed_by(&key.decoding, self.header.alg)) {
            Some((_, name)) => (name, token.claims()),
            None => (UNKNOWN, None),
        }
    }
}

impl TokenError {
    /// Its name in the metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Expired => "expired",
            Self::WrongType => "wrong_type",
        }
    }
}

impl Payload {
    /// Without leeway for clocks that differ (RFC 8725).
    fn check(self, expected_type: &str, now: DateTime<Utc>) -> Result<Self, TokenError> {
        let now = now.timestamp();
        if self.exp <= now {
            return Err(TokenError::Expired);
        }
        let from_the_future = |time: Option<i64>| time.is_some_and(|time| time > now);
        if from_the_future(self.nbf) || from_the_future(self.iat) || self.aud.is_some() {
            return Err(TokenError::Invalid);
        }
        // A NUL can be signed but not stored, so no token of ours has one.
        let texts = [&self.sub, &self.jti];
        if texts.into_iter().flatten().any(|text| text.contains('\0')) {
            return Err(TokenError::Invalid);
        }
        match &self.r#type {
            Some(serde_json::Value::String(kind)) if kind == expected_type => Ok(self),
            _ => Err(TokenError::WrongType),
        }
    }
}
