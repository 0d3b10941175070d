//! How many sessions a user may have, and that what is over costs nothing any more.

use auth::db;
use auth::db::batch::BatchedCall;
use auth::db::revocations::Ending;
use auth::db::sessions::NewSession;
use auth::db::sign_out::Except;
use auth::domain::client::ClientInfo;
use auth::domain::ids::{SessionId, UserId};
use auth::domain::mail::Locale;
use auth::domain::password::PasswordHash;
use auth::domain::session::EndReason;
use axum::http::Method;
use serde_json::json;
use sqlx::{PgConnection, PgPool};

use crate::support::{PASSWORD, Pair, TestApp, pair};

const REFUSED: &str = "Refresh token not valid";
const THREE: &str = "--max-sessions-per-user=3";

async fn live(app: &TestApp) -> i64 {
    app.value("SELECT count(*) FROM sessions WHERE ended_at IS NULL").await
}

async fn assert_gave_way(app: &TestApp, tokens: &Pair) {
    assert_eq!(app.end_reason(tokens.session()).await.as_deref(), Some("session_limit"));
    assert_eq!(app.unrevoked(tokens.session()).await, 0);
    app.refresh(&tokens.refresh).await.assert_refused(REFUSED, Some("session_limit"));
    app.get_as("/users/me", &tokens.access).await.assert_detail(401, "Invalid access token");
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn one_login_more_ends_the_oldest_session(pool: PgPool) {
    let app = TestApp::with(pool, &[THREE]);
    let stranger = app.customer("stranger@example.com").await;
    app.register("cust@example.com", "customer").await;
    let mut sessions = Vec::new();
    for _ in 0..3 {
        sessions.push(app.login("cust@example.com").await);
    }
    // That it was used does not make it younger.
    sessions[0] = pair(&app.refresh(&sessions[0].refresh).await);
    assert_eq!(live(&app).await, 4);
    for next in 0..2 {
        sessions.push(app.login("cust@example.com").await);
        assert_gave_way(&app, &sessions[next]).await;
        assert_eq!(live(&app).await, 4);
    }
    for tokens in sessions[2..].iter().chain([&stranger]) {
        pair(&app.refresh(&tokens.refresh).await);
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_hundred_are_the_limit_unless_configured(pool: PgPool) {
    let app = TestApp::new(pool);
    let tokens = app.customer("cust@example.com").await;
    app.execute(
        "INSERT INTO sessions (id, user_id, created_at, last_seen_at)
         SELECT gen_random_uuid(), user_id, created_at, created_at FROM sessions, generate_series(1, 150)",
    )
    .await;
    // What there was before the limit goes with the next login.
    app.login("cust@example.com").await;
    assert_eq!(live(&app).await, 100);
    assert_eq!(tokens.session().get_version_num(), 7);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn the_migration_leaves_the_newest_hundred(pool: PgPool) {
    let app = TestApp::new(pool);
    let stranger = app.customer("stranger@example.com").await;
    let tokens = app.customer("cust@example.com").await;
    app.execute(
        "INSERT INTO sessions (id, user_id, created_at, last_seen_at)
         SELECT ('ffffffff-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, user_id, created_at, created_at
         FROM sessions, generate_series(1, 100) AS n WHERE user_id = 2",
    )
    .await;
    app.execute(include_str!("../../migrations/20260112090100_end_surplus_sessions.sql")).await;
    assert_gave_way(&app, &tokens).await;
    assert_eq!(live(&app).await, 100 + 1);
    pair(&app.refresh(&stranger.refresh).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_lowered_limit_holds_from_the_next_login_on(pool: PgPool) {
    let app = TestApp::new(pool);
    app.customer("cust@example.com").await;
    app.login("cust@example.com").await;
    let app = TestApp::with_clock(app.db.clone(), &["--max-sessions-per-user=1"], app.clock.clone());
    let last = app.login("cust@example.com").await;
    assert_eq!(live(&app).await, 1);
    pair(&app.refresh(&last.refresh).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_token_of_the_python_service_opens_no_session_too_many(pool: PgPool) {
    let app = TestApp::with(pool, &[THREE]);
    let oldest = app.customer("cust@example.com").await;
    for _ in 0..2 {
        app.login("cust@example.com").await;
    }
    let token = app.python_token("cust@example.com", "4b1c").await;
    let opened = pair(&app.refresh(&token).await);
    assert_gave_way(&app, &oldest).await;
    assert_eq!(live(&app).await, 3);
    pair(&app.refresh(&opened.refresh).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_password_change_says_so_to_all_that_it_ends(pool: PgPool) {
    let app = TestApp::with(pool, &["--max-sessions-per-user=1"]);
    let tokens = app.customer("cust@example.com").await;
    let body = json!({"current_password": PASSWORD, "new_password": "a new password"});
    let answer = app.request_as(Method::POST, "/auth/password", &tokens.access, Some(body)).await;
    pair(&answer);
    app.refresh(&tokens.refresh).await.assert_refused(REFUSED, Some("password_changed"));
    assert_eq!(live(&app).await, 1);
}

async fn new_session(app: &TestApp, email: &str) -> NewSession {
    let (id, hash): (i64, String) = sqlx::query_as("SELECT id, password_hash FROM users WHERE email = $1")
        .bind(email)
        .fetch_one(&app.db)
        .await
        .unwrap();
    let session = SessionId::generate();
    NewSession {
        revocations: app.app.revocations.clone(),
        id: session,
        user_id: UserId(id),
        verified: PasswordHash::from_stored(hash),
        replacement: None,
        client: ClientInfo::new(None, [127, 0, 0, 1].into(), Locale::En),
        token: app.app.tokens.issue_refresh(email, session, app.clock.now()).1,
        counted: Vec::new(),
        max_sessions: 3,
        notice: None,
        now: app.clock.now(),
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn logins_in_a_batch_count_together_for_each_user(pool: PgPool) {
    let app = TestApp::with(pool, &[THREE]);
    let old = app.customer("cust@example.com").await;
    let stranger = app.customer("stranger@example.com").await;
    let mut calls = Vec::new();
    for email in ["cust@example.com", "stranger@example.com", "cust@example.com", "cust@example.com"] {
        calls.push(new_session(&app, email).await);
    }
    let calls: Vec<&NewSession> = calls.iter().collect();
    assert_eq!(NewSession::execute(&mut app.db.acquire().await.unwrap(), &calls).await.unwrap(), [true; 4]);
    assert_gave_way(&app, &old).await;
    pair(&app.refresh(&stranger.refresh).await);
    assert_eq!(live(&app).await, 3 + 2);
    // More at once than there may be, of two users: the newest of each stay.
    let mut calls = Vec::new();
    for index in 0..10 {
        calls.push(new_session(&app, ["cust@example.com", "stranger@example.com"][index % 2]).await);
    }
    let all: Vec<&NewSession> = calls.iter().collect();
    assert_eq!(NewSession::execute(&mut app.db.acquire().await.unwrap(), &all).await.unwrap(), [true; 10]);
    for (index, session) in calls.iter().enumerate() {
        assert_eq!(app.end_reason(session.id.0).await.is_none(), index >= 4, "{index}");
    }
    assert_eq!(live(&app).await, 3 + 3);
}

/// A user with a live session of so many used tokens, and as many sessions that have ended.
async fn long_history(app: &TestApp) -> Pair {
    let tokens = app.customer("cust@example.com").await;
    app.execute(
        "INSERT INTO sessions (id, user_id, created_at, last_seen_at, ended_at, end_reason)
         SELECT ('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, user_id, created_at, created_at,
                created_at, 'logout'
         FROM sessions, generate_series(1, 3000) AS n",
    )
    .await;
    app.execute(
        "INSERT INTO refresh_tokens (user_id, jti, token_hash, expires_at, revoked, created_at, session_id, used_at)
         SELECT id, 'x' || n, 'x', created_at + interval '30 days', true, created_at,
                ('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, created_at
         FROM users, generate_series(1, 3000) AS n",
    )
    .await;
    app.execute(
        "INSERT INTO refresh_tokens (user_id, jti, token_hash, expires_at, revoked, created_at, session_id, used_at)
         SELECT user_id, 'y' || n, 'y', expires_at, true, created_at, session_id, created_at
         FROM refresh_tokens, generate_series(1, 3000) AS n WHERE NOT revoked",
    )
    .await;
    let tokens = pair(&app.refresh(&tokens.refresh).await);
    app.execute("ANALYZE").await;
    tokens
}

/// How many rows of the two tables the connection has read.
async fn rows_read(connection: &mut PgConnection) -> i64 {
    sqlx::query_scalar(
        "SELECT sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0))::bigint FROM pg_stat_xact_user_tables
         WHERE relname IN ('sessions', 'refresh_tokens')",
    )
    .fetch_one(connection)
    .await
    .unwrap()
}

/// Asserts that `work` reads few rows, and undoes it.
async fn assert_cheap(app: &TestApp, work: impl AsyncFnOnce(&mut PgConnection)) {
    let mut transaction = app.db.begin().await.unwrap();
    let before = rows_read(&mut transaction).await;
    work(&mut transaction).await;
    let read = rows_read(&mut transaction).await - before;
    assert!(read < 50, "{read} rows");
    transaction.rollback().await.unwrap();
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn what_was_used_or_has_ended_costs_nothing(pool: PgPool) {
    let app = TestApp::new(pool);
    let tokens = long_history(&app).await;
    let claims = app.app.tokens.verify_refresh(&tokens.refresh, app.clock.now()).claims.unwrap();
    let login = new_session(&app, "cust@example.com").await;
    let (user, session, now) = (UserId(1), SessionId(tokens.session()), app.clock.now());
    let ending = Ending::new(&app.app.revocations, EndReason::ByAdmin, now);
    assert_cheap(&app, async |connection| {
        assert_eq!(db::sessions::list_live(connection, user, None, 101, now).await.unwrap().len(), 1);
    })
    .await;
    assert_cheap(&app, async |connection| {
        assert_eq!(db::sessions::list_all(connection, user, None, 11).await.unwrap().len(), 11);
    })
    .await;
    assert_cheap(&app, async |connection| {
        assert_eq!(db::sign_out::end_all(connection, &ending, user, Except::Nothing).await.unwrap(), 1);
    })
    .await;
    assert_cheap(&app, async |connection| {
        assert!(db::sign_out::end_one(connection, &ending, user, session).await.unwrap());
    })
    .await;
    assert_cheap(&app, async |connection| {
        assert_eq!(db::sign_out::log_out(connection, &ending, &claims).await.unwrap(), Some(user));
    })
    .await;
    assert_cheap(&app, async |connection| {
        assert_eq!(NewSession::execute(connection, &[&login]).await.unwrap(), [true]);
    })
    .await;
}
