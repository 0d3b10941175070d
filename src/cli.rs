//! The commands. The only place that prints, and that knows exit codes.

use std::io::{IsTerminal, Read, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use sqlx::PgPool;

use crate::app::App;
use crate::clock::Clock;
use crate::config::{
    Config, ConfigError, DEFAULT_LISTEN_ADDR, DEFAULT_SESSION_HISTORY_DAYS, DatabaseSettings, PasswordSettings,
    SESSION_HISTORY_DAYS, Settings,
};
use crate::db::schema::{self, SchemaError};
use crate::domain::email::Email;
use crate::domain::ids::{SessionId, UserId};
use crate::domain::password::{Memory, Password, PasswordHash};
use crate::domain::role::Role;
use crate::service::{cleanup, password, sessions};
use crate::{db, http, telemetry};

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
        settings: Box<Settings>,
    },
    /// Apply pending migrations
    Migrate {
        /// Only list them
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        database: DatabaseSettings,
    },
    /// Create and change users; passwords are read from the terminal or from standard input
    #[command(subcommand)]
    User(UserCommand),
    /// See and end sessions
    #[command(subcommand)]
    Session(SessionCommand),
    /// Delete what has expired, through the whole table
    Cleanup {
        /// How long ended sessions are remembered, in days
        #[arg(long, env = "SESSION_HISTORY_DAYS", default_value_t = DEFAULT_SESSION_HISTORY_DAYS, value_parser = session_history_days)]
        session_history_days: i64,
        #[command(flatten)]
        database: DatabaseSettings,
    },
    /// Print the OpenAPI document
    Openapi,
    /// Ask a running service on this machine whether it is up; for container health checks
    Health {
        /// The address it listens on
        #[arg(long, env, default_value = DEFAULT_LISTEN_ADDR, value_parser = listen_addr)]
        listen_addr: SocketAddr,
    },
    /// Print the effective settings, secrets masked
    Config {
        #[command(flatten)]
        settings: Box<Settings>,
    },
}

#[derive(Args)]
struct Who {
    /// The user's e-mail address
    #[arg(long)]
    email: String,
    #[command(flatten)]
    database: DatabaseSettings,
}

#[derive(Subcommand)]
enum UserCommand {
    /// Create a user
    Create {
        #[command(flatten)]
        who: Who,
        /// The user's role
        #[arg(long, default_value = "customer")]
        role: String,
        #[command(flatten)]
        password: PasswordSettings,
    },
    /// List all users: id, role, e-mail
    List {
        #[command(flatten)]
        database: DatabaseSettings,
    },
    /// Give a user another role
    SetRole {
        #[command(flatten)]
        who: Who,
        /// The new role
        #[arg(long)]
        role: String,
    },
    /// Set a user's password and end all of the user's sessions
    SetPassword {
        #[command(flatten)]
        who: Who,
        #[command(flatten)]
        password: PasswordSettings,
    },
}

#[derive(Subcommand)]
enum SessionCommand {
    /// List a user's sessions, the ended ones with the reason
    List {
        #[command(flatten)]
        who: Who,
    },
    /// End one session of a user, or all
    End {
        #[command(flatten)]
        who: Who,
        /// Only this one
        #[arg(long)]
        id: Option<uuid::Uuid>,
    },
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
    #[error("the database failed: {0}")]
    Database(#[from] sqlx::Error),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl CliError {
    /// 2 for what has to be put right by whoever called, 1 for everything else.
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Config(_) | Self::Usage(_) => ExitCode::from(2),
            Self::Failed(_) | Self::Schema(_) | Self::Database(_) | Self::Io(_) => ExitCode::FAILURE,
        }
    }
}

/// An empty variable counts as one that is not set, as it does for `auth serve`.
fn listen_addr(text: &str) -> Result<SocketAddr, std::net::AddrParseError> {
    if text.is_empty() { DEFAULT_LISTEN_ADDR } else { text }.parse()
}

fn session_history_days(text: &str) -> Result<i64, String> {
    let days = if text.is_empty() { Ok(DEFAULT_SESSION_HISTORY_DAYS) } else { text.parse() };
    let days = days.ok().filter(|days| SESSION_HISTORY_DAYS.contains(days));
    days.ok_or_else(|| format!("takes {} to {} days", SESSION_HISTORY_DAYS.start(), SESSION_HISTORY_DAYS.end()))
}

/// How long a starting service waits for its database.
const DATABASE_PATIENCE: Duration = Duration::from_secs(30);

/// Runs the command that the command line names.
pub fn run() -> ExitCode {
    let matches = Cli::command().get_matches();
    let outcome = refuse_secrets_on_the_command_line(&matches).and_then(|()| {
        let cli = Cli::from_arg_matches(&matches).map_err(|error| CliError::Usage(error.to_string()))?;
        tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(execute(cli.command))
    });
    match outcome {
        Ok(code) => code,
        Err(error) => {
            for line in error.to_string().lines() {
                complain(line);
            }
            error.exit_code()
        }
    }
}

