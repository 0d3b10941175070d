//! The token in a mail. Presenting it shows that the mail was read.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

/// A token in plain: leaves in a mail, comes back in a request, is never stored, and does not show in logs.
#[derive(Clone, Debug)]
pub struct MailToken(SecretString);

impl MailToken {
    /// 32 random bytes in base64url: 43 characters that need no escaping in a link.
    pub fn generate() -> Self {
        Self(BASE64_URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>()).into())
    }

    /// A token that somebody presents: any text may be tried.
    pub fn presented(text: String) -> Self {
        Self(text.into())
    }

    /// What the store knows the token by. No salt and no slow hash: it has 256 random bits.
    pub fn hash(&self) -> MailTokenHash {
        MailTokenHash(Sha256::digest(self.0.expose_secret()).to_vec())
    }

    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

/// SHA-256 of a token: the only form that is stored.
#[derive(Clone, PartialEq, Eq, sqlx::Type)]
#[sqlx(transparent)]
pub struct MailTokenHash(pub Vec<u8>);

impl fmt::Debug for MailTokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MailTokenHash(redacted)")
    }
}
