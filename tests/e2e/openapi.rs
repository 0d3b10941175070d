//! The description the service gives of itself: whether it is valid, whether clients can be made of it, and whether
//! thousands of odd requests are answered as it says. What it says of each route is tested in `tests/it/openapi.rs`.

use std::{path::Path, process::Command, time::Duration};

use crate::stack::{Database, Service, finish, get, installed, scratch};

/// What schemathesis may take, in seconds, and what it is given on top to end by itself.
const BUDGET: u64 = 45;
const GRACE: u64 = 90;

#[tokio::test]
async fn no_odd_request_meets_a_failure_or_an_answer_that_is_not_described() {
    let database = Database::create().await;
    let service = Service::start_with(&database.dsn(), &[("THROTTLE", "off")]).await;

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
            // One worker: Python 3.11's `ast`, which it uses, fails now and then in two threads at once.
            .args(["--max-time", &BUDGET.to_string(), "--request-timeout", "20", "--workers", "1"])
            .args(["--generation-deterministic", "--continue-on-failure"])
            .args(["--suppress-health-check", "all", "--warnings", "off", "--no-color"])
            .env("SCHEMATHESIS_HOOKS", Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/odd_requests.py"))
            .current_dir(&folder),
        "",
        Duration::from_secs(BUDGET + GRACE),
    );
    assert_eq!(code, 0, "{report}\n{complaint}");
    // It did reach the service, and left it well.
    let log = service.log();
    for (route, status) in [("/auth/register", 201), ("/auth/login", 200), ("/users/{id}", 200), ("/auth/logout", 422)]
    {
        let (route, status) = (format!("route=\"{route}\""), format!("status={status} "));
        let answered = log.lines().filter(|line| line.contains(&route) && line.contains(&status)).count();
        assert!(answered >= 10, "only {answered} lines with {route} {status}:\n{report}");
    }
    assert_eq!(get(&service.url("/auth/ready")).await.status, 200);
}

#[test]
fn the_description_is_valid_and_gives_a_client_that_typescript_takes() {
    let run = |program: &mut Command| finish(program, "", Duration::from_mins(2));
    let (code, document, _) = run(Command::new(env!("CARGO_BIN_EXE_auth")).arg("openapi"));
    assert_eq!(code, 0);
    let folder = scratch("openapi", "d");
    std::fs::create_dir_all(&folder).expect("target/ takes folders");
    std::fs::write(folder.join("auth.json"), document).expect("target/ takes files");

    let node = |program: &str| {
        let mut node = Command::new(installed("node"));
        node.arg(installed("node").with_file_name("../node_modules").join(program)).current_dir(&folder);
        node
    };
    for program in [
        Command::new(installed("openapi-spec-validator")).args(["--validation-errors", "all", "auth.json"]),
        node("openapi-typescript/bin/cli.js").args(["auth.json", "--output", "auth.ts"]),
        node("typescript/bin/tsc").args(["--noEmit", "--strict", "auth.ts"]),
    ] {
        let (code, report, complaint) = run(program.current_dir(&folder));
        assert_eq!(code, 0, "{program:?}\n{report}\n{complaint}");
    }
}
