//! Forged and bent tokens, attack by attack: headers, signatures, and the form of the whole. Each is tried as a refresh
//! token on refreshing and signing out, and as an access token on `/users/me`; each is refused for what it is, before
//! anything is looked up, and changes nothing.

use jsonwebtoken::Algorithm;
use sqlx::PgPool;

use crate::forge::{HEADER, Scene, and_claim, base64url, parts, refused, seal, seal_with, with_claim, with_header};
use crate::support::{SECRET, payload};

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn what_these_tests_seal_is_what_the_service_signs(pool: PgPool) {
    let scene = Scene::new(pool).await;
    for token in [&scene.tokens.refresh, &scene.tokens.access] {
        assert_eq!(&seal(HEADER, &payload(token)), token);
    }
    // Claims that nobody knows do no harm, nor does the order of them; so it is the attack that is refused below.
    let access = &scene.tokens.access;
    for token in [
        seal(HEADER, &and_claim(access, "iss", r#""somebody""#)),
        seal(HEADER, &with_claim(access, "type", r#""access""#)),
        seal(HEADER, &and_claim(access, "aud", "null")),
        seal(HEADER, &and_claim(access, "iat", "1")),
        seal(r#"{"alg":"HS256"}"#, &payload(access)),
        seal(r#"{"alg":"HS256","typ":"JWT","kid":"1"}"#, &payload(access)),
    ] {
        assert_eq!(scene.app.get_as("/users/me", &token).await.status, 200, "{}", payload(&token));
    }
    scene.unharmed().await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn no_algorithm_in_any_spelling(pool: PgPool) {
    refused(pool, |token| {
        let [_, payload, signature] = parts(token);
        let mut forged = Vec::new();
        for alg in [r#""none""#, r#""None""#, r#""NONE""#, r#""nOnE""#, r#""""#, "null", "0", "[]", r#"["none"]"#] {
            let header = base64url(format!(r#"{{"alg":{alg},"typ":"JWT"}}"#));
            forged.extend([
                format!("{header}.{payload}."),
                format!("{header}.{payload}"),
                format!("{header}.{payload}.{signature}"),
                seal(&format!(r#"{{"alg":{alg},"typ":"JWT"}}"#), &crate::support::payload(token)),
            ]);
        }
        forged.push(seal(r#"{"typ":"JWT"}"#, &crate::support::payload(token)));
        forged
    })
    .await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn another_algorithm_of_the_same_family(pool: PgPool) {
    refused(pool, |token| {
        let (text, mut forged) = (payload(token), Vec::new());
        for (name, algorithm) in [("HS384", Algorithm::HS384), ("HS512", Algorithm::HS512)] {
            let header = HEADER.replace("HS256", name);
            forged.extend([
                seal_with(&header, &text, algorithm, SECRET),
                seal_with(HEADER, &text, algorithm, SECRET),
                seal(&header, &text),
                with_header(token, &header),
            ]);
        }
        forged
    })
    .await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn an_algorithm_of_another_family(pool: PgPool) {
    refused(pool, |token| {
        ["RS256", "RS512", "PS256", "ES256", "ES384", "EdDSA", "hs256", "HS256 ", "HS257", "A256GCM", "HS256\\u0000"]
            .iter()
            .flat_map(|name| {
                let header = HEADER.replace("HS256", name);
                [seal(&header, &payload(token)), with_header(token, &header)]
            })
            .collect()
    })
    .await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn another_secret(pool: PgPool) {
    refused(pool, |token| {
        let secrets = ["", " ", "devsecret", "secret", &SECRET[1..], &SECRET.to_uppercase(), &format!("{SECRET} ")];
        secrets.iter().map(|secret| seal_with(HEADER, payload(token), Algorithm::HS256, secret)).collect()
    })
    .await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_key_of_the_attackers_choice_in_the_header(pool: PgPool) {
    refused(pool, |token| {
        let key = base64url("attacker");
        [
            r#""kid":"../../../../dev/null""#.to_owned(),
            r#""kid":"' UNION SELECT 'attacker' --""#.to_owned(),
            r#""kid":"attacker""#.to_owned(),
            r#""jku":"https://attacker.example/jwks.json""#.to_owned(),
            r#""x5u":"https://attacker.example/cert.pem""#.to_owned(),
            format!(r#""jwk":{{"kty":"oct","k":"{key}","alg":"HS256"}}"#),
            r#""x5c":["attacker"]"#.to_owned(),
        ]
        .iter()
        .flat_map(|member| {
            let header = format!(r#"{{"alg":"HS256","typ":"JWT",{member}}}"#);
            ["", "attacker"].map(|secret| seal_with(&header, payload(token), Algorithm::HS256, secret))
        })
        .collect()
    })
    .await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn critical_extensions_that_nobody_understands(pool: PgPool) {
    refused(pool, |token| {
        [r#"["exp"]"#, r#"["b64"]"#, r#"["http://example.com/x"]"#, "[]", r#""exp""#, "1"]
            .iter()
            .flat_map(|crit| {
                let header = format!(r#"{{"alg":"HS256","typ":"JWT","crit":{crit},"b64":false,"exp":1}}"#);
                [seal(&header, &payload(token)), with_header(token, &header)]
            })
            .collect()
    })
    .await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_header_that_is_none(pool: PgPool) {
    refused(pool, |token| {
        let deep = "[".repeat(10_000);
        let twice = r#"{"alg":"none","alg":"HS256","typ":"JWT"}"#;
        ["", "{}", "null", "[]", "HS256", r#"{"alg""#, "\u{feff}{\"alg\":\"HS256\"}", &deep, twice]
            .iter()
            .flat_map(|header| [seal(header, &payload(token)), with_header(token, header)])
            .collect()
    })
    .await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_payload_that_is_none(pool: PgPool) {
    refused(pool, |_| {
        let deep = "[".repeat(10_000);
        let mut forged: Vec<_> =
            ["", "{}", "null", "[]", "\"x\"", "{", "{\"exp\"", &deep].iter().map(|text| seal(HEADER, text)).collect();
        forged.push(seal_with(HEADER, b"{\"exp\":9999999999,\"sub\":\"\xff\"}", Algorithm::HS256, SECRET));
        forged
    })
    .await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_signature_cut_short_padded_or_bent(pool: PgPool) {
    refused(pool, |token| {
        let [header, payload, signature] = parts(token);
        let bare = format!("{header}.{payload}");
        let mut forged: Vec<_> =
            [0, 1, 10, 21, 22, 41, 42].iter().map(|end| format!("{bare}.{}", &signature[..*end])).collect();
        forged.extend(["=", "==", "A", "AA", "AAAA", "\0", "%3D"].iter().map(|tail| format!("{token}{tail}")));
        // The last character carries two bits that count for nothing; only zeros are a signature's own.
        let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let last = alphabet.find(signature.chars().last().unwrap()).unwrap();
        for other in [last ^ 1, last ^ 2, last ^ 3, last ^ 4] {
            forged.push(format!("{bare}.{}{}", &signature[..42], &alphabet[other..=other]));
        }
        // Base64 of the other alphabet, where the two differ, and all of it in other letters.
        let standard = signature.replace('-', "+").replace('_', "/");
        if standard != signature {
            forged.push(format!("{bare}.{standard}"));
        }
        forged.push(format!("{bare}.{}", "A".repeat(43)));
        forged.push(format!("{bare}.{}", signature.chars().rev().collect::<String>()));
        forged.push(format!("{bare}.{}", signature.to_lowercase()));
        forged.push(format!("{header}=.{payload}.{signature}"));
        forged.push(format!("{header}.{payload}=.{signature}"));
        forged
    })
    .await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn the_signature_of_another_token(pool: PgPool) {
    let scene = Scene::new(pool).await;
    let other = scene.app.login("cust@example.com").await;
    let scene = Scene { before: scene.app.rows().await, ..scene };
    let [header, payload, _] = parts(&scene.tokens.refresh);
    let [_, _, foreign] = parts(&other.refresh);
    scene.refused_as_refresh_token(&format!("{header}.{payload}.{foreign}"), &["Invalid refresh token"]).await;
    let [header, _, signature] = parts(&scene.tokens.access);
    let promoted = with_claim(&scene.tokens.access, "role", r#""admin""#);
    scene.refused_as_access_token(&format!("{header}.{}.{signature}", base64url(promoted))).await;
    scene.unharmed().await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn segments_too_many_or_too_few(pool: PgPool) {
    refused(pool, |token| {
        let [header, payload, signature] = parts(token);
        vec![
            format!("{token}."),
            format!(".{token}"),
            format!("{token}.{signature}"),
            format!("{token}.."),
            format!("{header}.{payload}"),
            format!("{header}..{signature}"),
            format!(".{payload}.{signature}"),
            format!("{header}.{header}.{payload}.{signature}"),
            header.to_owned(),
            format!("{header}{payload}{signature}"),
            format!("{token}{token}"),
            ".".to_owned(),
            "..".to_owned(),
            "....".to_owned(),
        ]
    })
    .await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn sixty_kilobytes(pool: PgPool) {
    refused(pool, |token| {
        let padding = format!("\"{}\"", "x".repeat(45_000));
        vec![
            "a".repeat(60_000),
            "a.".repeat(30_000),
            ".".repeat(60_000),
            format!("{token}{}", "A".repeat(59_000)),
            seal_with(HEADER, and_claim(token, "pad", &padding), Algorithm::HS256, "another secret"),
        ]
    })
    .await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn what_is_no_ascii(pool: PgPool) {
    refused(pool, |token| {
        let [header, payload, signature] = parts(token);
        vec![
            format!("{token}é"),
            format!("{token}\u{200b}"),
            format!("\u{feff}{token}"),
            format!("{header}\u{ff0e}{payload}\u{ff0e}{signature}"),
            format!("{header}.{payload}.{}é", &signature[..42]),
            "💥.💥.💥".to_owned(),
            "\0".to_owned(),
        ]
    })
    .await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn space_around_and_within(pool: PgPool) {
    refused(pool, |token| {
        let [header, payload, signature] = parts(token);
        vec![
            format!("{token} "),
            format!("{token}\n"),
            format!("\t{token}"),
            format!("{header}. {payload}.{signature}"),
            format!("{header}.{payload}.{signature} x"),
            format!("Bearer {token}"),
            format!("\"{token}\""),
            " ".to_owned(),
        ]
    })
    .await;
}
