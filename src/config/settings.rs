//! The settings as they are given: declarations, defaults, bounds.

use std::net::SocketAddr;
use std::time::Duration;

use chrono::TimeDelta;
use clap::Args;
use ipnet::IpNet;
use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::PgConnectOptions;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::problems::{Problems, set};
use super::{Config, ConfigError, CorsOrigins, Database, GraceAnswer, LogFormat, UsersListAccess};
use crate::domain::network::TrustedProxies;
use crate::domain::password::Argon2Cost;
use crate::domain::role::Role;
use crate::domain::throttle::THROTTLE;
use crate::domain::tokens::{Lifetimes, TokenAlgorithm};
use crate::passwords::hasher::HasherSettings;
use crate::passwords::pool::PoolSettings;

/// Where to listen, unless it is said.
pub const DEFAULT_LISTEN_ADDR: &str = "0.0.0.0:8000";
/// How long ended sessions are remembered, unless it is said, and how long they may be.
pub const DEFAULT_SESSION_HISTORY_DAYS: i64 = 30;
pub const SESSION_HISTORY_DAYS: std::ops::RangeInclusive<i64> = 1..=3650;

/// Secrets everybody knows; refused in production.
const KNOWN_SECRETS: [&str; 6] =
    ["devsecret", "secret", "changeme", "change-me", "jwt-secret", "sample-secret-for-development-only"];
const DEVELOPMENT_SECRET: &str = "devsecret";
const MIN_SECRET_BYTES: usize = 32;

const ON_OFF: [(&str, bool); 2] = [("on", true), ("off", false)];

/// Where the database is. The only settings that every command needs.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Database")]
pub struct DatabaseSettings {
    /// PostgreSQL, as postgres://user:password@host:port/name; SQLAlchemy's postgresql+psycopg:// is understood
    #[arg(long, env, hide_env_values = true, value_name = "URL")]
    postgres_dsn: Option<String>,
    /// File that holds the value of `POSTGRES_DSN`
    #[arg(long, env, value_name = "PATH")]
    postgres_dsn_file: Option<String>,
    /// Used where `POSTGRES_DSN` is not set
    #[arg(long, env, hide_env_values = true, value_name = "URL")]
    database_url: Option<String>,
    /// Connections besides those of the refresh queue [default: 10]
    #[arg(long, env, value_name = "COUNT")]
    database_max_connections: Option<String>,
}

/// What hashing a password costs, for the commands that set one too.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Passwords")]
#[expect(clippy::struct_field_names, reason = "each is named as its environment variable")]
pub struct PasswordSettings {
    /// Memory of one argon2id hash, in KiB [default: 7168]
    #[arg(long, env, value_name = "KIB")]
    password_argon2_memory_kib: Option<String>,
    /// Passes of one argon2id hash [default: 5]
    #[arg(long, env, value_name = "COUNT")]
    password_argon2_passes: Option<String>,
    /// Hashes computed at once [default: the number of cores]
    #[arg(long, env, value_name = "COUNT")]
    password_hash_concurrency: Option<String>,
    /// Longest wait for a hash before the answer is 503 [default: 2000]
    #[arg(long, env, value_name = "MS")]
    password_hash_max_wait_ms: Option<String>,
    /// Replace outdated hashes at login: on or off [default: on]
    #[arg(long, env, value_name = "ON_OFF")]
    password_rehash: Option<String>,
}

