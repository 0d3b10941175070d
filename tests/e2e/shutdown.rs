//! How the process ends.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    process::Stdio,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpSocket,
};

use crate::stack::{Database, SECRET, Service, auth, terminate};

#[tokio::test]
async fn sigterm_lets_a_request_in_flight_finish_takes_no_further_one_and_exits_zero() {
    let database = Database::create().await;
    let mut service = Service::start(&database.dsn()).await;
    // A client that is merely connected must not hold it up.
    let _idle = TcpStream::connect(service.address).expect("the service takes connections");

    // In flight for certain: the service has asked for the body, and does not have it yet.
    let body = r#"{"email":"cust@example.com","password":"Cust-pass1"}"#;
    let mut stream = TcpStream::connect(service.address).expect("the service takes connections");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a stream has a timeout");
    write!(
        stream,
        "POST /auth/register HTTP/1.1\r\nHost: auth\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Expect: 100-continue\r\n\r\n",
        body.len()
    )
    .expect("the service reads");
    let mut answer = BufReader::new(stream.try_clone().expect("a stream has a second handle"));
    let mut line = String::new();
    answer.read_line(&mut line).expect("the service asks for the body");
    assert!(line.starts_with("HTTP/1.1 100"), "{line}");

    service.terminate();
    let begin = Instant::now();
    while TcpStream::connect(service.address).is_ok() {
        assert!(begin.elapsed() < Duration::from_secs(5), "it goes on taking connections");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    stream.write_all(body.as_bytes()).expect("the request in flight is still read");
    let mut rest = String::new();
    answer.read_to_string(&mut rest).expect("the answer comes, and the connection is closed");
    assert!(rest.contains("HTTP/1.1 201 "), "{rest}");
    assert!(rest.ends_with(r#"{"status":"created"}"#), "{rest}");
    assert_eq!(service.exit_code(Duration::from_secs(10)).await, 0, "{}", service.log());

    let mut connection = database.connect().await;
    let users: i64 =
        sqlx::query_scalar("SELECT count(*) FROM users").fetch_one(&mut connection).await.expect("the table is there");
    assert_eq!(users, 1);
}

#[tokio::test]
async fn sigterm_lets_a_slow_reader_have_the_whole_answer() {
    let database = Database::create().await;
    let mut service = Service::start(&database.dsn()).await;
    // The reader's small window keeps most of the answer in the process.
    let socket = TcpSocket::new_v4().expect("the system has a socket");
    socket.set_recv_buffer_size(64 * 1024).expect("a socket has a buffer");
    let mut stream = socket.connect(service.address).await.expect("the service takes connections");
    let request = "GET /auth/docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: auth\r\n\r\n";
    stream.write_all(request.as_bytes()).await.expect("the service reads");
    let mut answer = vec![0; 1024];
    let mut received = stream.read(&mut answer).await.expect("the service answers");
    let head = String::from_utf8_lossy(&answer[..received]).into_owned();
    let (head, _) = head.split_once("\r\n\r\n").expect("the head is short");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("it says its length");
    let whole = head.len() + 4 + length.parse::<usize>().expect("a number");
    service.terminate();
    answer.resize(16 * 1024, 0);
    loop {
        let count = stream.read(&mut answer).await.expect("the answer goes on");
        if count == 0 {
            break;
        }
        received += count;
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    assert_eq!(received, whole, "{}", service.log());
    assert_eq!(service.exit_code(Duration::from_secs(10)).await, 0, "{}", service.log());
}

#[tokio::test]
async fn sigterm_ends_a_start_that_waits_for_its_database() {
    let mut child = auth()
        .args(["serve", "--app-env=development", "--listen-addr=127.0.0.1:0"])
        // The discard port: nobody listens there.
        .env("POSTGRES_DSN", "postgres://nobody@127.0.0.1:9/nowhere")
        .env("JWT_SECRET", SECRET)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut log = BufReader::new(child.stdout.take().expect("its output is a pipe"));
    let mut line = String::new();
    log.read_line(&mut line).expect("it says what it waits for");
    assert!(line.contains("waiting for the database"), "{line}");
    terminate(&child);
    let mut rest = String::new();
    log.read_to_string(&mut rest).expect("it ends");
    assert_eq!(child.wait().expect("it can be waited for").code(), Some(0), "{rest}");
}
