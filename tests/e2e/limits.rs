//! What the system allows the process.

use std::net::TcpStream;

use crate::stack::{Database, Service, client};

#[tokio::test]
async fn connections_stop_short_of_the_limit_of_open_files() {
    let database = Database::create().await;
    let service = Service::start_with_open_files(&database.dsn(), 200).await;
    let crowd: Vec<_> = (0..300).map(|_| TcpStream::connect(service.address).expect("the backlog has room")).collect();
    drop(crowd);
    // Answered after everybody in front has been let in and found to be gone.
    let answer = client().get(service.url("/auth/ready")).send().await.expect("the service answers");
    assert_eq!(answer.status(), 200);
    let log = service.log();
    assert!(log.contains("MAX_CONNECTIONS is more than the limit of open files allows"), "{log}");
    assert!(!log.contains("could not accept a connection"), "{log}");
}
