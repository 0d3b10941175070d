//! What a storefront sees: the service through the gateway, over HTTP.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::json;

use crate::stack::{Database, Gateway, Service, client, get, post, send};

#[tokio::test]
async fn a_customers_whole_journey_works_through_the_gateway() {
    let database = Database::create().await;
    let service = Service::start(&database.dsn()).await;
    let gateway = Gateway::start(&service).await;
    let register = gateway.url("/auth/register");
    let login = gateway.url("/auth/login");
    let refresh = gateway.url("/auth/refresh");

    let admin = json!({"email": "admin@example.com", "password": "Adm1n-pass", "role": "admin"});
    let customer = json!({"email": "cust@example.com", "password": "Cust-pass1"});
    for account in [&admin, &customer] {
        let created = post(&register, account).await;
        assert_eq!((created.status, created.body), (201, json!({"status": "created"})));
    }
    let again = post(&register, &customer).await;
    assert_eq!((again.status, again.detail()), (409, "Email already registered"));

    let wrong = post(&login, &json!({"email": "cust@example.com", "password": "not-this-one"})).await;
    assert_eq!((wrong.status, wrong.detail()), (401, "Invalid credentials"));
    assert_eq!(wrong.header("www-authenticate"), Some("Bearer"));

    let signed_in = post(&login, &customer).await;
    assert_eq!(signed_in.status, 200, "{signed_in:?}");
    assert_eq!(signed_in.body["token_type"], "bearer");
    assert_eq!(signed_in.header("cache-control"), Some("no-store"));
    let first = signed_in.text("refresh_token");

    let me = send(client().get(gateway.url("/users/me")).bearer_auth(signed_in.text("access_token"))).await;
    assert_eq!((me.status, me.body), (200, json!({"id": 2, "email": "cust@example.com", "role": "customer"})));

    let rotated = post(&refresh, &json!({"refresh_token": first})).await;
    assert_eq!(rotated.status, 200, "{rotated:?}");
    let second = rotated.text("refresh_token");
    assert_ne!(first, second);

    let old = post(&refresh, &json!({"refresh_token": first})).await;
    assert_eq!((old.status, old.detail()), (401, "Refresh token not valid"));

    let out = post(&gateway.url("/auth/logout"), &json!({"refresh_token": second})).await;
    assert_eq!((out.status, out.body), (200, json!({"status": "ok"})));

    let after = post(&refresh, &json!({"refresh_token": second})).await;
    assert_eq!((after.status, after.detail()), (401, "Refresh token not valid"));

    let users = get(&gateway.url("/users/")).await;
    assert_eq!(users.status, 200);
    assert_eq!(
        users.body,
        json!([
            {"id": 1, "email": "admin@example.com", "role": "admin"},
            {"id": 2, "email": "cust@example.com", "role": "customer"},
        ])
    );
}

#[tokio::test]
async fn a_request_id_comes_back_through_the_gateway_and_stands_in_the_log() {
    let database = Database::create().await;
    let mut service = Service::start(&database.dsn()).await;
    let gateway = Gateway::start(&service).await;
    let url = gateway.url("/users/me");

    let given = send(client().get(&url).header("x-request-id", "order-4711")).await;
    assert_eq!(given.header("x-request-id"), Some("order-4711"));

    let [one, other] = [get(&url).await, get(&url).await];
    let made = one.header("x-request-id").expect("a request without an id is given one");
    assert!(!made.is_empty());
    assert_ne!(Some(made), other.header("x-request-id"));

    // The log is written by a thread of its own, and all of it at the end.
    service.terminate();
    assert_eq!(service.exit_code(Duration::from_secs(10)).await, 0);
    let log = service.log();
    for id in ["order-4711", made] {
        assert!(log.contains(id), "{id} does not stand in the log:\n{log}");
    }
}

/// The answer to a path that is sent as it is written; clients would normalize it.
fn raw(address: SocketAddr, method: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("the gateway takes connections");
    write!(stream, "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers in UTF-8");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_metrics_and_documentation_are_not_public() {
    let database = Database::create().await;
    let service = Service::start(&database.dsn()).await;
    let gateway = Gateway::start(&service).await;

    for path in ["/auth/ready", "/auth/metrics", "/auth/docs", "/auth/openapi.json", "/docs", "/openapi.json"] {
        assert_eq!(client().get(service.url(path)).send().await.expect("the service answers").status(), 200, "{path}");
        for spelling in [
            path.to_owned(),
            format!("{path}/"),
            format!("{path}?x=/auth/login"),
            format!("/{path}"),
            path.replace("/auth", "/auth/"),
            path.replace("/auth", "/auth/."),
            path.replace("/auth", "/auth/login/.."),
            path.replace("/auth", "/auth/login/%2e%2e"),
            path.replace("/auth/", "/auth/%2e/"),
            path.replace('m', "%6D").replace('d', "%64").replace('o', "%6F"),
        ] {
            for method in ["GET", "HEAD", "POST"] {
                let answer = raw(gateway.address, method, &spelling);
                // A path that reaches the service without being one of its own is refused there, in JSON.
                let refused = ["HTTP/1.1 404 ", "HTTP/1.1 400 "].iter().any(|status| answer.starts_with(status));
                assert!(refused, "{method} {spelling}: {answer}");
            }
        }
    }
    assert!(raw(gateway.address, "GET", "/auth/health").starts_with("HTTP/1.1 200 "));
}

#[test]
fn kubernetes_has_the_rule_of_compose() {
    let compose = include_str!("../../deploy/docker-compose.yaml");
    let route = include_str!("../../deploy/kubernetes/production/ingressroute.yaml");
    let rule = compose.split_once("traefik.http.routers.auth.rule: ").and_then(|(_, rest)| rest.lines().next());
    assert!(route.contains(rule.expect("the router has a rule")), "{rule:?}");
}

#[test]
fn kubernetes_lets_in_the_gateway_and_prometheus_and_no_other_pod() {
    let policy = include_str!("../../deploy/kubernetes/base/networkpolicy.yaml");
    let ingress = policy.split_once("\n  ingress:\n").and_then(|(_, rest)| rest.split_once("\n  egress:\n"));
    let (ingress, _) = ingress.expect("the policy has both parts");
    let lines: Vec<_> = ingress.lines().map(str::trim).filter(|line| line.contains("name")).collect();
    let peer = |namespace: &str, name: &str| {
        ["- namespaceSelector:".to_owned(), format!("kubernetes.io/metadata.name: {namespace}"), name.to_owned()]
    };
    let expected =
        [peer("traefik", "app.kubernetes.io/name: traefik"), peer("monitoring", "app.kubernetes.io/name: prometheus")];
    assert_eq!(lines, expected.concat());
    // One rule with those peers: a rule without peers, or a pod beside a namespace, would let others in.
    assert_eq!((ingress.matches("    - ").count(), ingress.matches("podSelector").count()), (4, 2), "{ingress}");
}
