//! The settings: each is one field, with its type, default, bounds and help. Nothing else is said about it elsewhere, but
//! for its row in the README.
//!
//! `env` alone names the variable after the field.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use chrono::TimeDelta;
use clap::builder::TypedValueParser;
use clap::{Arg, ArgAction, Args};
use secrecy::{ExposeSecret, SecretString};

use super::keys::{KeyFile, signing_key_file, verify_key_file};
use super::values::{
    List, ON_OFF, former_secret, http_url, list, listen_addr, log_level, network, origin, role, whole, word,
};
use super::{Dsn, MailSettings, Settings, secret};
use crate::domain::keys::KeySet;
use crate::domain::network::TrustedProxies;
use crate::domain::password::Argon2Cost;
use crate::domain::role::Role;
use crate::domain::tokens::{Lifetimes, TokenAlgorithm};
use crate::passwords::hasher::HasherSettings;
use crate::passwords::pool::PoolSettings;

/// Where the database is. The only settings that every command needs.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Database")]
pub struct DatabaseSettings {
    /// Where the database is: postgres://user:password@host:port/name; SQLAlchemy's postgresql+psycopg:// is understood
    #[arg(env, visible_alias = "database_url", hide_env_values = true, required = true, default_value = "",
        value_name = "URL", value_parser = Dsn::parse)]
    pub postgres_dsn: Dsn,
    /// Connections besides those for refreshes
    #[arg(env, default_value = "10", value_name = "COUNT", value_parser = whole(1..=1000_u32))]
    pub database_max_connections: u32,
}

/// Where the service listens.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Service")]
pub struct ListenSettings {
    /// Address to listen on
    #[arg(env, default_value = "0.0.0.0:8000", value_name = "ADDR", value_parser = listen_addr)]
    pub listen_addr: SocketAddr,
}

/// What hashing a password costs.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Passwords")]
pub struct PasswordSettings {
    /// Memory of one argon2id hash, in KiB
    #[arg(env = "PASSWORD_ARGON2_MEMORY_KIB", default_value = "7168", value_name = "KIB",
        value_parser = whole(8..=Argon2Cost::MAX_M_KIB))]
    argon2_memory_kib: u32,
    /// Passes of one argon2id hash
    #[arg(env = "PASSWORD_ARGON2_PASSES", default_value = "5", value_name = "COUNT",
        value_parser = whole(1..=Argon2Cost::MAX_T))]
    argon2_passes: u32,
    /// Hashes computed at once [default: the number of cores]
    #[arg(env = "PASSWORD_HASH_CONCURRENCY", default_value = cores(), hide_default_value = true, value_name = "COUNT",
        value_parser = whole(1..=1024_usize))]
    hash_concurrency: usize,
    /// Longest wait for a hash before the answer is 503
    #[arg(env = "PASSWORD_HASH_MAX_WAIT_MS", default_value = "2000", value_name = "MS",
        value_parser = whole(1..=60_000).map(Duration::from_millis))]
    hash_max_wait: Duration,
    /// Replace outdated hashes at login: on or off
    #[arg(env = "PASSWORD_REHASH", default_value = "on", value_name = "ON_OFF", action = ArgAction::Set,
        value_parser = word(&ON_OFF))]
    rehash: bool,
}

/// The keys of access tokens, where it is not the secret that signs them.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Tokens")]
pub struct KeySettings {
    /// Private key that signs access tokens in place of the secret: PKCS#8 in PEM, Ed25519 or P-256
    #[arg(env = "JWT_SIGNING_KEY_FILE", value_name = "PATH", value_parser = signing_key_file)]
    pub signing: Option<KeyFile>,
    /// Further keys, public or private, whose access tokens are accepted
    #[arg(env = "JWT_VERIFY_KEY_FILES", default_value = "", value_name = "PATH,...",
        value_parser = list(verify_key_file))]
    pub verifying: List<KeyFile>,
}

/// How long the past is kept.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Access")]
pub struct HistorySettings {
    /// How long ended sessions are remembered
    #[arg(env = "SESSION_HISTORY_DAYS", default_value = "30", value_name = "DAYS",
        value_parser = whole(1..=3650).map(TimeDelta::days))]
    pub sessions: TimeDelta,
}

/// All settings of the service.
#[derive(Args, Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "settings do not depend on each other")]
pub struct Config {
    #[command(flatten)]
    pub database: DatabaseSettings,

