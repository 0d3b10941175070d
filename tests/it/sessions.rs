//! `GET /auth/sessions` and `DELETE /auth/sessions/{id}`: where somebody is signed in, and ending it.

use axum::body::Body;
use axum::http::{Method, Request};
use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;

use crate::support::{Answer, PASSWORD, Pair, TestApp, pair};

const REFUSED: &str = "Refresh token not valid";

async fn list(app: &TestApp, tokens: &Pair) -> Vec<Value> {
    let answer = app.get_as("/auth/sessions", &tokens.access).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json().as_array().unwrap().clone()
}

async fn end(app: &TestApp, tokens: &Pair, id: impl std::fmt::Display) -> Answer {
    app.request_as(Method::DELETE, &format!("/auth/sessions/{id}"), &tokens.access, None).await
}

fn time(session: &Value, name: &str) -> chrono::DateTime<chrono::Utc> {
    let text = session[name].as_str().unwrap();
    assert!(text.len() == 20 && text.ends_with('Z'), "{text}");
    text.parse().unwrap()
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn the_callers_live_sessions_are_listed_latest_first(pool: PgPool) {
    let app = TestApp::with(pool, &["--trusted-proxies=127.0.0.1"]);
    let stranger = app.customer("stranger@example.com").await;
    app.register("cust@example.com", "customer").await;
    let request = Request::post("/auth/login").header("user-agent", "Phone/1").header("x-forwarded-for", "203.0.113.9");
    let body = json!({"email": "cust@example.com", "password": PASSWORD}).to_string();
    let phone = pair(&app.send(request.body(Body::from(body)).unwrap()).await);
    let opened = app.clock.now();
    app.advance(60);
    let laptop = app.login("cust@example.com").await;
    let sessions = list(&app, &laptop).await;
    assert_eq!(sessions.len(), 2);
    let ids: Vec<_> = sessions.iter().map(|session| session["id"].clone()).collect();
    assert_eq!(ids, [json!(laptop.session()), json!(phone.session())]);
    let keys: Vec<_> = sessions[1].as_object().unwrap().keys().cloned().collect();
    assert_eq!(keys.len(), 6, "{keys:?}");
    let of_phone = &sessions[1];
    assert_eq!(
        (&of_phone["user_agent"], &of_phone["ip"], &of_phone["current"]),
        (&json!("Phone/1"), &json!("203.0.113.9"), &json!(false))
    );
    assert_eq!((&sessions[0]["user_agent"], &sessions[0]["current"]), (&json!(null), &json!(true)));
    assert!((opened - time(of_phone, "created_at")).num_seconds() <= 2);
    assert_eq!(of_phone["created_at"], of_phone["last_seen_at"]);
    assert_eq!(list(&app, &stranger).await.len(), 1);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_refresh_is_a_sign_of_life_without_a_write_to_the_session(pool: PgPool) {
    let app = TestApp::new(pool);
    let idle = app.customer("cust@example.com").await;
    let busy = app.login("cust@example.com").await;
    let rows = app.rows().await["sessions"].clone();
    app.advance(600);
    let busy = pair(&app.refresh(&busy.refresh).await);
    assert_eq!(app.rows().await["sessions"], rows);
    let sessions = list(&app, &busy).await;
    assert_eq!(sessions[0]["id"], json!(busy.session()));
    assert!((time(&sessions[0], "last_seen_at") - time(&sessions[0], "created_at")).num_seconds() >= 600);
    assert_eq!(sessions[1]["last_seen_at"], sessions[1]["created_at"]);
    // Once it is over its row remembers, for the tokens will be gone.
    assert_eq!(app.logout(&busy.refresh).await.status, 200);
    app.advance(60);
    let idle = pair(&app.refresh(&idle.refresh).await);
    assert_eq!(end(&app, &idle, idle.session()).await.status, 204);
    let gaps: Vec<f64> =
        sqlx::query_scalar("SELECT extract(epoch FROM last_seen_at - created_at)::float8 FROM sessions ORDER BY 1")
            .fetch_all(&app.db)
            .await
            .unwrap();
    assert!(gaps[0] >= 600.0 && gaps[1] >= 660.0, "{gaps:?}");
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn what_can_not_refresh_any_more_is_not_listed(pool: PgPool) {
    let app = TestApp::with(pool, &["--refresh-token-expires-days=1"]);
    let ended = app.customer("cust@example.com").await;
    assert_eq!(app.logout(&ended.refresh).await.status, 200);
    app.login("cust@example.com").await;
    app.advance(86_400);
    let tokens = app.login("cust@example.com").await;
    let sessions = list(&app, &tokens).await;
    assert_eq!(sessions.len(), 1);
    assert_eq!(sessions[0]["id"], json!(tokens.session()));
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_hundred_are_on_a_page_unless_asked_otherwise_and_the_link_leads_on(pool: PgPool) {
    let app = TestApp::with(pool, &["--max-sessions-per-user=1000"]);
    app.register("admin@example.com", "admin").await;
    let admin = app.login("admin@example.com").await;
    let mut opened = vec![app.customer("cust@example.com").await];
    for _ in 0..4 {
        opened.push(app.login("cust@example.com").await);
    }
    let tokens = opened.last().unwrap();
    let mut expected: Vec<_> = opened.iter().map(|tokens| json!(tokens.session())).collect();
    expected.reverse();
    for (path, access) in [("/auth/sessions", &tokens.access), ("/users/2/sessions", &admin.access)] {
        let mut found = Vec::new();
        let mut next = Some(format!("{path}?limit=2"));
        while let Some(page) = next.take() {
            let answer = app.get_as(&page, access).await;
            let sessions = answer.json().as_array().unwrap().clone();
            assert!((1..=2).contains(&sessions.len()), "{page}");
            found.extend(sessions.iter().map(|session| session["id"].clone()));
            let link = answer.header("link").map(|link| link.strip_prefix('<').unwrap().to_owned());
            next = link.map(|link| link.strip_suffix(r#">; rel="next""#).unwrap().to_owned());
            assert!(next.as_ref().is_none_or(|next| next.starts_with(&format!("{path}?limit=2&after="))), "{next:?}");
        }
        assert_eq!(found, expected);
        let query = json!(["query", "limit"]);
        app.get_as(&format!("{path}?limit=0"), access).await.assert_problems(&[("greater_than_equal", query.clone())]);
        app.get_as(&format!("{path}?limit=1001"), access).await.assert_problems(&[("less_than_equal", query)]);
        let after = json!(["query", "after"]);
        app.get_as(&format!("{path}?after=x"), access).await.assert_problems(&[("uuid_parsing", after)]);
    }
    app.execute(
        "INSERT INTO sessions (id, user_id, created_at, last_seen_at)
         SELECT gen_random_uuid(), 2, created_at, created_at FROM sessions, generate_series(1, 20)",
    )
    .await;
    app.execute(
        "INSERT INTO refresh_tokens (user_id, jti, token_hash, expires_at, session_id)
         SELECT 2, id::text, 'x', created_at + interval '30 days', id FROM sessions WHERE user_id = 2",
    )
    .await;
    let answer = app.get_as("/auth/sessions", &tokens.access).await;
    assert_eq!(answer.json().as_array().unwrap().len(), 100);
    assert!(answer.header("link").is_some_and(|link| link.contains("?limit=100&after=")), "{answer:?}");
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn another_session_is_ended_from_here(pool: PgPool) {
    let app = TestApp::new(pool);
    let other = app.customer("cust@example.com").await;
    let own = app.login("cust@example.com").await;
    let other = pair(&app.refresh(&other.refresh).await);
    let answer = end(&app, &own, other.session()).await;
    assert_eq!((answer.status.as_u16(), answer.body.as_str()), (204, ""));
    assert_eq!(app.end_reason(other.session()).await.as_deref(), Some("logged_out_elsewhere"));
    assert_eq!(app.unrevoked(other.session()).await, 0);
    app.refresh(&other.refresh).await.assert_refused(REFUSED, Some("logged_out_elsewhere"));
    app.get_as("/auth/sessions", &other.access).await.assert_detail(401, "Invalid access token");
    assert_eq!(list(&app, &own).await.len(), 1);
    end(&app, &own, other.session()).await.assert_detail(404, "Not Found");
    pair(&app.refresh(&own.refresh).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn ending_the_own_session_is_a_log_out(pool: PgPool) {
    let app = TestApp::new(pool);
    let tokens = app.customer("cust@example.com").await;
    assert_eq!(end(&app, &tokens, tokens.session()).await.status, 204);
    app.refresh(&tokens.refresh).await.assert_refused(REFUSED, Some("logout"));
    end(&app, &tokens, tokens.session()).await.assert_detail(401, "Invalid access token");
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn nobody_ends_the_session_of_somebody_else(pool: PgPool) {
    let app = TestApp::new(pool);
    let victim = app.customer("victim@example.com").await;
    let tokens = app.customer("cust@example.com").await;
    app.execute("UPDATE users SET role = 'admin' WHERE email = 'cust@example.com'").await;
    let before = app.rows().await;
    end(&app, &tokens, victim.session()).await.assert_detail(404, "Not Found");
    for id in [Uuid::nil().to_string(), "x".to_owned(), "1".to_owned(), "%00".to_owned(), "%ff".to_owned()] {
        let answer = end(&app, &tokens, &id).await;
        assert!((400..500).contains(&answer.status.as_u16()), "{id}: {}", answer.body);
    }
    let path = format!("/auth/sessions/{}", victim.session());
    let anonymous = Request::delete(path).body(Body::empty()).unwrap();
    app.send(anonymous).await.assert_detail(401, "Not authenticated");
    app.get("/auth/sessions").await.assert_detail(401, "Not authenticated");
    assert_eq!(app.rows().await, before);
    pair(&app.refresh(&victim.refresh).await);
}
