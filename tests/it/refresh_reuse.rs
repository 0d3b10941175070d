//! `POST /auth/refresh` with a token that was exchanged before: a retry within the window, a thief after it.

use auth::clock::Clock;
use sqlx::PgPool;

use crate::support::{Answer, Pair, TestApp, count, pair, together};

const REFUSED: &str = "Refresh token not valid";
const REPLAY: &str = "--refresh-grace-answer=replay";

/// What a round of simultaneous refreshes must come to under `reject`: one pair, which works, in a session that lives.
async fn assert_one_winner(app: &TestApp, answers: &[Answer]) -> Pair {
    assert_eq!((count(answers, 200), count(answers, 401)), (1, answers.len() - 1));
    for answer in answers.iter().filter(|answer| answer.status == 401) {
        answer.assert_refused(REFUSED, None);
    }
    let winner = pair(answers.iter().find(|answer| answer.status == 200).unwrap());
    assert_eq!(app.end_reason(winner.session()).await, None);
    assert_eq!(app.unrevoked(winner.session()).await, 1);
    winner
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn of_20_or_50_refreshes_of_one_token_at_once_exactly_one_succeeds(pool: PgPool) {
    let app = TestApp::new(pool);
    let mut tokens = app.customer("cust@example.com").await;
    for round in 0..20 {
        let answers = app.refresh_together(&tokens.refresh, if round % 2 == 0 { 20 } else { 50 }).await;
        tokens = assert_one_winner(&app, &answers).await;
    }
    assert_eq!(app.value::<i64>("SELECT count(*) FROM refresh_tokens").await, 21);
    assert_eq!(app.app.metrics.replays_detected.get(), 0);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn so_it_is_across_replicas_and_without_batches(pool: PgPool) {
    let one = TestApp::with_refresh_connections(pool, &["--batch-size=1"], Clock::system(), 8);
    let two = TestApp::with_refresh_connections(one.db.clone(), &[], one.clock.clone(), 4);
    let mut tokens = one.customer("cust@example.com").await;
    for _ in 0..10 {
        let answers = together((0..20).map(|index| {
            let app = if index % 2 == 0 { one.clone() } else { two.clone() };
            let token = tokens.refresh.clone();
            async move { app.refresh(&token).await }
        }))
        .await;
        tokens = assert_one_winner(&one, &answers).await;
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_retry_within_the_window_is_turned_away_and_the_session_lives(pool: PgPool) {
    let app = TestApp::new(pool);
    let first = app.customer("cust@example.com").await;
    let second = pair(&app.refresh(&first.refresh).await);
    let before = app.rows().await;
    app.refresh(&first.refresh).await.assert_refused(REFUSED, None);
    app.advance(5);
    app.refresh(&first.refresh).await.assert_refused(REFUSED, None);
    assert_eq!(app.rows().await, before);
    pair(&app.refresh(&second.refresh).await);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_token_that_comes_back_after_the_window_ends_its_session_and_no_other(pool: PgPool) {
    let app = TestApp::new(pool);
    for flags in [&[][..], &[REPLAY]] {
        app.execute("DELETE FROM users").await;
        let app = TestApp::with_clock(app.db.clone(), flags, app.clock.clone());
        let stolen = app.customer("cust@example.com").await;
        let bystander = app.login("cust@example.com").await;
        let successor = pair(&app.refresh(&stolen.refresh).await);
        app.advance(10);
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
    let app = TestApp::with(pool, &[REPLAY]);
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
    let stolen = app.customer("cust@example.com").await;
    pair(&app.refresh(&stolen.refresh).await);
    app.advance(11);
    let answers = app.refresh_together(&stolen.refresh, 20).await;
    for answer in &answers {
        answer.assert_refused(REFUSED, Some("replay_detected"));
    }
    assert_eq!(app.app.metrics.replays_detected.get(), 1);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn replay_gives_everybody_at_once_the_identical_successor(pool: PgPool) {
    let app = TestApp::with(pool, &[REPLAY]);
    let mut tokens = app.customer("cust@example.com").await;
    let session = tokens.session();
    for round in 0..10 {
        let answers = app.refresh_together(&tokens.refresh, if round % 2 == 0 { 20 } else { 50 }).await;
        assert_eq!(count(&answers, 200), answers.len());
        let first = pair(&answers[0]);
        assert!(answers.iter().all(|answer| pair(answer).refresh == first.refresh));
        // Each comes with a good access token.
        for answer in answers.iter().take(3) {
            assert_eq!(app.get_as("/users/me", &pair(answer).access).await.status, 200);
        }
        assert_ne!(first.refresh, tokens.refresh);
        tokens = first;
    }
    assert_eq!(app.value::<i64>("SELECT count(*) FROM refresh_tokens").await, 11);
    assert_eq!((app.end_reason(session).await, app.unrevoked(session).await), (None, 1));
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn replay_answers_within_the_window_only_and_writes_nothing(pool: PgPool) {
    let app = TestApp::with(pool, &[REPLAY, "--refresh-grace-seconds=60"]);
    let first = app.customer("cust@example.com").await;
    let second = pair(&app.refresh(&first.refresh).await);
    let before = app.rows().await;
    app.advance(30);
    let answer = app.refresh(&first.refresh).await;
    assert_eq!(pair(&answer).refresh, second.refresh);
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(app.rows().await, before);
    // The window begins with the first use and not with the last retry.
    app.advance(30);
    app.refresh(&first.refresh).await.assert_refused(REFUSED, Some("replay_detected"));
    app.refresh(&second.refresh).await.assert_refused(REFUSED, Some("replay_detected"));
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn replay_answers_the_second_tab_though_the_successor_was_used_already(pool: PgPool) {
    let app = TestApp::with(pool, &[REPLAY]);
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
async fn replay_gives_nothing_to_a_session_that_ended_meanwhile(pool: PgPool) {
    let app = TestApp::with(pool, &[REPLAY]);
    let first = app.customer("cust@example.com").await;
    let second = pair(&app.refresh(&first.refresh).await);
    assert_eq!(app.logout(&second.refresh).await.status, 200);
    app.refresh(&first.refresh).await.assert_refused(REFUSED, Some("logout"));
    app.refresh(&second.refresh).await.assert_refused(REFUSED, Some("logout"));
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn replay_gives_no_token_that_the_store_does_not_know(pool: PgPool) {
    let app = TestApp::with(pool, &[REPLAY]);
    let first = app.customer("cust@example.com").await;
    pair(&app.refresh(&first.refresh).await);
    // Signed again it would be another token than the one that was issued.
    app.execute("UPDATE refresh_tokens SET expires_at = expires_at + interval '1 second' WHERE used_at IS NULL").await;
    app.refresh(&first.refresh).await.assert_refused(REFUSED, None);
    app.execute("DELETE FROM refresh_tokens WHERE used_at IS NULL").await;
    app.refresh(&first.refresh).await.assert_refused(REFUSED, None);
    assert_eq!(app.end_reason(first.session()).await, None);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn without_a_window_every_reuse_is_a_theft(pool: PgPool) {
    let app = TestApp::with(pool, &[REPLAY, "--refresh-grace-seconds=0"]);
    let first = app.customer("cust@example.com").await;
    pair(&app.refresh(&first.refresh).await);
    app.refresh(&first.refresh).await.assert_refused(REFUSED, Some("replay_detected"));
}
