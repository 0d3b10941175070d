//! `POST /auth/login`: what a login gives, what it leaves in the tables, and what a refusal tells.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use auth::domain::password::{self, Argon2Cost, Memory, Password};
use auth::http::Peer;
use axum::body::Body;
use axum::http::Request;
use chrono::NaiveDateTime;
use ipnet::IpNet;
use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;

use crate::support::{Answer, PASSWORD, TestApp, claims, count, pair, payload, sha256, together};

/// A hash of [`PASSWORD`] at another cost than the service's.
fn cheap_hash() -> String {
    let cost = Argon2Cost { m_kib: 64, t: 1 };
    password::hash(&Password::attempt(PASSWORD.to_owned()), cost, &mut Memory::for_cost(cost)).as_str().to_owned()
}

async fn stored_hash(app: &TestApp) -> String {
    app.value("SELECT password_hash FROM users").await
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_right_password_gives_a_pair_that_nobody_may_cache(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register("cust@example.com", "customer").await;
    let answer = app.try_login("cust@example.com", PASSWORD).await;
    let tokens = pair(&answer);
    assert_eq!(
        answer.body,
        format!(r#"{{"access_token":"{}","refresh_token":"{}","token_type":"bearer"}}"#, tokens.access, tokens.refresh)
    );
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(answer.header("content-type"), Some("application/json"));
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn tokens_carry_exactly_the_claims_that_the_consumers_know(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register("cust@example.com", "customer").await;
    let before = app.clock.now().timestamp();
    let tokens = app.login("cust@example.com").await;
    let after = app.clock.now().timestamp();
    let session = tokens.session();
    let access_exp = claims(&tokens.access)["exp"].as_i64().unwrap();
    assert!((before + 900..=after + 900).contains(&access_exp));
    assert_eq!(
        payload(&tokens.access),
        format!(
            r#"{{"sub":"cust@example.com","role":"customer","exp":{access_exp},"type":"access","sid":"{session}"}}"#
        )
    );
    let refresh = claims(&tokens.refresh);
    let (refresh_exp, jti) = (refresh["exp"].as_i64().unwrap(), refresh["jti"].as_str().unwrap());
    assert!((before + 30 * 86_400..=after + 30 * 86_400).contains(&refresh_exp));
    assert!(jti.len() == 32 && jti.bytes().all(|byte| b"0123456789abcdef".contains(&byte)), "{jti}");
    assert_eq!(
        payload(&tokens.refresh),
        format!(r#"{{"sub":"cust@example.com","jti":"{jti}","exp":{refresh_exp},"type":"refresh","sid":"{session}"}}"#)
    );
    for token in [&tokens.access, &tokens.refresh] {
        let header = jsonwebtoken::decode_header(token).unwrap();
        assert_eq!(serde_json::to_value(header).unwrap(), json!({"alg": "HS256", "typ": "JWT"}));
        assert!(jsonwebtoken::decode::<Value>(token, &key(crate::support::SECRET), &lax()).is_ok());
        assert!(jsonwebtoken::decode::<Value>(token, &key("another secret of the same kind"), &lax()).is_err());
    }
}

fn key(secret: &str) -> jsonwebtoken::DecodingKey {
    jsonwebtoken::DecodingKey::from_secret(secret.as_bytes())
}

fn lax() -> jsonwebtoken::Validation {
    jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::HS256)
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn the_lifetimes_are_configured(pool: PgPool) {
    let app = TestApp::with(pool, &["--access-token-expires-seconds=60", "--refresh-token-expires-days=7"]);
    let before = app.clock.now().timestamp();
    let tokens = app.customer("cust@example.com").await;
    let after = app.clock.now().timestamp();
    let exp = |token: &str| claims(token)["exp"].as_i64().unwrap();
    assert!((before + 60..=after + 60).contains(&exp(&tokens.access)));
    assert!((before + 7 * 86_400..=after + 7 * 86_400).contains(&exp(&tokens.refresh)));
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn the_store_knows_a_token_by_its_hash_only(pool: PgPool) {
    let app = TestApp::new(pool);
    let tokens = app.customer("cust@example.com").await;
    let (jti, hash, session, expires, revoked, used): (
        String,
        String,
        Uuid,
        NaiveDateTime,
        bool,
        Option<NaiveDateTime>,
    ) = sqlx::query_as("SELECT jti, token_hash, session_id, expires_at, revoked, used_at FROM refresh_tokens")
        .fetch_one(&app.db)
        .await
        .unwrap();
    let claims = claims(&tokens.refresh);
    assert_eq!(json!(jti), claims["jti"]);
    assert_eq!(hash, sha256(&tokens.refresh));
    assert_eq!(session, tokens.session());
    assert_eq!(json!(expires.and_utc().timestamp()), claims["exp"]);
    assert_eq!((revoked, used), (false, None));
    let rows = app.rows().await.to_string();
    for token in [&tokens.refresh, &tokens.access] {
        assert!(!rows.contains(token.rsplit('.').next().unwrap()), "the token itself is stored");
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn each_login_opens_a_session_of_its_own_that_remembers_the_client(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register("cust@example.com", "customer").await;
    let before = app.now();
    let request = Request::post("/auth/login").header("user-agent", "ü".repeat(300));
    let body = json!({"email": "cust@example.com", "password": PASSWORD}).to_string();
    let tokens = pair(&app.send(request.body(Body::from(body)).unwrap()).await);
    let other = app.login("cust@example.com").await;
    assert_ne!(tokens.session(), other.session());
    let (user, agent, ip, created, seen, ended): (
        i64,
        Option<String>,
        IpNet,
        NaiveDateTime,
        NaiveDateTime,
        Option<NaiveDateTime>,
    ) = sqlx::query_as(
        "SELECT user_id, user_agent, ip, created_at, last_seen_at, ended_at FROM sessions WHERE id = $1",
    )
    .bind(tokens.session())
    .fetch_one(&app.db)
    .await
    .unwrap();
    assert_eq!(user, app.user_id("cust@example.com").await);
    assert_eq!(agent, Some("ü".repeat(255)));
    assert_eq!(ip.to_string(), "127.0.0.1/32");
    assert!(created == seen && created >= before && created <= app.now());
    assert_eq!(ended, None);
    assert_eq!(app.value::<i64>("SELECT count(*) FROM sessions WHERE user_agent IS NULL").await, 1);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn the_address_is_read_from_the_right_past_trusted_proxies(pool: PgPool) {
    let trusting = TestApp::with(pool, &["--trusted-proxies=127.0.0.0/8,10.0.0.0/8,fd00::/8"]);
    let doubting = TestApp::with_clock(trusting.db.clone(), &[], trusting.clock.clone());
    trusting.register("cust@example.com", "customer").await;
    for (app, peer, forwarded, expected) in [
        (&trusting, "127.0.0.1", "6.6.6.6, 203.0.113.9, 10.0.0.1", "203.0.113.9/32"),
        (&trusting, "127.0.0.1", "203.0.113.9", "203.0.113.9/32"),
        (&trusting, "::ffff:127.0.0.1", "203.0.113.9:4711", "203.0.113.9/32"),
        (&trusting, "fd00::1", "2001:db8::7", "2001:db8::7/128"),
        (&trusting, "fd00::1", "[2001:db8::7]", "2001:db8::7/128"),
        (&trusting, "fd00::1", "::ffff:203.0.113.9", "203.0.113.9/32"),
        (&trusting, "127.0.0.1", "", "127.0.0.1/32"),
        (&trusting, "127.0.0.1", "no-address", "127.0.0.1/32"),
        (&trusting, "127.0.0.1", "198.51.100.1, unknown", "127.0.0.1/32"),
        (&trusting, "127.0.0.1", "\u{e9}, 203.0.113.9", "203.0.113.9/32"),
        (&trusting, "127.0.0.1", "6.6.6.6, 203.0.113.9,", "203.0.113.9/32"),
        (&trusting, "192.0.2.1", "203.0.113.9", "192.0.2.1/32"),
        (&doubting, "127.0.0.1", "203.0.113.9", "127.0.0.1/32"),
    ] {
        let peer = Peer(SocketAddr::new(peer.parse().unwrap(), 4711));
        let request = Request::post("/auth/login").header("x-forwarded-for", forwarded.as_bytes()).extension(peer);
        let body = json!({"email": "cust@example.com", "password": PASSWORD}).to_string();
        let tokens = pair(&app.send(request.body(Body::from(body)).unwrap()).await);
        let query = sqlx::query_scalar::<_, IpNet>("SELECT ip FROM sessions WHERE id = $1").bind(tokens.session());
        assert_eq!(query.fetch_one(&app.db).await.unwrap().to_string(), expected, "{forwarded}");
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn an_unknown_address_and_a_wrong_password_are_told_the_same(pool: PgPool) {
    let app = TestApp::with(pool, &["--throttle=off"]);
    app.register("cust@example.com", "customer").await;
    let before = app.rows().await;
    let visible = |answer: &Answer| {
        let mut headers = answer.headers.clone();
        headers.remove("x-request-id");
        (answer.status, headers, answer.body.clone())
    };
    let wrong = app.try_login("cust@example.com", "not the password").await;
    let unknown = app.try_login("nobody@example.com", "not the password").await;
    wrong.assert_refused("Invalid credentials", None);
    assert_eq!(visible(&wrong), visible(&unknown));
    // Anything may be tried.
    for password in ["", "x", "with\0nul", &"x".repeat(60_000)] {
        app.try_login("cust@example.com", password).await.assert_refused("Invalid credentials", None);
    }
    assert_eq!(app.rows().await, before);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn an_address_is_looked_up_in_any_spelling_and_the_token_has_the_stored_one(pool: PgPool) {
    let app = TestApp::new(pool);
    app.insert_user("Old.User@example.com", &cheap_hash()).await;
    for email in ["Old.User@example.com", "old.user@example.com", "OLD.USER@EXAMPLE.COM", "  X <old.user@example.com>"]
    {
        let tokens = pair(&app.try_login(email, PASSWORD).await);
        assert_eq!(claims(&tokens.access)["sub"], "Old.User@example.com", "{email}");
        assert_eq!(claims(&tokens.refresh)["sub"], "Old.User@example.com", "{email}");
        pair(&app.refresh(&tokens.refresh).await);
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn of_two_accounts_that_differ_in_case_the_exact_one_is_meant(pool: PgPool) {
    let app = TestApp::new(pool);
    let hash = cheap_hash();
    // The oldest is neither the exact nor the lower-cased one.
    for email in ["ANN@example.com", "Ann@example.com", "ann@example.com"] {
        app.insert_user(email, &hash).await;
    }
    for (email, expected) in [
        ("Ann@example.com", "Ann@example.com"),
        ("ann@example.com", "ann@example.com"),
        ("ANN@example.com", "ANN@example.com"),
        ("aNN@example.com", "ann@example.com"),
    ] {
        let tokens = pair(&app.try_login(email, PASSWORD).await);
        assert_eq!(claims(&tokens.access)["sub"], expected, "{email}");
    }
    app.execute("DELETE FROM users WHERE email = 'ann@example.com'").await;
    let tokens = pair(&app.try_login("aNN@example.com", PASSWORD).await);
    assert_eq!(claims(&tokens.access)["sub"], "ANN@example.com");
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_stored_text_that_is_no_payable_hash_is_refused_quickly(pool: PgPool) {
    let app = TestApp::with(pool, &["--throttle=off"]);
    app.insert_user("cust@example.com", "").await;
    let good = cheap_hash();
    let truncated = good[..good.len() - 20].to_owned();
    let no_output = good.rsplit_once('$').unwrap().0.to_owned();
    let bcrypt = bcrypt::hash_with_result(PASSWORD, 4).unwrap().to_string();
    let tail = "$c29tZXNhbHRzb21lc2FsdA$iWh06vD8Fy27wf9npn6FXWiCX4K6pW6Ue1Bnzz07Z8A";
    let started = Instant::now();
    for hash in [
        String::new(),
        " ".to_owned(),
        PASSWORD.to_owned(),
        "!".to_owned(),
        "$".repeat(255),
        truncated,
        no_output,
        "$argon2id$".to_owned(),
        format!("$argon2id$v=19$m=1048576,t=1,p=1{tail}"),
        format!("$argon2id$v=19$m=4294967295,t=4294967295,p=1{tail}"),
        format!("$argon2id$v=19$m=64,t=4000000,p=1{tail}"),
        format!("$argon2id$v=19$m=65536,t=1,p=64{tail}"),
        format!("$argon2x$v=19$m=64,t=1,p=1{tail}"),
        format!("$argon2id$v=99$m=64,t=1,p=1{tail}"),
        bcrypt.replacen("$04$", "$31$", 1),
        bcrypt.replacen("$04$", "$99$", 1),
        bcrypt.replacen("$04$", "$xx$", 1),
        bcrypt[..40].to_owned(),
        bcrypt.replacen("$2b$", "$2x$", 1),
        "$pbkdf2-sha256$29000$N2YMIWQsBWBMae09x1jrPQ$1t8iyB2A.WF/Z5JZv.lfCIhXXN33N23OSgQYThBYRfk".to_owned(),
        "pbkdf2_sha256$1000000000$salt$aGFzaA==".to_owned(),
        "$5$rounds=999999999$salt$hash".to_owned(),
        "5f4dcc3b5aa765d61d8327deb882cf99".to_owned(),
    ] {
        sqlx::query("UPDATE users SET password_hash = $1").bind(&hash).execute(&app.db).await.unwrap();
        let before = app.rows().await;
        for password in [PASSWORD, ""] {
            app.try_login("cust@example.com", password).await.assert_refused("Invalid credentials", None);
        }
        assert_eq!(app.rows().await, before, "{hash}");
    }
    // Fifty logins at the usual cost; one of the dear ones alone takes longer.
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    sqlx::query("UPDATE users SET password_hash = $1").bind(&good).execute(&app.db).await.unwrap();
    app.login("cust@example.com").await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn an_outdated_argon2_hash_is_replaced_at_login(pool: PgPool) {
    let app = TestApp::new(pool);
    app.insert_user("cust@example.com", &cheap_hash()).await;
    let wrong = app.try_login("cust@example.com", "not the password").await;
    wrong.assert_refused("Invalid credentials", None);
    assert!(stored_hash(&app).await.contains("m=64,t=1"), "a wrong password replaced the hash");
    app.login("cust@example.com").await;
    let replaced = stored_hash(&app).await;
    assert!(replaced.starts_with("$argon2id$v=19$m=7168,t=5,p=1$"), "{replaced}");
    app.login("cust@example.com").await;
    assert_eq!(stored_hash(&app).await, replaced);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn five_logins_at_once_of_an_outdated_hash_all_succeed_and_leave_one_new_hash(pool: PgPool) {
    let app = TestApp::with(pool, &["--password-hash-max-wait-ms=60000"]);
    app.insert_user("cust@example.com", &cheap_hash()).await;
    let answers = together((0..5).map(|_| {
        let app = app.clone();
        async move { app.try_login("cust@example.com", PASSWORD).await }
    }))
    .await;
    assert_eq!(count(&answers, 200), 5);
    assert!(stored_hash(&app).await.starts_with("$argon2id$v=19$m=7168,t=5,p=1$"));
    assert_eq!(app.value::<i64>("SELECT count(*) FROM sessions").await, 5);
    for answer in &answers {
        pair(&app.refresh(&pair(answer).refresh).await);
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn bcrypt_hashes_of_all_spellings_are_replaced_and_then_all_of_the_password_counts(pool: PgPool) {
    let app = TestApp::new(pool);
    let long = "x".repeat(80);
    let parts = bcrypt::hash_with_result(&long, 4).unwrap();
    for version in [bcrypt::Version::TwoA, bcrypt::Version::TwoB, bcrypt::Version::TwoY] {
        app.execute("DELETE FROM users").await;
        app.insert_user("cust@example.com", &parts.format_for_version(version)).await;
        app.try_login("cust@example.com", &long[..71]).await.assert_refused("Invalid credentials", None);
        // bcrypt never saw more than 72 bytes.
        pair(&app.try_login("cust@example.com", &long[..72]).await);
        assert!(stored_hash(&app).await.starts_with("$argon2id$v=19$m=7168,t=5,p=1$"));
        pair(&app.try_login("cust@example.com", &long[..72]).await);
        app.try_login("cust@example.com", &long).await.assert_refused("Invalid credentials", None);
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn without_rehashing_an_outdated_hash_stays(pool: PgPool) {
    let app = TestApp::with(pool, &["--password-rehash=off"]);
    let hash = cheap_hash();
    app.insert_user("cust@example.com", &hash).await;
    app.login("cust@example.com").await;
    assert_eq!(stored_hash(&app).await, hash);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn without_its_database_the_service_is_unavailable_and_says_nothing_of_passwords(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register("cust@example.com", "customer").await;
    let unavailable = "Service unavailable, try again later";
    // The look-up works, the write of the session does not.
    app.execute("ALTER TABLE sessions RENAME TO elsewhere").await;
    app.try_login("cust@example.com", PASSWORD).await.assert_detail(503, unavailable);
    assert_eq!(app.value::<i64>("SELECT count(*) FROM refresh_tokens").await, 0);
    app.execute("ALTER TABLE users RENAME TO away").await;
    for password in [PASSWORD, "not the password"] {
        app.try_login("cust@example.com", password).await.assert_detail(503, unavailable);
    }
    app.db.close().await;
    let answer = app.try_login("cust@example.com", PASSWORD).await;
    answer.assert_detail(503, unavailable);
    assert_eq!(answer.retry_after(), 2);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn problems_of_a_body_are_listed(pool: PgPool) {
    let app = TestApp::new(pool);
    let field = |name: &str| json!(["body", name]);
    let answer = app.post("/auth/login", json!({"email": "x"})).await;
    answer.assert_problems(&[("value_error", field("email")), ("missing", field("password"))]);
    let answer = app.post("/auth/login", json!({"email": null, "password": 12_345_678})).await;
    answer.assert_problems(&[("string_type", field("email")), ("string_type", field("password"))]);
    assert!(!answer.body.contains("12345678"), "{}", answer.body);
}
