//! The commands. The only place that prints, and that knows exit codes. Commands ask the services, as HTTP does.

mod doctor;
mod keys;
mod mail;
mod output;
mod serve;
mod sessions;
mod users;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use sqlx::PgPool;

use crate::clock::Clock;
use crate::config::{Config, ConfigError, DatabaseSettings, Given, HistorySettings, ListenSettings};
use crate::domain::email::Email;
use crate::domain::role::Role;
use crate::error::Error;
use crate::service::cleanup;
use crate::service::migrate::SchemaError;
use crate::service::users::User;
use crate::{app, http, service, telemetry};
use keys::KeyCommand;
use mail::MailCommand;
use output::{print, print_error, print_json, print_text};
use sessions::SessionCommand;
use users::UserCommand;

/// Sign-in service of a storefront: access tokens, rotating refresh tokens, sessions
#[derive(Parser)]
#[command(version, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve HTTP, after applying pending migrations
    Serve {
        /// Do not migrate; refuse to start on a schema that is not up to date
        #[arg(long)]
        no_migrate: bool,
        #[command(flatten)]
        settings: Box<Given<Config>>,
    },
    /// Apply pending migrations
    Migrate {
        /// Only list them
        #[arg(long)]
        dry_run: bool,
        /// Print a JSON array
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        database: Given<DatabaseSettings>,
    },
    /// Create and change users; passwords are read from the terminal or from standard input
    #[command(subcommand)]
    User(UserCommand),
    /// See and end sessions
    #[command(subcommand)]
    Session(SessionCommand),
    /// See, send again and delete mails that were not sent
    #[command(subcommand)]
    Mail(MailCommand),
    /// Make and list the keys of access tokens
    #[command(subcommand)]
    Key(KeyCommand),
    /// Delete what has expired, through the whole table
    Cleanup {
        #[command(flatten)]
        history: Given<HistorySettings>,
        #[command(flatten)]
        database: Given<DatabaseSettings>,
    },
    /// Print the OpenAPI document
    Openapi,
    /// Ask a running service on this machine whether it is up; for container health checks
    Health {
        #[command(flatten)]
        listen: Given<ListenSettings>,
    },
    /// Look for what is wrong with this installation, and say what to do; changes nothing
    Doctor {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        settings: Box<Given<Config>>,
    },
    /// Print a script that completes the commands and flags of `auth` in a shell
    Completions { shell: clap_complete::Shell },
    /// Print the effective settings, secrets masked
    Config {
        #[command(flatten)]
        settings: Box<Given<Config>>,
    },
}

#[derive(Args)]
struct Who {
    /// The user's e-mail address
    #[arg(long)]
    email: String,
    #[command(flatten)]
    database: Given<DatabaseSettings>,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The command line does not say what to do.
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Failed(String),
    #[error(transparent)]
    Schema(#[from] SchemaError),
    #[error(transparent)]
    Service(#[from] Error),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl CliError {
    /// 2 for mistakes in settings or arguments, 1 for all other failures.
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Config(_) | Self::Usage(_) => ExitCode::from(2),
            Self::Failed(_) | Self::Schema(_) | Self::Service(_) | Self::Io(_) => ExitCode::FAILURE,
        }
    }
}

/// Runs the command that the command line names.
pub fn run() -> ExitCode {
    let matches = Cli::command().get_matches();
    let outcome = refuse_secrets_on_the_command_line(&Cli::command(), &matches).and_then(|()| {
        let cli = Cli::from_arg_matches(&matches).map_err(|error| CliError::Usage(error.to_string()))?;
        tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(execute(cli.command))
    });
    match outcome {
        Ok(code) => code,
        Err(error) => {
            print_error(&error.to_string());
            error.exit_code()
        }
    }
}

/// A command line can be read by every user of the machine.
fn refuse_secrets_on_the_command_line(command: &clap::Command, matches: &ArgMatches) -> Result<(), CliError> {
    for secret in command.get_arguments().filter(|argument| argument.is_hide_env_values_set()) {
        let name = secret.get_id().as_str();
        if matches.value_source(name) == Some(ValueSource::CommandLine) {
            return Err(CliError::Usage(format!("{name} is a secret: set it in the environment, or {name}_FILE")));
        }
    }
    let below = matches.subcommand().and_then(|(name, matches)| Some((command.find_subcommand(name)?, matches)));
    below.map_or(Ok(()), |(command, matches)| refuse_secrets_on_the_command_line(command, matches))
}

