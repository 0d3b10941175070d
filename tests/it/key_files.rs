//! Keys in files of their own, as `auth key generate` writes them.

use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicU32, Ordering};

use auth::domain::keys::{self, KeyAlgorithm, TokenKey};
use jsonwebtoken::{Algorithm, EncodingKey};
use p256::pkcs8::der::Decode;
use p256::pkcs8::{Document, LineEnding, PrivateKeyInfo, SecretDocument};
use secrecy::ExposeSecret;

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A private key in a file, deleted with the value.
pub(crate) struct PrivateKey {
    pub(crate) path: String,
    pub(crate) pem: String,
    pub(crate) kid: String,
    pub(crate) algorithm: Algorithm,
}

/// Writes a file that only its owner may read.
pub(crate) fn write(text: &str) -> String {
    let name = format!("auth-key-{}-{}.pem", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path.to_str().unwrap().to_owned()
}

impl PrivateKey {
    pub(crate) fn ed25519() -> Self {
        Self::new(KeyAlgorithm::Ed25519, Algorithm::EdDSA)
    }

    pub(crate) fn es256() -> Self {
        Self::new(KeyAlgorithm::Es256, Algorithm::ES256)
    }

    fn new(made: KeyAlgorithm, algorithm: Algorithm) -> Self {
        let pem = keys::generate(made).expose_secret().to_owned();
        let kid = TokenKey::parse(&pem).unwrap().kid().to_owned();
        Self { path: write(&pem), pem, kid, algorithm }
    }

    /// `--jwt-signing-key-file=...`
    pub(crate) fn signs(&self) -> String {
        format!("--jwt-signing-key-file={}", self.path)
    }

    /// `--jwt-verify-key-files=...`
    pub(crate) fn verifies(&self) -> String {
        format!("--jwt-verify-key-files={}", self.path)
    }

    fn der(&self) -> SecretDocument {
        SecretDocument::from_pem(&self.pem).unwrap().1
    }

    pub(crate) fn encoding(&self) -> EncodingKey {
        match self.algorithm {
            Algorithm::EdDSA => EncodingKey::from_ed_der(self.der().as_bytes()),
            _ => EncodingKey::from_ec_der(self.der().as_bytes()),
        }
    }

    /// The header of the tokens that it signs.
    pub(crate) fn header(&self) -> String {
        format!(r#"{{"typ":"JWT","alg":"{:?}","kid":"{}"}}"#, self.algorithm, self.kid)
    }

    /// The public half as DER (SPKI), and as bytes: 32 of Ed25519, the uncompressed point of P-256.
    pub(crate) fn public(&self) -> (Document, Vec<u8>) {
        use p256::elliptic_curve::sec1::ToEncodedPoint;
        use p256::pkcs8::EncodePublicKey;
        let der = self.der();
        let info = PrivateKeyInfo::from_der(der.as_bytes()).unwrap();
        if self.algorithm == Algorithm::EdDSA {
            let key = ed25519_dalek::SigningKey::try_from(info).unwrap().verifying_key();
            (key.to_public_key_der().unwrap(), key.as_bytes().to_vec())
        } else {
            let key = p256::SecretKey::try_from(info).unwrap().public_key();
            (key.to_public_key_der().unwrap(), key.to_encoded_point(false).as_bytes().to_vec())
        }
    }

    /// The public half in PEM.
    pub(crate) fn public_pem(&self) -> String {
        self.public().0.to_pem("PUBLIC KEY", LineEnding::LF).unwrap()
    }
}

impl Drop for PrivateKey {
    fn drop(&mut self) {
        std::fs::remove_file(&self.path).ok();
    }
}
