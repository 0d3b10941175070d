//! The sockets: slow clients, bodies that are too large, going down.

use std::net::SocketAddr;
use std::time::Duration;

use auth::app::App;
use auth::http;
use sqlx::PgPool;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::support::TestApp;

const HEALTH: &str = "GET /auth/health HTTP/1.1\r\nHost: auth\r\n\r\n";
const LOGIN: &str = "POST /auth/login HTTP/1.1\r\nHost: auth\r\nContent-Length: 2\r\n\r\n{}";
const LOOPBACK: [u8; 4] = [127, 0, 0, 1];
/// A file of more than a megabyte.
const LARGE: &str = "GET /auth/docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: auth\r\nConnection: close\r\n\r\n";

/// The service behind a socket. Its database is nowhere: nothing here gets as far as asking it.
struct Running {
    app: App,
    address: SocketAddr,
    stop: CancellationToken,
    ended: JoinHandle<bool>,
}

impl Running {
    fn start() -> Self {
        Self::with(&[])
    }

    fn with(flags: &[&str]) -> Self {
        let app = TestApp::with(PgPool::connect_lazy("postgres://unused").unwrap(), flags).app;
        let listener = http::listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let ended = tokio::spawn(http::serve(app.clone(), listener, stop.clone().cancelled_owned()));
        Self { app, address, stop, ended }
    }

    async fn connect(&self, first: &str) -> TcpStream {
        self.connect_from(LOOPBACK, first).await
    }

    async fn connect_from(&self, ip: [u8; 4], first: &str) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from((ip, 0))).unwrap();
        // The system of a client that does not read takes little.
        socket.set_recv_buffer_size(64 * 1024).unwrap();
        let mut stream = socket.connect(self.address).await.unwrap();
        stream.write_all(first.as_bytes()).await.unwrap();
        stream
    }
}

