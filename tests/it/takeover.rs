//! What the users of the Python service notice when this service has taken over its database, with rows as it leaves them; and
//! that service goes on reading and writing it.

use axum::http::{Method, StatusCode};
use serde_json::json;
use sqlx::{PgPool, Row};

use crate::python_service::{
    ACCOUNTS, CUT, LONG, PYTHON_ADDS_USER, migrate, now, python, python_database, python_issues, python_revokes,
    python_takes, python_token, take_over,
};
use crate::support::{PASSWORD, TestApp, claims, count, pair, sha256, together};

#[sqlx::test(migrations = false)]
async fn accounts_that_differ_in_case_each_sign_in_with_their_own_spelling(db: PgPool) {
    let app = take_over(db, &[]).await;
    for (email, password, _) in &ACCOUNTS[..2] {
        let tokens = pair(&app.try_login(email, password).await);
        assert_eq!(claims(&tokens.access)["sub"], *email);
        assert_eq!(app.get_as("/users/me", &tokens.access).await.json()["email"], *email);
        assert_eq!(claims(&pair(&app.refresh(&tokens.refresh).await).refresh)["sub"], *email);
    }
    // The password of one opens the other in no spelling; a third spelling means the one in lower case.
    app.try_login("Cust@example.com", PASSWORD).await.assert_detail(401, "Invalid credentials");
    app.try_login("cust@example.com", "another one").await.assert_detail(401, "Invalid credentials");
    let tokens = pair(&app.try_login("CUST@Example.com", PASSWORD).await);
    assert_eq!(claims(&tokens.access)["sub"], "cust@example.com");
    let answer = app.post("/auth/register", json!({"email": "CUST@example.com", "password": PASSWORD})).await;
    answer.assert_detail(409, "Email already registered");
    // A password is changed for the one who asks.
    let tokens = pair(&app.try_login("Cust@example.com", "another one").await);
    let body = json!({"current_password": "another one", "new_password": "yet another"});
    pair(&app.request_as(Method::POST, "/auth/password", &tokens.access, Some(body)).await);
    pair(&app.try_login("Cust@example.com", "yet another").await);
    pair(&app.try_login("cust@example.com", PASSWORD).await);
}

#[sqlx::test(migrations = false)]
async fn a_bcrypt_hash_verifies_by_72_bytes_and_is_replaced_at_login(db: PgPool) {
    let app = take_over(db, &[]).await;
    let (cut, long) = (&CUT[..71], &LONG[..71]);
    for (email, wrong) in [("long@example.com", long), ("cut@example.com", cut), ("2y@example.com", "P@ssw0rd")] {
        app.try_login(email, wrong).await.assert_detail(401, "Invalid credentials");
    }
    for (email, password, _) in ACCOUNTS {
        // What bcrypt does not count may be anything.
        let tried = match password {
            LONG => LONG[..72].to_owned(),
            CUT => CUT.replace('é', "ê, and more"),
            _ => password.to_owned(),
        };
        pair(&app.try_login(email, &tried).await);
        let query = "SELECT password_hash, updated_at > created_at FROM users WHERE email = $1";
        let (hash, touched): (String, bool) = sqlx::query_as(query).bind(email).fetch_one(&app.db).await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=7168,t=5,p=1$") && touched, "{email} {hash}");
        // From then on all of the password counts.
        pair(&app.try_login(email, &tried).await);
        app.try_login(email, &format!("{tried}x")).await.assert_detail(401, "Invalid credentials");
    }
}

#[sqlx::test(migrations = false)]
async fn five_logins_at_once_replace_a_hash_once_and_all_succeed(db: PgPool) {
    let app = take_over(db, &[]).await;
    sqlx::raw_sql(
        "CREATE TABLE replaced (hash text);
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN INSERT INTO replaced VALUES (NEW.password_hash); RETURN NEW; END';
         CREATE TRIGGER note AFTER UPDATE OF password_hash ON users FOR EACH ROW EXECUTE FUNCTION note()",
    )
    .execute(&app.db)
    .await
    .unwrap();
    let answers = together((0..5).map(|_| {
        let app = app.clone();
        async move { app.try_login("cust@example.com", PASSWORD).await }
    }))
    .await;
    assert_eq!(count(&answers, 200), 5);
    assert_eq!(app.value::<i64>("SELECT count(*) FROM replaced").await, 1);
    assert_eq!(app.value::<i64>("SELECT count(*) FROM sessions WHERE ended_at IS NULL").await, 5);
    for answer in answers {
        assert_eq!(app.refresh(&pair(&answer).refresh).await.status, 200);
    }
}

