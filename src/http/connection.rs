//! One connection: HTTP/1.1, what it waits for, and for how long it may.
//!
//! hyper has a time limit for a head, but applies it to idle connections as well, which gateways keep for longer, and none
//! for an answer that is not taken.

use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONNECTION, HOST};
use axum::http::{StatusCode, Version};
use axum::response::IntoResponse as _;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tower::Service as _;

use super::connection_limits::Permit;
use super::{HttpService, Peer};

/// The time for a head, from its first byte to its end, and for the first byte of a new connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The same for a connection that is for probes only, which send at once.
const PROBE_HEAD_TIMEOUT: Duration = Duration::from_secs(1);
/// An answer ends the connection when its client is so far behind one that takes [`MIN_BYTES_PER_SECOND`].
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// The rate at which an answer must be taken: that of a modem. The largest one takes six minutes then.
const MIN_BYTES_PER_SECOND: u32 = 4096;
/// How long a new connection has to complete its first head when the service shuts down.
const DRAIN_QUIET_PERIOD: Duration = Duration::from_secs(1);
/// How much of a head is read before it is refused, up to a last piece of the same size. Also bounds the memory of a
/// connection whose client sends slowly.
const MAX_HEAD_BYTES: usize = 32 * 1024;

/// Stands in requests whose connection is for probes only.
#[derive(Clone, Copy)]
pub(super) struct ProbesOnly;

/// Serves requests until the client goes, a time limit has passed, or, once `draining`, the request in flight is answered.
pub(super) async fn serve(
    stream: TcpStream,
    peer: Peer,
    permit: Permit,
    service: HttpService,
    idle_timeout: Duration,
    draining: CancellationToken,
) {
    // Answers are small and written whole; waiting to fill a packet only delays them.
    let _ = stream.set_nodelay(true);
    let activity = Activity::new(if permit.probes_only { PROBE_HEAD_TIMEOUT } else { HEAD_TIMEOUT });
    let service = service_fn(|request: Request<Incoming>| {
        activity.enter(Phase::Answer);
        let names_host = has_one_host(&request);
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer);
        if permit.probes_only {
            request.extensions_mut().insert(ProbesOnly);
        }
        let (mut service, activity) = (service.clone(), &activity);
        async move {
            let response = if names_host {
                service.call(request).await
            } else {
                Ok((StatusCode::BAD_REQUEST, [(CONNECTION, "close")]).into_response())
            };
            activity.begin_answer();
            response as Result<_, Infallible>
        }
    });
    let io = TokioIo::new(Observed { stream, activity: &activity });
    let mut builder = http1::Builder::new();
    builder.max_buf_size(MAX_HEAD_BYTES).keep_alive(!permit.probes_only);
    let mut connection = pin!(builder.serve_connection(io, service));
    let drain = async {
        draining.cancelled().await;
        if activity.phase() == Phase::Head {
            sleep(DRAIN_QUIET_PERIOD).await;
        }
    };
    let ended = tokio::select! {
        // What has come is read before anything is closed.
        biased;
        ended = connection.as_mut() => ended,
        () = activity.timed_out(idle_timeout) => return,
        () = drain => {
            if activity.phase() == Phase::Head {
                return;
            }
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection => ended,
                () = activity.timed_out(DRAIN_QUIET_PERIOD) => return,
            }
        }
    };
    if let Err(error) = ended {
        // Clients that go away or send malformed requests are normal.
        tracing::debug!(error = &error as &dyn std::error::Error, "connection failed");
    }
}

/// Whether the head names one host, as HTTP/1.1 demands (RFC 9112 §3.2). What else is wrong with a head, hyper finds.
fn has_one_host(request: &Request<Incoming>) -> bool {
    let hosts = request.headers().get_all(HOST).iter().count();
    hosts == 1 || hosts == 0 && request.version() == Version::HTTP_10
}

