//! The throttle of failed logins: how many, for whom, from where, and for how long.

use auth::domain::email::Email;
use auth::domain::throttle;
use axum::body::Body;
use axum::http::Request;
use chrono::TimeDelta;
use serde_json::json;
use sqlx::PgPool;

use crate::support::{Answer, PASSWORD, TestApp, count, pair, together};

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
    let in_use = async || {
        let query = sqlx::query_scalar("SELECT count(*) FROM auth_throttle WHERE tat > $1").bind(app.now());
        query.fetch_one(&app.db).await.unwrap()
    };
    let registered: i64 = in_use().await;
    app.login("cust@example.com").await;
    assert_eq!(in_use().await, registered);
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
    let limit = throttle::LOGIN_NETWORK;
    assert_eq!((limit.burst, limit.interval), (1000, TimeDelta::seconds(2)));
    // As 999 failures would have left the bucket.
    sqlx::query("INSERT INTO auth_throttle (key, tat) VALUES ($1, $2)")
        .bind(&login_keys("198.51.100.7")[NETWORK])
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
    for ip in ["198.51.100.7", "::ffff:198.51.100.7"] {
        assert_eq!(login_from(&app, ip, "nobody@example.com", WRONG).await.status, 401);
    }
    let keys: Vec<Vec<u8>> = sqlx::query_scalar("SELECT key FROM auth_throttle").fetch_all(&app.db).await.unwrap();
    assert_eq!(keys.len(), 3, "one for account and network, one for each of them alone");
    assert!(keys.iter().all(|key| key.len() == 16));
}

/// Tries at once, all of them before the first is answered.
async fn try_together(app: &TestApp, ips: &[&str], tries: usize, password: &str) -> Vec<Answer> {
    let tries = (0..tries).map(|index| {
        let (app, ip, password) = (app.clone(), ips[index % ips.len()].to_owned(), password.to_owned());
        async move { login_from(&app, &ip, "cust@example.com", &password).await }
    });
    together(tries).await
}