/// A command line can be read by every user of the machine.
fn refuse_secrets_on_the_command_line(matches: &ArgMatches) -> Result<(), CliError> {
    const SECRETS: [&str; 4] = ["postgres_dsn", "database_url", "jwt_secret", "jwt_secret_previous"];
    let mut level = Some(matches);
    while let Some(matches) = level {
        let given = |name: &&str| {
            matches.try_contains_id(name).unwrap_or(false)
                && matches.value_source(name) == Some(ValueSource::CommandLine)
        };
        if let Some(name) = SECRETS.into_iter().find(|name| given(name)) {
            let name = name.to_uppercase();
            return Err(CliError::Usage(format!("{name} is a secret: set it in the environment, or {name}_FILE")));
        }
        level = matches.subcommand().map(|(_, matches)| matches);
    }
    Ok(())
}

async fn execute(command: Command) -> Result<ExitCode, CliError> {
    match command {
        Command::Serve { no_migrate, settings } => serve(settings.resolve()?, no_migrate).await?,
        Command::Migrate { dry_run, database } => tokio::select! {
            outcome = migrate(&database, dry_run) => outcome?,
            () = shutdown_signal()? => return Err(CliError::Failed("interrupted: a migration that was not finished has left nothing".to_owned())),
        },
        Command::User(command) => user(command).await?,
        Command::Session(command) => session(command).await?,
        Command::Cleanup { session_history_days, database } => {
            let history = chrono::TimeDelta::days(session_history_days);
            let now = Clock::system().now();
            match cleanup::clean_up(&pool(&database)?, now, history, cleanup::Depth::Full).await? {
                Some(report) => say(&format!(
                    "deleted {} expired tokens, {} ended sessions, {} throttle buckets",
                    report.tokens, report.sessions, report.throttle_buckets
                ))?,
                None => say("another replica is cleaning up")?,
            }
        }
        Command::Openapi => say(&http::openapi().to_pretty_json().unwrap_or_default())?,
        Command::Health { listen_addr } => return Ok(health(listen_addr).await),
        Command::Config { settings } => say(&settings.resolve()?.to_string())?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn serve(config: Config, no_migrate: bool) -> Result<(), CliError> {
    let _log = telemetry::init(config.log_format, &config.log_level)
        .map_err(|error| CliError::Failed(format!("cannot log: {error}")))?;
    // Asked for from the first moment: the first process of a container has no other way to be stopped.
    let mut shutdown = std::pin::pin!(shutdown_signal()?);
    tokio::select! {
        ready = prepare_database(&config, no_migrate) => ready?,
        () = &mut shutdown => return Ok(()),
    }
    let listener = http::listen(config.listen_addr)
        .map_err(|error| CliError::Failed(format!("cannot listen on {}: {error}", config.listen_addr)))?;
    let app = App::new(config, Clock::system())?;
    // Before the first request, so that no refusal is told apart by its time.
    cleanup::look_for_bcrypt_hashes(&app).await;
    tokio::spawn(cleanup::run(app.clone()));
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        address = %listener.local_addr()?,
        environment = if app.config.development { "development" } else { "production" },
        "listening"
    );
    if http::serve(app, listener, shutdown).await {
        tracing::info!("bye");
    } else {
        tracing::warn!("requests in flight were cut off");
    }
    Ok(())
}

async fn prepare_database(config: &Config, no_migrate: bool) -> Result<(), CliError> {
    let mut connection = connect_patiently(config).await?;
    if no_migrate {
        return Ok(schema::require_migrated(&mut connection).await?);
    }
    for migration in schema::migrate(&mut connection).await? {
        tracing::info!(version = migration.version, description = migration.description, "migrated");
    }
    Ok(())
}

/// A database that is just starting is waited for; one that refuses is not.
async fn connect_patiently(config: &Config) -> Result<sqlx::PgConnection, CliError> {
    let deadline = tokio::time::Instant::now() + DATABASE_PATIENCE;
    let mut pause = Duration::from_millis(100);
    loop {
        let error = match tokio::time::timeout_at(deadline, schema::connect(&config.database.options)).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) => error,
            Err(_elapsed) => return Err(sqlx::Error::from(std::io::Error::from(std::io::ErrorKind::TimedOut)).into()),
        };
        // 57P03: starting up.
        let starting =
            error.as_database_error().and_then(sqlx::error::DatabaseError::code).is_some_and(|c| c == "57P03");
        let unreachable = matches!(error, sqlx::Error::Io(_));
        if !(starting || unreachable) || tokio::time::Instant::now() + pause > deadline {
            return Err(error.into());
        }
        tracing::warn!(%error, "waiting for the database");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(3));
    }
}

fn shutdown_signal() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

async fn migrate(database: &DatabaseSettings, dry_run: bool) -> Result<(), CliError> {
    let mut connection = schema::connect(&database.resolve()?.options).await?;
    let (migrations, done) = if dry_run {
        (schema::pending(&mut connection).await?, "would apply")
    } else {
        (schema::migrate(&mut connection).await?, "applied")
    };
    if migrations.is_empty() {
        return say("nothing to do: the schema is up to date");
    }
    for migration in migrations {
        say(&format!("{done} {} {}", migration.version, migration.description))?;
    }
    Ok(())
}