/// All settings of the service, as they are given.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    #[command(flatten)]
    database: DatabaseSettings,

    /// production or development; picks the defaults marked with both [default: production]
    #[arg(long, env, value_name = "ENV", help_heading = "Service")]
    app_env: Option<String>,
    /// Address to listen on [default: 0.0.0.0:8000]
    #[arg(long, env, value_name = "ADDR", help_heading = "Service")]
    listen_addr: Option<String>,
    /// json or pretty [default: json; development: pretty]
    #[arg(long, env, value_name = "FORMAT", help_heading = "Service")]
    log_format: Option<String>,
    /// What to log, as level or target=level,... [default: info]
    #[arg(long, env, value_name = "FILTER", help_heading = "Service")]
    log_level: Option<String>,
    /// Networks whose X-Forwarded-For is believed, as CIDRs [default: none]
    #[arg(long, env, value_name = "CIDR,...", help_heading = "Service")]
    trusted_proxies: Option<String>,
    /// Origins that browsers may call from, or * [default: none, CORS is off]
    #[arg(long, env, value_name = "ORIGIN,...", help_heading = "Service")]
    cors_allowed_origins: Option<String>,
    /// Time a request may take [default: 20]
    #[arg(long, env, value_name = "SECONDS", help_heading = "Service")]
    request_timeout_seconds: Option<String>,
    /// Client connections at once [default: 10000]
    #[arg(long, env, value_name = "COUNT", help_heading = "Service")]
    max_connections: Option<String>,
    /// Time for requests in flight after SIGTERM [default: 20]
    #[arg(long, env, value_name = "SECONDS", help_heading = "Service")]
    shutdown_grace_seconds: Option<String>,

    /// Signs tokens; at least 32 bytes in production [default: none; development: devsecret]
    #[arg(long, env, hide_env_values = true, value_name = "SECRET", help_heading = "Tokens")]
    jwt_secret: Option<String>,
    /// File that holds the value of `JWT_SECRET`
    #[arg(long, env, value_name = "PATH", help_heading = "Tokens")]
    jwt_secret_file: Option<String>,
    /// Former secrets, whose tokens are still accepted
    #[arg(long, env, hide_env_values = true, value_name = "SECRET,...", help_heading = "Tokens")]
    jwt_secret_previous: Option<String>,
    /// File that holds the value of `JWT_SECRET_PREVIOUS`
    #[arg(long, env, value_name = "PATH", help_heading = "Tokens")]
    jwt_secret_previous_file: Option<String>,
    /// HS256, HS384 or HS512 [default: HS256]
    #[arg(long, env, value_name = "ALGORITHM", help_heading = "Tokens")]
    jwt_algorithm: Option<String>,
    /// Lifetime of an access token [default: 900]
    #[arg(long, env, value_name = "SECONDS", help_heading = "Tokens")]
    access_token_expires_seconds: Option<String>,
    /// Lifetime of a refresh token [default: 30]
    #[arg(long, env, value_name = "DAYS", help_heading = "Tokens")]
    refresh_token_expires_days: Option<String>,
    /// How long a used refresh token passes for its owner's own retry [default: 10]
    #[arg(long, env, value_name = "SECONDS", help_heading = "Tokens")]
    refresh_grace_seconds: Option<String>,
    /// What such a retry gets: reject (401) or replay (the same successor again) [default: reject]
    #[arg(long, env, value_name = "ANSWER", help_heading = "Tokens")]
    refresh_grace_answer: Option<String>,
    /// Refreshes, or logins, committed together at most; 1 turns batching off [default: 128]
    #[arg(long, env, value_name = "COUNT", help_heading = "Tokens")]
    batch_size: Option<String>,
    /// Former name of `BATCH_SIZE`
    #[arg(long, env, hide = true)]
    refresh_batch_size: Option<String>,

    #[command(flatten)]
    password: PasswordSettings,

    /// Limit failed logins and registrations: on or off [default: on]
    #[arg(long, env, value_name = "ON_OFF", help_heading = "Access")]
    throttle: Option<String>,
    /// Roles anyone may register with [default: customer; development: customer,admin]
    #[arg(long, env, value_name = "ROLE,...", help_heading = "Access")]
    register_open_roles: Option<String>,
    /// Who may list users: admin or public [default: admin; development: public]
    #[arg(long, env, value_name = "WHO", help_heading = "Access")]
    users_list_access: Option<String>,
    /// How long ended sessions are remembered [default: 30]
    #[arg(long, env, value_name = "DAYS", help_heading = "Access")]
    session_history_days: Option<String>,
    /// Time between clean-ups, give or take a fifth; 0 turns them off [default: 300]
    #[arg(long, env, value_name = "SECONDS", help_heading = "Access")]
    cleanup_interval_seconds: Option<String>,
}
impl DatabaseSettings {
    /// Where the database is, or everything that is wrong with the settings that say so.
    pub fn resolve(&self) -> Result<Database, ConfigError> {
        let mut problems = Problems::default();
        let database = self.read(&mut problems);
        problems.none_or(database)
    }

