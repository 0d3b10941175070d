//! Refresh chains: every connection exchanges the token it was just given, as fast as it is answered.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::{Map, json};
use tokio::task::LocalSet;
use uuid::Uuid;

use crate::http::{self, Client};
use crate::stats::{self, Samples, Window};
use crate::{Load, Outcome, Store, seed};

/// What a connection came to: its samples, the tokens its sessions were last given, and the one that was under way when
/// an answer was lost.
#[derive(Default)]
struct Chains {
    samples: Samples,
    tokens: VecDeque<String>,
    unanswered: Option<String>,
}

/// Exchanges the tokens in turn, each for its session's next, until the window ends. Ends early where an exchange got no
/// answer: nobody but the database knows what became of it.
async fn exchange(address: SocketAddr, tokens: VecDeque<String>, window: Window) -> Chains {
    let (mut client, mut request) = (Client::new(address), Vec::new());
    let mut chains = Chains { tokens, ..Chains::default() };
    while let Some(mut token) = chains.tokens.pop_front() {
        http::write_refresh(&mut request, &token);
        let sent = Instant::now();
        if sent >= window.end || client.connect().await.is_err() {
            chains.tokens.push_front(token);
            break;
        }
        let answer = client.ask(&request).await;
        let done = Instant::now();
        let counts = window.contains(done);
        match answer {
            Ok(answer) => match (answer.status, answer.field("refresh_token")) {
                (200, Some(next)) => {
                    if counts {
                        chains.samples.success(done - sent);
                    }
                    next.clone_into(&mut token);
                }
                (status, _) => {
                    chains.samples.other(&status);
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            },
            Err(error) => {
                chains.samples.other(&error.kind());
                chains.unanswered = Some(token);
                break;
            }
        }
        chains.tokens.push_back(token);
    }
    chains
}

/// Seeds sessions, `per_connection` of one user each, and exchanges on all connections.
async fn run(load: &Load, store: &Store, per_connection: usize) -> Outcome<(Vec<Chains>, Window)> {
    let mut database = seed::database(&store.dsn).await?;
    let label = format!("chain-{}", Uuid::new_v4().simple());
    let users = seed::users(&mut database, &label, load.connections).await?;
    let mut tokens = vec![VecDeque::new(); load.connections];
    for _ in 0..per_connection {
        for (own, token) in tokens.iter_mut().zip(seed::sessions(&mut database, &store.secret, &users).await?) {
            own.push_back(token);
        }
    }
    drop(database);
    let (window, local) = (load.window(), LocalSet::new());
    let address = load.address;
    let tasks: Vec<_> = tokens.into_iter().map(|tokens| local.spawn_local(exchange(address, tokens, window))).collect();
    let mut chains = Vec::new();
    local
        .run_until(async {
            for task in tasks {
                chains.push(task.await?);
            }
            Outcome::Ok(())
        })
        .await?;
    Ok((chains, window))
}

pub(crate) async fn refresh(load: &Load, store: &Store, per_connection: usize) -> Outcome<()> {
    let (chains, window) = run(load, store, per_connection).await?;
    let mut samples = Samples::default();
    for chains in chains {
        samples.absorb(chains.samples);
    }
    let mut report = samples.report(window.length());
    report.insert("connections".to_owned(), json!(load.connections));
    stats::print("refresh", report);
    Ok(())
}

/// Exchanges until the service dies, or the time is over, and writes down what each session was last given. A line is
/// a token; with `?` before it where the answer to its exchange was lost: that one may be used up by now.
pub(crate) async fn kill_load(load: &Load, store: &Store, per_connection: usize, tokens: &Path) -> Outcome<()> {
    let (chains, window) = run(load, store, per_connection).await?;
    let (mut samples, mut lines) = (Samples::default(), String::new());
    for chains in chains {
        samples.absorb(chains.samples);
        for token in chains.tokens {
            writeln!(lines, "{token}")?;
        }
        if let Some(token) = chains.unanswered {
            writeln!(lines, "?{token}")?;
        }
    }
    fs::write(tokens, lines)?;
    let mut report = samples.report(window.length());
    report.insert("connections".to_owned(), json!(load.connections));
    stats::print("kill-load", report);
    Ok(())
}

/// Exchanges every token of the file once. With `REFRESH_GRACE_ANSWER=replay` a lost answer is answered again, so every
/// single one has to be 200.
pub(crate) async fn kill_check(address: SocketAddr, tokens: &Path) -> Outcome<ExitCode> {
    let mut client = Client::new(address);
    let (mut answered, mut unanswered) = (Samples::default(), Samples::default());
    let mut request = Vec::new();
    let patience = Instant::now() + Duration::from_mins(1);
    for line in fs::read_to_string(tokens)?.lines() {
        let (samples, token) = match line.strip_prefix('?') {
            Some(token) => (&mut unanswered, token),
            None => (&mut answered, line),
        };
        http::write_refresh(&mut request, token);
        let sent = Instant::now();
        let status = loop {
            // The database may still be on its way up.
            match client.ask(&request).await?.status {
                503 if Instant::now() < patience => tokio::time::sleep(Duration::from_millis(200)).await,
                status => break status,
            }
        };
        match status {
            200 => samples.success(sent.elapsed()),
            status => samples.other(&status),
        }
    }
    let lost = answered.others().values().sum::<u64>() + unanswered.others().values().sum::<u64>();
    let mut report = Map::new();
    report.insert("refreshed".to_owned(), json!(answered.count()));
    report.insert("refreshed_after_a_lost_answer".to_owned(), json!(unanswered.count()));
    report.insert("refused".to_owned(), json!(answered.others()));
    report.insert("refused_after_a_lost_answer".to_owned(), json!(unanswered.others()));
    stats::print("kill-check", report);
    Ok(if lost == 0 && answered.count() + unanswered.count() > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
