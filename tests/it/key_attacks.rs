//! Forged access tokens where private keys sign them, attack by attack, tried as in `token_attacks`. One key signs, and one
//! of the other algorithm is published too.

use jsonwebtoken::{Algorithm, EncodingKey};
use sqlx::PgPool;

use crate::forge::{Scene, base64url, parts, seal_by, seal_with, with_claim, with_header};
use crate::key_files::PrivateKey;
use crate::support::{SECRET, payload};

/// A customer who is signed in where `signing` signs and `other` verifies, too.
struct Keys {
    scene: Scene,
    signing: PrivateKey,
    other: PrivateKey,
}

impl Keys {
    async fn new(pool: PgPool, signing: PrivateKey, other: PrivateKey, flags: &[&str]) -> Self {
        let keys = [signing.signs(), other.verifies()];
        let flags = [&[keys[0].as_str(), &keys[1]], flags].concat();
        Self { scene: Scene::with(pool, &flags).await, signing, other }
    }

    /// Tries each as an access token, and as a refresh token.
    async fn refuse(&self, forged: Vec<String>) {
        assert!(!forged.is_empty());
        for token in forged {
            assert_ne!(token, self.scene.tokens.access);
            self.scene.refused_as_access_token(&token).await;
            self.scene.refused_as_refresh_token(&token, &["Invalid refresh token"]).await;
        }
        self.scene.unharmed().await;
    }

    /// The genuine access token's claims.
    fn claims(&self) -> String {
        payload(&self.scene.tokens.access)
    }
}