/// What a connection waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The rest of a head, or the first byte of a new connection.
    Head,
    /// Our answer. The request has a time limit of its own.
    Answer,
    /// The client's taking of an answer.
    Write,
    /// The next request, or the end of an answer that is being taken. A half head that came in one piece with the request
    /// before it counts as none.
    Idle,
}

/// The phase of a connection.
struct Activity {
    head_timeout: Duration,
    current: Mutex<Current>,
}

#[derive(Clone, Copy)]
struct Current {
    phase: Phase,
    /// When the phase began or last went forward.
    since: Instant,
    /// When a client that takes the answer at [`MIN_BYTES_PER_SECOND`] would have taken as much of it as this one has.
    taken: Instant,
}

impl Activity {
    fn new(head_timeout: Duration) -> Self {
        let now = Instant::now();
        Self { head_timeout, current: Mutex::new(Current { phase: Phase::Head, since: now, taken: now }) }
    }

    fn phase(&self) -> Phase {
        self.current.lock().phase
    }

    fn enter(&self, phase: Phase) {
        let mut current = self.current.lock();
        (current.phase, current.since) = (phase, Instant::now());
    }

    fn begin_answer(&self) {
        let now = Instant::now();
        *self.current.lock() = Current { phase: Phase::Idle, since: now, taken: now };
    }

    /// Notes that the client takes so many bytes of an answer, or, with `None`, none now.
    fn written(&self, bytes: Option<usize>) {
        let mut current = self.current.lock();
        let now = Instant::now();
        let Some(bytes) = bytes else {
            if current.phase != Phase::Write {
                (current.phase, current.since) = (Phase::Write, current.taken);
            }
            return;
        };
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        current.taken = now.min(current.taken + Duration::from_secs(1) * bytes / MIN_BYTES_PER_SECOND);
        if matches!(current.phase, Phase::Write | Phase::Idle) {
            (current.phase, current.since) = (Phase::Idle, now);
        }
    }

    /// Waits until a phase has lasted for too long.
    async fn timed_out(&self, idle_timeout: Duration) {
        loop {
            let Current { phase, since, .. } = *self.current.lock();
            let now = Instant::now();
            let deadline = match phase {
                Phase::Head => since + self.head_timeout,
                Phase::Write => since + WRITE_TIMEOUT,
                Phase::Idle => since + idle_timeout,
                Phase::Answer => now + self.head_timeout,
            };
            if deadline <= now {
                return;
            }
            // Any phase may begin meanwhile, and none has a shorter time.
            sleep_until(deadline.min(now + self.head_timeout)).await;
        }
    }
}

/// Notes what goes through a stream.
struct Observed<'a> {
    stream: TcpStream,
    activity: &'a Activity,
}

impl Observed<'_> {
    fn written(&self, outcome: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &outcome {
            Poll::Pending => self.activity.written(None),
            Poll::Ready(written) => self.activity.written(Some(*written.as_ref().unwrap_or(&0))),
        }
        outcome
    }
}

impl Drop for Observed<'_> {
    fn drop(&mut self) {
        if self.activity.phase() == Phase::Write {
            // The system would go on offering the rest to a client that does not take it.
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Observed<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before && self.activity.phase() == Phase::Idle {
            self.activity.enter(Phase::Head);
        }
        outcome
    }
}

impl AsyncWrite for Observed<'_> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.written(outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.written(outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the connection of a client that takes so many bytes of an answer each second lasts for ten minutes.
    async fn lasts(bytes: usize) -> bool {
        let activity = Activity::new(HEAD_TIMEOUT);
        activity.begin_answer();
        for _ in 0..600 {
            activity.written(None);
            if tokio::time::timeout(Duration::from_secs(1), activity.timed_out(Duration::from_mins(2))).await.is_ok() {
                return false;
            }
            activity.written(Some(bytes));
        }
        true
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_must_be_taken_at_a_least_rate() {
        assert!(lasts(4096).await);
        assert!(!lasts(3500).await);
        assert!(!lasts(1).await);
    }
}
