//! `POST /auth/refresh`: rotation, and what is refused without an alarm. What becomes of a token that comes back is in
//! `refresh_reuse`, tokens of the Python service and changed secrets in `refresh_adopted`.

use chrono::NaiveDateTime;
use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;

use crate::recorder::Recorder;
use crate::support::{PASSWORD, SECRET, TestApp, claims, count, pair, payload, sha256, sign, together};

const REFUSED: &str = "Refresh token not valid";

#[derive(sqlx::FromRow)]
struct TokenRow {
    jti: String,
    token_hash: String,
    revoked: bool,
    used_at: Option<NaiveDateTime>,
    successor_jti: Option<String>,
    session_id: Uuid,
    expires_at: NaiveDateTime,
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_refresh_token_is_exchanged_for_a_new_pair_of_the_same_session(pool: PgPool) {
    let app = TestApp::new(pool);
    let old = app.customer("cust@example.com").await;
    app.advance(100);
    let (before, since) = (app.clock.now().timestamp(), app.now());
    let answer = app.refresh(&old.refresh).await;
    let new = pair(&answer);
    let after = app.clock.now().timestamp();
    assert_eq!(
        answer.body,
        format!(r#"{{"access_token":"{}","refresh_token":"{}","token_type":"bearer"}}"#, new.access, new.refresh)
    );
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let (access, refresh) = (claims(&new.access), claims(&new.refresh));
    let (session, jti) = (old.session(), refresh["jti"].as_str().unwrap());
    let exp = |claims: &Value| claims["exp"].as_i64().unwrap();
    assert!((before + 900..=after + 900).contains(&exp(&access)));
    assert!((before + 30 * 86_400..=after + 30 * 86_400).contains(&exp(&refresh)));
    assert_eq!(
        payload(&new.access),
        format!(
            r#"{{"sub":"cust@example.com","role":"customer","exp":{},"type":"access","sid":"{session}"}}"#,
            exp(&access)
        )
    );
    assert_eq!(
        payload(&new.refresh),
        format!(
            r#"{{"sub":"cust@example.com","jti":"{jti}","exp":{},"type":"refresh","sid":"{session}"}}"#,
            exp(&refresh)
        )
    );
    let rows: Vec<TokenRow> =
        sqlx::query_as("SELECT * FROM refresh_tokens ORDER BY id").fetch_all(&app.db).await.unwrap();
    let [used, successor] = &rows[..] else { panic!("{} rows", rows.len()) };
    assert_eq!((&used.token_hash, used.revoked, used.session_id), (&sha256(&old.refresh), true, session));
    assert_eq!(used.successor_jti.as_deref(), Some(jti));
    assert!(used.used_at.is_some_and(|used_at| used_at >= since && used_at <= app.now()));
    assert_eq!((successor.jti.as_str(), &successor.token_hash), (jti, &sha256(&new.refresh)));
    assert_eq!((successor.revoked, successor.session_id), (false, session));
    assert_eq!((successor.used_at, &successor.successor_jti), (None, &None));
    assert_eq!(successor.expires_at.and_utc().timestamp(), exp(&refresh));
    assert_eq!(app.value::<i64>("SELECT count(*) FROM sessions WHERE ended_at IS NULL").await, 1);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_chain_of_refreshes_keeps_the_session_alive_past_the_life_of_any_token(pool: PgPool) {
    let app = TestApp::new(pool);
    let mut tokens = app.customer("cust@example.com").await;
    let session = tokens.session();
    for _ in 0..4 {
        app.advance(29 * 86_400);
        tokens = pair(&app.refresh(&tokens.refresh).await);
        assert_eq!(tokens.session(), session);
    }
    assert_eq!(app.get_as("/users/me", &tokens.access).await.status, 200);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn the_new_access_token_has_the_role_of_today(pool: PgPool) {
    let app = TestApp::new(pool);
    let tokens = app.customer("cust@example.com").await;
    app.execute("UPDATE users SET role = 'admin'").await;
    let tokens = pair(&app.refresh(&tokens.refresh).await);
    assert_eq!(claims(&tokens.access)["role"], "admin");
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn an_expired_token_is_refused_to_the_second(pool: PgPool) {
    let app = TestApp::new(pool);
    let tokens = app.customer("cust@example.com").await;
    let before = app.rows().await;
    let left = claims(&tokens.refresh)["exp"].as_i64().unwrap() - app.clock.now().timestamp();
    app.advance(left);
    app.refresh(&tokens.refresh).await.assert_refused("Invalid refresh token", Some("expired"));
    assert_eq!(app.rows().await, before);
    app.advance(-60);
    pair(&app.refresh(&tokens.refresh).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_row_that_says_expired_is_believed(pool: PgPool) {
    let app = TestApp::new(pool);
    let tokens = app.customer("cust@example.com").await;
    sqlx::query("UPDATE refresh_tokens SET expires_at = $1").bind(app.now()).execute(&app.db).await.unwrap();
    let before = app.rows().await;
    app.refresh(&tokens.refresh).await.assert_refused(REFUSED, None);
    assert_eq!(app.rows().await, before);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_token_the_python_service_revoked_is_refused_without_alarm(pool: PgPool) {
    let app = TestApp::new(pool);
    let tokens = app.customer("cust@example.com").await;
    app.execute("UPDATE refresh_tokens SET revoked = true").await;
    app.advance(3600);
    let before = app.rows().await;
    app.refresh(&tokens.refresh).await.assert_refused(REFUSED, None);
    assert_eq!(app.rows().await, before, "the session was ended");
    assert_eq!(app.app.metrics.replays_detected.get(), 0);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn the_tokens_of_an_ended_session_are_refused_with_the_reason(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register("cust@example.com", "customer").await;
    let reasons = [
        "logout", "logged_out_elsewhere", "replay_detected", "password_changed", "by_admin", "expired", "user_deleted",
    ];
    for reason in reasons {
        let used = app.login("cust@example.com").await;
        let live = pair(&app.refresh(&used.refresh).await);
        // The one row that refresh checks; the tokens themselves are left as they are.
        sqlx::query("UPDATE sessions SET ended_at = $1, end_reason = $2 WHERE id = $3")
            .bind(app.now())
            .bind(reason)
            .bind(live.session())
            .execute(&app.db)
            .await
            .unwrap();
        assert_eq!(app.unrevoked(live.session()).await, 1);
        let before = app.rows().await;
        for token in [&live.refresh, &used.refresh] {
            app.refresh(token).await.assert_refused(REFUSED, Some(reason));
        }
        // Only the token itself is told.
        let forged = sign(&claims(&live.refresh), "another secret");
        app.refresh(&forged).await.assert_refused("Invalid refresh token", None);
        assert_eq!(app.rows().await, before);
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_genuine_token_is_refused_unless_row_and_token_agree_on_everything(pool: PgPool) {
    let app = TestApp::new(pool);
    let tokens = app.customer("cust@example.com").await;
    let other = app.login("cust@example.com").await;
    app.register("twin@example.com", "customer").await;
    let twin = app.login("twin@example.com").await;
    let genuine = claims(&tokens.refresh);
    let with = |name: &str, value: Value| {
        let mut claims = genuine.clone();
        claims[name] = value;
        sign(&claims, SECRET)
    };
    // Signed with the right secret, but the row knows another hash.
    let same_jti_other_hash = with("exp", json!(genuine["exp"].as_i64().unwrap() - 1));
    let before = app.rows().await;
    app.refresh(&same_jti_other_hash).await.assert_refused(REFUSED, None);
    app.refresh(&with("jti", json!("0123456789abcdef0123456789abcdef"))).await.assert_refused(REFUSED, None);
    assert_eq!(app.rows().await, before);
    // The hash fits, but it is another user's, or another session's, or no session's.
    let mut no_session = genuine.clone();
    no_session.as_object_mut().unwrap().remove("sid");
    for forged in [
        with("sub", json!("twin@example.com")),
        with("sub", json!("CUST@example.com")),
        with("sid", json!(other.session())),
        with("sid", json!(twin.session())),
        with("sid", json!(Uuid::nil())),
        sign(&no_session, SECRET),
    ] {
        sqlx::query("UPDATE refresh_tokens SET token_hash = $1 WHERE jti = $2")
            .bind(sha256(&forged))
            .bind(genuine["jti"].as_str())
            .execute(&app.db)
            .await
            .unwrap();
        let before = app.rows().await;
        app.refresh(&forged).await.assert_refused(REFUSED, None);
        assert_eq!(app.rows().await, before, "{}", payload(&forged));
    }
    pair(&app.refresh(&other.refresh).await);
    pair(&app.refresh(&twin.refresh).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_token_whose_user_changed_address_or_is_gone_is_refused(pool: PgPool) {
    let app = TestApp::new(pool);
    let tokens = app.customer("cust@example.com").await;
    app.execute("UPDATE users SET email = 'moved@example.com'").await;
    let before = app.rows().await;
    app.refresh(&tokens.refresh).await.assert_refused(REFUSED, None);
    assert_eq!(app.rows().await, before);
    // As the Python service, or a hand, would delete one.
    app.execute("DELETE FROM users").await;
    app.refresh(&tokens.refresh).await.assert_refused(REFUSED, None);
    assert_eq!(app.value::<i64>("SELECT count(*) FROM refresh_tokens").await, 0);
    // Another account of the old name inherits nothing.
    app.register("cust@example.com", "customer").await;
    app.refresh(&tokens.refresh).await.assert_refused(REFUSED, None);
    assert_eq!(app.get_as("/users/me", &tokens.access).await.status, 401);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn many_sessions_refresh_at_once_and_each_gets_its_own(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register("cust@example.com", "customer").await;
    let mut tokens = Vec::new();
    for _ in 0..12 {
        tokens.push(app.login("cust@example.com").await);
    }
    for _ in 0..5 {
        let answers = together(tokens.iter().map(|tokens| {
            let (app, token) = (app.clone(), tokens.refresh.clone());
            async move { app.refresh(&token).await }
        }))
        .await;
        assert_eq!(count(&answers, 200), 12);
        for (old, answer) in tokens.iter_mut().zip(&answers) {
            let new = pair(answer);
            assert_eq!((new.session(), claims(&new.access)["sid"].clone()), (old.session(), json!(old.session())));
            *old = new;
        }
    }
    assert_eq!(app.value::<i64>("SELECT count(*) FROM refresh_tokens WHERE NOT revoked").await, 12);
    assert_eq!(app.value::<i64>("SELECT count(*) FROM refresh_tokens").await, 72);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn without_its_database_the_service_is_unavailable_and_the_token_stays_good(pool: PgPool) {
    let app = TestApp::new(pool);
    let other = TestApp::with_clock(app.db.clone(), &[], app.clock.clone());
    let first = app.customer("cust@example.com").await;
    let tokens = pair(&app.refresh(&first.refresh).await);
    app.refresh_db.close().await;
    for token in [&tokens.refresh, &first.refresh] {
        let answer = app.refresh(token).await;
        answer.assert_detail(503, "Service unavailable, try again later");
        assert_eq!(answer.retry_after(), 2);
    }
    let tokens = pair(&other.refresh(&tokens.refresh).await);
    // The statement decided against it, but why cannot be found out: that is no 401 yet.
    app.db.close().await;
    other.refresh(&first.refresh).await.assert_detail(503, "Service unavailable, try again later");
    // What is no token needs no database.
    app.refresh("rubbish").await.assert_refused("Invalid refresh token", None);
    pair(&other.refresh(&tokens.refresh).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn the_body_is_checked(pool: PgPool) {
    let app = TestApp::new(pool);
    let field = json!(["body", "refresh_token"]);
    app.post("/auth/refresh", json!({})).await.assert_problems(&[("missing", field.clone())]);
    app.post("/auth/refresh", json!({"refresh_token": 1})).await.assert_problems(&[("string_type", field.clone())]);
    app.post("/auth/refresh", json!({"refresh_token": null})).await.assert_problems(&[("string_type", field)]);
    app.refresh("").await.assert_refused("Invalid refresh token", None);
    let answer = app.post("/auth/refresh", json!({"refresh_token": PASSWORD, "more": 1})).await;
    answer.assert_refused("Invalid refresh token", None);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_session_that_refreshes_without_end_is_slowed_and_lives(pool: PgPool) {
    let app = TestApp::new(pool);
    let replica = TestApp::with_clock(app.db.clone(), &[], app.clock.clone());
    let mut tokens = app.customer("cust@example.com").await;
    let other = app.login("cust@example.com").await;
    let mut refreshes = 0;
    let refused = loop {
        let app = if refreshes % 2 == 0 { &app } else { &replica };
        let answer = app.refresh(&tokens.refresh).await;
        if answer.status != 200 {
            break answer;
        }
        tokens = pair(&answer);
        refreshes += 1;
        assert!(refreshes < 100, "a hundred refreshes and no end");
    };
    // Some come back while this runs.
    assert!((60..=65).contains(&refreshes), "{refreshes}");
    refused.assert_detail(429, "Too many attempts, try again later");
    assert!((1..=10).contains(&refused.retry_after()), "{}", refused.retry_after());
    let before = app.rows().await;
    assert_eq!(replica.refresh(&tokens.refresh).await.status, 429);
    assert_eq!(app.rows().await, before);
    pair(&app.refresh(&other.refresh).await);
    let unlimited = TestApp::with_clock(app.db.clone(), &["--throttle=off"], app.clock.clone());
    app.advance(app.refresh(&tokens.refresh).await.retry_after());
    tokens = pair(&app.refresh(&tokens.refresh).await);
    assert_eq!(app.refresh(&tokens.refresh).await.status, 429);
    tokens = pair(&unlimited.refresh(&tokens.refresh).await);
    // In the end all of it comes back.
    app.advance(11 * 60);
    for _ in 0..60 {
        tokens = pair(&app.refresh(&tokens.refresh).await);
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn the_audit_line_of_a_refused_refresh_says_why(pool: PgPool) {
    let app = TestApp::new(pool);
    let recorder = Recorder::start();
    let used = app.customer("cust@example.com").await;
    pair(&app.refresh(&used.refresh).await);
    let ended = app.login("cust@example.com").await;
    app.logout(&ended.refresh).await;
    let revoked = app.python_token("cust@example.com", "4b1c").await;
    app.logout(&revoked).await;
    let unknown = app.python_token("cust@example.com", "77aa").await;
    app.execute("DELETE FROM refresh_tokens WHERE jti = '77aa'").await;
    let expired = app.python_token("cust@example.com", "e0e0").await;
    app.execute("UPDATE refresh_tokens SET expires_at = created_at WHERE jti = 'e0e0'").await;
    let busy = app.login("cust@example.com").await;
    app.execute("UPDATE refresh_tokens SET refresh_tat = created_at + interval '900 seconds' WHERE NOT revoked").await;
    recorder.take_lines();
    for (token, line) in [
        (&used.refresh, "refresh grace_refused used"),
        (&ended.refresh, "refresh refused logout"),
        (&revoked, "refresh refused revoked"),
        (&unknown, "refresh refused unknown"),
        (&expired, "refresh refused expired"),
        (&busy.refresh, "refresh throttled throttled"),
    ] {
        assert_ne!(app.refresh(token).await.status, 200);
        assert_eq!(recorder.take_lines(), [line]);
    }
}
