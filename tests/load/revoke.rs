//! Sessions are ended one by one at some replicas: how long until the last replica refuses each?

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;
use tokio::task::JoinSet;

use crate::forwarder::Forwarder;
use crate::http::{self, Client};
use crate::stats::{self, Samples};
use crate::{Outcome, Store, seed};

/// Between two questions to a replica.
const PAUSE: Duration = Duration::from_millis(1);
/// The longest that a replica is asked about one session.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Args)]
pub(crate) struct Revoke {
    /// Where the replicas listen
    #[arg(long = "replica", required = true)]
    replicas: Vec<SocketAddr>,
    #[command(flatten)]
    store: Store,
    #[arg(long, default_value_t = 200)]
    sessions: usize,
    /// How many of the replicas end sessions: the first ones
    #[arg(long, default_value_t = 3)]
    enders: usize,
    /// The longest it may take
    #[arg(long, default_value_t = 1000)]
    bound_ms: u64,
}

impl Revoke {
    /// The time counts from when the log-out that succeeds was sent.
    pub(crate) async fn run(&self) -> Outcome<ExitCode> {
        let mut database = seed::database(&self.store.dsn).await?;
        let users = seed::users(&mut database, "revoke", self.sessions).await?;
        let tokens = seed::sessions(&mut database, &self.store.secret, &users).await?;
        drop(database);
        let (mut last, mut statuses, mut late_at_home) = (Samples::default(), BTreeMap::<String, u64>::new(), 0_u64);
        for (number, (user, refresh)) in users.iter().zip(tokens).enumerate() {
            let access = seed::access_token(&self.store.secret, &user.email, seed::session_of(&refresh)?)?;
            let request = http::get("/auth/verify", Some(&access));
            let ender = self.replicas[number % self.enders];
            for replica in &self.replicas {
                let status = ask(&mut Client::new(*replica), &request).await;
                // One that does not know which sessions have ended may say so.
                if status != "200" && status != "503" {
                    return Err(format!("{replica} answers {status} before anything has ended").into());
                }
            }
            let sent = log_out(ender, &refresh).await;
            if ask(&mut Client::new(ender), &request).await == "200" {
                late_at_home += 1;
            }
            let mut asked = JoinSet::new();
            for replica in self.replicas.clone() {
                asked.spawn(until_refused(replica, request.clone(), sent));
            }
            let mut slowest = Duration::ZERO;
            for (took, status) in asked.join_all().await {
                slowest = slowest.max(took);
                *statuses.entry(status).or_default() += 1;
            }
            last.success(slowest);
        }
        Ok(self.report(last, &statuses, late_at_home))
    }

    fn report(&self, mut last: Samples, statuses: &BTreeMap<String, u64>, late_at_home: u64) -> ExitCode {
        let milliseconds = |micros: u32| stats::round(f64::from(micros) / 1000.0);
        let slowest = last.quantile(1.0);
        let line = json!({
            "sessions": last.count(),
            "replicas": self.replicas.len(),
            "p50_ms": milliseconds(last.quantile(0.5)),
            "p99_ms": milliseconds(last.quantile(0.99)),
            "p100_ms": milliseconds(slowest),
            "refused_by": statuses,
            "accepted_where_it_was_ended": late_at_home,
        });
        stats::print("revoke", line);
        let holds = u64::from(slowest) <= self.bound_ms * 1000 && late_at_home == 0;
        if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// Sends a log-out until it is answered 200. Says when that one was sent.
async fn log_out(replica: SocketAddr, refresh: &str) -> Instant {
    let request = http::post("/auth/logout", &json!({ "refresh_token": refresh }).to_string());
    loop {
        let sent = Instant::now();
        if ask(&mut Client::new(replica), &request).await == "200" {
            return sent;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn until_refused(replica: SocketAddr, request: Vec<u8>, since: Instant) -> (Duration, String) {
    let mut client = Client::new(replica);
    loop {
        let status = ask(&mut client, &request).await;
        if status != "200" || since.elapsed() > PATIENCE {
            return (since.elapsed(), status);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The status, or the kind of error.
async fn ask(client: &mut Client, request: &[u8]) -> String {
    match client.ask(request).await {
        Ok(answer) => answer.status.to_string(),
        Err(error) => error.kind().to_string(),
    }
}

/// A line to the database in a process of its own, which a script can stop. Prints its port.
pub(crate) async fn line(dsn: &str) -> Outcome<ExitCode> {
    let server: sqlx::postgres::PgConnectOptions = dsn.parse()?;
    let line = Forwarder::to(server.get_host(), server.get_port()).await;
    stats::print("line", json!({ "port": line.port() }));
    std::future::pending().await
}
