//! Tokens as somebody might make them up (any header, any payload, signed or not), and that they come to nothing.

use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use serde_json::json;
use sqlx::PgPool;

use crate::support::{Answer, Pair, SECRET, TestApp, pair, payload};

/// The header of every token of the service.
pub(crate) const HEADER: &str = r#"{"typ":"JWT","alg":"HS256"}"#;

/// Base64 for URLs, without padding (RFC 4648 §5).
pub(crate) fn base64url(bytes: impl AsRef<[u8]>) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for group in bytes.as_ref().chunks(3) {
        let bits = group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..=group.len() {
            text.push(char::from(ALPHABET[(bits >> (18 - 6 * place) & 63) as usize]));
        }
    }
    text
}

/// A token with any header and payload, and a signature that fits both.
pub(crate) fn seal(header: &str, payload: &str) -> String {
    seal_with(header, payload, Algorithm::HS256, SECRET)
}

pub(crate) fn seal_with(
    header: &str,
    payload: impl AsRef<[u8]>,
    algorithm: Algorithm,
    secret: impl AsRef<[u8]>,
) -> String {
    seal_by(header, payload, algorithm, &EncodingKey::from_secret(secret.as_ref()))
}

pub(crate) fn seal_by(header: &str, payload: impl AsRef<[u8]>, algorithm: Algorithm, key: &EncodingKey) -> String {
    let message = format!("{}.{}", base64url(header), base64url(payload));
    let signature = crypto::sign(message.as_bytes(), key, algorithm).unwrap();
    format!("{message}.{signature}")
}

/// Header, payload and signature of a token, as they stand in it.
pub(crate) fn parts(token: &str) -> [&str; 3] {
    token.split('.').collect::<Vec<_>>().try_into().unwrap()
}

/// A token with another header and its genuine signature.
pub(crate) fn with_header(token: &str, header: &str) -> String {
    let [_, payload, signature] = parts(token);
    format!("{}.{payload}.{signature}", base64url(header))
}

/// The claims of a token with one more at the end, which may be there already.
pub(crate) fn and_claim(token: &str, name: &str, json: &str) -> String {
    let payload = payload(token);
    format!(r#"{},"{name}":{json}}}"#, payload.strip_suffix('}').unwrap())
}

/// The claims of a token without one of them.
pub(crate) fn without_claim(token: &str, name: &str) -> String {
    let mut claims = crate::support::claims(token);
    claims.as_object_mut().unwrap().remove(name);
    claims.to_string()
}

/// The claims of a token with one of them replaced.
pub(crate) fn with_claim(token: &str, name: &str, json: &str) -> String {
    let rest = without_claim(token, name);
    format!(r#"{},"{name}":{json}}}"#, rest.strip_suffix('}').unwrap())
}

#[track_caller]
pub(crate) fn assert_refused(answer: &Answer, sentences: &[&str], token: &str) {
    let token: String = token.chars().take(200).collect();
    assert_eq!(answer.status, 401, "{token}: {}", answer.body);
    assert!(sentences.iter().any(|sentence| answer.json() == json!({"detail": sentence})), "{token}: {}", answer.body);
    assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
}

/// A customer who is signed in, and everything that must stay as it is.
pub(crate) struct Scene {
    pub(crate) app: TestApp,
    pub(crate) tokens: Pair,
    pub(crate) before: serde_json::Value,
}

impl Scene {
    pub(crate) async fn new(pool: PgPool) -> Self {
        Self::with(pool, &[]).await
    }

    pub(crate) async fn with(pool: PgPool, flags: &[&str]) -> Self {
        let app = TestApp::with(pool, flags);
        let tokens = app.customer("cust@example.com").await;
        let before = app.rows().await;
        Self { app, tokens, before }
    }

    pub(crate) async fn refused_as_refresh_token(&self, token: &str, sentences: &[&str]) {
        assert_refused(&self.app.refresh(token).await, sentences, token);
        assert_refused(&self.app.logout(token).await, sentences, token);
    }

    pub(crate) async fn refused_as_access_token(&self, token: &str) {
        // What cannot stand in the header at all cannot be an attack.
        if axum::http::HeaderValue::from_str(token).is_ok() {
            let answer = self.app.get_as("/users/me", token).await;
            assert_refused(&answer, &["Invalid access token", "Not authenticated"], token);
            // Which is decided without the session's row.
            assert_eq!(self.app.get_as("/auth/verify", token).await.status, 401, "{token}");
        }
    }

    /// Nothing has changed, and the genuine tokens are still good.
    pub(crate) async fn unharmed(&self) {
        assert_eq!(self.app.rows().await, self.before);
        assert_eq!(self.app.get_as("/users/me", &self.tokens.access).await.status, 200);
        pair(&self.app.refresh(&self.tokens.refresh).await);
    }
}

/// Tries what `forge` makes of the genuine refresh token and of the genuine access token.
pub(crate) async fn refused(pool: PgPool, forge: impl Fn(&str) -> Vec<String>) {
    refused_as(pool, &["Invalid refresh token"], forge).await;
}

pub(crate) async fn refused_as(pool: PgPool, sentences: &[&str], forge: impl Fn(&str) -> Vec<String>) {
    let scene = Scene::new(pool).await;
    let forged = forge(&scene.tokens.refresh);
    assert!(!forged.is_empty());
    for token in forged {
        assert_ne!(token, scene.tokens.refresh);
        scene.refused_as_refresh_token(&token, sentences).await;
    }
    for token in forge(&scene.tokens.access) {
        scene.refused_as_access_token(&token).await;
    }
    scene.unharmed().await;
}
