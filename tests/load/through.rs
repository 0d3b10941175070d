//! Clients that refresh and others that sign in, through whatever a script breaks meanwhile, until SIGTERM.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::http::Client;
use crate::stats::{self, Samples};
use crate::{Outcome, Store, clients, requests, seed};

#[derive(Args)]
pub(crate) struct Through {
    #[arg(long, default_value = "127.0.0.1:8000")]
    address: SocketAddr,
    #[command(flatten)]
    store: Store,
    /// Clients that refresh
    #[arg(long, default_value_t = 60)]
    clients: usize,
    /// Clients that sign in, again and again
    #[arg(long, default_value_t = 4)]
    logins: usize,
    /// Every answer has to be a success
    #[arg(long)]
    unnoticed: bool,
}

impl Through {
    pub(crate) async fn run(&self) -> Outcome<ExitCode> {
        let mut database = seed::database(&self.store.dsn).await?;
        let label = format!("through-{}", Uuid::new_v4().simple());
        let users = seed::users(&mut database, &label, self.clients).await?;
        let ids: Vec<i64> = users.iter().map(|user| user.id).collect();
        let tokens = seed::sessions(&mut database, &self.store.secret, &users).await?;
        // Users of their own: logging in often enough ends a user's oldest session.
        let others = seed::users(&mut database, &format!("{label}-login"), self.logins).await?;
        drop(database);

        let (mut sigterm, stop) = (signal(SignalKind::terminate())?, CancellationToken::new());
        let started = Instant::now();
        let logins: Vec<_> =
            others.iter().map(|user| tokio::spawn(log_in(self.address, user.email.clone(), stop.clone()))).collect();
        let report = clients::refresh_through(self.address, tokens, false, async {
            sigterm.recv().await;
            stop.cancel();
        })
        .await;
        let mut signed_in = Samples::default();
        for task in logins {
            signed_in.absorb(task.await?);
        }

        // Whatever was broken, each client has one session, and that has one token.
        let mut database = seed::database(&self.store.dsn).await?;
        let lost: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM sessions WHERE user_id = ANY ($1) AND (ended_at IS NOT NULL OR 1 <> (
                 SELECT count(*) FROM refresh_tokens WHERE session_id = sessions.id AND NOT revoked))",
        )
        .bind(&ids)
        .fetch_one(&mut database)
        .await?;
        let sound = report.signed_out + report.not_back == 0 && lost == 0 && report.pairs > 0 && signed_in.count() > 0;
        let noticed = !(report.others.is_empty() && signed_in.others().is_empty());
        let seconds = |duration: Duration| stats::round(duration.as_secs_f64());
        let refreshes = json!({
            "pairs": report.pairs,
            "others": report.others,
            "slowest_s": seconds(report.slowest),
            "longest_silence_s": seconds(report.longest_silence),
            "signed_out": report.signed_out,
            "not_back": report.not_back,
            "sessions_lost": lost,
        });
        let logins = signed_in.report(started.elapsed());
        stats::print("through", json!({ "refreshes": refreshes, "logins": logins }));
        Ok(if sound && !(self.unnoticed && noticed) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

async fn log_in(address: SocketAddr, email: String, stop: CancellationToken) -> Samples {
    let (mut client, mut samples) = (Client::new(address), Samples::default());
    let request = requests::login_request(&email);
    while !stop.is_cancelled() {
        let sent = Instant::now();
        let pause = match client.ask(&request).await {
            Ok(answer) if answer.status == 200 => {
                samples.success(sent.elapsed());
                Duration::from_millis(rand::random_range(200..600))
            }
            Ok(answer) => {
                samples.other(&answer.status);
                Duration::from_secs(1)
            }
            Err(error) => {
                samples.other(&error.kind());
                Duration::from_secs(1)
            }
        };
        tokio::time::sleep(pause).await;
    }
    samples
}