async fn tat(app: &TestApp, key: &[u8]) -> chrono::NaiveDateTime {
    let query = sqlx::query_scalar("SELECT tat FROM auth_throttle WHERE key = $1").bind(key);
    query.fetch_one(&app.db).await.unwrap()
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn of_64_tries_at_once_no_more_are_verified_than_fit(pool: PgPool) {
    for flags in [&["--password-hash-max-wait-ms=60000"][..], &["--password-hash-max-wait-ms=60000", "--batch-size=1"]]
    {
        let app = TestApp::with(pool.clone(), flags);
        app.execute("DELETE FROM auth_throttle").await;
        let replica = TestApp::with_clock(app.db.clone(), flags, app.clock.clone());
        let before = hashes(&app) + hashes(&replica);
        let (here, there) = tokio::join!(
            try_together(&app, &["198.51.100.7"], 32, WRONG),
            try_together(&replica, &["198.51.100.7"], 32, WRONG)
        );
        let answers: Vec<Answer> = here.into_iter().chain(there).collect();
        let verified = count(&answers, 401);
        // Where two batches meet, some may be refused that would have fitted.
        assert!((1..=20).contains(&verified), "{verified}");
        assert_eq!((count(&answers, 429), hashes(&app) + hashes(&replica) - before), (64 - verified, verified as u64));
        let full = app.now() + TimeDelta::minutes(20);
        let tat = tat(&app, &login_keys("198.51.100.7")[ACCOUNT]).await;
        assert!(tat <= full, "{tat} is further ahead than {full}");
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn in_one_batch_as_many_are_verified_as_fit_and_the_others_are_counted_nowhere(pool: PgPool) {
    let app = TestApp::with(pool, &["--password-hash-max-wait-ms=60000"]);
    let mut holder = app.db.begin().await.unwrap();
    sqlx::query("LOCK TABLE auth_throttle").execute(&mut *holder).await.unwrap();
    // As many as there are workers wait for the table; all others are the next batch.
    let first = tokio::spawn({
        let app = app.clone();
        async move { try_together(&app, &["203.0.113.1", "203.0.113.2", "203.0.113.3", "203.0.113.4"], 4, WRONG).await }
    });
    app.until_blocked(1).await;
    let others = tokio::spawn({
        let app = app.clone();
        async move { try_together(&app, &["198.51.100.7"], 64, WRONG).await }
    });
    assert_eq!(app.get("/auth/ready").await.status, 200);
    holder.commit().await.unwrap();
    assert_eq!(count(&first.await.unwrap(), 401), 4);
    let others = others.await.unwrap();
    assert!(count(&others, 401) <= 20);
    for answer in others.iter().filter(|answer| answer.status == 429) {
        assert!((1..=60).contains(&answer.retry_after()), "{}", answer.retry_after());
    }
    let limit = throttle::LOGIN_NETWORK;
    let counted = tat(&app, &login_keys("198.51.100.7")[NETWORK]).await - app.now();
    assert!(counted <= limit.interval * 20, "{counted}");
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn right_passwords_at_once_take_back_what_they_were_counted(pool: PgPool) {
    let app = TestApp::with(pool, &["--password-hash-max-wait-ms=60000"]);
    app.register("cust@example.com", "customer").await;
    for _ in 0..5 {
        let answers = try_together(&app, &["198.51.100.7"], 20, PASSWORD).await;
        assert_eq!(count(&answers, 200), 20);
    }
    let in_use: i64 = sqlx::query_scalar("SELECT count(*) FROM auth_throttle WHERE tat > $1 + interval '10 s'")
        .bind(app.now())
        .fetch_one(&app.db)
        .await
        .unwrap();
    assert_eq!(in_use, 0);
    assert_throttled(&exhaust(&app, "198.51.100.7", "cust@example.com").await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn an_account_tried_from_many_networks_is_closed_to_new_ones_and_open_to_its_own(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register("cust@example.com", "customer").await;
    pair(&login_from(&app, "2001:db8:5::1", "cust@example.com", PASSWORD).await);
    let limit = throttle::LOGIN_ACCOUNT_ELSEWHERE;
    assert_eq!((limit.burst, limit.interval), (60, TimeDelta::seconds(30)));
    let (mut verified, mut refused) = (0, None);
    for attempt in 0..300 {
        // From twenty /64s of one /48.
        let answer = login_from(&app, &format!("2001:db8:0:{:x}::1", attempt % 20), "cust@example.com", WRONG).await;
        match answer.status.as_u16() {
            401 => verified += 1,
            _ => refused = Some(answer),
        }
    }
    // Some come back while this runs.
    assert!((60..=63).contains(&verified), "{verified} of 300");
    let refused = refused.unwrap();
    assert_throttled(&refused);
    assert!((1..=30).contains(&refused.retry_after()), "{}", refused.retry_after());
    assert_throttled(&login_from(&app, "198.51.100.7", "cust@example.com", PASSWORD).await);
    // Another account is not concerned, nor is a network that the account was used from.
    assert_eq!(login_from(&app, "2001:db8:0:3::1", "other@example.com", WRONG).await.status, 401);
    let before = tat(&app, &login_keys("198.51.100.7")[ELSEWHERE]).await;
    assert_eq!(login_from(&app, "2001:db8:5::2", "cust@example.com", WRONG).await.status, 401);
    pair(&login_from(&app, "2001:db8:5:0:ffff::1", "cust@example.com", PASSWORD).await);
    assert_eq!(tat(&app, &login_keys("198.51.100.7")[ELSEWHERE]).await, before);
    app.advance(refused.retry_after());
    pair(&login_from(&app, "198.51.100.7", "cust@example.com", PASSWORD).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_network_that_no_recent_session_is_from_is_new_again(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register("cust@example.com", "customer").await;
    pair(&login_from(&app, "198.51.100.8", "cust@example.com", PASSWORD).await);
    let limit = throttle::LOGIN_ACCOUNT_ELSEWHERE;
    sqlx::query("INSERT INTO auth_throttle (key, tat) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET tat = $2")
        .bind(&login_keys("198.51.100.8")[ELSEWHERE])
        .bind(app.now() + limit.interval * limit.burst + TimeDelta::minutes(1))
        .execute(&app.db)
        .await
        .unwrap();
    pair(&login_from(&app, "198.51.100.8", "cust@example.com", PASSWORD).await);
    // However many there are, a thousand are looked at: otherwise each attempt would cost more than the one before.
    app.execute(
        "INSERT INTO sessions (id, user_id, created_at, last_seen_at, ended_at, end_reason, ip)
         SELECT ('ffffffff-0000-4000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, (SELECT id FROM users),
                now(), now(), now(), 'logout', '203.0.113.9'
         FROM generate_series(1, 1000) AS n",
    )
    .await;
    assert_throttled(&login_from(&app, "198.51.100.8", "cust@example.com", PASSWORD).await);
    pair(&login_from(&app, "203.0.113.9", "cust@example.com", PASSWORD).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_site_has_a_wide_limit_for_all_its_networks_together(pool: PgPool) {
    let app = TestApp::new(pool);
    for (key, limit) in [
        (login_keys("2001:db8:5::")[SITE].clone(), throttle::LOGIN_SITE),
        (throttle::register("2001:db8:5::".parse().unwrap())[1].key.clone(), throttle::REGISTER_SITE),
    ] {
        sqlx::query("INSERT INTO auth_throttle (key, tat) VALUES ($1, $2)")
            .bind(key)
            .bind(app.now() + limit.interval * limit.burst + TimeDelta::minutes(1))
            .execute(&app.db)
            .await
            .unwrap();
    }
    assert_throttled(&login_from(&app, "2001:db8:5:1::1", "cust@example.com", WRONG).await);
    let body = json!({"email": "new@example.com", "password": PASSWORD});
    assert_throttled(&app.post_from("2001:db8:5:2::1", "/auth/register", body.clone()).await);
    assert_eq!(login_from(&app, "2001:db8:6::1", "cust@example.com", WRONG).await.status, 401);
    assert_eq!(app.post_from("2001:db8:6::1", "/auth/register", body).await.status, 201);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn an_impossible_timestamp_refuses_and_fails_nobody_else(pool: PgPool) {
    let app = TestApp::new(pool);
    let key = &login_keys("198.51.100.7")[ACCOUNT];
    for (tat, status) in [("infinity", 429), ("294276-12-31", 429), ("-infinity", 401), ("4713-01-01 BC", 401)] {
        sqlx::query("INSERT INTO auth_throttle (key, tat) VALUES ($1, $2::text::timestamp) ON CONFLICT (key) DO UPDATE SET tat = excluded.tat")
            .bind(key)
            .bind(tat)
            .execute(&app.db)
            .await
            .unwrap();
        for _ in 0..6 {
            assert_eq!(login_from(&app, "198.51.100.7", "cust@example.com", WRONG).await.status, status, "{tat}");
        }
        assert_eq!(login_from(&app, "198.51.100.8", "other@example.com", WRONG).await.status, 401);
    }
}

/// The buckets of a login of cust@example.com: with the account, with the account elsewhere, with the network, with the site.
fn login_keys(client: &str) -> Vec<Vec<u8>> {
    let email = Email::parse("cust@example.com").unwrap();
    throttle::login(&email, client.parse().unwrap()).into_iter().map(|bucket| bucket.key).collect()
}

const ACCOUNT: usize = 0;
const ELSEWHERE: usize = 1;
const NETWORK: usize = 2;
const SITE: usize = 3;
