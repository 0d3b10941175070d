//! `GET /auth/metrics`: the names and labels that dashboards read, and nothing in them that a stranger chose.

use std::collections::BTreeSet;

use axum::body::Body;
use axum::http::Request;
use serde_json::json;
use sqlx::PgPool;

use crate::support::{PASSWORD, TestApp};

/// One line of the exposition.
#[derive(Debug)]
struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: String,
}

impl Sample {
    fn parse(line: &str) -> Self {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.strip_suffix('}').and_then(|series| series.split_once('{')).unwrap_or((series, ""));
        let labels = labels.split(',').filter(|label| !label.is_empty()).map(|label| {
            let (name, value) = label.split_once("=\"").unwrap();
            (name.to_owned(), value.strip_suffix('"').unwrap().to_owned())
        });
        Self { name: name.to_owned(), labels: labels.collect(), value: value.to_owned() }
    }

    fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(label, _)| label == name).map(|(_, value)| value.as_str())
    }
}

async fn scrape(app: &TestApp) -> Vec<Sample> {
    let answer = app.get("/auth/metrics").await;
    assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, Some("text/plain; version=0.0.4")));
    answer.body.lines().filter(|line| !line.starts_with('#')).map(Sample::parse).collect()
}

/// The value of a series that counts, 0 where there is none.
fn value(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> u64 {
    let is_it = |sample: &&Sample| {
        sample.name == name && labels.iter().all(|&(label, value)| sample.label(label) == Some(value))
    };
    samples.iter().filter(is_it).map(|sample| sample.value.parse::<u64>().unwrap()).sum()
}

/// All values of a label.
fn values<'a>(samples: &'a [Sample], label: &str) -> BTreeSet<&'a str> {
    samples.iter().filter_map(|sample| sample.label(label)).collect()
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn the_dashboards_find_their_names_and_labels(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register("cust@example.com", "customer").await;
    app.try_login("cust@example.com", "wrong").await.assert_detail(401, "Invalid credentials");
    for path in ["/auth/health", "/auth/health/", "/health", "/nope", "/auth/health/x"] {
        app.get(path).await;
    }
    let samples = scrape(&app).await;
    for (handler, method, status, expected) in [
        ("/auth/register", "POST", "2xx", 1),
        ("/auth/login", "POST", "4xx", 1),
        ("/auth/health", "GET", "2xx", 2),
        ("/health", "GET", "2xx", 1),
        ("none", "GET", "4xx", 2),
    ] {
        let labels = [("handler", handler), ("method", method), ("status", status)];
        assert_eq!(value(&samples, "http_requests_total", &labels), expected, "{labels:?}");
        let duration = "http_request_duration_seconds";
        assert_eq!(value(&samples, &format!("{duration}_count"), &labels[..2]), expected, "{labels:?}");
        assert_eq!(value(&samples, &format!("{duration}_bucket"), &[labels[0], labels[1], ("le", "+Inf")]), expected);
        for size in ["http_request_size_bytes", "http_response_size_bytes"] {
            assert_eq!(value(&samples, &format!("{size}_count"), &labels[..1]), expected, "{size} {labels:?}");
        }
    }
    let register = [("handler", "/auth/register")];
    assert_eq!(value(&samples, "http_response_size_bytes_sum", &register), 20, r#"{{"status":"created"}}"#);
    // Exactly these labels, and no more: a query that sums by them must not find others.
    for (name, expected) in [
        ("http_requests_total", vec!["handler", "method", "status"]),
        ("http_request_duration_seconds_count", vec!["handler", "method"]),
        ("http_request_size_bytes_count", vec!["handler"]),
        ("http_response_size_bytes_count", vec!["handler"]),
    ] {
        for sample in samples.iter().filter(|sample| sample.name == name) {
            let labels: Vec<&str> = sample.labels.iter().map(|(label, _)| label.as_str()).collect();
            assert_eq!(labels, expected, "{name}");
        }
    }
    // The scrape itself is counted with the next one.
    let labels = [("handler", "/auth/metrics"), ("method", "GET"), ("status", "2xx")];
    assert_eq!(value(&samples, "http_requests_total", &labels), 0);
    assert_eq!(value(&scrape(&app).await, "http_requests_total", &labels), 1);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn our_own_and_those_of_the_process_stand_beside_them(pool: PgPool) {
    let app = TestApp::new(pool);
    let tokens = app.customer("cust@example.com").await;
    app.try_login("cust@example.com", "wrong").await;
    app.refresh(&tokens.refresh).await;
    app.refresh(&tokens.refresh).await;
    app.advance(61);
    app.refresh(&tokens.refresh).await;
    app.refresh("nonsense").await;
    let samples = scrape(&app).await;
    for (name, outcome, expected) in [
        ("auth_logins_total", "success", 1),
        ("auth_logins_total", "invalid", 1),
        ("auth_tokens_verified_total", "valid", 3),
        ("auth_tokens_verified_total", "invalid", 1),
        ("auth_refresh_total", "rotated", 1),
        ("auth_refresh_total", "grace_refused", 1),
        ("auth_refresh_total", "replay_detected", 1),
    ] {
        assert_eq!(value(&samples, name, &[("outcome", outcome)]), expected, "{name} {outcome}");
    }
    assert_eq!(value(&samples, "auth_replay_detected_total", &[]), 1);
    assert_eq!(value(&samples, "auth_password_hash_seconds_count", &[]), 3);
    let capacity = samples.iter().find(|sample| sample.name == "auth_login_capacity_per_second").unwrap();
    assert!(capacity.value.parse::<f64>().unwrap() > 0.0, "{capacity:?}");
    let names = samples.iter().map(|sample| sample.name.as_str());
    let (of_process, ours): (BTreeSet<&str>, BTreeSet<&str>) = names.partition(|name| name.starts_with("process_"));
    for name in ["cpu_seconds_total", "resident_memory_bytes", "open_fds", "start_time_seconds"] {
        assert!(of_process.contains(format!("process_{name}").as_str()), "{name}");
    }
    // The page lists all of ours; those with labels are there once they have counted something.
    let ours = ours
        .into_iter()
        .map(|name| ["_bucket", "_sum", "_count"].iter().fold(name, |name, end| name.trim_end_matches(end)));
    let page = include_str!("../../deploy/operations.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('|').next());
    let listed = rows.flat_map(|row| row.trim_end_matches(['`', ' ']).split("`, `"));
    let listed = listed.filter(|name| name.starts_with("auth_") || name.starts_with("http_"));
    let expected = ours.chain(["auth_mail_total", "auth_verifications_total"]);
    assert_eq!(listed.collect::<BTreeSet<_>>(), expected.collect());
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_stranger_makes_no_labels(pool: PgPool) {
    let app = TestApp::new(pool);
    let admin = {
        app.register("admin@example.com", "admin").await;
        app.login("admin@example.com").await
    };
    scrape(&app).await;
    let hostile_paths = (0..50).map(|at| format!("/secret-{at}?email=cust-{at}@example.com"));
    for path in hostile_paths.chain(["/auth/health%22%7D".to_owned(), "/users/1/2/3".to_owned(), "//".to_owned()]) {
        app.get(&path).await;
    }
    for method in
        (0..50).map(|at| format!("SECRET{at}")).chain(["get".to_owned(), "TRACE".to_owned(), "CONNECT".to_owned()])
    {
        app.send(Request::builder().method(method.as_str()).uri("/auth/login").body(Body::empty()).unwrap()).await;
    }
    for id in ["1", "77", "secret", "-5", "%00"] {
        app.get_as(&format!("/users/{id}/sessions"), &admin.access).await;
    }
    app.post("/auth/login", json!({"email": "secret@example.com", "password": PASSWORD})).await;
    let samples = scrape(&app).await;
    let handlers = values(&samples, "handler");
    assert_eq!(
        handlers,
        BTreeSet::from(["/auth/login", "/auth/metrics", "/auth/register", "/users/{id}/sessions", "none"])
    );
    assert_eq!(values(&samples, "method"), BTreeSet::from(["GET", "POST", "other"]));
    assert!(values(&samples, "status").is_subset(&["0xx", "1xx", "2xx", "3xx", "4xx", "5xx"].into()));
    // The name of the key that signs, which is no stranger's.
    let text = app.get("/auth/metrics").await.body.replace(r#"kid="secret""#, "");
    for secret in ["secret", "SECRET", "@", "%"] {
        assert!(!text.contains(secret), "{secret}");
    }
    assert_eq!(value(&samples, "http_requests_total", &[("handler", "none")]), 53);
    assert_eq!(value(&samples, "http_requests_total", &[("handler", "/users/{id}/sessions")]), 5);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_content_length_that_lies_spoils_no_sum(pool: PgPool) {
    let app = TestApp::new(pool);
    for (path, status) in [("/auth/login", 413), ("/auth/health", 405), ("/nowhere", 404)] {
        let request = Request::post(path).header("content-length", u64::MAX - 15);
        assert_eq!(app.send(request.body(Body::empty()).unwrap()).await.status, status);
    }
    let samples = scrape(&app).await;
    assert_eq!(value(&samples, "http_request_size_bytes_count", &[]), 3);
    assert_eq!(value(&samples, "http_request_size_bytes_sum", &[]), 3 * 4 * 1024 * 1024);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_client_that_goes_away_is_counted(pool: PgPool) {
    let app = TestApp::new(pool);
    let tokens = app.customer("cust@example.com").await;
    let mut holder = app.db.begin().await.unwrap();
    sqlx::query("SELECT FROM refresh_tokens FOR UPDATE").execute(&mut *holder).await.unwrap();
    let refresh = {
        let (app, token) = (app.clone(), tokens.refresh.clone());
        tokio::spawn(async move { app.refresh(&token).await })
    };
    app.until_blocked(1).await;
    refresh.abort();
    assert!(refresh.await.unwrap_err().is_cancelled());
    let labels = [("handler", "/auth/refresh"), ("method", "POST"), ("status", "4xx")];
    assert_eq!(value(&scrape(&app).await, "http_requests_total", &labels), 1);
    holder.commit().await.unwrap();
}