#[sqlx::test(migrations = false)]
async fn with_rehashing_off_no_hash_changes(db: PgPool) {
    let app = take_over(db, &["--password-rehash=off"]).await;
    let before = app.rows().await["users"].clone();
    for (email, password, _) in ACCOUNTS {
        pair(&app.try_login(email, password).await);
        pair(&app.try_login(email, password).await);
        app.try_login(email, "wrong").await.assert_detail(401, "Invalid credentials");
    }
    assert_eq!(app.rows().await["users"], before);
}

#[sqlx::test(migrations = false)]
async fn a_hash_that_is_none_is_a_401_like_any_other(db: PgPool) {
    let app = take_over(db, &[]).await;
    let whole = ACCOUNTS[1].2;
    let odd = [
        "",
        " ",
        "!",
        PASSWORD,
        "$2b$",
        "$2b$04$",
        &whole[..59],
        &format!("{whole}x"),
        &whole.replace("$2b$", "$2x$"),
        &whole.replace("$04$", "$99$"),
        &whole.replace("$04$", "$31$"),
        &whole.replace("$04$", "$4$"),
        "$1$c2FsdA$0123456789abcdef",
        "{SSHA}c2FsdA==",
        "pbkdf2:sha256:1$salt$00",
        "$argon2id$",
        "$argon2id$v=19$m=7168",
        "$argon2id$v=19$m=4194304,t=5,p=1$c2FsdHNhbHQ$c2FsdHNhbHRzYWx0c2FsdA",
        "5f4dcc3b5aa765d61d8327deb882cf99",
        "\u{e9}\u{1F600}",
    ];
    for (at, hash) in odd.into_iter().enumerate() {
        let email = format!("odd{at}@example.com");
        app.insert_user(&email, hash).await;
        for password in [PASSWORD, hash, ""] {
            app.try_login(&email, password).await.assert_detail(401, "Invalid credentials");
        }
        let query = "SELECT password_hash FROM users WHERE email = $1";
        let kept: String = sqlx::query_scalar(query).bind(email).fetch_one(&app.db).await.unwrap();
        assert_eq!(kept, hash);
    }
    assert_eq!(app.value::<i64>("SELECT count(*) FROM sessions").await, 0);
}

#[sqlx::test(migrations = false)]
async fn tokens_from_before_the_takeover_go_on(db: PgPool) {
    python_database(&db).await;
    let mut tokens = Vec::new();
    for (jti, days) in [("refreshed", 30), ("loggedout", 30), ("revoked", 30), ("expired", -1), ("other", 30)] {
        tokens.push(python_issues(&db, "Cust@example.com", jti, days).await);
    }
    let [refreshed, logged_out, revoked, expired, other] = tokens.try_into().unwrap();
    python_revokes(&db, "revoked").await;
    migrate(&db).await.unwrap();
    let app = TestApp::new(db);
    let rows = app.rows().await;
    revoked_without_alarm(&app, &revoked).await;
    app.refresh(&expired).await.assert_refused("Invalid refresh token", Some("expired"));
    // The row alone says it, too.
    sqlx::query("UPDATE refresh_tokens SET expires_at = $1 WHERE jti = 'other'")
        .bind(now())
        .execute(&app.db)
        .await
        .unwrap();
    app.refresh(&other).await.assert_refused("Refresh token not valid", None);
    // Genuine, but not the token that the row is of.
    let (forged, _) = python_token("Cust@example.com", "refreshed", 31);
    app.refresh(&forged).await.assert_refused("Refresh token not valid", None);
    let (stranger, _) = python_token("cust@example.com", "refreshed", 30);
    app.refresh(&stranger).await.assert_refused("Refresh token not valid", None);
    assert_eq!(app.rows().await["sessions"], rows["sessions"]);

    let successor = pair(&app.refresh(&refreshed).await);
    assert_eq!(app.value::<i64>("SELECT count(*) FROM sessions").await, 1);
    assert_eq!(claims(&successor.refresh)["sub"], "Cust@example.com");
    assert!(!python_takes(&app.db, &refreshed).await && python_takes(&app.db, &successor.refresh).await);
    app.refresh(&refreshed).await.assert_refused("Refresh token not valid", None);

    for _ in 0..2 {
        assert_eq!(app.logout(&logged_out).await.status, StatusCode::OK);
    }
    assert!(!python_takes(&app.db, &logged_out).await);
    revoked_without_alarm(&app, &logged_out).await;
}