    /// production or development; picks the defaults marked with both
    #[arg(env, default_value = "production", ignore_case = true, value_name = "ENV", help_heading = "Service",
        value_parser = word(&[("production", Environment::Production), ("development", Environment::Development)]))]
    pub app_env: Environment,
    #[command(flatten)]
    pub listen: ListenSettings,
    /// json or pretty
    #[arg(env, default_value = "json", in_development = "pretty", value_name = "FORMAT", help_heading = "Service",
        value_parser = word(&[("json", LogFormat::Json), ("pretty", LogFormat::Pretty)]))]
    pub log_format: LogFormat,
    /// What to log, as level or target=level,...
    #[arg(env, default_value = "info", value_name = "FILTER", help_heading = "Service", value_parser = log_level)]
    pub log_level: String,
    /// Where traces are sent, by OTLP over HTTP to port 4318 as a rule [default: nowhere]
    #[arg(env, value_name = "URL", help_heading = "Service", value_parser = http_url)]
    otel_exporter_otlp_endpoint: Option<String>,
    /// Networks whose X-Forwarded-For is believed, as CIDRs [default: none]
    #[arg(env, default_value = "", value_name = "CIDR,...", help_heading = "Service",
        value_parser = list(network).map(|networks| TrustedProxies(networks.0)))]
    pub trusted_proxies: TrustedProxies,
    /// Origins that browsers may call from, or * [default: none, CORS is off]
    #[arg(env, value_name = "ORIGIN,...", help_heading = "Service", value_parser = list(origin).map(CorsOrigins::from))]
    pub cors_allowed_origins: Option<CorsOrigins>,
    /// Serve the OpenAPI document and the page to try it on: on or off
    #[arg(env, default_value = "off", in_development = "on", value_name = "ON_OFF", help_heading = "Service",
        action = ArgAction::Set, value_parser = word(&ON_OFF))]
    pub api_docs: bool,
    /// Time a request may take
    #[arg(env = "REQUEST_TIMEOUT_SECONDS", default_value = "20", value_name = "SECONDS", help_heading = "Service",
        value_parser = whole(1..=300).map(Duration::from_secs))]
    pub request_timeout: Duration,
    /// Client connections at once
    #[arg(env, default_value = "10000", value_name = "COUNT", help_heading = "Service",
        value_parser = whole(1..=1_000_000_usize))]
    pub max_connections: usize,
    /// Time after SIGTERM in which requests are still accepted, for gateways to notice
    #[arg(env = "SHUTDOWN_DELAY_SECONDS", default_value = "0", value_name = "SECONDS", help_heading = "Service",
        value_parser = whole(0..=300).map(Duration::from_secs))]
    pub shutdown_delay: Duration,
    /// Time for requests in flight after that
    #[arg(env = "SHUTDOWN_GRACE_SECONDS", default_value = "20", value_name = "SECONDS", help_heading = "Service",
        value_parser = whole(0..=600).map(Duration::from_secs))]
    pub shutdown_grace: Duration,

    /// Signs tokens; in production at least 32 random bytes, such as `openssl rand -hex 32` makes
    #[arg(
        env,
        hide_env_values = true,
        required = true,
        default_value = "",
        in_development = "devsecret",
        value_name = "SECRET",
        help_heading = "Tokens"
    )]
    pub jwt_secret: SecretString,
    /// Former secrets, whose tokens are still accepted
    #[arg(env, hide_env_values = true, default_value = "", value_name = "SECRET,...", help_heading = "Tokens",
        value_parser = list(former_secret))]
    pub jwt_secret_previous: List<SecretString>,
    /// HS256, HS384 or HS512
    #[arg(env, default_value = "HS256", value_name = "ALGORITHM", help_heading = "Tokens",
        value_parser = word(&[("HS256", TokenAlgorithm::Hs256), ("HS384", TokenAlgorithm::Hs384), ("HS512", TokenAlgorithm::Hs512)]))]
    pub jwt_algorithm: TokenAlgorithm,
    #[command(flatten)]
    pub keys: KeySettings,
    /// Access tokens that the secret signed: accept or refuse
    #[arg(env, default_value = "accept", value_name = "WORD", help_heading = "Tokens", action = ArgAction::Set,
        value_parser = word(&[("accept", true), ("refuse", false)]))]
    jwt_secret_access: bool,
    /// Lifetime of an access token
    #[arg(env = "ACCESS_TOKEN_EXPIRES_SECONDS", default_value = "900", value_name = "SECONDS", help_heading = "Tokens",
        value_parser = whole(1..=86_400).map(TimeDelta::seconds))]
    access_token_lifetime: TimeDelta,
    /// Lifetime of a refresh token
    #[arg(env = "REFRESH_TOKEN_EXPIRES_DAYS", default_value = "30", value_name = "DAYS", help_heading = "Tokens",
        value_parser = whole(1..=3650).map(TimeDelta::days))]
    refresh_token_lifetime: TimeDelta,
    /// How long after its use a refresh token still gets its successor
    #[arg(env = "REFRESH_GRACE_SECONDS", default_value = "0", value_name = "SECONDS", help_heading = "Tokens",
        value_parser = whole(0..=300).map(TimeDelta::seconds))]
    pub refresh_grace: TimeDelta,
    /// Refreshes, or logins, committed together at most; 1 turns batching off
    #[arg(env, alias = "refresh_batch_size", default_value = "128", value_name = "COUNT", help_heading = "Tokens",
        value_parser = whole(1..=1024_usize))]
    pub batch_size: usize,

    #[command(flatten)]
    pub password: PasswordSettings,

    /// Limit failed logins and registrations: on or off
    #[arg(env, default_value = "on", value_name = "ON_OFF", help_heading = "Access", action = ArgAction::Set,
        value_parser = word(&ON_OFF))]
    pub throttle: bool,
    /// Roles anyone may register with
    #[arg(env, default_value = "customer", in_development = "customer,admin", value_name = "ROLE,...",
        help_heading = "Access", value_parser = list(role))]
    pub register_open_roles: List<Role>,
    /// Who may list users: admin or public
    #[arg(env = "USERS_LIST_ACCESS", default_value = "admin", in_development = "public", value_name = "WHO",
        help_heading = "Access", action = ArgAction::Set, value_parser = word(&[("admin", false), ("public", true)]))]
    pub users_list_is_public: bool,
    /// What /auth/verify answers where the list of ended sessions is older than two seconds: serve or refuse
    #[arg(env = "FORWARD_AUTH_STALE", default_value = "serve", value_name = "WHAT", help_heading = "Access",
        action = ArgAction::Set, value_parser = word(&[("serve", true), ("refuse", false)]))]
    pub serves_when_stale: bool,
    /// Live sessions of one user; one more ends the oldest
    #[arg(env, default_value = "100", value_name = "COUNT", help_heading = "Access",
        value_parser = whole(1..=100_000_i64))]
    pub max_sessions_per_user: i64,
    #[command(flatten)]
    pub history: HistorySettings,
    /// Time between clean-ups, give or take a fifth; 0 turns them off
    #[arg(env = "CLEANUP_INTERVAL_SECONDS", default_value = "300", value_name = "SECONDS", help_heading = "Access",
        value_parser = whole(0..=86_400).map(Duration::from_secs))]
    cleanup_interval: Duration,

    #[command(flatten)]
    pub mail: MailSettings,
}

