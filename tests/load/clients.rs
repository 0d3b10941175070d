//! Clients that refresh through an outage as a good client does: after a 503, or an answer that does not come, they send
//! **the same token** again when `Retry-After` says so. A 401 signs them out.
//!
//! Used by the drill and, by its path, by the end-to-end tests.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::http::Client;

/// Time in which everything is well, before the outage.
const BEFORE: Duration = Duration::from_secs(2);
/// The longest time until every client has a pair again.
const AFTER: Duration = Duration::from_mins(1);
/// Every so many clients there is one that waits for an answer no longer than this.
const IMPATIENT: usize = 5;
const PATIENCE: Duration = Duration::from_secs(5);

/// What became of all clients.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) pairs: u64,
    /// Everything else, by status or kind of error.
    pub(crate) others: BTreeMap<String, u64>,
    pub(crate) signed_out: u64,
    /// Clients without a pair long after the outage.
    pub(crate) not_back: u64,
    pub(crate) slowest: Duration,
    /// The longest time in which nobody got a pair.
    pub(crate) longest_silence: Duration,
    last_pair: Option<Instant>,
    /// From the end of the outage to the first pair, and to the last client's.
    pub(crate) first_pair: Duration,
    pub(crate) all_back: Duration,
}

type Shared = Arc<Mutex<Report>>;

/// Has a client refresh each of the tokens, until all of them have got through the outage. With `impatient`, some wait
/// for no answer longer than a few seconds.
pub(crate) async fn refresh_through(
    address: SocketAddr,
    tokens: Vec<String>,
    impatient: bool,
    outage: impl Future<Output = ()>,
) -> Report {
    let (end, ended) = watch::channel(None);
    let shared = Shared::default();
    let mut clients: Vec<_> = tokens
        .into_iter()
        .enumerate()
        .map(|(index, token)| {
            let patience = (impatient && index % IMPATIENT == 0).then_some(PATIENCE);
            tokio::spawn(live(address, token, patience, ended.clone(), Arc::clone(&shared)))
        })
        .collect();
    tokio::time::sleep(BEFORE).await;
    outage.await;
    end.send_replace(Some(Instant::now()));
    let deadline = tokio::time::Instant::now() + AFTER;
    let mut not_back = 0;
    for client in &mut clients {
        if tokio::time::timeout_at(deadline, &mut *client).await.is_err() {
            client.abort();
            not_back += 1;
        }
    }
    let mut report = std::mem::take(&mut *shared.lock().unwrap_or_else(PoisonError::into_inner));
    report.not_back = not_back;
    report
}

/// A client, until its first pair after the end of the outage, or until it is signed out.
async fn live(
    address: SocketAddr,
    mut token: String,
    patience: Option<Duration>,
    ended: watch::Receiver<Option<Instant>>,
    report: Shared,
) {
    let mut client = Client::new(address);
    let report = || report.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        tokio::time::sleep(Duration::from_millis(rand::random_range(100..500))).await;
        let (wanted, sent_after) = (Instant::now(), *ended.borrow());
        token = loop {
            let patience = patience.unwrap_or(Duration::from_mins(1));
            let answer = tokio::time::timeout(patience, client.refresh(&token)).await;
            let (what, retry_after) = match &answer {
                Ok(Ok(answer)) => match (answer.status, answer.field("refresh_token")) {
                    (200, Some(next)) => break next.to_owned(),
                    (401, _) => {
                        report().signed_out += 1;
                        return;
                    }
                    (status, _) => {
                        (status.to_string(), answer.header("retry-after").and_then(|text| text.parse().ok()))
                    }
                },
                Ok(Err(error)) => (error.kind().to_string(), None),
                Err(_elapsed) => ("left after some seconds".to_owned(), None),
            };
            if answer.is_err() {
                client.disconnect();
            }
            *report().others.entry(what).or_default() += 1;
            tokio::time::sleep(Duration::from_secs(retry_after.unwrap_or(1))).await;
        };
        let mut report = report();
        report.pairs += 1;
        report.slowest = report.slowest.max(wanted.elapsed());
        let silence = report.last_pair.replace(Instant::now()).map_or(Duration::ZERO, |last| last.elapsed());
        report.longest_silence = report.longest_silence.max(silence);
        if let Some(ended) = *ended.borrow() {
            let after = ended.elapsed();
            report.first_pair = if report.first_pair.is_zero() { after } else { report.first_pair.min(after) };
            report.all_back = report.all_back.max(after);
        }
        if sent_after.is_some() {
            return;
        }
    }
}
