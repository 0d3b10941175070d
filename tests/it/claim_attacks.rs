//! Tokens with the right signature over the wrong claims, tried as in `token_attacks`: what somebody could make who knows
//! the secret, or another issuer that shares it.

use serde_json::json;
use sqlx::PgPool;

use crate::forge::{HEADER, Scene, and_claim, assert_refused, refused, refused_as, seal, with_claim, without_claim};
use crate::support::claims;

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_claim_that_stands_twice(pool: PgPool) {
    refused(pool, |token| {
        let claims = claims(token);
        ["sub", "jti", "exp", "type", "sid"]
            .iter()
            .filter_map(|name| claims.get(name).map(|value| seal(HEADER, &and_claim(token, name, &value.to_string()))))
            .collect()
    })
    .await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_subject_or_id_that_is_no_text(pool: PgPool) {
    refused(pool, |token| {
        let mut forged = Vec::new();
        for name in ["sub", "jti"] {
            for value in ["1", "1.5", "true", "[]", "{}", r#"["cust@example.com"]"#, "\"a\\u0000b\"", r#""\ud800""#] {
                forged.push(seal(HEADER, &with_claim(token, name, value)));
            }
        }
        forged.push(seal(HEADER, &with_claim(token, "sub", "null")));
        forged.push(seal(HEADER, &without_claim(token, "sub")));
        forged
    })
    .await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_refresh_token_without_its_id(pool: PgPool) {
    let scene = Scene::new(pool).await;
    let token = &scene.tokens.refresh;
    for payload in [
        without_claim(token, "jti"),
        with_claim(token, "jti", "null"),
        with_claim(token, "jti", r#""""#),
        with_claim(token, "sub", r#""""#),
    ] {
        scene.refused_as_refresh_token(&seal(HEADER, &payload), &["Invalid refresh token"]).await;
    }
    scene.unharmed().await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_session_id_that_is_none(pool: PgPool) {
    refused(pool, |token| {
        [r#""""#, r#""1""#, "1", "true", "[]", "{}", r#""' OR true --""#, r#""0198c0de-0000-7000-8000-00000000000""#]
            .iter()
            .map(|value| seal(HEADER, &with_claim(token, "sid", value)))
            .collect()
    })
    .await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn an_access_token_without_a_session(pool: PgPool) {
    let scene = Scene::new(pool).await;
    let token = &scene.tokens.access;
    for payload in [without_claim(token, "sid"), with_claim(token, "sid", "null")] {
        scene.refused_as_access_token(&seal(HEADER, &payload)).await;
    }
    scene.unharmed().await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn the_session_of_somebody_else(pool: PgPool) {
    let scene = Scene::new(pool).await;
    let stranger = scene.app.customer("stranger@example.com").await;
    let scene = Scene { before: scene.app.rows().await, ..scene };
    let sid = json!(stranger.session()).to_string();
    // `/auth/verify` asks no row, so it believes the signature.
    let forged = seal(HEADER, &with_claim(&scene.tokens.access, "sid", &sid));
    assert_refused(&scene.app.get_as("/users/me", &forged).await, &["Invalid access token"], &forged);
    let forged = seal(HEADER, &with_claim(&scene.tokens.refresh, "sid", &sid));
    assert_refused(&scene.app.refresh(&forged).await, &["Refresh token not valid"], &forged);
    scene.unharmed().await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_type_that_is_neither(pool: PgPool) {
    refused_as(pool, &["Invalid token type", "Invalid refresh token"], |token| {
        let values =
            ["null", "1", "true", "[]", r#"["refresh"]"#, r#""""#, r#""Refresh""#, r#""refresh ""#, r#""ACCESS""#];
        let mut forged: Vec<_> = values.iter().map(|value| seal(HEADER, &with_claim(token, "type", value))).collect();
        forged.push(seal(HEADER, &without_claim(token, "type")));
        forged
    })
    .await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn the_other_kind_of_token(pool: PgPool) {
    let scene = Scene::new(pool).await;
    scene.refused_as_refresh_token(&scene.tokens.access, &["Invalid token type"]).await;
    scene.refused_as_access_token(&scene.tokens.refresh).await;
    scene.unharmed().await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn an_expiry_that_is_no_time(pool: PgPool) {
    refused(pool, |token| {
        let values = ["null", "true", "[]", "{}", "NaN", "Infinity", "1e400", r#""""#, r#""soon""#, r#""2100-01-01""#];
        let mut forged: Vec<_> = values.iter().map(|value| seal(HEADER, &with_claim(token, "exp", value))).collect();
        forged.push(seal(HEADER, &with_claim(token, "exp", &"9".repeat(400))));
        forged.push(seal(HEADER, &without_claim(token, "exp")));
        forged
    })
    .await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn an_expiry_in_the_past(pool: PgPool) {
    let scene = Scene::new(pool).await;
    let now = scene.app.clock.now().timestamp();
    let ints = [now, now - 1, 0, -1, -now, i64::MIN].map(|exp| exp.to_string());
    let odd = [format!("{now}.0"), format!("\"{now}\""), "1e3".to_owned(), "-1e300".to_owned(), "0.5".to_owned()];
    for exp in ints.iter().chain(&odd) {
        let forged = seal(HEADER, &with_claim(&scene.tokens.refresh, "exp", exp));
        scene.refused_as_refresh_token(&forged, &["Invalid refresh token"]).await;
        scene.refused_as_access_token(&seal(HEADER, &with_claim(&scene.tokens.access, "exp", exp))).await;
    }
    scene.unharmed().await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn an_expiry_that_is_no_whole_number_or_too_large_for_one(pool: PgPool) {
    refused(pool, |token| {
        let exp = claims(token)["exp"].to_string();
        let odd = [
            format!("{exp}.0"),
            format!("{exp}.5"),
            format!("\"{exp}\""),
            "1e10".to_owned(),
            "1e300".to_owned(),
            "9223372036854775808".to_owned(),
            "18446744073709551616".to_owned(),
        ];
        odd.iter().map(|exp| seal(HEADER, &with_claim(token, "exp", exp))).collect()
    })
    .await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn an_expiry_at_the_end_of_time_is_not_the_token_that_was_issued(pool: PgPool) {
    let scene = Scene::new(pool).await;
    let forged = seal(HEADER, &with_claim(&scene.tokens.refresh, "exp", &i64::MAX.to_string()));
    assert_refused(&scene.app.refresh(&forged).await, &["Refresh token not valid"], &forged);
    scene.unharmed().await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn issued_or_valid_from_the_future_only(pool: PgPool) {
    refused(pool, |token| {
        let later = claims(token)["exp"].as_i64().unwrap() + 3600;
        let times = [later.to_string(), format!("{later}.5"), format!("\"{later}\""), i64::MAX.to_string()];
        let rubbish = [r#""now""#, "true", "[]", "{}"].map(str::to_owned);
        let values: Vec<_> = times.iter().chain(&rubbish).collect();
        let forge = |name, value: &&String| seal(HEADER, &and_claim(token, name, value));
        ["nbf", "iat"].iter().flat_map(|name| values.iter().map(|value| forge(name, value))).collect()
    })
    .await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn for_another_audience(pool: PgPool) {
    refused(pool, |token| {
        [r#""cart""#, r#"["cart"]"#, r#"["auth","cart"]"#, "1", "true", "{}"]
            .iter()
            .map(|value| seal(HEADER, &and_claim(token, "aud", value)))
            .collect()
    })
    .await;
}
