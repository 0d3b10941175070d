//! The sockets: accepting, limits on connections and slow clients, and going down without dropping anybody.

use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::io::InspectWriter;
use tokio_util::task::TaskTracker;
use tower::Service as _;

use super::{Peer, Service, service};
use crate::app::{self, App};

/// A connection that begins no request for so long is closed within as long again: one that is silent, or that never
/// gets to the end of a head. A gateway that keeps connections must give them up earlier (Traefik does so after 90 s), or
/// it would now and then write into one that is just closing. Where a request may take longer, so does this.
const IDLE_TIMEOUT: Duration = Duration::from_mins(2);
/// The time until a new connection has said whether it speaks HTTP/1 or 2.
const FIRST_BYTES_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause between two looks at first bytes that tell nothing yet.
const FIRST_BYTES_PAUSE: Duration = Duration::from_millis(50);
/// What a client that speaks HTTP/2 sends first (RFC 9113 §3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// For how long no connection is accepted after the system refused one, for want of descriptors, say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// For how long connections are still accepted when it is time to go, for those who had begun to connect.
const LAST_CALL: Duration = Duration::from_millis(50);
/// For how long nothing may happen until nobody is expected to come up with a request, or to take an answer, any more.
const SILENCE: Duration = Duration::from_secs(1);
/// Descriptors that are not for clients: the database's connections have their own count beside these.
const RESERVED_DESCRIPTORS: u64 = 64;

/// How many connections may wait to be accepted, if the system's own limit allows; the usual 128 would make a crowd that
/// comes at once wait for a second, until its connection attempts are repeated.
const BACKLOG: u32 = 4096;

/// Opens the socket that [`serve`] accepts from.
pub fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restarted service need not wait until the last connections of the old one are forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves until `shutdown` is done, then finishes what is in flight. Returns whether all of it was finished in the time
/// the configuration gives.
pub async fn serve(app: App, listener: TcpListener, shutdown: impl Future<Output = ()>) -> bool {
    let service = service(app.clone());
    let connections = Arc::new(Semaphore::new(connection_limit(&app)));
    let graceful = GracefulShutdown::new();
    let traffic = Traffic::default();
    let mut last_call = std::pin::pin!(async {
        shutdown.await;
        tokio::time::sleep(LAST_CALL).await;
    });
    loop {
        let accepted = async {
            // Beyond the limit clients wait in the backlog of the socket.
            let permit = Arc::clone(&connections).acquire_owned().await;
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            accepted = accepted => accepted,
            () = &mut last_call => break,
        };
        match (accepted, permit) {
            (Ok((stream, peer)), Ok(permit)) => {
                let (app, service, traffic) = (app.clone(), service.clone(), traffic.clone());
                let connection = Connection { app, service, traffic, peer: Peer(peer), permit };
                tokio::spawn(connection.serve(stream, graceful.watcher()));
            }
            (Err(error), _) => {
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            (_, Err(_closed)) => break,
        }
    }
    drop(listener);
    tracing::info!("shutting down");
    let finished = async {
        tokio::select! {
            // Connections that say nothing, or never finish saying it, would keep this one waiting ...
            () = graceful.shutdown() => {}
            // ... and this one knows only of requests whose head has come.
            () = traffic.silence() => {}
        }
    };
    tokio::time::timeout(app.config.shutdown_grace, finished).await.is_ok()
}

/// What goes on on all connections.
#[derive(Clone, Default)]
struct Traffic {
    /// Requests whose head has come and whose answer has not begun.
    requests: TaskTracker,
    /// Bytes of answers.
    written: Arc<AtomicU64>,
}

impl Traffic {
    /// Waits until no request is in flight and no answer is being sent.
    async fn silence(&self) {
        self.requests.close();
        loop {
            self.requests.wait().await;
            let written = self.written.load(Ordering::Relaxed);
            tokio::time::sleep(SILENCE).await;
            if self.requests.is_empty() && self.written.load(Ordering::Relaxed) == written {
                return;
            }
        }
    }
}

/// How many connections there may be: as many as configured, or as the system's limit of open files leaves room for.
fn connection_limit(app: &App) -> usize {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // The lower limit is for programs that cannot do with more; asking for all that is allowed fails for nobody.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let configured = app.config.max_connections;
    let Some(open_files) = getrlimit(Resource::Nofile).current else { return configured };
    let database = u64::from(app.config.database.max_connections) + u64::from(app::REFRESH_CONNECTIONS);
    let room = usize::try_from(open_files.saturating_sub(RESERVED_DESCRIPTORS + database)).unwrap_or(usize::MAX).max(1);
    if room < configured {
        tracing::warn!(configured, room, open_files, "MAX_CONNECTIONS is more than the limit of open files allows");
    }
    configured.min(room)
}

struct Connection {
    app: App,
    service: Service,
    traffic: Traffic,
    peer: Peer,
    permit: OwnedSemaphorePermit,
}

impl Connection {
    async fn serve(self, stream: TcpStream, watcher: Watcher) {
        let open = &self.app.metrics.connections;
        open.inc();
        // Answers are small and written whole; waiting to fill a packet only delays them.
        let _ = stream.set_nodelay(true);
        let begun = AtomicU64::new(0);
        let service = hyper::service::service_fn(|mut request: hyper::Request<Incoming>| {
            begun.fetch_add(1, Ordering::Relaxed);
            let in_flight = self.traffic.requests.token();
            request.extensions_mut().insert(self.peer);
            let mut service = self.service.clone();
            async move {
                let response: Result<_, Infallible> = service.call(request.map(axum::body::Body::new)).await;
                drop(in_flight);
                response
            }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        // No timers of the protocols' own: they are set anew for every request, where one per connection does.
        builder.http1().max_buf_size(64 * 1024).writev(false);
        builder.http2().max_concurrent_streams(256).max_header_list_size(64 * 1024);
        if let Ok(true) = tokio::time::timeout(FIRST_BYTES_TIMEOUT, speaks_http(&stream)).await {
            let written = Arc::clone(&self.traffic.written);
            let stream = InspectWriter::new(stream, move |bytes: &[u8]| {
                written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            });
            let connection = watcher.watch(builder.serve_connection(TokioIo::new(stream), service));
            tokio::select! {
                ended = connection => if let Err(error) = ended {
                    // Clients go away and send rubbish all day.
                    tracing::debug!(error = error.as_ref() as &dyn std::error::Error, "connection failed");
                },
                () = idle(&begun, IDLE_TIMEOUT.max(self.app.config.request_timeout)) => {}
            }
        }
        open.dec();
        drop(self.permit);
    }
}

/// Waits until no request has begun for as long as `timeout`.
async fn idle(begun: &AtomicU64, timeout: Duration) {
    let mut before = None;
    loop {
        let now = Some(begun.load(Ordering::Relaxed));
        if now == before {
            return;
        }
        before = now;
        tokio::time::sleep(timeout).await;
    }
}

/// Waits until the first bytes tell one version of HTTP from the other; the connection itself would wait for ever.
async fn speaks_http(stream: &TcpStream) -> bool {
    let mut first = [0; HTTP2_PREFACE.len()];
    loop {
        match stream.peek(&mut first).await {
            Ok(0) | Err(_) => return false,
            Ok(count) if count < first.len() && HTTP2_PREFACE.starts_with(&first[..count]) => {
                // What was seen stays there to be read, so looking again at once would find the same.
                tokio::time::sleep(FIRST_BYTES_PAUSE).await;
            }
            Ok(_) => return true,
        }
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
