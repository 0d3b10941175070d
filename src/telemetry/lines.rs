//! Log lines on their way to standard output.
//!
//! A request never waits for whoever reads the log. Lines are put into a buffer that a thread of its own empties; it is
//! woken by the first line and takes what the next moment brings along, so that a busy service pays for one write and
//! one wake-up in [`GATHER`] instead of in every request. If the reader is too slow for too long, lines are dropped
//! rather than sign-ins.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

/// For how long lines are gathered before they are written.
const GATHER: Duration = Duration::from_millis(20);
/// How much may wait to be written.
const MAX_WAITING_BYTES: usize = 4 * 1024 * 1024;
/// How long the last lines may take: a reader that does not read must not keep the process from ending.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// A buffer that has grown beyond this is given back.
const KEPT_BYTES: usize = 64 * 1024;

#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    dropped: u64,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where lines are put to be written.
#[derive(Clone)]
pub(super) struct Lines(Arc<Shared>);

impl Lines {
    pub(super) fn written_to(target: impl Write + Send + 'static) -> io::Result<(Self, LogGuard)> {
        let shared = Arc::new(Shared::default());
        let (end, ended) = mpsc::channel();
        let lines = Self(Arc::clone(&shared));
        let work = {
            let shared = Arc::clone(&shared);
            move || {
                write_lines(&shared, target);
                drop(end);
            }
        };
        std::thread::Builder::new().name("log".to_owned()).spawn(work)?;
        Ok((lines, LogGuard { shared, ended }))
    }
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut waiting = self.0.lock();
        if waiting.bytes.len() + line.len() > MAX_WAITING_BYTES {
            waiting.dropped += 1;
            return Ok(line.len());
        }
        let first = waiting.bytes.is_empty();
        waiting.bytes.extend_from_slice(line);
        drop(waiting);
        if first {
            self.0.changed.notify_one();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_lines(shared: &Shared, mut target: impl Write) {
    let mut lines = Vec::new();
    loop {
        let idle = |waiting: &mut Waiting| waiting.bytes.is_empty() && !waiting.closed;
        let waiting = shared.changed.wait_while(shared.lock(), idle).unwrap_or_else(PoisonError::into_inner);
        let gathered = shared.changed.wait_timeout_while(waiting, GATHER, |waiting| !waiting.closed);
        let (mut waiting, _) = gathered.unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut lines, &mut waiting.bytes);
        let (dropped, closed) = (std::mem::take(&mut waiting.dropped), waiting.closed);
        drop(waiting);
        // A log that cannot be written can be complained of nowhere.
        let _ = target.write_all(&lines).and_then(|()| target.flush());
        lines.clear();
        lines.shrink_to(KEPT_BYTES);
        if dropped > 0 {
            tracing::warn!(dropped, "the log was read too slowly: lines are missing");
        }
        if closed {
            return;
        }
    }
}

/// Writes what is waiting when it is dropped, if anybody reads it, and ends the thread.
pub struct LogGuard {
    shared: Arc<Shared>,
    /// Never sent on; closed when the thread is done.
    ended: mpsc::Receiver<()>,
}

impl std::fmt::Debug for LogGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogGuard").finish_non_exhaustive()
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_one();
        let _ = self.ended.recv_timeout(LAST_WORDS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader that takes what is written only when the test says so.
    struct Slow(mpsc::Receiver<()>, mpsc::Sender<Vec<u8>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            self.1.send(bytes.to_vec()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_line_is_written_in_order_and_whole() {
        let (go, wait) = mpsc::channel();
        let (written, out) = mpsc::channel();
        let (lines, guard) = Lines::written_to(Slow(wait, written)).unwrap();
        drop(go);
        let expected: Vec<String> = (0..10_000).map(|number| format!("line {number}\n")).collect();
        for line in &expected {
            lines.clone().write_all(line.as_bytes()).unwrap();
        }
        drop(guard);
        assert_eq!(out.iter().flatten().collect::<Vec<u8>>(), expected.concat().into_bytes());
    }

    #[test]
    fn a_reader_that_does_not_read_holds_nobody_up() {
        let (go, wait) = mpsc::channel();
        let (written, out) = mpsc::channel();
        let (mut lines, guard) = Lines::written_to(Slow(wait, written)).unwrap();
        let line = [b'x'; 1024];
        for _ in 0..10 * MAX_WAITING_BYTES / line.len() {
            lines.write_all(&line).unwrap();
        }
        assert!(lines.0.lock().bytes.len() <= MAX_WAITING_BYTES);
        drop(go);
        drop(guard);
        let written: usize = out.iter().map(|bytes| bytes.len()).sum();
        // What was on its way, and what waited.
        assert!((MAX_WAITING_BYTES..=2 * MAX_WAITING_BYTES).contains(&written), "{written}");
    }
}
