//! A line to the database, on loopback, that can be cut: at once, or right behind a commit, so that nobody learns of it.
//!
//! Used by the drills and, by its path, by the tests.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Clone, Copy, PartialEq)]
enum State {
    Whole,
    /// Requests go through, answers do not.
    Deaf,
    /// No connection is left or taken, as with a server that was stopped.
    Cut,
}

/// What of a connection's requests makes it deaf, and who is told once its answer was kept back.
type Trap = Arc<Mutex<Option<(Vec<u8>, watch::Sender<bool>)>>>;

/// Carries connections to a server until it is cut. It ends with the value.
pub(crate) struct Forwarder {
    address: SocketAddr,
    state: watch::Sender<State>,
    /// Whether the port is open.
    open: watch::Receiver<bool>,
    /// Counts the answers that were kept back.
    kept_back: watch::Receiver<u64>,
    /// Counts the calls of [`Self::drop_open`].
    drops: Arc<AtomicU64>,
    trap: Trap,
}

impl Forwarder {
    pub(crate) async fn to(host: &str, port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("loopback has a free port");
        let address = listener.local_addr().expect("it listens");
        let (state, wanted) = watch::channel(State::Whole);
        let (opened, open) = watch::channel(true);
        let (keep_back, kept_back) = watch::channel(0);
        let (drops, trap) = (Arc::default(), Trap::default());
        let line = Line {
            server: (host.to_owned(), port),
            wanted,
            keep_back: Arc::new(keep_back),
            drops: Arc::clone(&drops),
            trap: trap.clone(),
        };
        tokio::spawn(line.carry(listener, opened));
        Self { address, state, open, kept_back, drops, trap }
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Closes all connections and takes no more.
    pub(crate) async fn cut(&self) {
        self.set(State::Cut).await;
    }

    /// Keeps all connections and carries no answer, as a line that a firewall has dropped.
    pub(crate) async fn freeze(&self) {
        self.set(State::Deaf).await;
    }

    /// Carries no answer any more to the connections that are open, as a firewall that has forgotten them. New ones are whole.
    pub(crate) fn drop_open(&self) {
        self.drops.fetch_add(1, Ordering::SeqCst);
    }

    /// How many answers were kept back so far.
    pub(crate) fn kept_back(&self) -> u64 {
        *self.kept_back.borrow()
    }

    pub(crate) async fn mend(&self) {
        self.set(State::Whole).await;
    }

    /// Lets requests through but no answer, until one was kept back and so its work is done; then cuts the line.
    pub(crate) async fn cut_behind_an_answer(&self) {
        let mut kept_back = self.kept_back.clone();
        kept_back.mark_unchanged();
        self.set(State::Deaf).await;
        kept_back.changed().await.expect("the line is there");
        self.cut().await;
    }

    /// Cuts the connection that carries these bytes to the server, once that has answered; the others stay. What is
    /// returned becomes true then.
    pub(crate) fn cut_behind(&self, bytes: &[u8]) -> watch::Receiver<bool> {
        let (tell, told) = watch::channel(false);
        *self.trap.lock().unwrap_or_else(PoisonError::into_inner) = Some((bytes.to_vec(), tell));
        told
    }

    async fn set(&self, state: State) {
        self.state.send_replace(state);
        let mut open = self.open.clone();
        open.wait_for(|open| *open == (state != State::Cut)).await.expect("the line is there");
    }
}

#[derive(Clone)]
struct Line {
    server: (String, u16),
    wanted: watch::Receiver<State>,
    keep_back: Arc<watch::Sender<u64>>,
    drops: Arc<AtomicU64>,
    trap: Trap,
}

impl Line {
    async fn carry(self, listener: TcpListener, opened: watch::Sender<bool>) {
        let address = listener.local_addr().expect("it listens");
        let (mut wanted, mut listener) = (self.wanted.clone(), Some(listener));
        // Ends when the forwarder is gone.
        loop {
            let cut = *wanted.borrow_and_update() == State::Cut;
            if cut {
                listener = None;
            } else if listener.is_none() {
                listener = Some(TcpListener::bind(address).await.expect("the port is still free"));
            }
            opened.send_replace(!cut);
            tokio::select! {
                changed = wanted.changed() => if changed.is_err() { return },
                Some((client, _)) = accept(listener.as_ref()) => {
                    tokio::spawn(self.clone().connect(client));
                }
            }
        }
    }

    async fn connect(mut self, mut client: TcpStream) {
        let drops = self.drops.load(Ordering::SeqCst);
        let Ok(mut server) = TcpStream::connect((self.server.0.as_str(), self.server.1)).await else { return };
        let _ = client.set_nodelay(true).and_then(|()| server.set_nodelay(true));
        let (mut request, mut answer) = ([0; 16 * 1024], [0; 16 * 1024]);
        let mut trapped = None;
        let mut wanted = self.wanted.clone();
        loop {
            tokio::select! {
                // Requests first: an answer is kept back if its request was trapped.
                biased;
                () = until_cut(&mut wanted) => return,
                read = client.read(&mut request) => {
                    let Ok(count @ 1..) = read else { return };
                    trapped = trapped.or_else(|| self.trapped(&request[..count]));
                    if server.write_all(&request[..count]).await.is_err() {
                        return;
                    }
                }
                read = server.read(&mut answer) => {
                    let Ok(count @ 1..) = read else { return };
                    if let Some(tell) = &trapped {
                        tell.send_replace(true);
                        return;
                    }
                    let dropped = self.drops.load(Ordering::SeqCst) != drops;
                    if dropped || *self.wanted.borrow_and_update() == State::Deaf {
                        self.keep_back.send_modify(|count| *count += 1);
                    } else if client.write_all(&answer[..count]).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    fn trapped(&self, request: &[u8]) -> Option<watch::Sender<bool>> {
        let mut trap = self.trap.lock().unwrap_or_else(PoisonError::into_inner);
        let found = |bytes: &[u8]| request.windows(bytes.len()).any(|window| window == bytes);
        trap.take_if(|(bytes, _)| found(bytes)).map(|(_, tell)| tell)
    }
}

async fn until_cut(wanted: &mut watch::Receiver<State>) {
    // An error says that the forwarder is gone.
    let _ = wanted.wait_for(|state| *state == State::Cut).await;
}

async fn accept(listener: Option<&TcpListener>) -> Option<(TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await.ok(),
        None => std::future::pending().await,
    }
}
