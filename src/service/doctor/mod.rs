//! What is wrong with an installation, and what to do about it. Changes nothing.
//!
//! Each check is a small function that gives a [`Finding`] or several. [`examine`] is the list of them.

use std::time::{Duration, Instant};

use chrono::TimeDelta;
use serde::Serialize;
use sqlx::PgConnection;
use sqlx::postgres::PgConnectOptions;

use super::clock::{NOTEWORTHY, difference};
use crate::app::REFRESH_CONNECTIONS;
use crate::clock::Clock;
use crate::config::{Config, DatabaseSettings, Given, ListenSettings, MailSettings, PasswordSettings};
use crate::db::server::Server;
use crate::db::{self, migrations};
use crate::domain::password::{HashCost, Memory};
use crate::mail::Mailer;
use crate::passwords::hasher::HasherSettings;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// The service works, but not as well or as safely as it could.
    Warn,
    /// The service cannot do its work.
    Fail,
}

/// What a check found, and what to do about it.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    pub check: &'static str,
    pub level: Level,
    pub found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cure: Option<String>,
}

/// How long anything that is asked may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The same for a mail server, which may let strangers wait before it greets them.
const MAIL_TIMEOUT: Duration = Duration::from_secs(20);
/// How long all that the database is asked may take.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(15);
/// The oldest server that the service works with.
const OLDEST_SERVER: i32 = 150_000;
/// A hash that is computed faster than this is cheap to guess.
const FAST_HASH: Duration = Duration::from_millis(3);
/// A hash that takes longer makes a login slow and a flood of logins easy.
const SLOW_HASH: Duration = Duration::from_millis(250);
/// How many hashes each thread computes for a measurement.
const SAMPLES: u32 = 3;

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, found: found.into(), cure: None }
    }

    fn warn(check: &'static str, found: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { check, level: Level::Warn, found: found.into(), cure: Some(cure.into()) }
    }

    fn fail(check: &'static str, found: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { level: Level::Fail, ..Self::warn(check, found, cure) }
    }
}

/// Checks everything. What cannot be looked at, because something else is wrong, is left out.
pub async fn examine(settings: &Given<Config>) -> Vec<Finding> {
    let mut findings = check_settings(settings);
    if let Ok(database) = settings.part::<DatabaseSettings>().resolve() {
        let checked = tokio::time::timeout(DATABASE_TIMEOUT, check_database(&database)).await;
        let cure = "look for locks and for load on the server";
        findings.extend(checked.unwrap_or_else(|_| vec![Finding::fail("database", "it does not answer", cure)]));
    }
    if let Ok(password) = settings.part::<PasswordSettings>().resolve() {
        findings.push(check_hashing(password.hasher()).await);
    }
    if let Ok(listen) = settings.part::<ListenSettings>().resolve() {
        findings.push(check_proxies(listen).await);
    }
    if let Ok(config) = settings.resolve() {
        if config.mail.is_on() {
            findings.push(check_mail(&config.mail).await);
        }
        if let Some(endpoint) = config.traces_endpoint() {
            findings.push(check_traces(&endpoint).await);
        }
    }
    findings
}

fn check_settings(settings: &Given<Config>) -> Vec<Finding> {
    match settings.resolve() {
        Err(error) => {
            let cure = "`auth serve --help` describes every setting";
            error.0.into_iter().map(|problem| Finding::fail("settings", problem, cure)).collect()
        }
        Ok(config) => match config.warnings() {
            warnings if warnings.is_empty() => vec![Finding::ok("settings", "all can be understood")],
            warnings => {
                let cure = "change or remove it where it is set";
                warnings.into_iter().map(|warning| Finding::warn("settings", warning, cure)).collect()
            }
        },
    }
}

// --- The database -----------------------------------------------------------------------------------------------------

