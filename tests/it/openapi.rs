//! `/auth/openapi.json` and `/auth/docs`: what the service says of itself, against what it does.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::http::Request;
use hyper::body::Frame;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::support::{CLOSED, TestApp};

/// Method, path and description of each operation.
fn operations() -> Vec<(String, String, Value)> {
    let document = serde_json::to_value(auth::http::openapi()).unwrap();
    let mut operations = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            operations.push((method.to_uppercase(), path.clone(), operation.clone()));
        }
    }
    operations
}

#[test]
fn every_operation_has_an_id_of_its_own() {
    // Clients that are made from the document take it for a name, and "Try it out" finds the path by it.
    let operations = operations();
    let ids: BTreeSet<&str> = operations.iter().map(|(.., it)| it["operationId"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), operations.len(), "{ids:?}");
    for id in ["users_list", "sessions_list", "auth_login", "operation_health"] {
        assert!(ids.contains(id), "{id} is not among {ids:?}");
    }
}

#[test]
fn the_readme_lists_every_operation() {
    let rows = include_str!("../../README.md").lines().filter_map(|line| line.strip_prefix("| `")?.split_once(" /"));
    let listed: BTreeSet<(String, String)> = rows
        .filter(|(method, _)| method.chars().all(|letter| letter.is_ascii_uppercase()))
        // The document cannot say that a route takes any method.
        .map(|(method, rest)| (method.replace("ANY", "GET"), rest.split(['?', '`', ' ']).next().unwrap_or_default()))
        .map(|(method, path)| (method, format!("/{path}")))
        .collect();
    assert_eq!(listed, operations().into_iter().map(|(method, path, _)| (method, path)).collect());
}

#[test]
fn no_licence_is_better_than_one_without_a_name() {
    let document = serde_json::to_value(auth::http::openapi()).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(document["info"].get("license"), None);
}