impl Running {
    /// Until so many connections are open.
    async fn until_open(&self, count: i64) {
        while self.app.metrics.connections.get() != count {
            tokio::task::yield_now().await;
        }
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
async fn a_connection_that_asks_for_nothing_is_closed() {
    let running = Running::start();
    let (answer, took) = rest(running.connect("").await).await;
    assert_eq!((answer.as_str(), took.as_secs()), ("", 10));
}

#[tokio::test]
async fn an_http2_preface_is_refused() {
    let running = Running::start();
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0";
    let (answer, _) = rest(running.connect(preface).await).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn a_head_may_come_in_pieces_but_not_for_ever() {
    let running = Running::start();
    let mut slow = running.connect("P").await;
    for piece in ["U", "T /auth/health HT", "TP/1.1\r\nHost: auth\r\nConnection: close\r\n", "\r\n"] {
        tokio::time::sleep(Duration::from_secs(2)).await;
        slow.write_all(piece.as_bytes()).await.unwrap();
    }
    let (answer, _) = rest(slow).await;
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");

    for first in ["G", "GET", "PUT /auth/health HT", "GET /auth/health HTTP/1.1\r\nHost: auth\r\n"] {
        let (_, took) = rest(running.connect(first).await).await;
        assert_eq!(took.as_secs(), 10, "{first:?}");
        // Nor after a request, at any time of what an idle connection may last.
        for pause in [1, 5, 15, 100] {
            let mut stream = running.connect(HEALTH).await;
            tokio::time::sleep(Duration::from_secs(pause)).await;
            stream.write_all(first.as_bytes()).await.unwrap();
            let (answer, took) = rest(stream).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            assert_eq!(took.as_secs(), 10, "{first:?} after {pause} s");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_asks_for_nothing_any_more_is_closed() {
    let running = Running::start();
    let (answer, took) = rest(running.connect(HEALTH).await).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    // A gateway keeps connections for a minute and a half and must be the first to give them up.
    assert_eq!(took.as_secs(), 120);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_not_taken_is_given_up() {
    let running = Running::start();
    let connections = running.app.metrics.connections.clone();
    let mut stream = running.connect(LARGE).await;
    tokio::time::sleep(Duration::from_secs(29)).await;
    assert_eq!(connections.get(), 1);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(connections.get(), 0);
    // Nor does the system keep what it has of it.
    let error = stream.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test(start_paused = true)]
async fn an_answer_may_be_taken_slowly() {
    let running = Running::start();
    let mut stream = running.connect(LARGE).await;
    let mut buffer = vec![0; 100_000];
    let mut received = 0;
    loop {
        // Longer in all than an answer that is not taken at all would last.
        tokio::time::sleep(Duration::from_secs(10)).await;
        match stream.read_exact(&mut buffer).await {
            Ok(count) => received += count,
            Err(_) => break,
        }
    }
    assert!(received > 1_300_000, "{received}");
}

#[tokio::test]
async fn a_head_names_one_host() {
    let running = Running::start();
    for (head, status) in [
        ("GET /auth/health HTTP/1.1\r\n", "1.1 400"),
        ("GET http://auth/auth/health HTTP/1.1\r\n", "1.1 400"),
        ("GET /auth/health HTTP/1.1\r\nHost: a\r\nHost: b\r\n", "1.1 400"),
        ("GET /auth/health HTTP/1.0\r\nHost: a\r\nHost: b\r\n", "1.0 400"),
        ("GET /auth/health HTTP/1.0\r\n", "1.0 200"),
        ("GET /auth/health HTTP/1.1\r\nHost: auth\r\nConnection: close\r\n", "1.1 200"),
    ] {
        let (answer, _) = rest(running.connect(&format!("{head}\r\n")).await).await;
        assert!(answer.starts_with(&format!("HTTP/{status} ")), "{head} {answer}");
    }
}

#[tokio::test]
async fn a_body_with_two_lengths_is_the_last_of_its_connection() {
    let running = Running::start();
    let second = "GET /auth/health HTTP/1.1\r\nHost: auth\r\n\r\n";
    for lengths in
        ["Content-Length: 7\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 7"]
    {
        let first = format!("POST /auth/login HTTP/1.1\r\nHost: auth\r\n{lengths}\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n");
        let (answer, _) = rest(running.connect(&(first + second)).await).await;
        assert!(answer.starts_with("HTTP/1.1 422 ") && answer.contains("connection: close"), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    }
}

/// Opens a connection that has a place, as its answer shows, and keeps it.
async fn take_place(running: &Running, ip: [u8; 4]) -> TcpStream {
    let mut stream = running.connect_from(ip, HEALTH).await;
    let mut answer = [0; 1024];
    let count = stream.read(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer[..count]).into_owned();
    assert!(answer.starts_with("HTTP/1.1 200 ") && !answer.contains("connection: close"), "{answer}");
    stream
}

#[tokio::test(start_paused = true)]
async fn probes_are_answered_when_all_places_are_taken() {
    let running = Running::with(&["--max-connections=3", "--trusted-proxies=127.0.0.0/8"]);
    let mut taken = Vec::new();
    for _ in 0..3 {
        taken.push(take_place(&running, LOOPBACK).await);
    }
    for (request, status) in [(HEALTH, 200), ("GET /health/ HTTP/1.1\r\nHost: auth\r\n\r\n", 200), (LOGIN, 503)] {
        let (answer, took) = rest(running.connect(request).await).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert_eq!(answer.contains("retry-after: 1\r\n"), status == 503, "{answer}");
        assert!(answer.contains("connection: close\r\n") && answer.contains("x-request-id: "), "{answer}");
        assert_eq!(took.as_secs(), 0);
    }
    // One peer may have four of the places that are left, and not for long.
    let mut silent = Vec::new();
    for _ in 0..4 {
        silent.push(running.connect("GET /auth/hea").await);
    }
    assert_eq!(rest(running.connect(HEALTH).await).await.0, "");
    assert_eq!(running.app.metrics.connections_refused.get(), 1);
    take_probe_place(&running, [127, 0, 0, 2]).await;
    for stream in silent {
        let (answer, took) = rest(stream).await;
        assert!(answer.is_empty() && took.as_secs() <= 1, "{answer} {took:?}");
    }
    // What is given back can be taken again.
    drop(taken.pop());
    running.until_open(2).await;
    drop(take_place(&running, LOOPBACK).await);
}

#[tokio::test(start_paused = true)]
async fn a_stranger_has_a_quarter_of_the_places() {
    let running = Running::with(&["--max-connections=8", "--trusted-proxies=127.0.0.3"]);
    let mut taken = Vec::new();
    for _ in 0..2 {
        taken.push(take_place(&running, LOOPBACK).await);
    }
    take_probe_place(&running, LOOPBACK).await;
    taken.push(take_place(&running, [127, 0, 0, 2]).await);
    for _ in 0..5 {
        taken.push(take_place(&running, [127, 0, 0, 3]).await);
    }
    take_probe_place(&running, [127, 0, 0, 3]).await;
}

/// Opens a connection on which probes only are answered.
async fn take_probe_place(running: &Running, ip: [u8; 4]) {
    let (answer, _) = rest(running.connect_from(ip, HEALTH).await).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let (answer, _) = rest(running.connect_from(ip, LOGIN).await).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
}

#[tokio::test]
async fn gateways_are_told_of_the_end_before_connections_are_refused() {
    let running = Running::with(&["--shutdown-delay-seconds=2"]);
    let mut kept = running.connect(HEALTH).await;
    let mut byte = [0];
    kept.read_exact(&mut byte).await.unwrap();
    running.stop.cancel();
    running.app.stopping.cancelled().await;
    kept.write_all(LOGIN.as_bytes()).await.unwrap();
    let (answers, _) = rest(kept).await;
    let (health, login) = answers.split_once(r#"{"status":"ok"}"#).unwrap();
    assert!(health.starts_with("TTP/1.1 200") && !health.contains("connection: close"), "{health}");
    assert!(login.starts_with("HTTP/1.1 422") && login.contains("connection: close"), "{login}");
    for path in ["/auth/health", "/auth/ready"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: auth\r\n\r\n");
        let (answer, _) = rest(running.connect(&request).await).await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after: 1"), "{answer}");
    }
    assert!(running.ended.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn going_down_waits_for_nobody_who_has_asked_for_nothing() {
    let running = Running::start();
    let mut waiting = Vec::new();
    for first in ["", "P", "GET /auth/hea", "POST /auth/login HTTP/1.1\r\nHost: auth\r\nContent-Le"] {
        waiting.push(running.connect(first).await);
    }
    let idle = running.connect(HEALTH).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let started = Instant::now();
    running.stop.cancel();
    assert!(running.ended.await.unwrap(), "something was cut off");
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    assert!(rest(idle).await.0.starts_with("HTTP/1.1 200 "));
    assert!(TcpStream::connect(running.address).await.is_err());
}

#[tokio::test]
async fn whoever_sends_too_large_a_body_gets_to_see_the_answer() {
    let running = Running::start();
    for size in [70_000, 500_000, 2_000_000, 4_000_000] {
        let body = "x".repeat(size);
        // One that reads nothing before everything is sent.
        let head = "POST /auth/login HTTP/1.1\r\nHost: auth\r\nConnection: close\r\n";
        let head = format!("{head}Content-Length: {size}\r\n\r\n");
        let mut stream = running.connect(&head).await;
        stream.write_all(body.as_bytes()).await.unwrap();
        let (answer, _) = rest(stream).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{size}: {answer}");
        assert!(answer.ends_with(r#"{"detail":"Request body too large"}"#), "{size}: {answer}");
    }
}

#[tokio::test]
async fn a_client_that_asks_first_is_not_asked_for_too_large_a_body() {
    let running = Running::start();
    let head = "POST /auth/login HTTP/1.1\r\nHost: auth\r\nExpect: 100-continue\r\nContent-Length: 100000\r\n\r\n";
    let (answer, _) = rest(running.connect(head).await).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}
