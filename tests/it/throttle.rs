//! The throttle of failed logins: how many, for whom, from where, and for how long.

use auth::domain::throttle::BucketKey;
use axum::body::Body;
use axum::http::Request;
use chrono::TimeDelta;
use serde_json::json;
use sqlx::PgPool;

use crate::support::{Answer, PASSWORD, TestApp, pair};

const WRONG: &str = "not the password";

async fn login_from(app: &TestApp, ip: &str, email: &str, password: &str) -> Answer {
    app.post_from(ip, "/auth/login", json!({"email": email, "password": password})).await
}

#[track_caller]
fn assert_throttled(answer: &Answer) {
    answer.assert_detail(429, "Too many attempts, try again later");
}

/// Fails so often that nothing more fits, and returns the first 429.
async fn exhaust(app: &TestApp, ip: &str, email: &str) -> Answer {
    for attempt in 1..=20 {
        let answer = login_from(app, ip, email, WRONG).await;
        assert_eq!(answer.status, 401, "attempt {attempt}");
    }
    login_from(app, ip, email, WRONG).await
}

fn hashes(app: &TestApp) -> u64 {
    app.app.metrics.hash_seconds.get_sample_count()
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn thirty_wrong_passwords_end_in_429_and_the_wait_is_honest(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register("cust@example.com", "customer").await;
    let refused = exhaust(&app, "198.51.100.7", "cust@example.com").await;
    assert_throttled(&refused);
    assert!((1..=60).contains(&refused.retry_after()), "{}", refused.retry_after());
    let (before, hashed) = (app.rows().await, hashes(&app));
    for _ in 21..30 {
        assert_throttled(&login_from(&app, "198.51.100.7", "cust@example.com", WRONG).await);
    }
    // The right password is not tried either, in whatever spelling of the address.
    for email in ["cust@example.com", "CUST@example.com"] {
        assert_throttled(&login_from(&app, "198.51.100.7", email, PASSWORD).await);
    }
    assert_eq!((app.rows().await, hashes(&app)), (before, hashed), "a throttled attempt was counted or hashed");
    let wait = login_from(&app, "198.51.100.7", "cust@example.com", WRONG).await.retry_after();
    app.advance(wait);
    assert_eq!(login_from(&app, "198.51.100.7", "cust@example.com", WRONG).await.status, 401);
    assert_throttled(&login_from(&app, "198.51.100.7", "cust@example.com", WRONG).await);
    // In the end all of it comes back.
    app.advance(20 * 60);
    assert_throttled(&exhaust(&app, "198.51.100.7", "cust@example.com").await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn nobody_is_locked_out_the_right_password_from_another_network_gets_in(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register("cust@example.com", "customer").await;
    app.register("other@example.com", "customer").await;
    assert_throttled(&exhaust(&app, "198.51.100.7", "cust@example.com").await);
    pair(&login_from(&app, "198.51.100.8", "cust@example.com", PASSWORD).await);
    // Nor is a neighbour of the attacker.
    pair(&login_from(&app, "198.51.100.7", "other@example.com", PASSWORD).await);
    assert_throttled(&login_from(&app, "198.51.100.7", "cust@example.com", PASSWORD).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn an_unknown_account_is_throttled_like_a_known_one(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register("cust@example.com", "customer").await;
    let known = exhaust(&app, "198.51.100.7", "cust@example.com").await;
    let unknown = exhaust(&app, "198.51.100.7", "nobody@example.com").await;
    assert_throttled(&known);
    assert_throttled(&unknown);
    assert!((known.retry_after() - unknown.retry_after()).abs() <= 2);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn replicas_share_the_count(pool: PgPool) {
    let one = TestApp::new(pool);
    let two = TestApp::with_clock(one.db.clone(), &[], one.clock.clone());
    one.register("cust@example.com", "customer").await;
    for attempt in 0..20 {
        let app = if attempt % 2 == 0 { &one } else { &two };
        assert_eq!(app.try_login("cust@example.com", WRONG).await.status, 401, "attempt {attempt}");
    }
    assert_throttled(&one.try_login("cust@example.com", WRONG).await);
    assert_throttled(&two.try_login("cust@example.com", WRONG).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_success_costs_nothing_and_forgives_nothing(pool: PgPool) {
    let app = TestApp::new(pool);
    app.customer("cust@example.com").await;
    let logins = "SELECT count(*) FROM auth_throttle";
    let registered: i64 = app.value(logins).await;
    app.login("cust@example.com").await;
    assert_eq!(app.value::<i64>(logins).await, registered);
    for _ in 0..19 {
        assert_eq!(app.try_login("cust@example.com", WRONG).await.status, 401);
    }
    let before = app.rows().await["auth_throttle"].clone();
    app.login("cust@example.com").await;
    assert_eq!(app.rows().await["auth_throttle"], before);
    assert_eq!(app.try_login("cust@example.com", WRONG).await.status, 401);
    assert_throttled(&app.try_login("cust@example.com", WRONG).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn an_ipv6_client_is_counted_by_its_64_bits_of_network(pool: PgPool) {
    let app = TestApp::new(pool);
    for attempt in 0..20 {
        let ip = format!("2001:db8:0:1::{attempt:x}");
        assert_eq!(login_from(&app, &ip, "cust@example.com", WRONG).await.status, 401);
    }
    assert_throttled(&login_from(&app, "2001:db8:0:1:ffff:ffff:ffff:ffff", "cust@example.com", WRONG).await);
    assert_eq!(login_from(&app, "2001:db8:0:2::1", "cust@example.com", WRONG).await.status, 401);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_client_cannot_choose_its_address_past_a_trusted_proxy(pool: PgPool) {
    let app = TestApp::with(pool, &["--trusted-proxies=127.0.0.1"]);
    let forwarded = async |chain: String| {
        let request = Request::post("/auth/login").header("x-forwarded-for", chain);
        let body = json!({"email": "cust@example.com", "password": WRONG}).to_string();
        app.send(request.body(Body::from(body)).unwrap()).await
    };
    for attempt in 0..20 {
        assert_eq!(forwarded(format!("10.0.0.{attempt}, 203.0.113.9")).await.status, 401);
    }
    assert_throttled(&forwarded("10.9.9.9, 203.0.113.9".to_owned()).await);
    assert_eq!(forwarded("203.0.113.9, 203.0.113.10".to_owned()).await.status, 401);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn turned_off_it_counts_nothing(pool: PgPool) {
    let app = TestApp::with(pool, &["--throttle=off"]);
    for _ in 0..25 {
        assert_eq!(app.try_login("cust@example.com", WRONG).await.status, 401);
    }
    app.register("cust@example.com", "customer").await;
    assert_eq!(app.value::<i64>("SELECT count(*) FROM auth_throttle").await, 0);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_network_has_a_wide_limit_for_all_accounts_together(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register("cust@example.com", "customer").await;
    let limit = app.app.config.throttle.unwrap().login_network;
    assert_eq!((limit.burst, limit.interval), (1000, TimeDelta::seconds(2)));
    // As 999 failures would have left the bucket.
    sqlx::query("INSERT INTO auth_throttle (key, tat) VALUES ($1, $2)")
        .bind(BucketKey::login_network([198, 51, 100, 7].into()).0)
        .bind(app.now() + limit.interval * 999)
        .execute(&app.db)
        .await
        .unwrap();
    // Seconds may pass here, and each gives half an attempt back.
    let mut refused = None;
    for account in 0..20 {
        let answer = login_from(&app, "198.51.100.7", &format!("user{account}@example.com"), WRONG).await;
        if answer.status == 429 {
            refused = Some((account, answer));
            break;
        }
    }
    let (fitted, refused) = refused.expect("a thousand failures and no end");
    assert!(fitted >= 1, "the thousandth did not fit");
    assert_throttled(&refused);
    assert!((1..=2).contains(&refused.retry_after()));
    pair(&login_from(&app, "198.51.100.8", "cust@example.com", PASSWORD).await);
    app.advance(refused.retry_after());
    pair(&login_from(&app, "198.51.100.7", "cust@example.com", PASSWORD).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn the_table_names_neither_accounts_nor_addresses(pool: PgPool) {
    let app = TestApp::new(pool);
    assert_eq!(login_from(&app, "198.51.100.7", "nobody@example.com", WRONG).await.status, 401);
    let keys: Vec<Vec<u8>> = sqlx::query_scalar("SELECT key FROM auth_throttle").fetch_all(&app.db).await.unwrap();
    assert_eq!(keys.len(), 2, "one for account and network, one for the network");
    assert!(keys.iter().all(|key| key.len() == 16));
}
