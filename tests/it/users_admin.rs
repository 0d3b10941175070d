//! `GET`, `PATCH` and `DELETE /users/{id}`, `GET` and `DELETE /users/{id}/sessions`: what administrators do to users.

use axum::http::Method;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::{Answer, CLOSED, PASSWORD, Pair, TestApp, pair, together};

const REFUSED: &str = "Refresh token not valid";

/// A closed service with an administrator (user 1) and a customer (user 2) who is signed in twice.
struct Scene {
    app: TestApp,
    admin: Pair,
    customer: [Pair; 2],
}

impl Scene {
    async fn new(pool: PgPool) -> Self {
        let app = TestApp::with(pool, &CLOSED);
        app.register("admin@example.com", "customer").await;
        app.execute("UPDATE users SET role = 'admin'").await;
        let admin = app.login("admin@example.com").await;
        let customer = [app.customer("cust@example.com").await, app.login("cust@example.com").await];
        Self { app, admin, customer }
    }

    async fn request(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        self.app.request_as(method, path, &self.admin.access, body).await
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn only_an_administrator_may_and_others_change_nothing(pool: PgPool) {
    let scene = Scene::new(pool).await;
    let app = &scene.app;
    let former = app.customer("former@example.com").await;
    app.execute("UPDATE users SET role = 'admin' WHERE id = 3").await;
    let former = pair(&app.refresh(&former.refresh).await);
    app.execute("UPDATE users SET role = 'customer' WHERE id = 3").await;
    let before = app.rows().await;
    for (method, path, body) in [
        (Method::GET, "/users/2", None),
        (Method::GET, "/users/x", None),
        (Method::PATCH, "/users/2", Some(json!({"role": "admin"}))),
        (Method::PATCH, "/users/2", Some(json!({"role": 1}))),
        (Method::PATCH, "/users/99", Some(json!({"role": "admin"}))),
        (Method::DELETE, "/users/2", None),
        (Method::DELETE, "/users/x", None),
        (Method::GET, "/users/2/sessions", None),
        (Method::DELETE, "/users/2/sessions", None),
    ] {
        for (token, status, sentence) in [
            (&scene.customer[0].access, 403, "Not permitted"),
            (&former.access, 403, "Not permitted"),
            (&scene.admin.refresh, 401, "Invalid access token"),
            (&"rubbish".to_owned(), 401, "Invalid access token"),
            (&String::new(), 401, "Not authenticated"),
        ] {
            app.request_as(method.clone(), path, token, body.clone()).await.assert_detail(status, sentence);
        }
    }
    assert_eq!(app.rows().await, before);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn an_administrator_sees_a_user(pool: PgPool) {
    let scene = Scene::new(pool).await;
    scene.app.execute("UPDATE users SET created_at = '2025-08-23 14:23:55.5' WHERE id = 2").await;
    let answer = scene.request(Method::GET, "/users/2", None).await;
    assert_eq!(
        (answer.status.as_u16(), answer.body.as_str()),
        (
            200,
            concat!(
                r#"{"id":2,"email":"cust@example.com","role":"customer","#,
                r#""created_at":"2025-08-23T14:23:55Z","email_verified":false}"#
            )
        )
    );
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_new_role_is_in_the_row_at_once_and_in_the_next_access_token(pool: PgPool) {
    let scene = Scene::new(pool).await;
    let app = &scene.app;
    let since = app.now();
    let answer = scene.request(Method::PATCH, "/users/2", Some(json!({"role": "admin"}))).await;
    assert_eq!(
        (answer.status.as_u16(), answer.body.as_str()),
        (200, r#"{"id":2,"email":"cust@example.com","role":"admin"}"#)
    );
    let updated: chrono::NaiveDateTime = app.value("SELECT updated_at FROM users WHERE id = 2").await;
    assert!(updated >= since && updated <= app.now());
    assert_eq!(app.get_as("/users/", &scene.customer[0].access).await.status, 200);
    assert_eq!(crate::support::claims(&scene.customer[0].access)["role"], "customer");
    let renewed = pair(&app.refresh(&scene.customer[0].refresh).await);
    assert_eq!(crate::support::claims(&renewed.access)["role"], "admin");
    for (role, stored) in [(json!("r".repeat(32)), "r".repeat(32)), (json!(""), "customer".to_owned())] {
        let answer = scene.request(Method::PATCH, "/users/2", Some(json!({"role": role}))).await;
        assert_eq!(answer.json()["role"], stored.as_str());
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn what_is_no_role_or_no_user_is_refused(pool: PgPool) {
    let scene = Scene::new(pool).await;
    let before = scene.app.rows().await;
    let patch = async |path: &str, body: Value| scene.request(Method::PATCH, path, Some(body)).await;
    let role = json!(["body", "role"]);
    patch("/users/2", json!({})).await.assert_problems(&[("missing", role.clone())]);
    patch("/users/2", json!({"role": null})).await.assert_problems(&[("string_type", role.clone())]);
    patch("/users/2", json!({"role": "r".repeat(33)})).await.assert_problems(&[("string_too_long", role.clone())]);
    patch("/users/2", json!({"role": "a\0"})).await.assert_problems(&[("value_error", role)]);
    for (id, method) in
        [("x", Method::GET), ("x", Method::PATCH), ("1.5", Method::DELETE), ("9223372036854775808", Method::DELETE)]
    {
        let answer = scene.request(method, &format!("/users/{id}"), Some(json!({"role": "admin"}))).await;
        answer.assert_problems(&[("int_parsing", json!(["path", "id"]))]);
    }
    for id in ["99", "0", "-1", "9223372036854775807"] {
        scene.request(Method::GET, &format!("/users/{id}"), None).await.assert_detail(404, "Not Found");
        patch(&format!("/users/{id}"), json!({"role": "admin"})).await.assert_detail(404, "Not Found");
        scene.request(Method::DELETE, &format!("/users/{id}"), None).await.assert_detail(404, "Not Found");
        scene.request(Method::GET, &format!("/users/{id}/sessions"), None).await.assert_detail(404, "Not Found");
        scene.request(Method::DELETE, &format!("/users/{id}/sessions"), None).await.assert_detail(404, "Not Found");
    }
    assert_eq!(scene.app.rows().await, before);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_deleted_user_is_out_everywhere_and_the_reason_stays(pool: PgPool) {
    let scene = Scene::new(pool).await;
    let app = &scene.app;
    let used = scene.customer[0].clone();
    let live = pair(&app.refresh(&used.refresh).await);
    let answer = scene.request(Method::DELETE, "/users/2", None).await;
    assert_eq!((answer.status.as_u16(), answer.body.as_str()), (204, ""));
    assert_eq!(app.value::<i64>("SELECT count(*) FROM users WHERE id = 2").await, 0);
    assert_eq!(app.value::<i64>("SELECT count(*) FROM refresh_tokens WHERE user_id = 2").await, 0);
    assert_eq!(
        app.value::<i64>("SELECT count(*) FROM sessions WHERE user_id IS NULL AND end_reason = 'user_deleted'").await,
        2
    );
    for tokens in [&used, &live, &scene.customer[1]] {
        app.refresh(&tokens.refresh).await.assert_refused(REFUSED, Some("user_deleted"));
        app.get_as("/users/me", &tokens.access).await.assert_detail(401, "Invalid access token");
        assert_eq!(app.logout(&tokens.refresh).await.status, 200);
    }
    app.try_login("cust@example.com", PASSWORD).await.assert_refused("Invalid credentials", None);
    scene.request(Method::DELETE, "/users/2", None).await.assert_detail(404, "Not Found");
    // The address is free again, and its new owner inherits nothing.
    let successor = app.customer("cust@example.com").await;
    app.refresh(&live.refresh).await.assert_refused(REFUSED, Some("user_deleted"));
    assert_eq!(app.get_as("/auth/sessions", &successor.access).await.json().as_array().unwrap().len(), 1);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn an_administrator_sees_a_users_live_sessions(pool: PgPool) {
    let scene = Scene::new(pool).await;
    let app = &scene.app;
    let ids = |answer: &Answer| -> Vec<Value> {
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json().as_array().unwrap().iter().map(|session| session["id"].clone()).collect()
    };
    let [first, second] = scene.customer.each_ref().map(|tokens| json!(tokens.session()));
    let answer = scene.request(Method::GET, "/users/2/sessions", None).await;
    assert_eq!(ids(&answer), [second.clone(), first.clone()]);
    assert!(answer.json().as_array().unwrap().iter().all(|session| session["current"] == false));
    assert_eq!(app.logout(&scene.customer[0].refresh).await.status, 200);
    assert_eq!(ids(&scene.request(Method::GET, "/users/2/sessions", None).await), [second]);
    assert_eq!(app.logout(&scene.customer[1].refresh).await.status, 200);
    assert_eq!(scene.request(Method::GET, "/users/2/sessions", None).await.body, "[]");
    // The own ones, too.
    let own = scene.request(Method::GET, "/users/1/sessions", None).await.json();
    assert_eq!((own[0]["id"].clone(), own[0]["current"].clone()), (json!(scene.admin.session()), json!(true)));
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn an_administrator_signs_a_user_out_everywhere(pool: PgPool) {
    let scene = Scene::new(pool).await;
    let app = &scene.app;
    let sessionless = app.python_token("cust@example.com", "4b1c").await;
    let answer = scene.request(Method::DELETE, "/users/2/sessions", None).await;
    assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, r#"{"ended":2}"#));
    for tokens in &scene.customer {
        assert_eq!(app.end_reason(tokens.session()).await.as_deref(), Some("by_admin"));
        assert_eq!(app.unrevoked(tokens.session()).await, 0);
        app.refresh(&tokens.refresh).await.assert_refused(REFUSED, Some("by_admin"));
        app.get_as("/users/me", &tokens.access).await.assert_detail(401, "Invalid access token");
    }
    app.refresh(&sessionless).await.assert_refused(REFUSED, None);
    assert_eq!(scene.request(Method::DELETE, "/users/2/sessions", None).await.body, r#"{"ended":0}"#);
    // The user is not locked out, and nobody else was meant.
    app.login("cust@example.com").await;
    pair(&app.refresh(&scene.admin.refresh).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn the_last_administrator_stays(pool: PgPool) {
    let scene = Scene::new(pool).await;
    let before = scene.app.rows().await;
    let sentence = "The last administrator cannot be deleted or demoted";
    let demote = Some(json!({"role": "customer"}));
    scene.request(Method::PATCH, "/users/1", demote.clone()).await.assert_detail(409, sentence);
    scene.request(Method::DELETE, "/users/1", None).await.assert_detail(409, sentence);
    assert_eq!(scene.app.rows().await, before);
    assert_eq!(scene.request(Method::PATCH, "/users/1", Some(json!({"role": "admin"}))).await.status, 200);
    assert_eq!(scene.request(Method::PATCH, "/users/2", Some(json!({"role": "admin"}))).await.status, 200);
    assert_eq!(scene.request(Method::PATCH, "/users/1", demote).await.status, 200);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn of_two_last_administrators_who_remove_each_other_at_once_one_stays(pool: PgPool) {
    let scene = Scene::new(pool).await;
    let app = &scene.app;
    for round in 0..10 {
        app.execute("UPDATE users SET role = 'admin'").await;
        let other = app.login("cust@example.com").await;
        let attempts = [(scene.admin.access.clone(), 2), (other.access, 1)].map(|(access, victim)| {
            let app = app.clone();
            async move {
                let body = Some(json!({"role": "customer"}));
                app.request_as(Method::PATCH, &format!("/users/{victim}"), &access, body).await.status.as_u16()
            }
        });
        let outcomes = together(attempts).await;
        assert_eq!(app.value::<i64>("SELECT count(*) FROM users WHERE role = 'admin'").await, 1, "{round}");
        // The one that came too late either was no administrator any more or the last one.
        assert!(
            outcomes.contains(&200) && outcomes.iter().all(|status| [200, 403, 409].contains(status)),
            "{outcomes:?}"
        );
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn what_the_database_refuses_for_good_is_a_conflict(pool: PgPool) {
    let scene = Scene::new(pool).await;
    let app = &scene.app;
    app.execute("CREATE TABLE orders (user_id bigint REFERENCES users (id))").await;
    app.execute("INSERT INTO orders VALUES (2)").await;
    app.execute("ALTER TABLE users ADD CONSTRAINT no_staff CHECK (role <> 'staff')").await;
    let before = app.rows().await;
    let referenced = scene.request(Method::DELETE, "/users/2", None).await;
    referenced.assert_detail(409, "Other data still refers to this user");
    let refused = scene.request(Method::PATCH, "/users/2", Some(json!({"role": "staff"}))).await;
    refused.assert_detail(409, "The database refuses this change");
    assert_eq!(app.rows().await, before);
    app.execute("DELETE FROM orders").await;
    assert_eq!(scene.request(Method::DELETE, "/users/2", None).await.status, 204);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_deletion_that_was_broken_off_by_a_deadlock_is_done_again(pool: PgPool) {
    let scene = Scene::new(pool).await;
    let app = &scene.app;
    app.execute("CREATE SEQUENCE attempts").await;
    app.execute(
        "CREATE FUNCTION break_off() RETURNS trigger LANGUAGE plpgsql AS
         'BEGIN IF nextval(''attempts'') < 3 THEN RAISE ''deadlock'' USING ERRCODE = ''40P01''; END IF; RETURN OLD; END'",
    )
    .await;
    app.execute("CREATE TRIGGER break_off BEFORE DELETE ON users FOR EACH ROW EXECUTE FUNCTION break_off()").await;
    assert_eq!(scene.request(Method::DELETE, "/users/2", None).await.status, 204);
    app.refresh(&scene.customer[0].refresh).await.assert_refused(REFUSED, Some("user_deleted"));
}
