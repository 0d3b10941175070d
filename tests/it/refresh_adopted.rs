//! Refresh tokens from before: those of the Python service, and those signed with a former secret.

use axum::http::Method;
use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;

use crate::support::{SECRET, TestApp, claims, count, pair, session_of, sha256, sign};

const REFUSED: &str = "Refresh token not valid";
const GRACE: &str = "--refresh-grace-seconds=10";
const NEW_SECRET: &str = "--jwt-secret=another secret, which took its place";

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_token_of_the_python_service_refreshes_once_and_gets_a_session(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register("cust@example.com", "customer").await;
    let token = app.python_token("cust@example.com", "4b1c").await;
    assert_eq!(app.value::<i64>("SELECT count(*) FROM sessions").await, 0);
    let tokens = pair(&app.post_from("198.51.100.7", "/auth/refresh", json!({"refresh_token": token})).await);
    let session = tokens.session();
    let (id, user, ip): (Uuid, i64, String) =
        sqlx::query_as("SELECT id, user_id, host(ip) FROM sessions").fetch_one(&app.db).await.unwrap();
    assert_eq!((id, user, ip.as_str()), (session, app.user_id("cust@example.com").await, "198.51.100.7"));
    let both: i64 = sqlx::query_scalar("SELECT count(*) FROM refresh_tokens WHERE session_id = $1")
        .bind(session)
        .fetch_one(&app.db)
        .await
        .unwrap();
    assert_eq!(both, 2, "the old token and its successor");
    assert_eq!(app.get_as("/users/me", &tokens.access).await.status, 200);
    app.refresh(&token).await.assert_refused(REFUSED, None);
    let tokens = pair(&app.refresh(&tokens.refresh).await);
    // From then on it is a token like any other.
    app.advance(61);
    app.refresh(&token).await.assert_refused(REFUSED, Some("replay_detected"));
    app.refresh(&tokens.refresh).await.assert_refused(REFUSED, Some("replay_detected"));
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn twenty_refreshes_of_such_a_token_at_once_open_one_session(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register("cust@example.com", "customer").await;
    let token = app.python_token("cust@example.com", "4b1c").await;
    let answers = app.refresh_together(&token, 20).await;
    assert_eq!(count(&answers, 200), 20);
    let first = pair(&answers[0]).refresh;
    assert!(answers.iter().all(|answer| pair(answer).refresh == first));
    assert_eq!(app.value::<i64>("SELECT count(*) FROM sessions").await, 1);
    pair(&app.refresh(&first).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_token_that_was_rotated_or_logged_out_there_is_refused_without_alarm(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register("cust@example.com", "customer").await;
    let token = app.python_token("cust@example.com", "4b1c").await;
    app.execute("UPDATE refresh_tokens SET revoked = true").await;
    let before = app.rows().await;
    for seconds in [0, 60] {
        app.advance(seconds);
        app.refresh(&token).await.assert_refused(REFUSED, None);
    }
    assert_eq!(app.rows().await, before, "a session was opened, or more");
    assert_eq!(app.app.metrics.replays_detected.get(), 0);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn the_python_service_can_go_on_with_what_was_issued_here(pool: PgPool) {
    let app = TestApp::new(pool);
    let first = app.customer("cust@example.com").await;
    let tokens = pair(&app.refresh(&first.refresh).await);
    // What its refresh looks for (by jti, unrevoked, unexpired, of the user that is the subject), and what it inserts.
    let found: i64 = sqlx::query_scalar(
        "SELECT user_id FROM refresh_tokens WHERE jti = $1 AND NOT revoked AND expires_at > $2 AND token_hash = $3",
    )
    .bind(claims(&tokens.refresh)["jti"].as_str())
    .bind(app.now())
    .bind(sha256(&tokens.refresh))
    .fetch_one(&app.db)
    .await
    .unwrap();
    assert_eq!(found, app.user_id("cust@example.com").await);
    app.execute("UPDATE refresh_tokens SET revoked = true WHERE NOT revoked").await;
    let token = app.python_token("cust@example.com", "4b1c").await;
    app.refresh(&tokens.refresh).await.assert_refused(REFUSED, None);
    pair(&app.refresh(&token).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_former_secret_still_verifies_and_the_new_one_signs(pool: PgPool) {
    let old = TestApp::new(pool);
    let tokens = old.customer("cust@example.com").await;
    let previous = format!("--jwt-secret-previous=one that nobody remembers any more,{SECRET}");
    let new = TestApp::with_clock(old.db.clone(), &[NEW_SECRET, &previous], old.clock.clone());
    assert_eq!(new.get_as("/users/me", &tokens.access).await.status, 200);
    let renewed = pair(&new.refresh(&tokens.refresh).await);
    // The old replica does not know the new secret.
    old.refresh(&renewed.refresh).await.assert_refused("Invalid refresh token", None);
    assert_eq!(old.get_as("/users/me", &renewed.access).await.status, 401);
    let renewed = pair(&new.refresh(&renewed.refresh).await);
    assert_eq!(new.get_as("/users/me", &renewed.access).await.status, 200);
    let tokens = old.login("cust@example.com").await;
    assert_eq!(new.logout(&tokens.refresh).await.status, 200);
    assert_eq!(old.end_reason(tokens.session()).await.as_deref(), Some("logout"));
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_secret_that_was_dropped_verifies_nothing(pool: PgPool) {
    let old = TestApp::new(pool);
    let tokens = old.customer("cust@example.com").await;
    let new = TestApp::with_clock(old.db.clone(), &[NEW_SECRET], old.clock.clone());
    let before = new.rows().await;
    new.refresh(&tokens.refresh).await.assert_refused("Invalid refresh token", None);
    new.logout(&tokens.refresh).await.assert_refused("Invalid refresh token", None);
    new.get_as("/users/me", &tokens.access).await.assert_detail(401, "Invalid access token");
    assert_eq!(new.rows().await, before);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_successor_that_was_signed_before_the_change_is_replayed_identically_after_it(pool: PgPool) {
    let old = TestApp::with(pool, &[GRACE]);
    let first = old.customer("cust@example.com").await;
    let second = pair(&old.refresh(&first.refresh).await);
    let previous = format!("--jwt-secret-previous={SECRET}");
    let new = TestApp::with_clock(old.db.clone(), &[GRACE, NEW_SECRET, &previous], old.clock.clone());
    assert_eq!(pair(&new.refresh(&first.refresh).await).refresh, second.refresh);
    let third = pair(&new.refresh(&second.refresh).await);
    assert_eq!(pair(&new.refresh(&second.refresh).await).refresh, third.refresh);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn the_algorithm_is_configured_and_no_other_is_taken(pool: PgPool) {
    let usual = TestApp::new(pool);
    let long = TestApp::with_clock(usual.db.clone(), &["--jwt-algorithm=HS512", GRACE], usual.clock.clone());
    let tokens = usual.customer("cust@example.com").await;
    let other = long.login("cust@example.com").await;
    for token in [&other.access, &other.refresh] {
        let header = serde_json::to_value(jsonwebtoken::decode_header(token).unwrap()).unwrap();
        assert_eq!(header, json!({"alg": "HS512", "typ": "JWT"}));
        let key = jsonwebtoken::DecodingKey::from_secret(SECRET.as_bytes());
        let validation = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::HS512);
        assert!(jsonwebtoken::decode::<Value>(token, &key, &validation).is_ok());
    }
    for (app, tokens) in [(&usual, &other), (&long, &tokens)] {
        app.refresh(&tokens.refresh).await.assert_refused("Invalid refresh token", None);
        app.get_as("/users/me", &tokens.access).await.assert_detail(401, "Invalid access token");
    }
    let second = pair(&long.refresh(&other.refresh).await);
    assert_eq!(pair(&long.refresh(&other.refresh).await).refresh, second.refresh);
    assert_eq!(session_of(&second.refresh), other.session());
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn an_access_token_without_a_session_opens_nothing(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register("boss@example.com", "admin").await;
    let tokens = app.login("boss@example.com").await;
    // The Python service issued these, and whoever holds the shared secret can, for ever.
    let exp = app.clock.now().timestamp() + 900;
    let token = sign(&json!({"sub": "boss@example.com", "role": "admin", "exp": exp, "type": "access"}), SECRET);
    let session = format!("/auth/sessions/{}", tokens.session());
    for (method, path) in [
        (Method::GET, "/users/me"),
        (Method::GET, "/auth/sessions"),
        (Method::DELETE, session.as_str()),
        (Method::POST, "/auth/password"),
        (Method::GET, "/users/1"),
        (Method::DELETE, "/users/1"),
    ] {
        app.request_as(method, path, &token, None).await.assert_detail(401, "Invalid access token");
    }
    let null = json!({"sub": "boss@example.com", "role": "admin", "exp": exp, "type": "access", "sid": null});
    app.get_as("/users/me", &sign(&null, SECRET)).await.assert_detail(401, "Invalid access token");
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn an_access_token_ends_when_it_expires_and_no_second_later(pool: PgPool) {
    let app = TestApp::new(pool);
    let tokens = app.customer("cust@example.com").await;
    app.advance(890);
    assert_eq!(app.get_as("/users/me", &tokens.access).await.status, 200);
    app.advance(10);
    app.get_as("/users/me", &tokens.access).await.assert_detail(401, "Invalid access token");
}
