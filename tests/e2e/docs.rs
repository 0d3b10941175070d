//! The page on which the API can be tried, in a real browser and through the gateway. `docs.cjs` is the person.

use std::{path::Path, process::Command, time::Duration};

use serde_json::{Value, json};

use crate::stack::{Database, Gateway, Service, finish, installed, post, scratch};

#[tokio::test]
async fn a_person_signs_in_and_lists_users_on_the_docs_page() {
    let database = Database::create().await;
    let settings = [("API_DOCS", "on"), ("USERS_LIST_ACCESS", "admin")];
    let service = Service::start_with(&database.dsn(), &settings).await;
    let gateway = Gateway::start_with_rule(&service, "PathPrefix(`/auth`) || PathPrefix(`/users`)").await;
    let (email, password) = ("admin@example.com", "Adm1n-pass");
    let account = json!({"email": email, "password": password, "role": "admin"});
    assert_eq!(post(&gateway.url("/auth/register"), &account).await.status, 201);

    let pictures = scratch("docs", "d");
    std::fs::create_dir_all(&pictures).expect("target/ takes folders");
    let (code, seen, complaint) = finish(
        Command::new(installed("node"))
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/docs.cjs"))
            .args([&gateway.url("/auth/docs"), email, password])
            .arg(&pictures)
            .env("NODE_PATH", installed("node").with_file_name("../node_modules")),
        "",
        Duration::from_mins(2),
    );
    assert_eq!(code, 0, "{seen}\n{complaint}\nPictures are in {}\n{}", pictures.display(), service.log());
    let seen: Value = serde_json::from_str(&seen).expect("docs.cjs prints JSON");
    assert_eq!(seen["problems"], json!([]), "the browser complains");
    assert_eq!(seen["registered"], json!({"status": 201, "body": {"status": "created"}}));
    assert_eq!(seen["login"], 200, "{seen}");
    let customer = json!({"id": 2, "email": "cust@example.com", "role": "customer"});
    let users = json!([{"id": 1, "email": email, "role": "admin"}, customer]);
    assert_eq!(seen["users"], json!({"status": 200, "body": users}));
    assert_eq!(seen["tags"], json!(["auth", "sessions", "users", "operation"]));
}
