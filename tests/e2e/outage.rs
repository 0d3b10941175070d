//! What clients see while the database is gone, and after.

use std::time::Duration;

use serde_json::json;

use crate::clients::refresh_through;
use crate::stack::{Database, Service, get, post};

#[tokio::test]
async fn without_its_database_the_service_answers_503_and_no_session_is_lost() {
    let database = Database::create().await;
    let (line, dsn) = database.line().await;
    // What was sent on a connection that broke is in doubt for as long as a request may take.
    let service = Service::start_with(&dsn, &[("REQUEST_TIMEOUT_SECONDS", "5")]).await;
    let account = json!({"email": "cust@example.com", "password": "Cust-pass1"});
    assert_eq!(post(&service.url("/auth/register"), &account).await.status, 201);
    let login = post(&service.url("/auth/login"), &account).await;
    let refresh = json!({"refresh_token": login.text("refresh_token")});
    assert_eq!(get(&service.url("/auth/ready")).await.status, 200);

    line.cut().await;
    let (again, rotated, list, ready, health) = tokio::join!(
        async { post(&service.url("/auth/login"), &account).await },
        async { post(&service.url("/auth/refresh"), &refresh).await },
        async { get(&service.url("/users/")).await },
        async { get(&service.url("/auth/ready")).await },
        async { get(&service.url("/auth/health")).await },
    );
    for answer in [&again, &rotated, &list] {
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(!answer.detail().is_empty(), "{answer:?}");
        let seconds = answer.header("retry-after").and_then(|value| value.parse().ok());
        assert!(seconds.is_some_and(|seconds: u32| seconds >= 1), "{answer:?}");
    }
    assert_eq!(ready.status, 503, "{ready:?}");
    assert!(!ready.detail().is_empty(), "{ready:?}");
    assert_eq!((health.status, health.body), (200, json!({"status": "ok"})));

    line.mend().await;
    let ready = get(&service.url("/auth/ready")).await;
    assert_eq!((ready.status, ready.body), (200, json!({"status": "ok"})));
    let rotated = post(&service.url("/auth/refresh"), &refresh).await;
    assert_eq!(rotated.status, 200, "{rotated:?}");
    assert_eq!(post(&service.url("/auth/login"), &account).await.status, 200);
}

#[tokio::test]
async fn a_line_that_is_cut_behind_a_commit_and_away_for_a_moment_is_noticed_by_nobody() {
    let database = Database::create().await;
    let (line, dsn) = database.line().await;
    let service = Service::start(&dsn).await;
    let account = json!({"email": "cust@example.com", "password": "Cust-pass1"});
    assert_eq!(post(&service.url("/auth/register"), &account).await.status, 201);
    let mut tokens = Vec::new();
    for _ in 0..20 {
        tokens.push(post(&service.url("/auth/login"), &account).await.text("refresh_token"));
    }
    let outage = async {
        line.cut_behind_an_answer().await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        line.mend().await;
    };
    let report = refresh_through(service.address, tokens, true, outage).await;
    assert!(report.others.is_empty(), "{report:?}");
    assert_eq!((report.signed_out, report.not_back), (0, 0), "{report:?}");
    assert!(report.pairs >= 20 && report.slowest > Duration::from_secs(1), "nobody had to wait: {report:?}");
    assert!(report.first_pair <= report.all_back, "{report:?}");
    let mut connection = database.connect().await;
    let sound: bool = sqlx::query_scalar(
        "SELECT bool_and(ended_at IS NULL AND 1 = (
             SELECT count(*) FROM refresh_tokens WHERE session_id = sessions.id AND NOT revoked)) FROM sessions",
    )
    .fetch_one(&mut connection)
    .await
    .expect("the tables are there");
    assert!(sound, "a session has ended, or has not one good token");
}
