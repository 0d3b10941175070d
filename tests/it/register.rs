//! `POST /auth/register`: who gets which role, which passwords are taken, and what of it is told and kept.

use auth::domain::throttle;
use chrono::{NaiveDateTime, TimeDelta};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::{Answer, CLOSED, PASSWORD, TestApp, count, together};

async fn register(app: &TestApp, body: Value) -> Answer {
    app.post("/auth/register", body).await
}

async fn register_as(app: &TestApp, access: &str, email: &str, role: &str) -> Answer {
    let body = json!({"email": email, "password": PASSWORD, "role": role});
    app.request_as(axum::http::Method::POST, "/auth/register", access, Some(body)).await
}

#[track_caller]
fn assert_created(answer: &Answer) {
    assert_eq!((answer.status.as_u16(), answer.body.as_str()), (201, r#"{"status":"created"}"#));
    assert_eq!(answer.header("content-type"), Some("application/json"));
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_new_user_is_a_customer_with_a_lower_cased_address_and_an_argon2id_hash(pool: PgPool) {
    let app = TestApp::with(pool, &CLOSED);
    let before = app.now();
    assert_created(&register(&app, json!({"email": "New.User+Tag@Example.COM", "password": PASSWORD, "x": 1})).await);
    let (email, hash, role, created, updated): (String, String, String, NaiveDateTime, NaiveDateTime) =
        sqlx::query_as("SELECT email, password_hash, role, created_at, updated_at FROM users")
            .fetch_one(&app.db)
            .await
            .unwrap();
    assert_eq!((email.as_str(), role.as_str()), ("new.user+tag@example.com", "customer"));
    assert!(hash.starts_with("$argon2id$v=19$m=7168,t=5,p=1$"), "{hash}");
    assert!(!hash.contains(PASSWORD));
    assert!(created == updated && created >= before && created <= app.now());
    assert_eq!(app.value::<i64>("SELECT count(*) FROM sessions").await, 0);
    assert_eq!(app.value::<i64>("SELECT count(*) FROM refresh_tokens").await, 0);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn no_role_a_null_and_an_empty_one_are_customer(pool: PgPool) {
    let app = TestApp::with(pool, &CLOSED);
    for (index, role) in [json!(null), json!(""), json!("customer")].into_iter().enumerate() {
        let email = format!("user{index}@example.com");
        assert_created(&register(&app, json!({"email": email, "password": PASSWORD, "role": role})).await);
    }
    assert_eq!(app.value::<i64>("SELECT count(*) FROM users WHERE role = 'customer'").await, 3);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn anybody_is_admin_in_development(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register("admin@example.com", "admin").await;
    assert_eq!(app.value::<String>("SELECT role FROM users").await, "admin");
    let answer = register(&app, json!({"email": "x@example.com", "password": PASSWORD, "role": "support"})).await;
    answer.assert_detail(403, "Role not open for registration");
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn nobody_is_admin_in_production_by_asking_for_it(pool: PgPool) {
    let app = TestApp::with(pool, &CLOSED);
    let before = app.rows().await;
    for role in ["admin", "Admin", "support", " admin"] {
        let answer = register(&app, json!({"email": "x@example.com", "password": PASSWORD, "role": role})).await;
        answer.assert_detail(403, "Role not open for registration");
    }
    assert_eq!(app.rows().await, before);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn an_administrators_bearer_token_registers_any_role(pool: PgPool) {
    let app = TestApp::with(pool, &CLOSED);
    app.register("boss@example.com", "customer").await;
    app.execute("UPDATE users SET role = 'admin'").await;
    let boss = app.login("boss@example.com").await;
    for (email, role) in [("a@example.com", "admin"), ("b@example.com", "warehouse"), ("c@example.com", "customer")] {
        assert_created(&register_as(&app, &boss.access, email, role).await);
        let query = sqlx::query_scalar::<_, String>("SELECT role FROM users WHERE email = $1").bind(email);
        assert_eq!(query.fetch_one(&app.db).await.unwrap(), role);
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn other_bearer_tokens_open_no_role(pool: PgPool) {
    let app = TestApp::with(pool, &CLOSED);
    let customer = app.customer("cust@example.com").await;
    app.register("boss@example.com", "customer").await;
    app.execute("UPDATE users SET role = 'admin' WHERE email = 'boss@example.com'").await;
    let demoted = app.login("boss@example.com").await;
    app.execute("UPDATE users SET role = 'customer'").await;
    app.register("late@example.com", "customer").await;
    app.execute("UPDATE users SET role = 'admin' WHERE email = 'late@example.com'").await;
    let gone = app.login("late@example.com").await;
    let live = app.login("late@example.com").await;
    assert_eq!(app.logout(&gone.refresh).await.status, 200);
    let before = app.rows().await;
    // A customer's, a former administrator's, one of an ended session, one of the wrong kind, rubbish.
    for token in [&customer.access, &demoted.access, &gone.access, &live.refresh, "rubbish"] {
        register_as(&app, token, "x@example.com", "admin").await.assert_detail(403, "Role not open for registration");
    }
    assert_eq!(app.rows().await, before);
    assert_created(&register_as(&app, &live.access, "x@example.com", "admin").await);
    // A role that is open needs no token, so a bad one does no harm.
    assert_created(&register_as(&app, "rubbish", "y@example.com", "customer").await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_role_has_at_most_32_characters_and_no_nul(pool: PgPool) {
    let app = TestApp::with(pool, &[&format!("--register-open-roles={}", "ü".repeat(32))]);
    let before = app.rows().await;
    for (role, kind) in
        [(json!("r".repeat(33)), "string_too_long"), (json!("a\0b"), "value_error"), (json!(1), "string_type")]
    {
        let answer = register(&app, json!({"email": "x@example.com", "password": PASSWORD, "role": role})).await;
        answer.assert_problems(&[(kind, json!(["body", "role"]))]);
    }
    assert_eq!(app.rows().await, before);
    let role = "ü".repeat(32);
    assert_created(&register(&app, json!({"email": "x@example.com", "password": PASSWORD, "role": role})).await);
    assert_eq!(app.value::<String>("SELECT role FROM users").await, role);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn an_address_is_registered_once_in_any_spelling(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register("cust@example.com", "customer").await;
    app.insert_user("Old@example.com", "x").await;
    for email in
        ["cust@example.com", "CUST@example.com", "Name <cust@EXAMPLE.com>", "old@example.com", "OLD@example.com"]
    {
        let answer = register(&app, json!({"email": email, "password": "another password", "role": "admin"})).await;
        answer.assert_detail(409, "Email already registered");
    }
    assert_eq!(app.value::<i64>("SELECT count(*) FROM users").await, 2);
    assert_eq!(app.value::<i64>("SELECT count(*) FROM users WHERE role = 'admin'").await, 0);
    // The first password is still the one.
    app.login("cust@example.com").await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn of_ten_registrations_of_one_address_at_once_one_succeeds(pool: PgPool) {
    let app = TestApp::with(pool, &["--password-hash-max-wait-ms=60000"]);
    let other = TestApp::with_clock(app.db.clone(), &["--password-hash-max-wait-ms=60000"], app.clock.clone());
    let answers = together((0..10).map(|index| {
        let app = if index % 2 == 0 { app.clone() } else { other.clone() };
        let email = if index % 3 == 0 { "RACE@example.com" } else { "race@example.com" };
        async move { register(&app, json!({"email": email, "password": format!("password {index}")})).await }
    }))
    .await;
    assert_eq!((count(&answers, 201), count(&answers, 409)), (1, 9));
    assert_eq!(app.value::<String>("SELECT string_agg(email, ',') FROM users").await, "race@example.com");
    // The one who was told so owns it.
    let winner = answers.iter().position(|answer| answer.status == 201).unwrap();
    assert_eq!(app.try_login("race@example.com", &format!("password {winner}")).await.status, 200);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_password_has_at_least_8_characters_and_at_most_1024_bytes_without_nul(pool: PgPool) {
    let app = TestApp::new(pool);
    let before = app.rows().await;
    let field = json!(["body", "password"]);
    for (password, kind) in [
        ("seven77".to_owned(), "string_too_short"),
        (String::new(), "string_too_short"),
        ("€".repeat(7), "string_too_short"),
        ("x".repeat(1025), "string_too_long"),
        ("€".repeat(342), "string_too_long"),
        ("12345678\0".to_owned(), "value_error"),
    ] {
        let answer = register(&app, json!({"email": "x@example.com", "password": password})).await;
        answer.assert_problems(&[(kind, field.clone())]);
        assert_eq!(answer.json()["detail"][0]["input"], "**********");
    }
    assert_eq!(app.rows().await, before);
    for (index, password) in ["eight888".to_owned(), "€".repeat(8), "x".repeat(1024)].iter().enumerate() {
        let email = format!("user{index}@example.com");
        assert_created(&register(&app, json!({"email": email, "password": password})).await);
        assert_eq!(app.try_login(&email, password).await.status, 200, "{password}");
        // All of it counts, to the last byte.
        let mut shorter = password.clone();
        shorter.pop();
        app.try_login(&email, &shorter).await.assert_detail(401, "Invalid credentials");
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_password_never_comes_back_whatever_is_wrong_with_the_rest(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register("cust@example.com", "customer").await;
    let secret = "hunter2-hunter2";
    for body in [
        json!({"email": "cust@example.com", "password": secret}),
        json!({"email": "not an address", "password": secret}),
        json!({"password": secret}),
        json!({"email": "x@example.com", "password": [secret]}),
        json!({"email": "x@example.com", "password": {"a": secret}}),
        json!({"email": {"password": secret}, "password": secret, "role": 1}),
        json!(["password", secret]),
        json!({"email": "x@example.com", "password": secret, "role": "king"}),
    ] {
        let answer = register(&app, body.clone()).await;
        assert!(answer.status.is_client_error(), "{body}: {}", answer.status);
        assert!(!answer.body.contains("hunter2"), "{body}: {}", answer.body);
    }
    let form = app.post_raw("/auth/register", Some("text/plain"), format!("password={secret}")).await;
    assert!(form.status == 422 && !form.body.contains("hunter2"), "{}", form.body);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn every_problem_of_a_body_is_listed_and_nothing_is_written(pool: PgPool) {
    let app = TestApp::new(pool);
    let before = app.rows().await;
    let field = |name: &str| json!(["body", name]);
    let missing = |name: &str| ("missing", field(name));
    register(&app, json!({})).await.assert_problems(&[missing("email"), missing("password")]);
    let all = register(&app, json!({"email": "x", "password": "short", "role": 1})).await;
    all.assert_problems(&[
        ("value_error", field("email")),
        ("string_too_short", field("password")),
        ("string_type", field("role")),
    ]);
    app.post_raw("/auth/register", None, "").await.assert_problems(&[("missing", json!(["body"]))]);
    assert_eq!(app.rows().await, before);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn registrations_from_one_network_are_limited_and_the_wait_is_honest(pool: PgPool) {
    let app = TestApp::new(pool);
    let limit = throttle::REGISTER_NETWORK;
    assert_eq!((limit.burst, limit.interval), (500, TimeDelta::seconds(10)));
    // As 499 registrations would have left the bucket.
    let here = throttle::register([127, 0, 0, 1].into()).remove(0).key;
    sqlx::query("INSERT INTO auth_throttle (key, tat) VALUES ($1, $2)")
        .bind(&here)
        .bind(app.now() + limit.interval * 499)
        .execute(&app.db)
        .await
        .unwrap();
    let body = |email: &str| json!({"email": email, "password": PASSWORD});
    assert_created(&register(&app, body("the500th@example.com")).await);
    let before = app.rows().await;
    let refused = register(&app, body("the501st@example.com")).await;
    refused.assert_detail(429, "Too many attempts, try again later");
    assert!((1..=10).contains(&refused.retry_after()), "{}", refused.retry_after());
    // Nor is anybody told then whether an address is taken.
    register(&app, body("the500th@example.com")).await.assert_detail(429, "Too many attempts, try again later");
    assert_eq!(app.rows().await, before);
    assert_created(&app.post_from("198.51.100.7", "/auth/register", body("elsewhere@example.com")).await);
    app.advance(refused.retry_after());
    assert_created(&register(&app, body("the501st@example.com")).await);
    assert_eq!(register(&app, body("the502nd@example.com")).await.status, 429);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn asking_whether_an_address_is_taken_counts_as_a_registration(pool: PgPool) {
    let app = TestApp::new(pool);
    let before = app.now();
    app.register("cust@example.com", "customer").await;
    let answer = register(&app, json!({"email": "cust@example.com", "password": PASSWORD})).await;
    answer.assert_detail(409, "Email already registered");
    let tat: NaiveDateTime = app.value("SELECT tat FROM auth_throttle").await;
    assert!(tat >= before + TimeDelta::seconds(20) && tat <= app.now() + TimeDelta::seconds(20), "{tat}");
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn without_its_database_the_service_is_unavailable(pool: PgPool) {
    let app = TestApp::new(pool);
    app.execute("ALTER TABLE users RENAME TO elsewhere").await;
    let answer = register(&app, json!({"email": "x@example.com", "password": PASSWORD})).await;
    answer.assert_detail(503, "Service unavailable, try again later");
    app.db.close().await;
    let answer = register(&app, json!({"email": "x@example.com", "password": PASSWORD})).await;
    answer.assert_detail(503, "Service unavailable, try again later");
}
