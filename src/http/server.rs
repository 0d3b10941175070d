//! The sockets: accepting up to a limit of connections, and shutting down without cutting anybody off.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection_limits::{ConnectionLimits, PROBE_CONNECTIONS};
use super::{Peer, build, connection};
use crate::app::{self, App};

/// A connection on which nothing is asked for so long is closed. A gateway that keeps connections must give them up
/// earlier (Traefik does so after 90 s), or it would now and then write into one that is just closing. Where a request may
/// take longer, so does this.
const IDLE_TIMEOUT: Duration = Duration::from_mins(2);
/// For how long no connection is accepted after the system refused one, for want of descriptors, say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// For how long connections are still accepted at shutdown, for clients that had begun to connect.
const ACCEPT_GRACE: Duration = Duration::from_millis(50);
/// Descriptors that are not for clients, or for probes: the database's connections have their own count beside these.
const RESERVED_DESCRIPTORS: u64 = 64 + PROBE_CONNECTIONS as u64;
/// How many connections may wait to be accepted, if the system's own limit allows; the usual 128 would make a crowd that
/// comes at once wait for a second, until its connection attempts are repeated.
const BACKLOG: u32 = 4096;
/// How much of an answer the system holds for a client that does not take it (it doubles this for its own use). Left to
/// itself it would hold megabytes for each.
const SEND_BUFFER_BYTES: u32 = 64 * 1024;

/// Opens the socket that [`serve`] accepts from.
pub fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restarted service need not wait until the last connections of the old one are forgotten.
    socket.set_reuseaddr(true)?;
    // Connections have it from the socket they came through.
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves until `shutdown` is done and for the time in which gateways notice, then finishes what is in flight. Returns
/// whether all of it was finished in the time the configuration gives.
pub async fn serve(app: App, listener: TcpListener, shutdown: impl Future<Output = ()>) -> bool {
    let service = build(app.clone());
    let idle_timeout = IDLE_TIMEOUT.max(app.config.request_timeout);
    let limits = ConnectionLimits::new(connection_limit(&app), app.config.trusted_proxies.clone());
    let (connections, draining) = (TaskTracker::new(), CancellationToken::new());
    let mut end = std::pin::pin!(async {
        shutdown.await;
        app.stopping.cancel();
        tokio::time::sleep(ACCEPT_GRACE.max(app.config.shutdown_delay)).await;
    });
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut end => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                let Some(permit) = limits.acquire(peer.ip()) else {
                    app.metrics.connections_refused.inc();
                    continue;
                };
                let (service, draining) = (service.clone(), draining.clone());
                let connection = connection::serve(stream, Peer(peer), permit, service, idle_timeout, draining);
                let open = app.metrics.connections.clone();
                connections.spawn(async move {
                    open.inc();
                    connection.await;
                    open.dec();
                });
            }
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    tracing::info!("shutting down");
    draining.cancel();
    connections.close();
    tokio::time::timeout(app.config.shutdown_grace, connections.wait()).await.is_ok()
}

/// How many connections there may be: as many as configured, or as the system's limit of open files leaves room for.
fn connection_limit(app: &App) -> usize {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // The soft limit exists for programs that use `select`; any process may raise it to the hard one.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let configured = app.config.max_connections;
    let Some(open_files) = getrlimit(Resource::Nofile).current else { return configured };
    let database = u64::from(app.config.database.database_max_connections) + u64::from(app::REFRESH_CONNECTIONS);
    let room = usize::try_from(open_files.saturating_sub(RESERVED_DESCRIPTORS + database)).unwrap_or(usize::MAX).max(1);
    if room < configured {
        tracing::warn!(configured, room, open_files, "MAX_CONNECTIONS is more than the limit of open files allows");
    }
    configured.min(room)
}

pub async fn probe_health(address: SocketAddr) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = hyper::Request::get("/auth/health").header("host", address.to_string()).body(String::new())?;
    let status = sender.send_request(request).await?.status();
    if status.is_success() { Ok(()) } else { Err(format!("answered {status}").into()) }
}