async fn check_database(settings: &DatabaseSettings) -> Vec<Finding> {
    let options = &settings.postgres_dsn.options;
    let mut connection = match db::within(TIMEOUT, migrations::connect(options)).await {
        Ok(connection) => connection,
        Err(error) => return vec![unreachable(options, &error)],
    };
    let server = match db::server::describe(&mut connection).await {
        Ok(server) => server,
        Err(error) => return vec![failed(&error)],
    };
    let (migrations, pending) = check_migrations(&mut connection, &server.lost).await;
    vec![
        check_version(&server),
        check_encryption(&server),
        check_writes(&server),
        check_rights(&server, pending),
        check_commit(&server),
        check_connections(&server, settings.database_max_connections),
        check_clock(&mut connection).await,
        migrations,
    ]
}

fn unreachable(options: &PgConnectOptions, error: &sqlx::Error) -> Finding {
    let cure = match db::sqlstate(error).as_deref() {
        Some("28P01" | "28000") => "correct user and password in POSTGRES_DSN, or let the user in in pg_hba.conf",
        Some("3D000") => "create the database, or correct its name in POSTGRES_DSN",
        Some("53300") => "raise max_connections of the server, or lower DATABASE_MAX_CONNECTIONS of its clients",
        Some(_) => "see the log of the server",
        None => "start the server, or correct host, port and sslmode in POSTGRES_DSN; look for a firewall between",
    };
    let (host, port, message) = (options.get_host(), options.get_port(), db::database_message(error));
    Finding::fail("database", format!("no connection to {host}:{port}: {message}"), cure)
}

fn failed(error: &sqlx::Error) -> Finding {
    Finding::fail("database", db::database_message(error), "see the log of the server")
}

fn check_version(server: &Server) -> Finding {
    let found = format!("PostgreSQL {}, {}", server.version, server.encoding);
    if server.version_number < OLDEST_SERVER {
        return Finding::fail("database", found, "upgrade to PostgreSQL 15 or later");
    }
    if server.encoding != "UTF8" {
        let cure = "create a database with ENCODING 'UTF8' and move the tables there; user agents are any Unicode";
        return Finding::fail("database", found, cure);
    }
    Finding::ok("database", found)
}

fn check_encryption(server: &Server) -> Finding {
    if server.uses_tls {
        Finding::ok("encryption", "the connection uses TLS")
    } else if server.is_local {
        Finding::ok("encryption", "the connection does not leave this machine")
    } else {
        let cure = "say sslmode=verify-full&sslrootcert=PATH in POSTGRES_DSN, unless the network is trusted";
        Finding::warn("encryption", "the connection to the database is not encrypted", cure)
    }
}

fn check_writes(server: &Server) -> Finding {
    if server.is_read_only {
        let cure = "connect to the primary; look for default_transaction_read_only of the role and the database";
        return Finding::fail("writes", "the database accepts no writes", cure);
    }
    Finding::ok("writes", "the database accepts writes")
}

fn check_rights(server: &Server, pending: bool) -> Finding {
    if !server.closed_tables.is_empty() {
        let found = format!("the role may not read and write {}", server.closed_tables.join(", "));
        let cure = "GRANT SELECT, INSERT, UPDATE, DELETE on them, or connect as the role that migrates";
        return Finding::fail("rights", found, cure);
    }
    if pending && !server.may_create {
        let cure =
            "GRANT CREATE ON SCHEMA to the role, or run `auth migrate` as another one and `auth serve --no-migrate`";
        return Finding::fail("rights", "migrations are pending, and the role may not create tables", cure);
    }
    Finding::ok("rights", "the role may do what the service does")
}

fn check_commit(server: &Server) -> Finding {
    let found = format!("synchronous_commit is {}", server.synchronous_commit);
    if db::server::is_low_synchronous_commit(&server.synchronous_commit) {
        let cure = "set it to `on` for the server; the service raises it for its own connections";
        return Finding::warn("commits", found, cure);
    }
    Finding::ok("commits", found)
}

fn check_connections(server: &Server, configured: u32) -> Finding {
    // One more while it starts.
    let needed = i64::from(configured) + i64::from(REFRESH_CONNECTIONS) + 1;
    let found = format!("a replica takes {needed} of {} connections", server.max_connections);
    if needed > i64::from(server.max_connections) {
        let cure = "raise max_connections of the server, or lower DATABASE_MAX_CONNECTIONS";
        return Finding::fail("connections", found, cure);
    }
    Finding::ok("connections", found)
}