/// Tries an attack on Ed25519, and on P-256.
async fn refused(pool: PgPool, forge: impl Fn(&Keys) -> Vec<String>) {
    let keys = Keys::new(pool.clone(), PrivateKey::ed25519(), PrivateKey::es256(), &[]).await;
    keys.refuse(forge(&keys)).await;
    sqlx::query("TRUNCATE users CASCADE").execute(&pool).await.unwrap();
    let keys = Keys::new(pool, PrivateKey::es256(), PrivateKey::ed25519(), &[]).await;
    keys.refuse(forge(&keys)).await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn what_these_tests_seal_is_what_the_service_signs(pool: PgPool) {
    let keys = Keys::new(pool, PrivateKey::ed25519(), PrivateKey::es256(), &[]).await;
    let access = &keys.scene.tokens.access;
    let seal = |key: &PrivateKey| seal_by(&key.header(), keys.claims(), key.algorithm, &key.encoding());
    // Ed25519 is deterministic.
    assert_eq!(parts(&seal(&keys.signing))[1..], parts(access)[1..]);
    for token in [
        seal(&keys.signing),
        seal(&keys.other),
        seal_with(crate::forge::HEADER, keys.claims(), Algorithm::HS256, SECRET),
    ] {
        assert_eq!(keys.scene.app.get_as("/users/me", &token).await.status, 200, "{token}");
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn no_algorithm_under_a_known_key_id(pool: PgPool) {
    refused(pool, |keys| {
        let [_, payload, signature] = parts(&keys.scene.tokens.access);
        [r#""none""#, r#""None""#, r#""nOnE""#, r#""""#, "null"]
            .iter()
            .flat_map(|alg| {
                let header = base64url(format!(r#"{{"typ":"JWT","alg":{alg},"kid":"{}"}}"#, keys.signing.kid));
                [format!("{header}.{payload}."), format!("{header}.{payload}.{signature}")]
            })
            .collect()
    })
    .await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn the_public_key_as_a_shared_secret(pool: PgPool) {
    refused(pool, |keys| {
        let mut forged = Vec::new();
        for key in [&keys.signing, &keys.other] {
            let (der, raw) = key.public();
            let pem = key.public_pem();
            let set = keys.scene.app.app.tokens.published().json.clone();
            let jwks: serde_json::Value = serde_json::from_str(&set).unwrap();
            let jwk = jwks["keys"].as_array().unwrap().iter().find(|jwk| jwk["kid"] == key.kid.as_str()).unwrap();
            let x = jwk["x"].as_str().unwrap().to_owned();
            let secrets: [Vec<u8>; 10] = [
                pem.clone().into(),
                pem.trim_end().into(),
                pem.replace('\n', "\r\n").into(),
                der.as_bytes().into(),
                raw.clone(),
                raw[1..].into(),
                jwk.to_string().into(),
                set.into(),
                x.into(),
                key.kid.clone().into(),
            ];
            for secret in secrets {
                for (name, algorithm) in
                    [("HS256", Algorithm::HS256), ("HS384", Algorithm::HS384), ("HS512", Algorithm::HS512)]
                {
                    for header in [
                        format!(r#"{{"typ":"JWT","alg":"{name}"}}"#),
                        format!(r#"{{"typ":"JWT","alg":"{name}","kid":"{}"}}"#, key.kid),
                    ] {
                        forged.push(seal_with(&header, keys.claims(), algorithm, &secret));
                    }
                }
                // Signed as HMAC, and called what the key is for.
                forged.push(seal_with(&key.header(), keys.claims(), Algorithm::HS256, &secret));
            }
        }
        forged
    })
    .await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn the_algorithm_of_another_key(pool: PgPool) {
    refused(pool, |keys| {
        let mut forged = Vec::new();
        for (key, other) in [(&keys.signing, &keys.other), (&keys.other, &keys.signing)] {
            let by = |header: &str| seal_by(header, keys.claims(), key.algorithm, &key.encoding());
            forged.push(by(&other.header()));
            forged.push(by(&key.header().replace(&key.kid, &other.kid)));
            forged.push(by(&other.header().replace(&other.kid, &key.kid)));
            for name in ["HS256", "HS512", "RS256", "PS256", "ES384", "Ed25519", "ES256K", "eddsa", "es256"] {
                forged.push(by(&format!(r#"{{"typ":"JWT","alg":"{name}","kid":"{}"}}"#, key.kid)));
            }
        }
        forged
    })
    .await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_genuine_signature_under_an_id_that_is_not_the_keys(pool: PgPool) {
    refused(pool, |keys| {
        let key = &keys.signing;
        let long = "k".repeat(10_000);
        let longer = format!("{}{long}", key.kid);
        let spaced = format!(" {}", key.kid);
        let mut kids: Vec<String> =
            ["", "unknown", "secret", "previous", "../../../../dev/null", "/etc/passwd", "' OR 1=1 --", &long, &longer]
                .map(|kid| format!(r#","kid":"{kid}""#))
                .into();
        kids.extend([&spaced, &key.kid[1..], &key.kid.to_lowercase()].map(|kid| format!(r#","kid":"{kid}""#)));
        kids.extend(["", r#","kid":null"#, r#","kid":0"#, r#","kid":[]"#, r#","KID":"x""#].map(str::to_owned));
        kids.push(format!(r#","kid":["{}"]"#, key.kid));
        kids.push(format!(r#","kid":"x","kid":"{}""#, key.kid));
        kids.iter()
            .map(|kid| format!(r#"{{"typ":"JWT","alg":"{:?}"{kid}}}"#, key.algorithm))
            .map(|header| seal_by(&header, keys.claims(), key.algorithm, &key.encoding()))
            .collect()
    })
    .await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_key_of_the_attackers_choice(pool: PgPool) {
    refused(pool, |keys| {
        let mut forged = Vec::new();
        for own in [PrivateKey::ed25519(), PrivateKey::es256()] {
            let x = base64url(&own.public().1[..32]);
            let seal = |header: &str| seal_by(header, keys.claims(), own.algorithm, &own.encoding());
            forged.push(seal(&own.header()));
            forged.push(seal(&keys.signing.header()));
            for kid in [&own.kid, &keys.signing.kid] {
                for member in [
                    format!(r#""jwk":{{"kty":"OKP","crv":"Ed25519","x":"{x}"}}"#),
                    r#""jku":"https://attacker.example/jwks.json""#.to_owned(),
                    r#""x5u":"https://attacker.example/cert.pem""#.to_owned(),
                    format!(r#""x5c":["{x}"]"#),
                    format!(r#""x5t":"{kid}""#),
                ] {
                    forged
                        .push(seal(&format!(r#"{{"typ":"JWT","alg":"{:?}","kid":"{kid}",{member}}}"#, own.algorithm)));
                }
            }
        }
        forged
    })
    .await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn critical_extensions_that_nobody_understands(pool: PgPool) {
    refused(pool, |keys| {
        [r#"["exp"]"#, r#"["b64"]"#, "[]", r#""kid""#]
            .iter()
            .map(|crit| keys.signing.header().replace('}', &format!(r#","crit":{crit},"b64":false,"exp":1}}"#)))
            .map(|header| seal_by(&header, keys.claims(), keys.signing.algorithm, &keys.signing.encoding()))
            .collect()
    })
    .await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_signature_that_is_bent_or_empty(pool: PgPool) {
    refused(pool, |keys| {
        let token = &keys.scene.tokens.access;
        let [header, payload, signature] = parts(token);
        let bare = format!("{header}.{payload}");
        let mut forged: Vec<_> = [0, 1, 43, 85].iter().map(|end| format!("{bare}.{}", &signature[..*end])).collect();
        forged.extend(["=", "A", "AAAA"].map(|tail| format!("{token}{tail}")));
        // Zeros were once a good ECDSA signature for everything (CVE-2022-21449).
        forged.extend([[0; 64], [0xff; 64]].map(|bytes| format!("{bare}.{}", base64url(bytes))));
        let mut identity = [0; 64];
        identity[0] = 1;
        forged.push(format!("{bare}.{}", base64url(identity)));
        let promoted = with_claim(token, "role", r#""admin""#);
        forged.push(format!("{header}.{}.{signature}", base64url(promoted)));
        forged.push(with_header(token, &keys.other.header()));
        forged
    })
    .await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_refresh_token_under_the_access_key(pool: PgPool) {
    refused(pool, |keys| {
        let refresh = payload(&keys.scene.tokens.refresh);
        [&keys.signing, &keys.other].map(|key| seal_by(&key.header(), &refresh, key.algorithm, &key.encoding())).into()
    })
    .await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn an_access_token_under_the_secret_where_that_is_refused(pool: PgPool) {
    let keys = Keys::new(pool, PrivateKey::ed25519(), PrivateKey::es256(), &["--jwt-secret-access=refuse"]).await;
    for header in
        [crate::forge::HEADER.to_owned(), keys.signing.header().replace("EdDSA", "HS256"), keys.signing.header()]
    {
        let token = seal_with(&header, keys.claims(), Algorithm::HS256, SECRET);
        keys.scene.refused_as_access_token(&token).await;
    }
    keys.scene.refused_as_access_token(&keys.scene.tokens.refresh).await;
    keys.scene.refused_as_refresh_token(&keys.scene.tokens.access, &["Invalid refresh token"]).await;
    keys.scene.unharmed().await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_private_key_that_is_not_configured(pool: PgPool) {
    let scene = Scene::new(pool).await;
    for key in [PrivateKey::ed25519(), PrivateKey::es256()] {
        let claims = payload(&scene.tokens.access);
        scene.refused_as_access_token(&seal_by(&key.header(), &claims, key.algorithm, &key.encoding())).await;
        let empty = EncodingKey::from_secret(b"");
        scene.refused_as_access_token(&seal_by(&key.header(), &claims, Algorithm::HS256, &empty)).await;
    }
    scene.unharmed().await;
}