/// Variables of former versions, which mean nothing any more.
const REMOVED: [&str; 3] = ["JWT_LEEWAY_SECONDS", "REFRESH_CONNECTIONS", "REFRESH_GRACE_ANSWER"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Environment {
    Production,
    Development,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line, for machines.
    Json,
    /// For people.
    Pretty,
}

/// Origins that browsers may call from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CorsOrigins {
    Any,
    List(Vec<String>),
}

impl From<List<String>> for CorsOrigins {
    fn from(origins: List<String>) -> Self {
        if origins.iter().any(|origin| origin == "*") { Self::Any } else { Self::List(origins.0) }
    }
}

impl Settings for DatabaseSettings {}
impl Settings for ListenSettings {}
impl Settings for KeySettings {}
impl Settings for PasswordSettings {}
impl Settings for HistorySettings {}
impl Settings for MailSettings {}

impl Settings for Config {
    fn problems(&self) -> Vec<String> {
        let in_development = self.app_env == Environment::Development;
        let mut problems = self.mail.problems(in_development);
        if !self.jwt_secret_access && self.keys.signing.is_none() {
            let problem =
                "JWT_SECRET_ACCESS is refuse, but without JWT_SIGNING_KEY_FILE the secret signs access tokens";
            problems.push(problem.to_owned());
        }
        if in_development {
            return problems;
        }
        // What a former secret signed is accepted just as well.
        let previous = self.jwt_secret_previous.iter().map(|secret| ("JWT_SECRET_PREVIOUS", secret));
        let secrets = std::iter::once(("JWT_SECRET", &self.jwt_secret)).chain(previous);
        secrets
            .filter(|(_, secret)| !secret.expose_secret().is_empty())
            .filter_map(|(name, secret)| secret::problem(name, secret.expose_secret(), self.jwt_algorithm))
            .chain(problems)
            .collect()
    }
}

