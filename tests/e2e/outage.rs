//! What clients see while the database is gone, and after.

use serde_json::json;

use crate::stack::{Database, Line, Service, get, post};

#[tokio::test]
async fn without_its_database_the_service_answers_503_and_no_session_is_lost() {
    let database = Database::create().await;
    let line = Line::to(database.server_address());
    let service = Service::start(&database.dsn_through(&line)).await;
    let account = json!({"email": "cust@example.com", "password": "Cust-pass1"});
    assert_eq!(post(&service.url("/auth/register"), &account).await.status, 201);
    let login = post(&service.url("/auth/login"), &account).await;
    let refresh = json!({"refresh_token": login.text("refresh_token")});
    assert_eq!(get(&service.url("/auth/ready")).await.status, 200);

    line.cut();
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

    line.mend();
    let ready = get(&service.url("/auth/ready")).await;
    assert_eq!((ready.status, ready.body), (200, json!({"status": "ok"})));
    let rotated = post(&service.url("/auth/refresh"), &refresh).await;
    assert_eq!(rotated.status, 200, "{rotated:?}");
    assert_eq!(post(&service.url("/auth/login"), &account).await.status, 200);
}
