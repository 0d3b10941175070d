//! Refresh chains: every connection exchanges the token it was just given, as fast as it is answered.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::http::Client;
use crate::stats::{Samples, Window};
use crate::{Load, Outcome, Store, seed};

/// Exchanges the tokens in turn, each for its session's next, until the window ends or an answer is lost.
async fn exchange(address: SocketAddr, mut tokens: VecDeque<String>, window: Window) -> Samples {
    let (mut client, mut samples) = (Client::new(address), Samples::default());
    while let Some(mut token) = tokens.pop_front() {
        let sent = Instant::now();
        if sent >= window.end {
            break;
        }
        let answer = client.refresh(&token).await;
        let done = Instant::now();
        let counts = window.contains(done);
        match answer {
            Ok(answer) => match (answer.status, answer.field("refresh_token")) {
                (200, Some(next)) => {
                    if counts {
                        samples.success(done - sent);
                    }
                    next.clone_into(&mut token);
                }
                (status, _) => {
                    samples.other(&status);
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            },
            Err(error) => {
                samples.other(&error.kind());
                break;
            }
        }
        tokens.push_back(token);
    }
    samples
}

/// Seeds sessions, `per_connection` of one user each, and exchanges on all connections.
pub(crate) async fn refresh(load: &Load, store: &Store, per_connection: usize) -> Outcome<()> {
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
    let window = load.window();
    load.measure("refresh", window, tokens.into_iter().map(|tokens| exchange(load.address, tokens, window))).await
}