/// Refused, and taken for no theft.
async fn revoked_without_alarm(app: &TestApp, token: &str) {
    let sessions = app.rows().await["sessions"].clone();
    app.advance(60);
    app.refresh(token).await.assert_refused("Refresh token not valid", None);
    assert_eq!(app.rows().await["sessions"], sessions);
    assert_eq!(app.app.metrics.replays_detected.get(), 0);
}

#[sqlx::test(migrations = false)]
async fn what_is_issued_here_works_there(db: PgPool) {
    let app = take_over(db, &[]).await;
    let first = pair(&app.try_login("Cust@example.com", "another one").await);
    assert!(python_takes(&app.db, &first.refresh).await);
    let second = pair(&app.refresh(&first.refresh).await);
    assert!(!python_takes(&app.db, &first.refresh).await && python_takes(&app.db, &second.refresh).await);
    assert_eq!(app.logout(&second.refresh).await.status, 200);
    assert!(!python_takes(&app.db, &second.refresh).await);
    // It compares no hash, but one is there to compare.
    let query = "SELECT count(*) FROM refresh_tokens WHERE token_hash = $1";
    let found: i64 = sqlx::query_scalar(query).bind(sha256(&second.refresh)).fetch_one(&app.db).await.unwrap();
    assert_eq!(found, 1);
    app.register("New@Example.com", "customer").await;
    let third = app.login("new@example.com").await;
    assert!(python_takes(&app.db, &third.refresh).await);
}

#[sqlx::test(migrations = false)]
async fn what_the_python_service_writes_after_the_takeover_works_here(db: PgPool) {
    let app = take_over(db, &[]).await;
    let last: i64 = app.value("SELECT max(id) FROM users").await;
    let insert = python(PYTHON_ADDS_USER).bind("Late@example.com").bind(ACCOUNTS[1].2);
    assert_eq!(insert.fetch_one(&app.db).await.unwrap().get::<i64, _>("id"), last + 1);
    let tokens = pair(&app.try_login("late@example.com", PASSWORD).await);
    assert_eq!(claims(&tokens.access)["sub"], "Late@example.com");
    let token = python_issues(&app.db, "Late@example.com", "late", 30).await;
    let successor = pair(&app.refresh(&token).await);

    // It rotates a token that was issued here: the old one is revoked, the new one has no session yet.
    python_revokes(&app.db, claims(&successor.refresh)["jti"].as_str().unwrap()).await;
    let rotated = python_issues(&app.db, "Late@example.com", "rotated", 30).await;
    revoked_without_alarm(&app, &successor.refresh).await;
    let successor = pair(&app.refresh(&rotated).await);
    assert_eq!(app.get_as("/users/me", &successor.access).await.json()["email"], "Late@example.com");

    // And logs one out.
    python_revokes(&app.db, claims(&successor.refresh)["jti"].as_str().unwrap()).await;
    revoked_without_alarm(&app, &successor.refresh).await;
    let answer = app.post("/auth/register", json!({"email": "late@example.com", "password": PASSWORD})).await;
    answer.assert_detail(409, "Email already registered");
}
