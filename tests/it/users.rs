//! `GET /users/`: who may see whom, page by page.

use serde_json::json;
use sqlx::PgPool;

use crate::support::{Answer, CLOSED, TestApp};

async fn insert_users(app: &TestApp, count: i64) {
    sqlx::query("INSERT INTO users (email, password_hash) SELECT 'user' || n || '@example.com', 'x' FROM generate_series(1, $1) AS n")
        .bind(count)
        .execute(&app.db)
        .await
        .unwrap();
}

fn ids(answer: &Answer) -> Vec<i64> {
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json().as_array().unwrap().iter().map(|user| user["id"].as_i64().unwrap()).collect()
}

/// The path of the next page.
fn next(answer: &Answer) -> Option<String> {
    let link = answer.header("link")?;
    Some(link.strip_prefix('<').unwrap().strip_suffix(r#">; rel="next""#).unwrap().to_owned())
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn users_are_listed_by_id_with_three_fields_each(pool: PgPool) {
    let app = TestApp::new(pool);
    assert_eq!(app.get("/users/").await.body, "[]");
    app.register("admin@example.com", "admin").await;
    app.register("cust@example.com", "customer").await;
    let answer = app.get("/users/").await;
    assert_eq!(
        answer.body,
        r#"[{"id":1,"email":"admin@example.com","role":"admin"},{"id":2,"email":"cust@example.com","role":"customer"}]"#
    );
    assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, Some("application/json")));
    assert_eq!((answer.header("link"), answer.header("cache-control")), (None, Some("no-store")));
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_hundred_are_on_a_page_unless_asked_otherwise_and_the_link_leads_on(pool: PgPool) {
    let app = TestApp::new(pool);
    insert_users(&app, 250).await;
    let mut path = Some("/users/".to_owned());
    let (mut pages, mut seen) = (Vec::new(), Vec::new());
    while let Some(this) = path {
        let answer = app.get(&this).await;
        pages.push(ids(&answer).len());
        seen.extend(ids(&answer));
        path = next(&answer);
    }
    assert_eq!(pages, [100, 100, 50]);
    assert_eq!(seen, (1..=250).collect::<Vec<_>>());
    assert_eq!(ids(&app.get("/users/?limit=3&after=10").await), [11, 12, 13]);
    assert_eq!(next(&app.get("/users/?limit=3&after=10").await).as_deref(), Some("/users/?limit=3&after=13"));
    // Exactly full, and nothing behind it.
    assert_eq!(next(&app.get("/users/?limit=250").await), None);
    assert_eq!(next(&app.get("/users/?limit=249").await).as_deref(), Some("/users/?limit=249&after=249"));
    assert_eq!(app.get("/users/?after=250").await.body, "[]");
    assert_eq!(ids(&app.get("/users/?limit=1000&after=-5").await).len(), 250);
    // A page stays where it is though its first user goes.
    app.execute("DELETE FROM users WHERE id = 101").await;
    assert_eq!(ids(&app.get("/users/?limit=2&after=100").await), [102, 103]);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn one_user_is_found_by_the_address(pool: PgPool) {
    let app = TestApp::new(pool);
    insert_users(&app, 20).await;
    app.insert_user("a+b@example.com", "x").await;
    assert_eq!(ids(&app.get("/users/?email=user7@example.com").await), [7]);
    assert_eq!(ids(&app.get("/users/?email=user7%40example.com&limit=1").await), [7]);
    assert_eq!(ids(&app.get("/users/?email=a%2Bb@example.com").await), [21]);
    for email in ["user7", "user%25@example.com", "", "'%20OR%20true--", "%00", "%ff"] {
        let answer = app.get(&format!("/users/?email={email}")).await;
        assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, "[]"), "{email}");
    }
    assert_eq!(ids(&app.get("/users/?email=user7@example.com&after=7").await), [0_i64; 0]);
    // Of two the last counts; what is unknown does not.
    assert_eq!(ids(&app.get("/users/?email=x&email=user7@example.com&page=9").await), [7]);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn an_address_is_looked_up_as_at_login(pool: PgPool) {
    let app = TestApp::new(pool);
    insert_users(&app, 3).await;
    // As old databases hold them: 4 and 5 differ in case only, 6 has a capital that `lower()` may not know, 7 one that it does.
    for email in ["Twice@example.com", "twice@example.com", "ÄPFEL@example.com", "Old@example.com"] {
        app.insert_user(email, "x").await;
    }
    for (email, id) in [
        ("USER2@example.com", 2),
        ("Twice@example.com", 4),
        ("twice@example.com", 5),
        ("TWICE@example.com", 5),
        ("%C3%84PFEL@example.com", 6),
        ("old@EXAMPLE.com", 7),
    ] {
        assert_eq!(ids(&app.get(&format!("/users/?email={email}")).await), [id], "{email}");
    }
    assert_eq!(ids(&app.get("/users/?email=TWICE@example.com&after=5").await), [0_i64; 0]);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_limit_is_a_whole_number_from_1_to_1000(pool: PgPool) {
    let app = TestApp::new(pool);
    for (query, kind, name) in [
        ("limit=0", "greater_than_equal", "limit"),
        ("limit=-1", "greater_than_equal", "limit"),
        ("limit=1001", "less_than_equal", "limit"),
        ("limit=x", "int_parsing", "limit"),
        ("limit=", "int_parsing", "limit"),
        ("limit=1.5", "int_parsing", "limit"),
        ("limit=99999999999999999999", "int_parsing", "limit"),
        ("after=x", "int_parsing", "after"),
        ("after=9223372036854775808", "int_parsing", "after"),
    ] {
        app.get(&format!("/users/?{query}")).await.assert_problems(&[(kind, json!(["query", name]))]);
    }
    for query in ["limit=1", "limit=1000", "after=9223372036854775807", "after=-9223372036854775808"] {
        assert_eq!(app.get(&format!("/users/?{query}")).await.status, 200, "{query}");
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn in_production_only_an_administrator_of_today_sees_the_list(pool: PgPool) {
    let app = TestApp::with(pool, &CLOSED);
    let customer = app.customer("cust@example.com").await;
    app.register("boss@example.com", "customer").await;
    app.execute("UPDATE users SET role = 'admin' WHERE email = 'boss@example.com'").await;
    let boss = app.login("boss@example.com").await;
    for path in ["/users/", "/users/?email=cust@example.com", "/users"] {
        app.get(path).await.assert_detail(401, "Not authenticated");
        app.get_as(path, &customer.access).await.assert_detail(403, "Not permitted");
        app.get_as(path, "rubbish").await.assert_detail(401, "Invalid access token");
        app.get_as(path, &boss.refresh).await.assert_detail(401, "Invalid access token");
        assert_eq!(app.get_as(path, &boss.access).await.status, 200);
    }
    // The token still says admin; the row does not.
    app.execute("UPDATE users SET role = 'customer'").await;
    app.get_as("/users/", &boss.access).await.assert_detail(403, "Not permitted");
    app.execute("UPDATE users SET role = 'admin'").await;
    assert_eq!(ids(&app.get_as("/users/", &customer.access).await), [1, 2]);
    assert_eq!(app.logout(&boss.refresh).await.status, 200);
    app.get_as("/users/", &boss.access).await.assert_detail(401, "Invalid access token");
}
