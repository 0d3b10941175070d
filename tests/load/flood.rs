//! A login flood: many clients sign in at once, and a few others go on refreshing, as customers who are signed in do.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;
use tokio::task::LocalSet;
use uuid::Uuid;

use crate::http::Client;
use crate::stats::{self, Samples, Window};
use crate::{Outcome, Store, requests, seed};

/// What neither counts as quiet nor as flood, at the beginning of each.
const WARM_UP: Duration = Duration::from_secs(1);

/// A hostile client has this between a refusal and its next attempt.
const HOSTILE_PAUSE: Duration = Duration::from_millis(1);

#[derive(Args)]
pub(crate) struct Flood {
    #[arg(long, default_value = "127.0.0.1:8000")]
    address: SocketAddr,
    #[command(flatten)]
    store: Store,
    /// Clients that sign in, again and again
    #[arg(long, default_value_t = 500)]
    clients: usize,
    #[arg(long, default_value_t = 15.0)]
    seconds: f64,
    /// Length of the quiet time before it
    #[arg(long, default_value_t = 10.0)]
    quiet: f64,
    /// Clients that refresh
    #[arg(long, default_value_t = 4)]
    refreshers: usize,
    /// What a refreshing client waits between two refreshes, in milliseconds
    #[arg(long, default_value_t = 100)]
    pace: u64,
    /// Refused clients come back at once, whatever Retry-After says
    #[arg(long)]
    hostile: bool,
}

impl Flood {
    pub(crate) async fn run(&self) -> Outcome<ExitCode> {
        LocalSet::new().run_until(self.drill()).await
    }

    async fn drill(&self) -> Outcome<ExitCode> {
        let mut database = seed::database(&self.store.dsn).await?;
        let label = format!("flood-{}", Uuid::new_v4().simple());
        let users = seed::users(&mut database, &label, self.clients.max(self.refreshers)).await?;
        let tokens = seed::sessions(&mut database, &self.store.secret, &users[..self.refreshers]).await?;
        drop(database);

        let quiet = Window::after(WARM_UP, Duration::from_secs_f64(self.quiet));
        let begin = quiet.end + WARM_UP;
        let loud = Window { begin, end: begin + Duration::from_secs_f64(self.seconds) };
        let pace = Duration::from_millis(self.pace);
        let chains: Vec<_> = tokens
            .into_iter()
            .enumerate()
            .map(|(index, token)| {
                // Spread out, as strangers are.
                let offset = pace.mul_f64(f64::from(u32::try_from(index).unwrap_or(0)) * 0.618 % 1.0);
                tokio::task::spawn_local(refresh(self.address, token, offset, pace, [quiet, loud]))
            })
            .collect();
        tokio::time::sleep_until(quiet.end.into()).await;
        let logins: Vec<_> = users
            .iter()
            .take(self.clients)
            .map(|user| {
                let request = requests::login_request(&user.email);
                tokio::task::spawn_local(log_in(self.address, request, loud, self.hostile))
            })
            .collect();

        let mut refreshes = [Samples::default(), Samples::default()];
        for task in chains {
            for (all, some) in refreshes.iter_mut().zip(task.await?) {
                all.absorb(some);
            }
        }
        let mut answers = Samples::default();
        for task in logins {
            answers.absorb(task.await?);
        }

        let [mut before, mut during] = refreshes;
        let wrong: u64 = answers.others().iter().filter(|(what, _)| *what != SHED).map(|(_, count)| count).sum();
        let refused: u64 = [&before, &during].into_iter().flat_map(|samples| samples.others().values()).sum();
        let report = json!({
            "clients": self.clients,
            "hostile": self.hostile,
            "logins": answers.report(loud.length()),
            "refreshes_before": before.report(quiet.length()),
            "refreshes_during": during.report(loud.length()),
        });
        stats::print("flood", report);
        Ok(if wrong + refused == 0 && answers.count() > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// The one refusal that is in order.
const SHED: &str = "503 with retry-after";

async fn log_in(address: SocketAddr, request: Vec<u8>, window: Window, hostile: bool) -> Samples {
    let (mut client, mut samples) = (Client::new(address), Samples::default());
    loop {
        let sent = Instant::now();
        if sent >= window.end {
            return samples;
        }
        let pause = match client.ask(&request).await {
            // Logins under way at the end were worked on in the window as much as those under way at the beginning
            // were not: what is answered within it counts for the rate.
            Ok(answer) if answer.status == 200 => {
                if window.contains(Instant::now()) {
                    samples.success(sent.elapsed());
                }
                continue;
            }
            Ok(answer) => {
                let retry_after = answer.header("retry-after").and_then(|value| value.parse::<u64>().ok());
                match (answer.status, retry_after.filter(|&seconds| seconds > 0)) {
                    (503, Some(seconds)) => {
                        samples.other(&SHED);
                        Duration::from_secs(seconds)
                    }
                    (status, _) => {
                        samples.other(&status);
                        Duration::from_secs(1)
                    }
                }
            }
            Err(error) => {
                samples.other(&error.kind());
                Duration::from_secs(1)
            }
        };
        let pause = if hostile { HOSTILE_PAUSE } else { pause };
        tokio::time::sleep_until((Instant::now() + pause).min(window.end).into()).await;
    }
}

/// Refreshes at its pace, and sorts the answers by the window in which the request was sent.
async fn refresh(
    address: SocketAddr,
    mut token: String,
    offset: Duration,
    pace: Duration,
    windows: [Window; 2],
) -> [Samples; 2] {
    let (mut client, mut samples) = (Client::new(address), <[Samples; 2]>::default());
    let mut next = tokio::time::Instant::now() + offset;
    loop {
        tokio::time::sleep_until(next).await;
        let sent = Instant::now();
        if sent >= windows[1].end {
            return samples;
        }
        let mut ignored = Samples::default();
        let samples = match windows.iter().position(|window| window.contains(sent)) {
            Some(index) => &mut samples[index],
            None => &mut ignored,
        };
        match client.refresh(&token).await {
            Ok(answer) => match (answer.status, answer.field("refresh_token")) {
                (200, Some(given)) => {
                    samples.success(sent.elapsed());
                    given.clone_into(&mut token);
                }
                (status, _) => samples.other(&status),
            },
            Err(error) => samples.other(&error.kind()),
        }
        next = tokio::time::Instant::now() + pace;
    }
}