async fn execute(command: Command) -> Result<ExitCode, CliError> {
    match command {
        Command::Serve { no_migrate, settings } => serve::run(&settings, no_migrate).await?,
        Command::Migrate { dry_run, json, database } => tokio::select! {
            outcome = migrate(&database, dry_run, json) => outcome?,
            () = serve::shutdown_signal()? => return Err(CliError::Failed("interrupted: a migration that was not finished has left nothing".to_owned())),
        },
        Command::User(command) => users::run(command).await?,
        Command::Session(command) => sessions::run(command).await?,
        Command::Mail(command) => mail::run(command).await?,
        Command::Key(command) => keys::run(command)?,
        Command::Cleanup { history, database } => clean_up(&database, &history).await?,
        Command::Openapi => print_text(&http::openapi().to_pretty_json().unwrap_or_default())?,
        Command::Health { listen } => return Ok(health(listen.resolve()?.local_address()).await),
        Command::Doctor { json, settings } => return doctor::run(&settings, json).await,
        Command::Completions { shell } => complete(shell)?,
        Command::Config { settings } => print_text(settings.effective()?.trim_end())?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn migrate(database: &Given<DatabaseSettings>, dry_run: bool, json: bool) -> Result<(), CliError> {
    let options = database.resolve()?.postgres_dsn.options;
    let (migrations, done) = if dry_run {
        (service::migrate::pending(&options).await?, "would apply")
    } else {
        (service::migrate::migrate(&options).await?, "applied")
    };
    if json {
        return print_json(&migrations);
    }
    if migrations.is_empty() {
        return print("nothing to do: the schema is up to date");
    }
    for migration in migrations {
        print(&format!("{done} {} {}", migration.version, migration.description))?;
    }
    Ok(())
}

async fn clean_up(database: &Given<DatabaseSettings>, history: &Given<HistorySettings>) -> Result<(), CliError> {
    let history = history.resolve()?.sessions;
    match cleanup::clean_up(&begin(database)?, Clock::system().now(), history, cleanup::Depth::Full).await? {
        Some(report) => print(&format!(
            "deleted {} expired tokens, {} ended sessions, {} throttle buckets, {} mails, {} expired mail tokens",
            report.tokens, report.sessions, report.throttle_buckets, report.mails, report.mail_tokens
        )),
        None => print("another replica is cleaning up"),
    }
}

/// Starts a command that works on the data: its audit lines go to standard error, and its statements take as long as
/// they take.
fn begin(database: &Given<DatabaseSettings>) -> Result<PgPool, CliError> {
    telemetry::init_on_stderr();
    Ok(app::command_pool(&database.resolve()?))
}

fn complete(shell: clap_complete::Shell) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "auth", &mut script);
    print_text(String::from_utf8_lossy(&script).trim_end())
}

fn email(text: &str) -> Result<Email, CliError> {
    Email::parse(text).map_err(|error| CliError::Usage(format!("'{text}' is not a valid email address: {error}")))
}

fn role(text: &str) -> Result<Role, CliError> {
    Role::parse(text).map_err(|error| CliError::Usage(format!("'{text}' is no role: {error}")))
}

impl Who {
    /// As [`begin`], and finds the user.
    async fn begin(&self) -> Result<(PgPool, User), CliError> {
        let db = begin(&self.database)?;
        let user = service::users::find(&db, &email(&self.email)?).await.map_err(|error| match error {
            Error::NotFound => CliError::Failed(format!("no user has the address {}", self.email)),
            error => error.into(),
        })?;
        Ok((db, user))
    }
}

/// Asks over plain HTTP, so that the image needs no shell and no curl.
async fn health(listen_addr: SocketAddr) -> ExitCode {
    let answer = tokio::time::timeout(Duration::from_secs(3), http::probe_health(listen_addr)).await;
    match answer.unwrap_or_else(|_elapsed| Err("no answer within 3 s".into())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&format!("unhealthy: {error}"));
            ExitCode::FAILURE
        }
    }
}
