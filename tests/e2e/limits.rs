//! What the system allows the process.

use std::net::TcpStream;

use crate::stack::{Database, Service, client_builder};

#[tokio::test]
async fn connections_stop_short_of_the_limit_of_open_files() {
    let database = Database::create().await;
    // A gateway may take all places.
    let settings = [("TRUSTED_PROXIES", "127.0.0.1")];
    let service = Service::start_with_open_files(&database.dsn(), 200, &settings).await;
    let connect = |_| TcpStream::connect(service.address).expect("the backlog has room");
    let mut crowd: Vec<_> = (0..300).map(connect).collect();
    // There is a place for a probe, and a connection to the database for what it asks.
    let ask = async |path: &str| {
        let client = client_builder().local_address("127.0.0.2".parse().ok());
        let client = client.build().expect("a client can be built");
        client.get(service.url(path)).send().await.expect("the service answers").status()
    };
    assert_eq!(ask("/auth/ready").await, 200);
    // The places of clients that have gone become free a moment later; the crowd takes them, too.
    while ask("/users/").await != 503 {
        crowd.extend((0..20).map(connect));
    }
    drop(crowd);
    let log = service.log();
    assert!(log.contains("MAX_CONNECTIONS is more than the limit of open files allows"), "{log}");
    assert!(!log.contains("could not accept a connection"), "{log}");
}