async fn check_clock(connection: &mut PgConnection) -> Finding {
    match difference(connection, &Clock::system()).await {
        Ok(difference) => judge_clock(difference),
        Err(error) => failed(&error),
    }
}

/// By how much the database's clock is ahead.
fn judge_clock(difference: TimeDelta) -> Finding {
    let found =
        format!("this machine's clock differs from the database's by {:.3} s", difference.as_seconds_f64().abs());
    if difference.abs() > NOTEWORTHY {
        let cure = "set the clocks by NTP; services that verify tokens by a clock that is behind or ahead refuse them";
        return Finding::warn("clock", found, cure);
    }
    Finding::ok("clock", found)
}

/// Also says whether any migration is pending.
async fn check_migrations(connection: &mut PgConnection, lost: &[String]) -> (Finding, bool) {
    let check = "migrations";
    match (migrations::pending(connection).await, migrations::unknown(connection).await) {
        (Err(error), _) | (_, Err(error)) => {
            let cure = "correct the search path or the database in POSTGRES_DSN; nothing was changed";
            (Finding::fail(check, error.to_string(), cure), false)
        }
        (Ok(pending), _) if !pending.is_empty() => {
            let found = format!("{} are pending", pending.len());
            (Finding::warn(check, found, "run `auth migrate`; `auth serve` does it too"), true)
        }
        (_, Ok(unknown)) if !unknown.is_empty() => {
            let found = format!("{} come from a newer version of this service", unknown.len());
            (Finding::warn(check, found, "update this replica when the newer version is settled"), false)
        }
        _ if !lost.is_empty() => {
            let found = format!("all are applied, but not there any more: {}", lost.join(", "));
            let cure = "restore it from a backup; a trigger may only be turned off: ALTER TABLE … ENABLE TRIGGER";
            (Finding::fail(check, found, cure), false)
        }
        _ => (Finding::ok(check, "the schema is up to date"), false),
    }
}

// --- This machine -----------------------------------------------------------------------------------------------------

/// Computes hashes on as many threads as the service would.
async fn check_hashing(settings: HasherSettings) -> Finding {
    let concurrency = u32::try_from(settings.pool.concurrency).unwrap_or(u32::MAX);
    let measure = move || {
        let started = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..concurrency {
                scope.spawn(|| {
                    let mut memory = Memory::for_cost(settings.cost);
                    (0..SAMPLES).for_each(|_| HashCost::from(settings.cost).compute(&mut memory));
                });
            }
        });
        started.elapsed() / SAMPLES
    };
    match tokio::task::spawn_blocking(measure).await {
        Ok(each) => judge_hashing(settings, each, memory_limit()),
        Err(_panic) => Finding::fail("hashing", "hashes cannot be computed", "raise the limit on threads and memory"),
    }
}

/// Where a hash takes so long, and the service may have so much memory.
fn judge_hashing(settings: HasherSettings, each: Duration, limit: Option<u64>) -> Finding {
    let check = "hashing";
    let concurrency = settings.pool.concurrency;
    let memory = u64::from(settings.cost.m_kib) * 1024 * u64::try_from(concurrency).unwrap_or(u64::MAX);
    let logins = u32::try_from(concurrency).map_or(0.0, f64::from) / each.as_secs_f64();
    let found = format!(
        "a hash takes {:.1} ms here, so expect {logins:.0} logins a second, with {} MiB for hashing",
        each.as_secs_f64() * 1000.0,
        memory.div_ceil(1024 * 1024),
    );
    if limit.is_some_and(|limit| memory > limit / 2) {
        let cure = "lower PASSWORD_HASH_CONCURRENCY or PASSWORD_ARGON2_MEMORY_KIB, or give the container more memory";
        return Finding::fail(check, found + ", which is more than half of what this container may use", cure);
    }
    if each > SLOW_HASH {
        let cure =
            "lower PASSWORD_ARGON2_PASSES or PASSWORD_ARGON2_MEMORY_KIB; no more PASSWORD_HASH_CONCURRENCY than cores";
        return Finding::warn(check, found, cure);
    }
    if each < FAST_HASH {
        let cure = "raise PASSWORD_ARGON2_PASSES or PASSWORD_ARGON2_MEMORY_KIB: stolen hashes would be cheap to guess";
        return Finding::warn(check, found, cure);
    }
    Finding::ok(check, found)
}

