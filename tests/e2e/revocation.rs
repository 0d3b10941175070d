//! Commands end sessions, and running services refuse their access tokens within a second.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::stack::{Database, Service, auth, client, finish, post, send};

/// The status of a verification, and the reason where there is one.
async fn verify(service: &Service, access: &str) -> (u16, Option<String>) {
    let answer = send(client().get(service.url("/auth/verify")).bearer_auth(access)).await;
    (answer.status, answer.header("x-auth-reason").map(str::to_owned))
}

#[tokio::test]
async fn what_a_command_ends_is_refused_by_every_replica_within_a_second() {
    let database = Database::create().await;
    let replicas = [Service::start(&database.dsn()).await, Service::start(&database.dsn()).await];
    let account = json!({"email": "cust@example.com", "password": "Cust-pass1"});
    assert_eq!(post(&replicas[0].url("/auth/register"), &account).await.status, 201);
    for command in [["session", "end"], ["user", "delete"]] {
        let login = post(&replicas[0].url("/auth/login"), &account).await;
        let access = login.text("access_token");
        for replica in &replicas {
            assert_eq!(verify(replica, &access).await, (200, None));
        }
        let mut run = auth();
        run.args(command).args(["--email", "cust@example.com"]).env("POSTGRES_DSN", database.dsn());
        let (code, _, complaint) = finish(&mut run, "", Duration::from_mins(1));
        let ended = Instant::now();
        assert_eq!(code, 0, "{complaint}");
        for replica in &replicas {
            while verify(replica, &access).await != (401, Some("ended".to_owned())) {
                assert!(ended.elapsed() < Duration::from_secs(1), "{command:?}: it is still accepted");
            }
        }
    }
    // A request of the shop is no line of this log.
    assert!(!replicas[0].log().contains("/auth/verify"), "{}", replicas[0].log());
}
