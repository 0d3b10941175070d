//! Replicas whose hosts disagree on the time.

use auth::clock::Clock;
use auth::service::clock::adjust;
use chrono::TimeDelta;
use sqlx::PgPool;

use crate::support::{TestApp, pair};

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn replicas_whose_clocks_are_15_seconds_apart_agree_and_end_no_session(pool: PgPool) {
    let flags = ["--refresh-grace-seconds=10"];
    let app = TestApp::with(pool, &flags);
    for seconds in [15, -15] {
        let replica = TestApp::with_clock(app.db.clone(), &flags, Clock::system());
        replica.advance(seconds);
        adjust(&replica.app).await.unwrap();
        let apart = replica.clock.now() - app.clock.now();
        assert!(apart.abs() < TimeDelta::seconds(2), "{apart} apart");

        app.execute("DELETE FROM users").await;
        let mut tokens = app.customer("cust@example.com").await;
        for (first, second) in [(&app, &replica), (&replica, &app)] {
            let successor = pair(&first.refresh(&tokens.refresh).await);
            // Within the grace for both.
            assert_eq!(pair(&second.refresh(&tokens.refresh).await).refresh, successor.refresh);
            tokens = successor;
        }
        assert_eq!(app.end_reason(tokens.session()).await, None);
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn clocks_that_differ_by_15_seconds_raise_no_alarm_even_before_they_are_compared(pool: PgPool) {
    let app = TestApp::new(pool);
    let replica = TestApp::with_clock(app.db.clone(), &[], Clock::system());
    replica.advance(15);
    let tokens = app.customer("cust@example.com").await;
    let successor = pair(&app.refresh(&tokens.refresh).await);
    replica.refresh(&tokens.refresh).await.assert_refused("Refresh token not valid", None);
    let last = pair(&replica.refresh(&successor.refresh).await);
    app.refresh(&successor.refresh).await.assert_refused("Refresh token not valid", None);
    pair(&app.refresh(&last.refresh).await);
}
