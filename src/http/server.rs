//! The sockets: accepting, limits on connections and slow clients, and going down without dropping anybody.

use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tower::Service as _;

use super::{Peer, Service, service};
use crate::app::App;

/// The longest silence between two requests, and the time for the head of one. A gateway that keeps connections must
/// give them up earlier (Traefik does so after 90 s), or it would now and then write into one that is just closing.
const HEAD_TIMEOUT: Duration = Duration::from_mins(2);
/// The time until a new connection has sent its first bytes; a slow client gets no more.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(10);
/// For how long no connection is accepted after the system refused one, for want of descriptors, say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until `shutdown` is done, then finishes what is in flight. Returns whether all of it was finished in the time
/// the configuration gives.
pub async fn serve(app: App, listener: TcpListener, shutdown: impl Future<Output = ()>) -> bool {
    let service = service(app.clone());
    let connections = Arc::new(Semaphore::new(app.config.max_connections));
    let graceful = GracefulShutdown::new();
    // Dropped at shutdown, which is what connections that have not said anything yet wait for.
    let (open, closing) = watch::channel(());
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = async {
            // Beyond the limit clients wait in the backlog of the socket.
            let permit = Arc::clone(&connections).acquire_owned().await;
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            accepted = accepted => accepted,
            () = &mut shutdown => break,
        };
        match (accepted, permit) {
            (Ok((stream, peer)), Ok(permit)) => {
                let connection = Connection { app: app.clone(), service: service.clone(), peer: Peer(peer), permit };
                tokio::spawn(connection.serve(stream, graceful.watcher(), closing.clone()));
            }
            (Err(error), _) => {
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            (_, Err(_closed)) => break,
        }
    }
    drop((listener, open));
    tracing::info!("shutting down");
    tokio::time::timeout(app.config.shutdown_grace, graceful.shutdown()).await.is_ok()
}

struct Connection {
    app: App,
    service: Service,
    peer: Peer,
    permit: OwnedSemaphorePermit,
}

impl Connection {
    async fn serve(self, stream: TcpStream, watcher: Watcher, mut closing: watch::Receiver<()>) {
        let open = &self.app.metrics.connections;
        open.inc();
        // Answers are small and written whole; waiting to fill a packet only delays them.
        let _ = stream.set_nodelay(true);
        let peer = self.peer;
        let service = hyper::service::service_fn(|mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(peer);
            let mut service = self.service.clone();
            async move {
                let response: Result<_, Infallible> = service.call(request.map(axum::body::Body::new)).await;
                response
            }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(64 * 1024);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(HEAD_TIMEOUT)
            .max_concurrent_streams(256)
            .max_header_list_size(64 * 1024);
        let mut first_byte = [0];
        let speaks = tokio::select! {
            peeked = tokio::time::timeout(FIRST_BYTE_TIMEOUT, stream.peek(&mut first_byte)) => matches!(peeked, Ok(Ok(1))),
            _ = closing.changed() => false,
        };
        if speaks {
            let connection = builder.serve_connection(TokioIo::new(stream), service);
            if let Err(error) = watcher.watch(connection).await {
                // Clients go away and send rubbish all day.
                tracing::debug!(error = error.as_ref() as &dyn std::error::Error, "connection failed");
            }
        }
        open.dec();
        drop(self.permit);
    }
}

/// Asks the service at `address` whether it is up; one that listens everywhere is asked on loopback.
pub async fn probe_health(mut address: SocketAddr) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    if address.ip().is_unspecified() {
        let loopback = if address.is_ipv4() { IpAddr::from([127, 0, 0, 1]) } else { Ipv6Addr::LOCALHOST.into() };
        address.set_ip(loopback);
    }
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = hyper::Request::get("/auth/health").header("host", address.to_string()).body(String::new())?;
    let status = sender.send_request(request).await?.status();
    if status.is_success() { Ok(()) } else { Err(format!("answered {status}").into()) }
}
