//! Timestamps in the tables that no clock has shown: a person may have written them, or another program.

use sqlx::PgPool;

use crate::support::{TestApp, pair};

const IMPOSSIBLE: [&str; 4] = ["infinity", "-infinity", "294276-12-31 23:59:59", "4713-01-01 00:00:00 BC"];

async fn set(app: &TestApp, columns: &'static str, to: &str) {
    sqlx::query(columns).bind(to).execute(&app.db).await.unwrap();
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_refresh_is_decided_by_whatever_stands_in_the_row(pool: PgPool) {
    let app = TestApp::with(pool, &["--throttle=off"]);
    for moment in IMPOSSIBLE {
        let future = moment == "infinity" || moment.starts_with("29");
        let first = app.customer(&format!("cust{}@example.com", moment.len())).await;
        set(&app, "UPDATE refresh_tokens SET expires_at = $1::text::timestamp", moment).await;
        assert_eq!(app.refresh(&first.refresh).await.status, if future { 200 } else { 401 }, "{moment}");
        set(&app, "UPDATE refresh_tokens SET used_at = $1::text::timestamp WHERE revoked", moment).await;
        // As if it had been used just now, or long ago.
        let status = app.refresh(&first.refresh).await.status.as_u16();
        assert!([200, 401].contains(&status), "{moment}: {status}");
        app.execute("DELETE FROM users").await;
    }
    let tokens = app.customer("cust@example.com").await;
    pair(&app.refresh(&tokens.refresh).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn sessions_and_users_are_shown_all_the_same(pool: PgPool) {
    let app = TestApp::new(pool);
    let tokens = app.customer("cust@example.com").await;
    app.register("admin@example.com", "admin").await;
    let admin = app.login("admin@example.com").await;
    for moment in IMPOSSIBLE {
        set(&app, "UPDATE sessions SET created_at = $1::text::timestamp, last_seen_at = $1::text::timestamp", moment)
            .await;
        set(&app, "UPDATE users SET created_at = $1::text::timestamp", moment).await;
        assert_eq!(app.get_as("/auth/sessions", &tokens.access).await.status, 200, "{moment}");
        assert_eq!(app.get_as("/users/1", &admin.access).await.status, 200, "{moment}");
    }
}
