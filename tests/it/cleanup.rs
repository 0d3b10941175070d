//! Clean-up (`service::cleanup`): what has expired goes, and nothing else.

use auth::service::cleanup::{Depth, Report, clean_up};
use chrono::{NaiveDateTime, TimeDelta};
use sqlx::PgPool;

use crate::support::{TestApp, pair};

const DAY: i64 = 86_400;

async fn clean(app: &TestApp, depth: Depth) -> Option<Report> {
    clean_up(&app.db, app.clock.now(), app.app.config.history.sessions, depth).await.unwrap()
}

async fn count(app: &TestApp, query: &'static str) -> i64 {
    app.value(query).await
}

const TOKENS: &str = "SELECT count(*) FROM refresh_tokens";
const SESSIONS: &str = "SELECT count(*) FROM sessions";

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn what_lives_stays(pool: PgPool) {
    let app = TestApp::with(pool, &["--throttle=off"]);
    let used = app.customer("cust@example.com").await;
    let live = pair(&app.refresh(&used.refresh).await);
    let ended = app.login("cust@example.com").await;
    assert_eq!(app.logout(&ended.refresh).await.status, 200);
    app.python_token("cust@example.com", "4b1c").await;
    let before = app.rows().await;
    for depth in [Depth::Usual, Depth::Full] {
        assert_eq!(clean(&app, depth).await, Some(Report::default()));
    }
    assert_eq!(app.rows().await, before);
    pair(&app.refresh(&live.refresh).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn an_expired_token_goes_and_a_session_whose_last_one_it_was_has_expired(pool: PgPool) {
    let app = TestApp::new(pool);
    let idle = app.customer("cust@example.com").await;
    let used = app.login("cust@example.com").await;
    app.advance(15 * DAY);
    let live = pair(&app.refresh(&used.refresh).await);
    app.advance(15 * DAY);
    let expired_at: NaiveDateTime = sqlx::query_scalar("SELECT expires_at FROM refresh_tokens WHERE session_id = $1")
        .bind(idle.session())
        .fetch_one(&app.db)
        .await
        .unwrap();
    let report = clean(&app, Depth::Usual).await.unwrap();
    assert_eq!((report.tokens, report.sessions), (2, 0));
    assert_eq!(count(&app, TOKENS).await, 1);
    assert_eq!(app.end_reason(idle.session()).await.as_deref(), Some("expired"));
    let ended_at: NaiveDateTime = app.value("SELECT ended_at FROM sessions WHERE end_reason = 'expired'").await;
    assert_eq!(ended_at, expired_at);
    // The other's first token had been used: its successor lives.
    assert_eq!(app.end_reason(live.session()).await, None);
    app.refresh(&idle.refresh).await.assert_refused("Invalid refresh token", Some("expired"));
    pair(&app.refresh(&live.refresh).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_session_that_ended_keeps_its_own_reason_when_its_tokens_expire(pool: PgPool) {
    let app = TestApp::new(pool);
    let tokens = app.customer("cust@example.com").await;
    app.advance(20 * DAY);
    assert_eq!(app.logout(&tokens.refresh).await.status, 200);
    app.advance(10 * DAY);
    assert_eq!(clean(&app, Depth::Usual).await.unwrap().tokens, 1);
    assert_eq!(app.end_reason(tokens.session()).await.as_deref(), Some("logout"));
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn an_ended_session_is_remembered_as_long_as_configured(pool: PgPool) {
    let app = TestApp::with(pool, &["--session-history-days=7", "--throttle=off"]);
    let ended = app.customer("cust@example.com").await;
    app.login("cust@example.com").await;
    assert_eq!(app.logout(&ended.refresh).await.status, 200);
    app.advance(7 * DAY - 60);
    assert_eq!(clean(&app, Depth::Usual).await, Some(Report::default()));
    app.refresh(&ended.refresh).await.assert_refused("Refresh token not valid", Some("logout"));
    app.advance(60);
    assert_eq!(clean(&app, Depth::Usual).await.unwrap().sessions, 1);
    assert_eq!(count(&app, SESSIONS).await, 1);
    // The token is still refused, though nobody remembers why.
    app.refresh(&ended.refresh).await.assert_refused("Refresh token not valid", None);
    let admin = app.get_as("/users/me", &ended.access).await;
    assert_eq!(admin.status, 401);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_locked_row_is_left_for_the_next_time(pool: PgPool) {
    let app = TestApp::new(pool);
    let locked = app.customer("cust@example.com").await;
    app.login("cust@example.com").await;
    app.advance(31 * DAY);
    let mut transaction = app.db.begin().await.unwrap();
    sqlx::query("SELECT FROM refresh_tokens WHERE session_id = $1 FOR UPDATE")
        .bind(locked.session())
        .execute(&mut *transaction)
        .await
        .unwrap();
    assert_eq!(clean(&app, Depth::Usual).await.unwrap().tokens, 1);
    transaction.commit().await.unwrap();
    assert_eq!(app.end_reason(locked.session()).await, None);
    assert_eq!(clean(&app, Depth::Usual).await.unwrap().tokens, 1);
    assert_eq!(app.end_reason(locked.session()).await.as_deref(), Some("expired"));
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn one_replica_cleans_up_at_a_time(pool: PgPool) {
    let app = TestApp::new(pool);
    app.customer("cust@example.com").await;
    app.advance(31 * DAY);
    let mut other = app.db.acquire().await.unwrap();
    assert!(auth::db::cleanup::try_lock(&mut other).await.unwrap());
    assert_eq!(clean(&app, Depth::Usual).await, None);
    assert_eq!(count(&app, TOKENS).await, 1);
    auth::db::cleanup::unlock(&mut other).await.unwrap();
    assert_eq!(clean(&app, Depth::Usual).await.unwrap().tokens, 1);
    // And the lock is free again afterwards.
    assert!(auth::db::cleanup::try_lock(&mut other).await.unwrap());
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn buckets_that_are_full_again_go(pool: PgPool) {
    let app = TestApp::new(pool);
    assert_eq!(app.try_login("nobody@example.com", "not the password").await.status, 401);
    assert_eq!(clean(&app, Depth::Usual).await.unwrap().throttle_buckets, 0);
    // The network's is full again after two seconds, those of the account after thirty and sixty.
    app.advance(31);
    assert_eq!(clean(&app, Depth::Usual).await.unwrap().throttle_buckets, 2);
    app.advance(30);
    assert_eq!(clean(&app, Depth::Usual).await.unwrap().throttle_buckets, 1);
    assert_eq!(count(&app, "SELECT count(*) FROM auth_throttle").await, 0);
    // None is as far ahead as this: somebody's mistake, or a clock that was wrong.
    app.execute("INSERT INTO auth_throttle VALUES ('a', 'infinity'), ('b', now() + interval '3 days')").await;
    assert_eq!(clean(&app, Depth::Usual).await.unwrap().throttle_buckets, 2);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn sessions_of_a_user_whom_somebody_else_deleted_end_and_go(pool: PgPool) {
    let app = TestApp::new(pool);
    let tokens = app.customer("cust@example.com").await;
    // As the Python service would, or a person.
    app.execute("DELETE FROM users").await;
    clean(&app, Depth::Usual).await.unwrap();
    assert_eq!(app.end_reason(tokens.session()).await.as_deref(), Some("user_deleted"));
    app.advance(31 * DAY);
    assert_eq!(clean(&app, Depth::Usual).await.unwrap().sessions, 1);
    assert_eq!(count(&app, SESSIONS).await, 0);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn one_connection_is_enough(pool: PgPool) {
    let one = auth::db::pool(&pool.connect_options(), 1);
    let app = TestApp::new(one);
    assert_eq!(app.try_login("nobody@example.com", "not the password").await.status, 401);
    app.advance(DAY);
    assert_eq!(clean(&app, Depth::Full).await.unwrap().throttle_buckets, 3);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn many_steps_are_taken_and_a_full_search_goes_past_what_lives(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register("cust@example.com", "customer").await;
    let insert = "INSERT INTO refresh_tokens (user_id, jti, token_hash, expires_at)
                  SELECT 1, 'jti' || nextval('refresh_tokens_id_seq'), 'x', $2 FROM generate_series(1, $1)";
    let (past, future) = (app.now() - TimeDelta::days(1), app.now() + TimeDelta::days(1));
    // More than two steps of expired ones, more than a step of live ones, and an expired one behind it.
    for (rows, expires) in [(4500, past), (5500, future), (1, past)] {
        sqlx::query(insert).bind(rows).bind(expires).execute(&app.db).await.unwrap();
    }
    assert_eq!(clean(&app, Depth::Usual).await.unwrap().tokens, 4500);
    assert_eq!(clean(&app, Depth::Full).await.unwrap().tokens, 1);
    assert_eq!(count(&app, TOKENS).await, 5500);
}