fn pool(database: &DatabaseSettings) -> Result<PgPool, CliError> {
    Ok(db::pool(&database.resolve()?.options, 2))
}

fn email(text: &str) -> Result<Email, CliError> {
    Email::parse(text).map_err(|error| CliError::Usage(format!("'{text}' is not a valid email address: {error}")))
}

fn role(text: &str) -> Result<Role, CliError> {
    Role::parse(text).map_err(|error| CliError::Usage(format!("'{text}' is no role: {error}")))
}

async fn find(pool: &PgPool, who: &Who) -> Result<db::users::User, CliError> {
    let found = db::users::find(pool, email(&who.email)?).await?;
    found.ok_or_else(|| CliError::Failed(format!("nobody has the address {}", who.email)))
}

async fn user(command: UserCommand) -> Result<(), CliError> {
    let now = Clock::system().now();
    match command {
        UserCommand::Create { who, role: role_name, password } => {
            let (email, role) = (email(&who.email)?, role(&role_name)?);
            let pool = pool(&who.database)?;
            let hash = hash(&password)?;
            match db::users::insert(&pool, &email, &hash, &role, &[], now).await? {
                Some(id) => say(&format!("created user {id} ({})", role.as_str())),
                None => Err(CliError::Failed(format!("{} is already registered", who.email))),
            }
        }
        UserCommand::List { database } => {
            let pool = pool(&database)?;
            let mut after = UserId(i64::MIN);
            loop {
                let users = db::users::list(&pool, after, 1000, None).await?;
                let Some(last) = users.last() else { return Ok(()) };
                after = last.id;
                for user in users {
                    say(&format!("{}\t{}\t{}", user.id, user.role.as_str(), user.email))?;
                }
            }
        }
        UserCommand::SetRole { who, role: role_name } => {
            let role = role(&role_name)?;
            let pool = pool(&who.database)?;
            let user = find(&pool, &who).await?;
            db::users::set_role(&pool, user.id, &role, now).await?;
            say(&format!("user {} is {} now", user.id, role.as_str()))
        }
        UserCommand::SetPassword { who, password } => {
            let pool = pool(&who.database)?;
            let user = find(&pool, &who).await?;
            let hash = hash(&password)?;
            let ended = password::set_password(&pool, user.id, &hash, now).await?;
            say(&format!("password of user {} set, {ended} sessions ended", user.id))
        }
    }
}

async fn session(command: SessionCommand) -> Result<(), CliError> {
    let now = Clock::system().now();
    match command {
        SessionCommand::List { who } => {
            let pool = pool(&who.database)?;
            let user = find(&pool, &who).await?;
            say("id\topened\tlast seen\tstate\taddress\tuser agent")?;
            for session in db::sessions::list(&pool, user.id, true, now).await? {
                let state = session.ended.map_or("live".to_owned(), |(at, reason)| {
                    format!("{} {}", reason.map_or("ended", |reason| reason.as_str()), at.format("%F %T"))
                });
                say(&format!(
                    "{}\t{}\t{}\t{state}\t{}\t{}",
                    session.id,
                    session.created_at.format("%F %T"),
                    session.last_seen_at.format("%F %T"),
                    session.ip.map_or("-".to_owned(), |ip| ip.to_string()),
                    session.user_agent.as_deref().unwrap_or("-"),
                ))?;
            }
            Ok(())
        }
        SessionCommand::End { who, id } => {
            let pool = pool(&who.database)?;
            let user = find(&pool, &who).await?;
            let ended = sessions::end_by_admin(&pool, user.id, id.map(SessionId), now).await?;
            say(&format!("{ended} sessions of user {} ended", user.id))
        }
    }
}

/// Reads a password and hashes it right here; a command has no queue.
fn hash(settings: &PasswordSettings) -> Result<PasswordHash, CliError> {
    let cost = settings.resolve()?.cost;
    let text = if std::io::stdin().is_terminal() {
        rpassword::prompt_password("Password: ")?
    } else {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        text.trim_end_matches(['\r', '\n']).to_owned()
    };
    let password = Password::choose(text).map_err(|error| CliError::Usage(error.to_string()))?;
    Ok(crate::domain::password::hash(&password, cost, &mut Memory::for_cost(cost)))
}

/// Asks over plain HTTP, so that the image needs no shell and no curl.
async fn health(listen_addr: SocketAddr) -> ExitCode {
    match tokio::time::timeout(Duration::from_secs(3), http::probe_health(listen_addr)).await {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            complain(&format!("unhealthy: {error}"));
            ExitCode::FAILURE
        }
        Err(_) => {
            complain("unhealthy: no answer within 3 s");
            ExitCode::FAILURE
        }
    }
}

fn say(text: &str) -> Result<(), CliError> {
    match writeln!(std::io::stdout(), "{text}") {
        // Whoever reads the output may have seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        outcome => Ok(outcome?),
    }
}

fn complain(text: &str) {
    // There is nowhere to complain about a standard error that is closed.
    let _ = writeln!(std::io::stderr(), "auth: {text}");
}
