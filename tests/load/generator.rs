//! The load generator of `scripts/bench`, and the drills of `scripts/drill-refresh`, `scripts/drill-outage` and
//! `scripts/drill-login`.
//!
//! One thread, raw HTTP/1.1 on kept loopback connections, each sending its next request when the last one is answered.
//! It shares the machine with what it measures, so it does as little as it can; what it prints is lines of JSON.
//!
//! It knows the service by its HTTP contract and its tables only.

mod bare;
mod chains;
mod clients;
mod drill;
mod flood;
#[expect(dead_code, reason = "the tests use more of it")]
mod forwarder;
mod hash;
mod http;
mod outage;
mod report;
mod requests;
mod revoke;
mod seed;
mod start;
mod stats;
mod through;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use serde_json::json;
use tokio::task::{JoinSet, LocalSet};

use stats::{Samples, Window};

/// What any of it may fail with; a person reads it.
type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[derive(Parser)]
#[command(about = "Load generator and drills", max_term_width = 120)]
struct Cli {
    /// Ignored; `cargo bench` says it
    #[arg(long, hide = true, global = true)]
    bench: bool,
    #[command(subcommand)]
    command: Command,
}

/// What is measured, and how long.
#[derive(Args, Clone)]
struct Load {
    /// Where the service listens
    #[arg(long, default_value = "127.0.0.1:8000")]
    address: SocketAddr,
    /// Connections, each with one request at a time
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Length of the measurement
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Time before it, in which nothing counts
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
}

impl Load {
    fn window(&self) -> Window {
        Window::after(Duration::from_secs_f64(self.warm_up), Duration::from_secs_f64(self.seconds))
    }

    /// Runs what each connection does side by side, and reports it together.
    async fn measure<C: Future<Output = Samples> + 'static>(
        &self,
        kind: &str,
        window: Window,
        connections: impl Iterator<Item = C>,
    ) -> Outcome<()> {
        let (local, mut tasks, mut samples) = (LocalSet::new(), JoinSet::new(), Samples::default());
        connections.for_each(|connection| _ = tasks.spawn_local_on(connection, &local));
        while let Some(task) = local.run_until(tasks.join_next()).await {
            samples.absorb(task?);
        }
        let mut report = samples.report(window.length());
        report["connections"] = self.connections.into();
        stats::print(kind, report);
        Ok(())
    }
}

/// The database of the service, and the secret it signs with: sessions are written straight into the tables.
#[derive(Args, Clone)]
struct Store {
    #[arg(long, env = "POSTGRES_DSN", hide_env_values = true)]
    dsn: String,
    #[arg(long, env = "JWT_SECRET", hide_env_values = true)]
    secret: String,
}

#[derive(Subcommand)]
enum Command {
    /// Refresh chains: each connection exchanges the token it was just given
    Refresh {
        #[command(flatten)]
        load: Load,
        #[command(flatten)]
        store: Store,
        /// Sessions that each connection refreshes in turn
        #[arg(long, default_value_t = 1)]
        sessions: usize,
    },
    /// Logins with right passwords
    Login {
        #[command(flatten)]
        load: Load,
        #[command(flatten)]
        store: Store,
    },
    /// Registrations of new addresses
    Register {
        #[command(flatten)]
        load: Load,
    },
    /// Access tokens, as a gateway asks about them
    Verify {
        #[arg(long, env = "JWT_SECRET", hide_env_values = true)]
        secret: String,
        #[command(flatten)]
        load: Load,
    },
    /// How long an ended session is accepted
    Revoke(revoke::Revoke),
    /// A line to the database; prints its port
    Line {
        #[arg(long, env = "POSTGRES_DSN", hide_env_values = true)]
        dsn: String,
    },
    /// One path again and again
    Get {
        path: String,
        /// As a seeded administrator
        #[arg(long, requires_all = ["dsn", "secret"])]
        admin: bool,
        #[arg(long, env = "POSTGRES_DSN", hide_env_values = true)]
        dsn: Option<String>,
        #[arg(long, env = "JWT_SECRET", hide_env_values = true)]
        secret: Option<String>,
        #[command(flatten)]
        load: Load,
    },
    /// Clients that refresh through an outage
    Outage(outage::Outage),
    /// A login flood, and what becomes of refreshes meanwhile
    Flood(flood::Flood),
    /// Hashes per second without a service
    RawArgon2 {
        #[arg(long, default_value_t = 2)]
        threads: usize,
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
    },
    /// A server that does nothing but answer {"status":"ok"}
    Bare {
        #[arg(long, default_value = "127.0.0.1:8001")]
        address: SocketAddr,
    },
    /// Milliseconds from the start of a command to its first answer, median of some runs
    Start {
        #[arg(long, default_value = "127.0.0.1:8000")]
        address: SocketAddr,
        #[arg(long, default_value_t = 10)]
        runs: usize,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Writes the report of a run of scripts/bench
    Report {
        /// What was measured, as scripts/bench writes it down
        #[arg(long)]
        results: PathBuf,
        #[arg(long)]
        page: PathBuf,
        #[arg(long)]
        chart: PathBuf,
    },
    /// Many tabs on a bad network
    Drill(drill::Drill),
    /// Refreshes and logins through whatever a script breaks meanwhile, until SIGTERM
    Through(through::Through),
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            complain(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "the program's own voice")]
fn complain(what: &str) {
    eprintln!("load: {what}");
}

fn run(command: Command) -> Outcome<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match command {
        Command::Refresh { load, store, sessions } => runtime.block_on(chains::refresh(&load, &store, sessions))?,
        Command::Login { load, store } => runtime.block_on(requests::login(&load, &store))?,
        Command::Register { load } => runtime.block_on(requests::register(&load))?,
        Command::Get { path, admin, dsn, secret, load } => {
            let store = dsn.zip(secret).filter(|_| admin).map(|(dsn, secret)| Store { dsn, secret });
            runtime.block_on(requests::get(&load, &path, store.as_ref()))?;
        }
        Command::Verify { secret, load } => runtime.block_on(requests::verify(&load, &secret))?,
        Command::Revoke(revoke) => return runtime.block_on(revoke.run()),
        Command::Line { dsn } => return runtime.block_on(revoke::line(&dsn)),
        Command::Outage(outage) => return runtime.block_on(outage.run()),
        Command::Flood(flood) => return runtime.block_on(flood.run()),
        Command::RawArgon2 { threads, seconds } => {
            let rate = hash::rate(threads, Duration::from_secs_f64(seconds))?;
            stats::print("raw-argon2", json!({ "threads": threads, "rps": stats::round(rate) }));
        }
        Command::Bare { address } => bare::serve(address)?,
        Command::Start { address, runs, command } => start::measure(address, runs, &command)?,
        Command::Report { results, page, chart } => report::write(&results, &page, &chart)?,
        Command::Drill(drill) => return runtime.block_on(drill.run()),
        Command::Through(through) => return runtime.block_on(through.run()),
    }
    Ok(ExitCode::SUCCESS)
}