/// How much memory this container may use, if it is bounded.
fn memory_limit() -> Option<u64> {
    std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok()?.trim().parse().ok()
}

// --- What is around the service ---------------------------------------------------------------------------------------

/// As for a mail, but without one.
async fn check_mail(settings: &MailSettings) -> Finding {
    let mailer = match Mailer::new(settings) {
        Ok(mailer) => mailer,
        Err(error) => return Finding::fail("mail", error.to_string(), "correct the settings or the templates of mail"),
    };
    match mailer.check(MAIL_TIMEOUT).await {
        Ok(()) => Finding::ok("mail", "the server takes mails, or they are written to files"),
        Err(error) => {
            let cure = "correct host, port, user, password and ?tls= in SMTP_URL; look for a firewall between";
            Finding::fail("mail", format!("the server takes none: {error}"), cure)
        }
    }
}

fn client() -> reqwest::Result<reqwest::Client> {
    // Fails where there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().timeout(TIMEOUT).redirect(reqwest::redirect::Policy::none()).build()
}

/// What is behind an error: reqwest itself says only that a request failed.
fn reason(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut reason: &dyn std::error::Error = &error;
    while let Some(source) = reason.source() {
        reason = source;
    }
    reason.to_string()
}

/// Asks the running service whether it has believed its proxies. It tells so in its metrics, which are not for the
/// public; no route shows a stranger how a request was taken.
async fn check_proxies(settings: ListenSettings) -> Finding {
    let address = settings.local_address();
    let metrics = async {
        let answer = client()?.get(format!("http://{address}/auth/metrics")).send().await?.error_for_status()?;
        answer.text().await
    };
    match metrics.await {
        Ok(metrics) => judge_proxies(&metrics),
        Err(error) => {
            let found = format!("no service answers at {address}: {}", reason(error));
            Finding::warn("proxies", found, "start the service and run `auth doctor` again, with the same LISTEN_ADDR")
        }
    }
}

fn judge_proxies(metrics: &str) -> Finding {
    let check = "proxies";
    let count = metrics.lines().find_map(|line| line.strip_prefix("auth_forwarded_for_ignored_total "));
    match count {
        None => {
            Finding::warn(check, "what answers is not this version of the service", "correct LISTEN_ADDR, or update it")
        }
        Some("0") => Finding::ok(check, "every X-Forwarded-For came from a trusted proxy"),
        Some(count) => {
            let found = format!("{count} requests carried X-Forwarded-For from a sender that is not trusted");
            let cure = "add the gateway's address to TRUSTED_PROXIES (the log names the sender): \
                        until then all its clients share one throttle";
            Finding::warn(check, found, cure)
        }
    }
}

/// Sends a collector no spans at all.
async fn check_traces(endpoint: &str) -> Finding {
    let sent = async {
        let request = client()?.post(endpoint).header("content-type", "application/x-protobuf");
        request.send().await?.error_for_status()
    };
    match sent.await {
        Ok(_) => Finding::ok("traces", "the collector takes them"),
        Err(error) => {
            let cure = "correct OTEL_EXPORTER_OTLP_ENDPOINT: the port for HTTP is 4318 as a rule, 4317 is for gRPC";
            Finding::warn("traces", format!("the collector at {} does not: {}", shown(endpoint), reason(error)), cure)
        }
    }
}

/// The URL without what may be secret in it.
fn shown(url: &str) -> String {
    url::Url::parse(url).map_or_else(
        |_| "this endpoint".to_owned(),
        |url| format!("{}{}", url.origin().ascii_serialization(), url.path()),
    )
}

#[cfg(test)]
mod tests;
