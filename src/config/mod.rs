//! Every setting, and the only reader of the environment.
//!
//! [`Settings`] is what is given, as text; [`Config`] is what it means. All of it is checked at once, and every problem
//! is named. Each setting is an environment variable; most have a flag of the same name, secrets do not take one,
//! because a command line can be read by every user of the machine.

mod problems;
mod settings;

pub use problems::ConfigError;
pub use settings::{
    DEFAULT_LISTEN_ADDR, DEFAULT_SESSION_HISTORY_DAYS, DatabaseSettings, PasswordSettings, SESSION_HISTORY_DAYS,
    Settings,
};

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use chrono::TimeDelta;
use secrecy::SecretString;
use sqlx::postgres::PgConnectOptions;

use crate::domain::network::TrustedProxies;
use crate::domain::role::Role;
use crate::domain::throttle::Throttle;
use crate::domain::tokens::{Lifetimes, TokenAlgorithm};
use crate::passwords::hasher::HasherSettings;

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line, for machines.
    Json,
    /// For people.
    Pretty,
}

/// Where the database is.
#[derive(Clone, Debug)]
pub struct Database {
    pub options: PgConnectOptions,
    pub max_connections: u32,
}

/// What a retry with a just used token gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GraceAnswer {
    Reject,
    Replay,
}

/// Who may list the users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsersListAccess {
    Admin,
    Public,
}

/// Origins that browsers may call from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CorsOrigins {
    Any,
    List(Vec<String>),
}

/// The effective settings.
#[derive(Clone, Debug)]
pub struct Config {
    pub development: bool,
    pub listen_addr: SocketAddr,
    pub log_format: LogFormat,
    pub log_level: String,
    pub trusted_proxies: TrustedProxies,
    pub cors_allowed_origins: Option<CorsOrigins>,
    pub request_timeout: Duration,
    pub max_connections: usize,
    pub shutdown_grace: Duration,
    pub database: Database,
    pub jwt_secret: SecretString,
    pub jwt_secret_previous: Vec<SecretString>,
    pub jwt_algorithm: TokenAlgorithm,
    pub lifetimes: Lifetimes,
    pub refresh_grace: TimeDelta,
    pub refresh_grace_answer: GraceAnswer,
    pub batch_size: usize,
    pub hasher: HasherSettings,
    pub throttle: Option<Throttle>,
    pub register_open_roles: Vec<Role>,
    pub users_list_access: UsersListAccess,
    pub session_history: TimeDelta,
    pub cleanup_interval: Option<Duration>,
}

/// One setting a line, as in an environment file; secrets are masked.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MASK: &str = "********";
        fn on_off(on: bool) -> &'static str {
            if on { "on" } else { "off" }
        }
        fn joined<T: ToString>(values: impl IntoIterator<Item = T>) -> String {
            values.into_iter().map(|value| value.to_string()).collect::<Vec<_>>().join(",")
        }
        let database = &self.database.options;
        let (host, port) = (database.get_host(), database.get_port());
        let name = database.get_database().unwrap_or(database.get_username());
        writeln!(f, "APP_ENV={}", if self.development { "development" } else { "production" })?;
        writeln!(f, "POSTGRES_DSN=postgres://{}:{MASK}@{host}:{port}/{name}", database.get_username())?;
        writeln!(f, "DATABASE_MAX_CONNECTIONS={}", self.database.max_connections)?;
        writeln!(f, "LISTEN_ADDR={}", self.listen_addr)?;
        writeln!(f, "LOG_FORMAT={}", if self.log_format == LogFormat::Json { "json" } else { "pretty" })?;
        writeln!(f, "LOG_LEVEL={}", self.log_level)?;
        writeln!(f, "TRUSTED_PROXIES={}", joined(&self.trusted_proxies.0))?;
        let origins = match &self.cors_allowed_origins {
            None => String::new(),
            Some(CorsOrigins::Any) => "*".to_owned(),
            Some(CorsOrigins::List(origins)) => joined(origins),
        };
        writeln!(f, "CORS_ALLOWED_ORIGINS={origins}")?;
        writeln!(f, "REQUEST_TIMEOUT_SECONDS={}", self.request_timeout.as_secs())?;
        writeln!(f, "MAX_CONNECTIONS={}", self.max_connections)?;
        writeln!(f, "SHUTDOWN_GRACE_SECONDS={}", self.shutdown_grace.as_secs())?;
        writeln!(f, "JWT_SECRET={MASK}")?;
        writeln!(f, "JWT_SECRET_PREVIOUS={}", joined(self.jwt_secret_previous.iter().map(|_| MASK)))?;
        writeln!(f, "JWT_ALGORITHM={}", format!("{:?}", self.jwt_algorithm).to_uppercase())?;
        writeln!(f, "ACCESS_TOKEN_EXPIRES_SECONDS={}", self.lifetimes.access.num_seconds())?;
        writeln!(f, "REFRESH_TOKEN_EXPIRES_DAYS={}", self.lifetimes.refresh.num_days())?;
        writeln!(f, "REFRESH_GRACE_SECONDS={}", self.refresh_grace.num_seconds())?;
        let replay = self.refresh_grace_answer == GraceAnswer::Replay;
        writeln!(f, "REFRESH_GRACE_ANSWER={}", if replay { "replay" } else { "reject" })?;
        writeln!(f, "BATCH_SIZE={}", self.batch_size)?;
        writeln!(f, "PASSWORD_ARGON2_MEMORY_KIB={}", self.hasher.cost.m_kib)?;
        writeln!(f, "PASSWORD_ARGON2_PASSES={}", self.hasher.cost.t)?;
        writeln!(f, "PASSWORD_HASH_CONCURRENCY={}", self.hasher.pool.concurrency)?;
        writeln!(f, "PASSWORD_HASH_MAX_WAIT_MS={}", self.hasher.pool.max_wait.as_millis())?;
        writeln!(f, "PASSWORD_REHASH={}", on_off(self.hasher.rehash))?;
        writeln!(f, "THROTTLE={}", on_off(self.throttle.is_some()))?;
        writeln!(f, "REGISTER_OPEN_ROLES={}", joined(self.register_open_roles.iter().map(Role::as_str)))?;
        let public = self.users_list_access == UsersListAccess::Public;
        writeln!(f, "USERS_LIST_ACCESS={}", if public { "public" } else { "admin" })?;
        writeln!(f, "SESSION_HISTORY_DAYS={}", self.session_history.num_days())?;
        write!(f, "CLEANUP_INTERVAL_SECONDS={}", self.cleanup_interval.unwrap_or_default().as_secs())
    }
}
