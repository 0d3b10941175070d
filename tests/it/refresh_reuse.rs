//! `POST /auth/refresh` with a token that was exchanged before: requests that overlap, a retry within the grace, a
//! retry that comes too late, a thief.

use std::collections::HashSet;

use auth::clock::Clock;
use sqlx::PgPool;

use crate::support::{Answer, Pair, TestApp, count, pair, together};

const REFUSED: &str = "Refresh token not valid";
const GRACE: &str = "--refresh-grace-seconds=10";

/// What requests that overlap must come to: one successor for all of them, in a session that lives.
async fn assert_one_successor(app: &TestApp, answers: &[Answer]) -> Pair {
    assert_eq!(count(answers, 200), answers.len());
    let successors: HashSet<String> = answers.iter().map(|answer| pair(answer).refresh).collect();
    assert_eq!(successors.len(), 1);
    let successor = pair(&answers[0]);
    assert_eq!(app.end_reason(successor.session()).await, None);
    assert_eq!(app.unrevoked(successor.session()).await, 1);
    successor
}

fn outcomes(app: &TestApp, outcome: &str) -> u64 {
    app.app.metrics.refreshes.with_label_values(&[outcome]).get()
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn of_20_or_50_refreshes_of_one_token_at_once_all_get_the_one_successor(pool: PgPool) {
    let app = TestApp::new(pool);
    let mut tokens = app.customer("cust@example.com").await;
    for round in 0..20 {
        let answers = app.refresh_together(&tokens.refresh, if round % 2 == 0 { 20 } else { 50 }).await;
        // Each comes with a good access token.
        for answer in answers.iter().take(3) {
            assert_eq!(app.get_as("/users/me", &pair(answer).access).await.status, 200);
        }
        let successor = assert_one_successor(&app, &answers).await;
        // It is used, and a retry after the answer does not overlap.
        app.refresh(&tokens.refresh).await.assert_refused(REFUSED, None);
        tokens = successor;
    }
    assert_eq!(app.value::<i64>("SELECT count(*) FROM refresh_tokens").await, 21);
    assert_eq!(app.app.metrics.replays_detected.get(), 0);
    assert_eq!((outcomes(&app, "rotated"), outcomes(&app, "overlapped")), (20, 10 * 19 + 10 * 49));
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn so_it_is_across_replicas_and_without_batches(pool: PgPool) {
    let one = TestApp::with_refresh_connections(pool, &["--batch-size=1"], Clock::system(), 8);
    let two = TestApp::with_refresh_connections(one.db.clone(), &[], one.clock.clone(), 4);
    let first = one.customer("cust@example.com").await;
    let mut tokens = first.clone();
    for _ in 0..10 {
        // Both statements are to begin before either is committed.
        let mut holder = one.db.begin().await.unwrap();
        sqlx::query("SELECT FROM refresh_tokens FOR UPDATE").execute(&mut *holder).await.unwrap();
        let refreshes: Vec<_> = (0..20)
            .map(|index| {
                let app = if index % 2 == 0 { one.clone() } else { two.clone() };
                let token = tokens.refresh.clone();
                tokio::spawn(async move { app.refresh(&token).await })
            })
            .collect();
        one.until_blocked(2).await;
        holder.commit().await.unwrap();
        let answers = together(refreshes.into_iter().map(|refresh| async { refresh.await.unwrap() })).await;
        tokens = assert_one_successor(&one, &answers).await;
    }
    assert_eq!(one.value::<i64>("SELECT count(*) FROM refresh_tokens").await, 11);
    for app in [&one, &two] {
        app.refresh(&first.refresh).await.assert_refused(REFUSED, None);
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_request_that_overlaps_one_whose_client_goes_away_is_answered_all_the_same(pool: PgPool) {
    let app = TestApp::new(pool);
    let tokens = app.customer("cust@example.com").await;
    let mut holder = app.db.begin().await.unwrap();
    sqlx::query("SELECT FROM refresh_tokens FOR UPDATE").execute(&mut *holder).await.unwrap();
    let start = || {
        let (app, token) = (app.clone(), tokens.refresh.clone());
        tokio::spawn(async move { app.refresh(&token).await })
    };
    let first = start();
    app.until_blocked(1).await;
    let second = start();
    assert_eq!(app.get("/auth/ready").await.status, 200);
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    holder.commit().await.unwrap();
    assert_one_successor(&app, &[second.await.unwrap()]).await;
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_retry_after_the_answer_is_refused_for_a_minute_and_the_session_lives(pool: PgPool) {
    let app = TestApp::new(pool);
    let first = app.customer("cust@example.com").await;
    let second = pair(&app.refresh(&first.refresh).await);
    let before = app.rows().await;
    for seconds in [0, 5, 54] {
        app.advance(seconds);
        app.refresh(&first.refresh).await.assert_refused(REFUSED, None);
    }
    assert_eq!(app.rows().await, before);
    pair(&app.refresh(&second.refresh).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_token_that_comes_back_later_ends_its_session_and_no_other(pool: PgPool) {
    let app = TestApp::new(pool);
    for (flags, seconds) in [(&[][..], 60), (&[GRACE], 70), (&[], 300)] {
        app.execute("DELETE FROM users").await;
        let app = TestApp::with_clock(app.db.clone(), flags, app.clock.clone());
        let stolen = app.customer("cust@example.com").await;
        let bystander = app.login("cust@example.com").await;
        let successor = pair(&app.refresh(&stolen.refresh).await);
        app.advance(seconds);
        let since = app.now();
        app.refresh(&stolen.refresh).await.assert_refused(REFUSED, Some("replay_detected"));
        let session = stolen.session();
        assert_eq!(app.end_reason(session).await.as_deref(), Some("replay_detected"));
        let ended: chrono::NaiveDateTime = sqlx::query_scalar("SELECT ended_at FROM sessions WHERE id = $1")
            .bind(session)
            .fetch_one(&app.db)
            .await
            .unwrap();
        assert!(ended >= since && ended <= app.now());
        assert_eq!(app.unrevoked(session).await, 0);
        assert_eq!(app.app.metrics.replays_detected.get(), 1);
        // Whoever of the two holds the successor is out, too, with the access token that came with it.
        app.refresh(&successor.refresh).await.assert_refused(REFUSED, Some("replay_detected"));
        app.get_as("/users/me", &successor.access).await.assert_detail(401, "Invalid access token");
        // Once is enough.
        app.refresh(&stolen.refresh).await.assert_refused(REFUSED, Some("replay_detected"));
        assert_eq!(app.app.metrics.replays_detected.get(), 1);
        assert_eq!(app.end_reason(bystander.session()).await, None);
        pair(&app.refresh(&bystander.refresh).await);
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_token_from_early_in_a_long_chain_ends_the_session_just_as_well(pool: PgPool) {
    let app = TestApp::with(pool, &[GRACE]);
    let first = app.customer("cust@example.com").await;
    let mut last = first.clone();
    for _ in 0..5 {
        app.advance(600);
        last = pair(&app.refresh(&last.refresh).await);
    }
    app.refresh(&first.refresh).await.assert_refused(REFUSED, Some("replay_detected"));
    app.refresh(&last.refresh).await.assert_refused(REFUSED, Some("replay_detected"));
    assert_eq!(app.unrevoked(first.session()).await, 0);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_theft_that_many_requests_discover_at_once_is_one_theft(pool: PgPool) {
    let app = TestApp::new(pool);
    let two = TestApp::with_clock(app.db.clone(), &[], app.clock.clone());
    let stolen = app.customer("cust@example.com").await;
    pair(&app.refresh(&stolen.refresh).await);
    app.advance(61);
    let answers = together((0..20).map(|index| {
        let (app, token) = (if index % 2 == 0 { app.clone() } else { two.clone() }, stolen.refresh.clone());
        async move { app.refresh(&token).await }
    }))
    .await;
    for answer in &answers {
        answer.assert_refused(REFUSED, Some("replay_detected"));
    }
    let alarms = [&app, &two].map(|app| app.app.metrics.replays_detected.get());
    assert_eq!(alarms.iter().sum::<u64>(), 1);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn within_the_grace_a_retry_gets_the_identical_successor_and_writes_nothing(pool: PgPool) {
    let app = TestApp::with(pool, &["--refresh-grace-seconds=60"]);
    let first = app.customer("cust@example.com").await;
    let second = pair(&app.refresh(&first.refresh).await);
    let before = app.rows().await;
    app.advance(30);
    let answer = app.refresh(&first.refresh).await;
    assert_eq!(pair(&answer).refresh, second.refresh);
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!((app.rows().await, outcomes(&app, "replayed_answer")), (before, 1));
    // The grace begins with the first use and not with the last retry.
    app.advance(30);
    app.refresh(&first.refresh).await.assert_refused(REFUSED, None);
    app.advance(60);
    app.refresh(&first.refresh).await.assert_refused(REFUSED, Some("replay_detected"));
    app.refresh(&second.refresh).await.assert_refused(REFUSED, Some("replay_detected"));
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn the_grace_answers_the_second_tab_though_the_successor_was_used_already(pool: PgPool) {
    let app = TestApp::with(pool, &[GRACE]);
    let first = app.customer("cust@example.com").await;
    let second = pair(&app.refresh(&first.refresh).await);
    let third = pair(&app.refresh(&second.refresh).await);
    let late = pair(&app.refresh(&first.refresh).await);
    assert_eq!(late.refresh, second.refresh);
    // And so the second tab catches up.
    assert_eq!(pair(&app.refresh(&late.refresh).await).refresh, third.refresh);
    assert_eq!(app.unrevoked(first.session()).await, 1);
    pair(&app.refresh(&third.refresh).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn the_grace_gives_nothing_to_a_session_that_ended_meanwhile(pool: PgPool) {
    let app = TestApp::with(pool, &[GRACE]);
    let first = app.customer("cust@example.com").await;
    let second = pair(&app.refresh(&first.refresh).await);
    assert_eq!(app.logout(&second.refresh).await.status, 200);
    app.refresh(&first.refresh).await.assert_refused(REFUSED, Some("logout"));
    app.refresh(&second.refresh).await.assert_refused(REFUSED, Some("logout"));
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn the_grace_gives_no_token_that_the_store_does_not_know(pool: PgPool) {
    let app = TestApp::with(pool, &[GRACE]);
    let first = app.customer("cust@example.com").await;
    pair(&app.refresh(&first.refresh).await);
    // Signed again it would be another token than the one that was issued.
    app.execute("UPDATE refresh_tokens SET expires_at = expires_at + interval '1 second' WHERE used_at IS NULL").await;
    app.refresh(&first.refresh).await.assert_refused(REFUSED, None);
    // Revoked by the Python service.
    app.execute(
        "UPDATE refresh_tokens SET expires_at = expires_at - interval '1 second', revoked = true WHERE used_at IS NULL",
    )
    .await;
    app.refresh(&first.refresh).await.assert_refused(REFUSED, None);
    app.execute("DELETE FROM refresh_tokens WHERE used_at IS NULL").await;
    app.refresh(&first.refresh).await.assert_refused(REFUSED, None);
    assert_eq!(app.end_reason(first.session()).await, None);
}