    fn read(&self, problems: &mut Problems) -> Option<Database> {
        let max_connections =
            problems.number("DATABASE_MAX_CONNECTIONS", self.database_max_connections.as_ref(), 10, 1..=1000);
        let dsn = problems.secret("POSTGRES_DSN", self.postgres_dsn.as_ref(), self.postgres_dsn_file.as_ref());
        let (name, dsn) = match (dsn, set(self.database_url.as_ref())) {
            (Some(dsn), _) => ("POSTGRES_DSN", dsn),
            (None, Some(url)) => ("DATABASE_URL", url.into()),
            (None, None) => {
                problems
                    .add("POSTGRES_DSN is not set: say where the database is, as postgres://user:password@host/name");
                return None;
            }
        };
        match parse_dsn(dsn.expose_secret()) {
            Ok(options) => Some(Database { options, max_connections }),
            Err(problem) => {
                problems.add(format!("{name} {problem}"));
                None
            }
        }
    }
}

fn refuse_weak_secret(problems: &mut Problems, name: &str, secret: &str) {
    if KNOWN_SECRETS.contains(&secret.to_lowercase().as_str()) {
        problems.add(format!("{name} is a well-known default: anybody could sign tokens; choose a random one"));
    } else if secret.len() < MIN_SECRET_BYTES {
        problems.add(format!("{name} has {} bytes: it takes at least {MIN_SECRET_BYTES}", secret.len()));
    }
}

/// Reads a database address, with SQLAlchemy's `+driver` or without. The problem never repeats it: it has a password.
fn parse_dsn(dsn: &str) -> Result<PgConnectOptions, String> {
    let (scheme, rest) = dsn.split_once("://").ok_or("is not a URL such as postgres://user:password@host/name")?;
    let scheme = scheme.split('+').next().unwrap_or(scheme);
    if !["postgres", "postgresql"].contains(&scheme) {
        return Err(format!("must begin with postgres:// or postgresql://, not {scheme}://"));
    }
    format!("postgres://{rest}").parse().map_err(|_| "is not a valid PostgreSQL URL".to_owned())
}

impl PasswordSettings {
    /// How passwords are hashed, or everything that is wrong with the settings that say so.
    pub fn resolve(&self) -> Result<HasherSettings, ConfigError> {
        let mut problems = Problems::default();
        let hasher = self.read(&mut problems);
        problems.none_or(Some(hasher))
    }

    fn read(&self, problems: &mut Problems) -> HasherSettings {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let m_kib = problems.number(
            "PASSWORD_ARGON2_MEMORY_KIB",
            self.password_argon2_memory_kib.as_ref(),
            7168,
            8..=Argon2Cost::MAX_M_KIB,
        );
        let t =
            problems.number("PASSWORD_ARGON2_PASSES", self.password_argon2_passes.as_ref(), 5, 1..=Argon2Cost::MAX_T);
        let concurrency =
            problems.number("PASSWORD_HASH_CONCURRENCY", self.password_hash_concurrency.as_ref(), cores, 1..=1024);
        let max_wait_ms =
            problems.number("PASSWORD_HASH_MAX_WAIT_MS", self.password_hash_max_wait_ms.as_ref(), 2000, 1..=60_000);
        HasherSettings {
            pool: PoolSettings { concurrency, max_wait: Duration::from_millis(max_wait_ms) },
            cost: Argon2Cost { m_kib, t },
            rehash: problems.word("PASSWORD_REHASH", self.password_rehash.as_ref(), true, &ON_OFF),
        }
    }
}

impl Settings {
    /// What the settings mean, or everything that is wrong with them.
    pub fn resolve(&self) -> Result<Config, ConfigError> {
        let mut problems = Problems::default();
        let config = self.read(&mut problems);
        problems.none_or(config)
    }

