//! The sockets: slow clients, bodies that are too large, going down.

use std::net::SocketAddr;
use std::time::Duration;

use auth::http;
use sqlx::PgPool;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::support::TestApp;

/// The service behind a socket. Its database is nowhere: nothing here gets as far as asking it.
struct Running {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<bool>,
}

impl Running {
    fn start() -> Self {
        let app = TestApp::new(PgPool::connect_lazy("postgres://unused").unwrap()).app;
        let listener = http::listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let ended = tokio::spawn(http::serve(app, listener, async move { stopped.await.unwrap() }));
        Self { address, stop, ended }
    }

    async fn connect(&self, first: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(first.as_bytes()).await.unwrap();
        stream
    }
}

/// What still comes until the connection is closed, and how long that took by the runtime's clock: a test with
/// `start_paused` waits for no time to pass.
async fn rest(mut stream: TcpStream) -> (String, Duration) {
    let started = Instant::now();
    let mut rest = String::new();
    // A reset is an end as good as any.
    let _ = stream.read_to_string(&mut rest).await;
    (rest, started.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_never_says_its_version_of_http_is_closed() {
    let running = Running::start();
    for first in ["", "P", "PRI", "PRI * HT", "PRI * HTTP/2.0\r\n\r\nSM\r\n"] {
        let (answer, took) = rest(running.connect(first).await).await;
        assert_eq!(answer, "", "{first:?}");
        assert!((9..=12).contains(&took.as_secs()), "{first:?} {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_may_come_in_pieces_but_not_for_ever() {
    let running = Running::start();
    let mut slow = running.connect("P").await;
    for piece in ["U", "T /auth/health HT", "TP/1.1\r\nHost: auth\r\nConnection: close\r\n", "\r\n"] {
        tokio::time::sleep(Duration::from_secs(3)).await;
        slow.write_all(piece.as_bytes()).await.unwrap();
    }
    let (answer, _) = rest(slow).await;
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");

    for first in ["GET", "PUT /auth/health HT", "GET /auth/health HTTP/1.1\r\nHost: auth\r\n"] {
        let (_, took) = rest(running.connect(first).await).await;
        assert!((60..=300).contains(&took.as_secs()), "{first:?} {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_says_nothing_any_more_is_closed() {
    let running = Running::start();
    let stream = running.connect("GET /auth/health HTTP/1.1\r\nHost: auth\r\n\r\n").await;
    let (answer, took) = rest(stream).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    // A gateway keeps connections for a minute and a half and must be the first to give them up.
    assert!((110..=300).contains(&took.as_secs()), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn going_down_waits_for_nobody_who_has_asked_for_nothing() {
    let running = Running::start();
    let mut waiting = Vec::new();
    for first in ["", "P", "GET /auth/hea", "POST /auth/login HTTP/1.1\r\nHost: auth\r\nContent-Le"] {
        waiting.push(running.connect(first).await);
    }
    let idle = running.connect("GET /auth/health HTTP/1.1\r\nHost: auth\r\n\r\n").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let started = Instant::now();
    running.stop.send(()).unwrap();
    assert!(running.ended.await.unwrap(), "something was cut off");
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    assert!(rest(idle).await.0.starts_with("HTTP/1.1 200 "));
    assert!(TcpStream::connect(running.address).await.is_err());
}

#[tokio::test]
async fn whoever_sends_too_large_a_body_gets_to_see_the_answer() {
    let running = Running::start();
    let http2 = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    for size in [70_000, 500_000, 2_000_000, 4_000_000] {
        let body = "x".repeat(size);
        // One that reads nothing before everything is sent.
        let head = "POST /auth/login HTTP/1.1\r\nHost: auth\r\nConnection: close\r\n";
        let head = format!("{head}Content-Length: {size}\r\n\r\n");
        let mut http1 = running.connect(&head).await;
        http1.write_all(body.as_bytes()).await.unwrap();
        let (answer, _) = rest(http1).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{size}: {answer}");

        let answer = http2.post(format!("http://{}/auth/login", running.address)).body(body).send().await.unwrap();
        assert_eq!(answer.status(), 413, "{size}");
        assert_eq!(answer.text().await.unwrap(), r#"{"detail":"Request body too large"}"#, "{size}");
    }
}

#[tokio::test]
async fn a_client_that_asks_first_is_not_asked_for_too_large_a_body() {
    let running = Running::start();
    let head = "POST /auth/login HTTP/1.1\r\nHost: auth\r\nExpect: 100-continue\r\nContent-Length: 100000\r\n\r\n";
    let (answer, _) = rest(running.connect(head).await).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}