#[test]
fn every_refusal_has_an_example_of_its_own() {
    for (method, path, operation) in operations() {
        for (status, response) in operation["responses"].as_object().unwrap() {
            let example = &response["content"]["application/json"]["example"]["detail"];
            let expected = match (status.as_str(), path.as_str()) {
                ("400", "/auth/password/reset" | "/auth/email/verify") => json!("Invalid or expired token"),
                ("400", _) => json!("There was an error parsing the body"),
                ("401", "/auth/login") => json!("Invalid credentials"),
                ("401", "/auth/refresh" | "/auth/logout") => json!("Invalid refresh token"),
                ("401", _) => json!("Not authenticated"),
                ("403", "/auth/login") => json!("Email not verified"),
                ("403", "/auth/register") => json!("Role not open for registration"),
                ("403", "/auth/verify") => json!("Not permitted"),
                ("403", path) if path.starts_with("/auth/") => json!("Cross-site request refused"),
                ("403", _) => json!("Not permitted"),
                ("404", _) => json!("Not Found"),
                ("409", "/auth/register") => json!("Email already registered"),
                ("409", _) => json!("The last administrator cannot be deleted or demoted"),
                ("413", _) => json!("Request body too large"),
                ("422", _) if operation.get("requestBody").is_some() => {
                    json!([{"type": "missing", "loc": ["body"], "msg": "Field required", "input": null}])
                }
                ("422", _) => {
                    let name = if path.contains('{') { ["path", "id"] } else { ["query", "limit"] };
                    let msg = "Input should be a valid integer, unable to parse string as an integer";
                    json!([{"type": "int_parsing", "loc": name, "msg": msg, "input": "x"}])
                }
                ("429", _) => json!("Too many attempts, try again later"),
                ("503", _) => json!("Service busy, try again later"),
                ("200" | "201" | "202" | "204" | "304", _) => continue,
                (other, _) => panic!("{method} {path} {other}: say here what the example is to be"),
            };
            assert_eq!(*example, expected, "{method} {path} {status}");
            let headers: Vec<&String> = response["headers"].as_object().into_iter().flat_map(|it| it.keys()).collect();
            match status.as_str() {
                "401" => assert!(headers.contains(&&"www-authenticate".to_owned()), "{method} {path}: {headers:?}"),
                "429" | "503" => assert_eq!(headers, ["retry-after"], "{method} {path} {status}"),
                _ => assert!(headers.is_empty(), "{method} {path} {status}: {headers:?}"),
            }
        }
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn security_is_asked_for_where_the_document_says_so(pool: PgPool) {
    let app = TestApp::with(pool, &["--users-list-access=admin"]);
    for (method, path, operation) in operations() {
        let request = Request::builder().method(method.as_str()).uri(path.replace("{id}", "1"));
        let answer = app.send(request.body(Body::empty()).unwrap()).await;
        let asks = answer.status == 401 && answer.body.contains("Not authenticated");
        let security = operation.get("security").cloned().unwrap_or_else(|| json!([{}]));
        let required = json!([{"bearer": []}]);
        let may_be_open = ["/users/", "/auth/register", "/auth/verify"].contains(&path.as_str());
        match (asks, may_be_open) {
            (_, true) => assert_eq!(security, json!([{}, {"bearer": []}]), "{method} {path}"),
            (true, false) => assert_eq!(security, required, "{method} {path}"),
            (false, false) => assert_eq!(security, json!([{}]), "{method} {path}: {}", answer.status),
        }
        let status = answer.status.as_u16().to_string();
        assert!(operation["responses"].get(&status).is_some(), "{method} {path} answers {status}");
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn the_page_and_the_document_are_served(pool: PgPool) {
    let app = TestApp::new(pool);
    let document = serde_json::to_string(&auth::http::openapi()).unwrap();
    for path in ["/auth/openapi.json", "/openapi.json"] {
        let answer = app.get(path).await;
        assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, Some("application/json")), "{path}");
        assert_eq!(answer.body, document, "{path}");
    }
    for path in ["/auth/docs", "/docs"] {
        let page = app.get(path).await;
        assert_eq!(page.status, 200, "{path}");
        // All but the icon, which is no text.
        for part in page.body.split('"').filter(|part| part.starts_with("/auth/docs/swagger")) {
            let answer = app.get(part).await;
            assert!(answer.status == 200 && !answer.body.is_empty(), "{part}");
        }
    }
    let start = app.get("/auth/docs/swagger-initializer.js").await;
    assert!(start.body.contains("/auth/openapi.json"), "{}", start.body);
    app.get("/auth/docs/nothing.js").await.assert_detail(404, "Not Found");
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn without_api_docs_neither_is_there(pool: PgPool) {
    let app = TestApp::with(pool, &["--api-docs=off"]);
    for path in ["/auth/openapi.json", "/openapi.json", "/auth/docs", "/docs", "/auth/docs/swagger-ui.css"] {
        app.get(path).await.assert_detail(404, "Not Found");
    }
}

/// A body that nobody may ask for.
struct Unread;

impl HttpBody for Unread {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        panic!("the body was read")
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn of_every_operation_who_may_call_is_decided_first(pool: PgPool) {
    let app = TestApp::with(pool, &CLOSED);
    let tokens = app.customer("cust@example.com").await;
    let mut closed = 0;
    for (method, path, operation) in operations() {
        let admins_only = operation["responses"].get("403").is_some() && path.starts_with("/users/");
        if operation.get("security") != Some(&json!([{"bearer": []}])) && !admins_only {
            continue;
        }
        let call = async |token: &str| {
            // Whatever may be wrong besides is: the id, the query, the length and the type of the body, and its content.
            let request = Request::builder().method(method.as_str()).uri(path.replace("{id}", "x") + "?limit=x");
            let request = request.header("authorization", token).header("content-length", "9999999999");
            app.send(request.header("content-type", "x").body(Body::new(Unread)).unwrap()).await
        };
        call("").await.assert_detail(401, "Not authenticated");
        call("Bearer x").await.assert_detail(401, "Invalid access token");
        if admins_only {
            call(&format!("Bearer {}", tokens.access)).await.assert_detail(403, "Not permitted");
        }
        closed += 1;
    }
    assert!(closed >= 10, "only {closed}");
}