    fn read(&self, problems: &mut Problems) -> Option<Config> {
        let p = problems;
        let development =
            p.word("APP_ENV", self.app_env.as_ref(), false, &[("production", false), ("development", true)]);
        let database = self.database.read(p);
        let jwt_secret = self.read_jwt_secret(p, development);
        let jwt_secret_previous = self.read_previous_jwt_secrets(p, development);
        let seconds = |number: i64| TimeDelta::seconds(number);
        let lifetimes = Lifetimes {
            access: seconds(p.number(
                "ACCESS_TOKEN_EXPIRES_SECONDS",
                self.access_token_expires_seconds.as_ref(),
                900,
                1..=86_400,
            )),
            refresh: TimeDelta::days(p.number(
                "REFRESH_TOKEN_EXPIRES_DAYS",
                self.refresh_token_expires_days.as_ref(),
                30,
                1..=3650,
            )),
        };
        let default_roles = if development { vec![Role::customer(), Role::admin()] } else { vec![Role::customer()] };
        let roles = p.list("REGISTER_OPEN_ROLES", self.register_open_roles.as_ref(), |text| match Role::parse(text) {
            _ if text.is_empty() => Err("is no role".to_owned()),
            role => role.map_err(|error| format!("is no role: {error}")),
        });
        let batch_size =
            set(self.batch_size.as_ref()).and(self.batch_size.as_ref()).or(self.refresh_batch_size.as_ref());
        let cleanup_seconds =
            p.number("CLEANUP_INTERVAL_SECONDS", self.cleanup_interval_seconds.as_ref(), 300_u64, 0..=86_400);
        Some(Config {
            development,
            listen_addr: self.read_listen_addr(p),
            log_format: p.word(
                "LOG_FORMAT",
                self.log_format.as_ref(),
                if development { LogFormat::Pretty } else { LogFormat::Json },
                &[("json", LogFormat::Json), ("pretty", LogFormat::Pretty)],
            ),
            log_level: self.read_log_level(p),
            trusted_proxies: self.read_trusted_proxies(p),
            cors_allowed_origins: self.read_cors(p),
            request_timeout: Duration::from_secs(p.number(
                "REQUEST_TIMEOUT_SECONDS",
                self.request_timeout_seconds.as_ref(),
                20,
                1..=300,
            )),
            max_connections: p.number("MAX_CONNECTIONS", self.max_connections.as_ref(), 10_000, 1..=1_000_000),
            shutdown_grace: Duration::from_secs(p.number(
                "SHUTDOWN_GRACE_SECONDS",
                self.shutdown_grace_seconds.as_ref(),
                20,
                0..=600,
            )),
            jwt_secret_previous,
            jwt_algorithm: p.word(
                "JWT_ALGORITHM",
                self.jwt_algorithm.as_ref(),
                TokenAlgorithm::Hs256,
                &[("HS256", TokenAlgorithm::Hs256), ("HS384", TokenAlgorithm::Hs384), ("HS512", TokenAlgorithm::Hs512)],
            ),
            lifetimes,
            refresh_grace: seconds(p.number("REFRESH_GRACE_SECONDS", self.refresh_grace_seconds.as_ref(), 10, 0..=300)),
            refresh_grace_answer: p.word(
                "REFRESH_GRACE_ANSWER",
                self.refresh_grace_answer.as_ref(),
                GraceAnswer::Reject,
                &[("reject", GraceAnswer::Reject), ("replay", GraceAnswer::Replay)],
            ),
            batch_size: p.number("BATCH_SIZE", batch_size, 128, 1..=1024),
            hasher: self.password.read(p),
            throttle: p.word("THROTTLE", self.throttle.as_ref(), true, &ON_OFF).then_some(THROTTLE),
            register_open_roles: if roles.is_empty() { default_roles } else { roles },
            users_list_access: p.word(
                "USERS_LIST_ACCESS",
                self.users_list_access.as_ref(),
                if development { UsersListAccess::Public } else { UsersListAccess::Admin },
                &[("admin", UsersListAccess::Admin), ("public", UsersListAccess::Public)],
            ),
            session_history: TimeDelta::days(p.number(
                "SESSION_HISTORY_DAYS",
                self.session_history_days.as_ref(),
                DEFAULT_SESSION_HISTORY_DAYS,
                SESSION_HISTORY_DAYS,
            )),
            cleanup_interval: (cleanup_seconds > 0).then(|| Duration::from_secs(cleanup_seconds)),
            database: database?,
            jwt_secret: jwt_secret?,
        })
    }