impl ListenSettings {
    /// Where the service is reached from this machine.
    pub fn local_address(&self) -> SocketAddr {
        let mut address = self.listen_addr;
        if address.ip().is_unspecified() {
            let loopback = if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
            address.set_ip(loopback);
        }
        address
    }
}

impl PasswordSettings {
    pub fn hasher(&self) -> HasherSettings {
        HasherSettings {
            pool: PoolSettings { concurrency: self.hash_concurrency, max_wait: self.hash_max_wait },
            cost: Argon2Cost { m_kib: self.argon2_memory_kib, t: self.argon2_passes },
            rehash: self.rehash,
        }
    }
}

impl Config {
    pub fn lifetimes(&self) -> Lifetimes {
        Lifetimes { access: self.access_token_lifetime, refresh: self.refresh_token_lifetime }
    }

    pub fn token_keys(&self) -> KeySet {
        let signing = self.keys.signing.as_ref().map(|file| file.key.clone());
        let verifying = self.keys.verifying.iter().map(|file| file.key.clone()).collect();
        KeySet::new(signing, verifying, !self.jwt_secret_access)
    }

    /// How long it must be known that a session has ended: while an access token of it may be presented. A request that
    /// is under way may get one a little later, and hosts whose clocks differ end sessions, too.
    pub fn revocation_lifetime(&self) -> Duration {
        self.access_token_lifetime.to_std().unwrap_or_default() + Duration::from_mins(10)
    }

    /// Where spans are sent, if anywhere, as OpenTelemetry defines it for all signals and for this one.
    pub fn traces_endpoint(&self) -> Option<String> {
        let variable = |name| std::env::var_os(name)?.into_string().ok().filter(|text| !text.is_empty());
        if variable("OTEL_SDK_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true")) {
            return None;
        }
        variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
            .or_else(|| Some(format!("{}/v1/traces", self.otel_exporter_otlp_endpoint.as_ref()?.trim_end_matches('/'))))
    }

    /// The time between clean-ups, unless they are off.
    pub fn cleanup_interval(&self) -> Option<Duration> {
        Some(self.cleanup_interval).filter(|interval| !interval.is_zero())
    }

    /// Settings that are given but have no effect, or another one than they seem to have.
    pub fn warnings(&self) -> Vec<String> {
        let removed = REMOVED.iter().filter(|name| std::env::var_os(name).is_some_and(|text| !text.is_empty()));
        let mut warnings: Vec<_> = removed
            .map(|name| format!("{name} is set, but there is no such setting any more; it is ignored"))
            .collect();
        if self.database.postgres_dsn.encryption_unsaid {
            warnings.push(
                "POSTGRES_DSN names another host and no sslmode: passwords and tokens may cross the network in plain; \
                 say sslmode=verify-full, or sslmode=disable where the network is trusted"
                    .to_owned(),
            );
        }
        warnings.extend(self.mail.warning());
        warnings.extend(self.keys.signing.iter().chain(self.keys.verifying.iter()).filter_map(KeyFile::warning));
        warnings
    }
}

/// Declares another default for development, and says both in the help.
trait InDevelopment {
    fn in_development(self, default: &'static str) -> Self;
}

impl InDevelopment for Arg {
    fn in_development(self, default: &'static str) -> Self {
        let production = self.get_default_values().iter().map(|value| value.to_string_lossy());
        let production = production.filter(|value| !value.is_empty()).collect::<String>();
        let production = if production.is_empty() { "none" } else { &production };
        let help = self.get_help().map(ToString::to_string).unwrap_or_default();
        let help = format!("{help} [default: {production}; development: {default}]");
        self.help(help).hide_default_value(true).default_value_if("app_env", "development", default)
    }
}

fn cores() -> String {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get).to_string()
}
