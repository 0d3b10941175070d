//! The description the service gives of itself, held against the service by thousands of odd requests.

use std::{process::Command, time::Duration};

use serde_json::json;

use crate::stack::{Database, Service, finish, get, installed, post, scratch};

/// What schemathesis may take, in seconds, and what it is given on top to end by itself.
const BUDGET: u64 = 75;
const GRACE: u64 = 90;

#[tokio::test]
async fn no_odd_request_meets_a_failure_or_an_answer_that_is_not_described() {
    let database = Database::create().await;
    let service = Service::start_with(&database.dsn(), &[("THROTTLE", "off")]).await;
    let admin = json!({"email": "admin@example.com", "password": "Adm1n-pass", "role": "admin"});
    assert_eq!(post(&service.url("/auth/register"), &admin).await.status, 201);
    let bearer = post(&service.url("/auth/login"), &admin).await.text("access_token");

    let folder = scratch("schemathesis", "d");
    std::fs::create_dir_all(&folder).expect("target/ takes folders");
    let (code, report, complaint) = finish(
        Command::new(installed("schemathesis"))
            .args(["run", &service.url("/auth/openapi.json")])
            .args(["--phases", "examples,coverage,fuzzing,stateful"])
            .args([
                "--checks",
                "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
            ])
            .args(["--header", &format!("Authorization: Bearer {bearer}")])
            .args(["--max-time", &BUDGET.to_string(), "--request-timeout", "20", "--workers", "2"])
            .args(["--generation-deterministic", "--generation-database", "none"])
            .args(["--suppress-health-check", "all", "--warnings", "off", "--no-color"])
            .current_dir(&folder),
        "",
        Duration::from_secs(BUDGET + GRACE),
    );
    assert_eq!(code, 0, "{report}\n{complaint}");
    // It did reach the service, and left it well.
    let log = service.log();
    let answered = log.lines().filter(|line| line.contains("/auth/register")).count();
    assert!(answered >= 100, "only {answered} requests to register:\n{report}");
    assert_eq!(get(&service.url("/auth/ready")).await.status, 200);
}