    fn read_jwt_secret(&self, problems: &mut Problems, development: bool) -> Option<SecretString> {
        let secret = problems.secret("JWT_SECRET", self.jwt_secret.as_ref(), self.jwt_secret_file.as_ref());
        let Some(secret) = secret else {
            if development {
                return Some(DEVELOPMENT_SECRET.into());
            }
            if set(self.jwt_secret_file.as_ref()).is_none() {
                problems.add(format!("JWT_SECRET is not set: it takes at least {MIN_SECRET_BYTES} random bytes"));
            }
            return None;
        };
        if !development {
            refuse_weak_secret(problems, "JWT_SECRET", secret.expose_secret());
        }
        Some(secret)
    }

    fn read_previous_jwt_secrets(&self, problems: &mut Problems, development: bool) -> Vec<SecretString> {
        const NAME: &str = "JWT_SECRET_PREVIOUS";
        let secrets = problems.secret(NAME, self.jwt_secret_previous.as_ref(), self.jwt_secret_previous_file.as_ref());
        let Some(secrets) = secrets else { return Vec::new() };
        let secrets = secrets.expose_secret().split(',').map(str::trim).filter(|secret| !secret.is_empty());
        let secrets = secrets.inspect(|secret| {
            // What it signed is accepted just as well.
            if !development {
                refuse_weak_secret(problems, NAME, secret);
            }
        });
        secrets.map(SecretString::from).collect()
    }

    fn read_log_level(&self, problems: &mut Problems) -> String {
        let text = set(self.log_level.as_ref()).unwrap_or("info");
        // The filter would take a lone word for the name of a part, and be silent about all others.
        let is_level = |word: &str| word.contains(['=', '[']) || word.parse::<LevelFilter>().is_ok();
        if !text.split(',').map(str::trim).all(is_level) || EnvFilter::try_new(text).is_err() {
            problems.add(format!(
                "LOG_LEVEL must be trace, debug, info, warn, error or off, or a list such as info,sqlx=debug, not '{text}'"
            ));
        }
        text.to_owned()
    }

    fn read_listen_addr(&self, problems: &mut Problems) -> SocketAddr {
        let text = set(self.listen_addr.as_ref()).unwrap_or(DEFAULT_LISTEN_ADDR);
        text.parse().unwrap_or_else(|_| {
            problems.add(format!("LISTEN_ADDR must be an address and port such as 127.0.0.1:8000, not '{text}'"));
            SocketAddr::from(([127, 0, 0, 1], 8000))
        })
    }

    fn read_trusted_proxies(&self, problems: &mut Problems) -> TrustedProxies {
        TrustedProxies(problems.list("TRUSTED_PROXIES", self.trusted_proxies.as_ref(), |text| {
            let single = || text.parse::<std::net::IpAddr>().map(IpNet::from);
            text.parse::<IpNet>().or_else(|_| single()).map_err(|_| "is no network such as 10.0.0.0/8".to_owned())
        }))
    }

    fn read_cors(&self, problems: &mut Problems) -> Option<CorsOrigins> {
        let origins = problems.list("CORS_ALLOWED_ORIGINS", self.cors_allowed_origins.as_ref(), |text| {
            let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
            let plain =
                rest.is_some_and(|host| !host.is_empty() && host.bytes().all(|b| b.is_ascii_graphic() && b != b'/'));
            if plain || text == "*" {
                Ok(text.to_owned())
            } else {
                Err("is no origin such as https://shop.example".to_owned())
            }
        });
        match origins {
            origins if origins.is_empty() => None,
            origins if origins.iter().any(|origin| origin == "*") => Some(CorsOrigins::Any),
            origins => Some(CorsOrigins::List(origins)),
        }
    }
}
