//! `POST /auth/logout`: which sessions end, why, and who may say so.

use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::{Answer, Pair, SECRET, TestApp, claims, pair, sign};

const REFUSED: &str = "Refresh token not valid";

async fn logout(app: &TestApp, tokens: &Pair, scope: Value) -> Answer {
    app.post("/auth/logout", json!({"refresh_token": tokens.refresh, "scope": scope})).await
}

#[track_caller]
fn assert_ok(answer: &Answer) {
    assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, r#"{"status":"ok"}"#));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_log_out_ends_the_session_and_says_so_afterwards(pool: PgPool) {
    let app = TestApp::new(pool);
    let first = app.customer("cust@example.com").await;
    let other = app.login("cust@example.com").await;
    let tokens = pair(&app.refresh(&first.refresh).await);
    let since = app.now();
    assert_ok(&app.logout(&tokens.refresh).await);
    let session = tokens.session();
    assert_eq!(app.end_reason(session).await.as_deref(), Some("logout"));
    assert_eq!(app.unrevoked(session).await, 0);
    let ended: chrono::NaiveDateTime =
        app.value("SELECT ended_at FROM sessions WHERE ended_at IS NOT NULL AND last_seen_at <= ended_at").await;
    assert!(ended >= since && ended <= app.now());
    for token in [&tokens.refresh, &first.refresh] {
        app.refresh(token).await.assert_refused(REFUSED, Some("logout"));
    }
    app.get_as("/users/me", &tokens.access).await.assert_detail(401, "Invalid access token");
    pair(&app.refresh(&other.refresh).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn twice_is_as_good_as_once_and_keeps_the_first_reason(pool: PgPool) {
    let app = TestApp::new(pool);
    let tokens = app.customer("cust@example.com").await;
    assert_ok(&app.logout(&tokens.refresh).await);
    let before = app.rows().await;
    app.advance(60);
    assert_ok(&app.logout(&tokens.refresh).await);
    assert_eq!(app.rows().await, before);
    let tokens = app.login("cust@example.com").await;
    app.execute("UPDATE sessions SET ended_at = created_at, end_reason = 'by_admin' WHERE ended_at IS NULL").await;
    assert_ok(&app.logout(&tokens.refresh).await);
    assert_eq!(app.end_reason(tokens.session()).await.as_deref(), Some("by_admin"));
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_used_token_still_logs_its_session_out(pool: PgPool) {
    let app = TestApp::new(pool);
    let first = app.customer("cust@example.com").await;
    let second = pair(&app.refresh(&first.refresh).await);
    app.advance(3600);
    assert_ok(&app.logout(&first.refresh).await);
    app.refresh(&second.refresh).await.assert_refused(REFUSED, Some("logout"));
    assert_eq!(app.unrevoked(first.session()).await, 0);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn others_ends_all_sessions_but_the_own(pool: PgPool) {
    let app = TestApp::new(pool);
    let stranger = app.customer("stranger@example.com").await;
    let own = app.customer("cust@example.com").await;
    let others = [app.login("cust@example.com").await, app.login("cust@example.com").await];
    let others = [pair(&app.refresh(&others[0].refresh).await), others[1].clone()];
    let sessionless = app.python_token("cust@example.com", "4b1c").await;
    assert_ok(&logout(&app, &own, json!("others")).await);
    for other in &others {
        assert_eq!(app.unrevoked(other.session()).await, 0);
        app.refresh(&other.refresh).await.assert_refused(REFUSED, Some("logged_out_elsewhere"));
        app.get_as("/users/me", &other.access).await.assert_detail(401, "Invalid access token");
    }
    app.refresh(&sessionless).await.assert_refused(REFUSED, None);
    assert_eq!(app.end_reason(own.session()).await, None);
    pair(&app.refresh(&own.refresh).await);
    pair(&app.refresh(&stranger.refresh).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn all_ends_all_sessions_of_the_user_and_nobody_elses(pool: PgPool) {
    let app = TestApp::new(pool);
    let stranger = app.customer("stranger@example.com").await;
    let own = app.customer("cust@example.com").await;
    let other = app.login("cust@example.com").await;
    let sessionless = app.python_token("cust@example.com", "4b1c").await;
    assert_ok(&logout(&app, &own, json!("all")).await);
    app.refresh(&own.refresh).await.assert_refused(REFUSED, Some("logout"));
    app.refresh(&other.refresh).await.assert_refused(REFUSED, Some("logged_out_elsewhere"));
    app.refresh(&sessionless).await.assert_refused(REFUSED, None);
    assert_eq!(app.value::<i64>("SELECT count(*) FROM refresh_tokens WHERE NOT revoked").await, 1);
    pair(&app.refresh(&stranger.refresh).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn more_than_the_own_session_ends_only_on_the_word_of_a_good_token(pool: PgPool) {
    let app = TestApp::new(pool);
    let used = app.customer("cust@example.com").await;
    let live = pair(&app.refresh(&used.refresh).await);
    let revoked = app.login("cust@example.com").await;
    assert_ok(&app.logout(&revoked.refresh).await);
    let before = app.rows().await;
    for scope in ["others", "all"] {
        for tokens in [&used, &revoked] {
            logout(&app, tokens, json!(scope)).await.assert_refused(REFUSED, None);
        }
    }
    assert_eq!(app.rows().await, before);
    assert_eq!(app.end_reason(live.session()).await, None);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn the_scope_is_this_unless_it_is_said_and_one_of_three_words(pool: PgPool) {
    let app = TestApp::new(pool);
    let own = app.customer("cust@example.com").await;
    let other = app.login("cust@example.com").await;
    let before = app.rows().await;
    for scope in [json!("every"), json!(""), json!("All"), json!(1), json!(["all"]), json!(true)] {
        logout(&app, &own, scope).await.assert_problems(&[("literal_error", json!(["body", "scope"]))]);
    }
    let answer = app.post("/auth/logout", json!({"scope": "none"})).await;
    answer
        .assert_problems(&[("missing", json!(["body", "refresh_token"])), ("literal_error", json!(["body", "scope"]))]);
    assert_eq!(app.rows().await, before);
    for (tokens, scope) in [(&own, json!(null)), (&app.login("cust@example.com").await, json!("this"))] {
        assert_ok(&logout(&app, tokens, scope).await);
        assert_eq!(app.end_reason(tokens.session()).await.as_deref(), Some("logout"));
    }
    pair(&app.refresh(&other.refresh).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn what_is_no_good_refresh_token_ends_nothing(pool: PgPool) {
    let app = TestApp::new(pool);
    let tokens = app.customer("cust@example.com").await;
    let before = app.rows().await;
    app.logout(&tokens.access).await.assert_refused("Invalid token type", None);
    app.logout("rubbish").await.assert_refused("Invalid refresh token", None);
    let foreign = sign(&claims(&tokens.refresh), "another secret");
    app.logout(&foreign).await.assert_refused("Invalid refresh token", None);
    app.advance(31 * 86_400);
    app.logout(&tokens.refresh).await.assert_refused("Invalid refresh token", Some("expired"));
    app.advance(-31 * 86_400);
    // Signed by us, but not the token of that row.
    let mut same_jti = claims(&tokens.refresh);
    same_jti["exp"] = json!(same_jti["exp"].as_i64().unwrap() - 1);
    assert_ok(&app.logout(&sign(&same_jti, SECRET)).await);
    assert_eq!(app.rows().await, before);
    pair(&app.refresh(&tokens.refresh).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_good_token_is_enough_though_its_row_or_its_user_is_gone(pool: PgPool) {
    let app = TestApp::new(pool);
    let tokens = app.customer("cust@example.com").await;
    app.execute("DELETE FROM refresh_tokens").await;
    assert_ok(&app.logout(&tokens.refresh).await);
    let tokens = app.login("cust@example.com").await;
    app.execute("DELETE FROM users").await;
    assert_ok(&app.logout(&tokens.refresh).await);
    logout(&app, &tokens, json!("all")).await.assert_refused(REFUSED, None);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_token_of_the_python_service_logs_itself_out(pool: PgPool) {
    let app = TestApp::new(pool);
    let tokens = app.customer("cust@example.com").await;
    let token = app.python_token("cust@example.com", "4b1c").await;
    assert_ok(&app.logout(&token).await);
    app.refresh(&token).await.assert_refused(REFUSED, None);
    assert_eq!(app.value::<i64>("SELECT count(*) FROM refresh_tokens WHERE revoked").await, 1);
    pair(&app.refresh(&tokens.refresh).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn without_its_database_the_service_is_unavailable(pool: PgPool) {
    let app = TestApp::new(pool);
    let tokens = app.customer("cust@example.com").await;
    app.db.close().await;
    for scope in ["this", "others", "all"] {
        let answer = logout(&app, &tokens, json!(scope)).await;
        answer.assert_detail(503, "Service unavailable, try again later");
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_token_whose_successor_no_client_was_told_of_is_good_until_the_successor_is_used(pool: PgPool) {
    let app = TestApp::new(pool);
    let presented = app.customer("cust@example.com").await;
    let successor = pair(&app.refresh(&presented.refresh).await);
    let other = app.login("cust@example.com").await;
    app.execute("UPDATE refresh_tokens SET used_at = NULL").await;
    assert_ok(&logout(&app, &presented, json!("others")).await);
    assert_eq!(app.end_reason(other.session()).await.as_deref(), Some("logged_out_elsewhere"));
    pair(&app.refresh(&successor.refresh).await);
    let before = app.rows().await;
    for scope in ["others", "all"] {
        logout(&app, &presented, json!(scope)).await.assert_refused(REFUSED, None);
    }
    assert_eq!(app.rows().await, before);
}
