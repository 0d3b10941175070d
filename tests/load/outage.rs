//! One outage: a service of the drill's own whose database goes away and comes back, or that is killed itself, under
//! clients that refresh. Is anybody signed out, and does every session have one token in the end?

use std::net::SocketAddr;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde_json::json;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions as _, PgConnection};

use crate::clients::{self, Report};
use crate::forwarder::Forwarder;
use crate::start::Process;
use crate::{Outcome, Store, seed, stats};

#[derive(Args)]
pub(crate) struct Outage {
    #[arg(long, default_value = "127.0.0.1:8000")]
    address: SocketAddr,
    #[command(flatten)]
    store: Store,
    #[arg(long, default_value_t = 200)]
    clients: usize,
    #[arg(long)]
    what: What,
    /// How long it lasts
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
    /// Nobody may notice: every answer is a pair
    #[arg(long)]
    unnoticed: bool,
    /// Shell command that takes the database away
    #[arg(long, default_value = "")]
    stop: String,
    /// Shell command that brings it back
    #[arg(long, default_value = "")]
    start: String,
    /// The service, as a command; it is given `POSTGRES_DSN` and `LISTEN_ADDR`
    #[arg(trailing_var_arg = true, required = true)]
    command: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum What {
    /// The line to the database is cut behind a commit
    Line,
    /// `--stop` and `--start` do it
    Database,
    /// The service is killed, and started again
    Service,
}

impl Outage {
    pub(crate) async fn run(&self) -> Outcome<ExitCode> {
        let server: PgConnectOptions = self.store.dsn.parse()?;
        let line = Forwarder::to(server.get_host(), server.get_port()).await;
        let mut dsn = server.clone().host("127.0.0.1").port(line.port()).to_url_lossy();
        dsn.set_query(None);
        let mut service = Some(self.start_service(dsn.as_str()).await?);
        let mut database = seed::database(&self.store.dsn).await?;
        let users = seed::users(&mut database, "outage", self.clients).await?;
        let tokens = seed::sessions(&mut database, &self.store.secret, &users).await?;
        // It might not outlive the outage.
        drop(database);

        let outage = async {
            let length = Duration::from_secs_f64(self.seconds);
            match self.what {
                What::Line => {
                    line.cut_behind_an_answer().await;
                    tokio::time::sleep(length).await;
                    line.mend().await;
                }
                What::Database => {
                    shell(&self.stop).await;
                    tokio::time::sleep(length).await;
                    shell(&self.start).await;
                }
                What::Service => {
                    drop(service.take());
                    tokio::time::sleep(length).await;
                    service = Some(self.start_service(dsn.as_str()).await.expect("the service starts again"));
                }
            }
        };
        let report = clients::refresh_through(self.address, tokens, self.what != What::Service, outage).await;
        drop(service);
        self.judge(&report, &mut seed::database(&self.store.dsn).await?).await
    }

    async fn judge(&self, report: &Report, database: &mut PgConnection) -> Outcome<ExitCode> {
        let count = async |database: &mut PgConnection, sql: &'static str| {
            sqlx::query_scalar::<_, i64>(sql).fetch_one(database).await
        };
        let ended = count(&mut *database, "SELECT count(*) FROM sessions WHERE ended_at IS NOT NULL").await?;
        let forked = count(
            &mut *database,
            "SELECT count(*) FROM sessions WHERE 1 <> (
                 SELECT count(*) FROM refresh_tokens WHERE session_id = sessions.id AND NOT revoked)",
        )
        .await?;
        let seconds = |duration: Duration| stats::round(duration.as_secs_f64());
        let line = json!({
            "clients": self.clients,
            "seconds": self.seconds,
            "pairs": report.pairs,
            "others": report.others,
            "slowest_s": seconds(report.slowest),
            "first_pair_s": seconds(report.first_pair),
            "all_back_s": seconds(report.all_back),
            "signed_out": report.signed_out,
            "not_back": report.not_back,
            "sessions_ended": ended,
            "sessions_without_one_token": forked,
        });
        stats::print("outage", line);
        let sound = report.signed_out == 0 && report.not_back == 0 && ended == 0 && forked == 0;
        let noticed = !report.others.is_empty();
        Ok(if sound && !(self.unnoticed && noticed) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    async fn start_service(&self, dsn: &str) -> Outcome<Process> {
        let environment = [("POSTGRES_DSN", dsn), ("LISTEN_ADDR", &self.address.to_string())];
        let (service, started) = (Process::start(&self.command, &environment)?, Instant::now());
        while tokio::net::TcpStream::connect(self.address).await.is_err() {
            if started.elapsed() > Duration::from_secs(20) {
                return Err(format!("nothing listens on {}", self.address).into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(service)
    }
}

/// Runs a command while everything else goes on.
async fn shell(command: &str) {
    let command = command.to_owned();
    let run = move || Command::new("bash").args(["-c", &command]).stdout(Stdio::null()).status();
    let status = tokio::task::spawn_blocking(run).await.expect("a thread ends").expect("a shell starts");
    assert!(status.success(), "the command failed");
}
