//! The address of the database, with what libpq and SQLAlchemy make of it.
//!
//! sqlx ignores what it does not know, does not verify a certificate with `sslmode=require`, and cannot read some addresses
//! that the other two can. So the address is taken apart here and given to sqlx in a form that leaves no doubt. No problem
//! repeats a part of it: with a mistake in it, any part may be one of the password.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::PgConnectOptions;

const SUPPORTED: &str = "host, hostaddr, port, dbname, user, password, sslmode, sslrootcert, sslcert, sslkey, \
    application_name, options, connect_timeout, statement-cache-capacity";
const SSL_MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

/// Where the database is.
#[derive(Clone)]
pub struct Dsn {
    pub options: PgConnectOptions,
    /// Its host is another machine, and nothing says whether the line to it is encrypted.
    pub(super) encryption_unsaid: bool,
    password: Option<SecretString>,
}

impl Dsn {
    /// Reads a database address. An empty text gives a placeholder that is never used, see [`Settings`](super::Settings).
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            let options = PgConnectOptions::new_without_pgpass();
            return Ok(Self { options, encryption_unsaid: false, password: None });
        }
        if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err("has white space in it; in a password a blank is written %20".to_owned());
        }
        let (scheme, rest) = text.split_once("://").unwrap_or_default();
        let driver = match scheme.split_once('+') {
            Some((scheme, _driver)) if is_postgres(scheme) => true,
            None if is_postgres(scheme) => false,
            _ => return Err("must begin with postgres:// or postgresql://".to_owned()),
        };
        let mut parameters = Parameters::default();
        let query = parameters.read_place(rest)?;
        for (index, pair) in query.split('&').filter(|pair| !pair.is_empty()).enumerate() {
            // SQLAlchemy reads the query as a form's, libpq does not.
            let pair = if driver { pair.replace('+', " ") } else { pair.to_owned() };
            let (name, value) = pair.split_once('=').ok_or_else(|| unsupported(index + 1))?;
            parameters.read(name, decode(value)?, index + 1)?;
        }
        parameters.read_tls(|name| std::env::var_os(name).and_then(|value| value.into_string().ok()))?;
        parameters.finish()
    }

    /// These options with the user and the password of this address. Without a password in it, theirs stays.
    pub fn with_credentials(&self, options: PgConnectOptions) -> PgConnectOptions {
        let options = options.username(self.options.get_username());
        match &self.password {
            Some(password) => options.password(password.expose_secret()),
            None => options,
        }
    }

    pub fn has_credentials_of(&self, other: &Self) -> bool {
        let password = |dsn: &Self| dsn.password.as_ref().map(|password| password.expose_secret().to_owned());
        self.options.get_username() == other.options.get_username() && password(self) == password(other)
    }
}

fn is_postgres(scheme: &str) -> bool {
    ["postgres", "postgresql"].contains(&scheme)
}

fn decode(text: &str) -> Result<String, String> {
    let hex = |text: &str| text.len() >= 2 && text.bytes().take(2).all(|byte| byte.is_ascii_hexdigit());
    if !text.split('%').skip(1).all(hex) {
        return Err("has a % that is not followed by two hex digits; % itself is written %25".to_owned());
    }
    let decoded = percent_decode_str(text).decode_utf8().map(Cow::into_owned);
    decoded.map_err(|_| "has a %-encoded character that is not UTF-8".to_owned())
}

/// The parameters for sqlx, by libpq's names. The last one of a name counts; of `options` sqlx would take all.
#[derive(Default)]
struct Parameters(BTreeMap<String, String>);

impl Parameters {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn set(&mut self, name: &str, value: String) {
        if !value.is_empty() {
            self.0.insert(name.to_owned(), value);
        }
    }

    /// Reads user, password, host, port and database, and returns the query. As for libpq, a password ends at the
    /// first @, and has no /.
    fn read_place<'a>(&mut self, rest: &'a str) -> Result<&'a str, String> {
        let authority = rest.split('/').next().unwrap_or_default();
        let rest = match authority.split_once('@') {
            Some((login, _)) => {
                let (user, password) = login.split_once(':').unwrap_or((login, ""));
                self.set("user", decode(user)?);
                self.set("password", decode(password)?);
                &rest[login.len() + 1..]
            }
            None => rest,
        };
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (host, database) = place.split_once('/').unwrap_or((place, ""));
        if host.contains('@') {
            return Err("has two @ before the host; in a password @ is written %40".to_owned());
        }
        if database.contains('@') {
            return Err("has an @ behind a /; in a password / is written %2F".to_owned());
        }
        let (host, port) = match host.strip_prefix('[').and_then(|host| host.split_once(']')) {
            Some((address, port)) => (address, port.strip_prefix(':').unwrap_or(port)),
            None => host.split_once(':').unwrap_or((host, "")),
        };
        self.read("host", decode(host)?, 0)?;
        self.read("port", decode(port)?, 0)?;
        self.set("dbname", decode(database)?);
        Ok(query)
    }

    fn read(&mut self, name: &str, value: String, position: usize) -> Result<(), String> {
        if value.is_empty() {
            return Ok(());
        }
        match (name, value.as_str()) {
            ("user" | "password" | "dbname" | "application_name" | "options" | "statement-cache-capacity", _) => {
                self.set(name, value);
            }
            ("host" | "hostaddr" | "port", value) if value.contains(',') => {
                return Err(
                    "names several hosts; name one, such as the address that always leads to the primary".to_owned()
                );
            }
            ("port", text) if text.parse::<u16>().is_err() => {
                return Err("has a port that is no number; in a user name or password : is written %3A".to_owned());
            }
            ("host" | "port", _) | ("sslrootcert", "system") => self.set(name, value),
            ("hostaddr", address) if address.parse::<IpAddr>().is_ok() && self.get("host").is_none() => {
                self.set("host", value);
            }
            ("hostaddr", _) => return Err("has a hostaddr that is no address, or stands beside a host".to_owned()),
            // asyncpg's and JDBC's name.
            ("sslmode" | "ssl", "true") => self.set("sslmode", "require".to_owned()),
            ("sslmode" | "ssl", mode) => {
                check_mode(mode)?;
                self.set("sslmode", value);
            }
            ("sslrootcert" | "sslcert" | "sslkey", path) => {
                std::fs::File::open(path)
                    .map_err(|error| format!("has {name}={path}, which cannot be read: {error}"))?;
                self.set(name, value);
            }
            // Bounded by the service itself, or what it does anyway.
            (
                "connect_timeout"
                | "keepalives"
                | "keepalives_idle"
                | "keepalives_interval"
                | "keepalives_count"
                | "tcp_user_timeout",
                _,
            )
            | ("gssencmode" | "channel_binding", "disable" | "prefer")
            | ("target_session_attrs", "any" | "read-write" | "primary") => {}
            ("client_encoding", encoding) if ["utf8", "utf-8"].contains(&&*encoding.to_lowercase()) => {}
            _ => return Err(unsupported(position)),
        }
        Ok(())
    }

    /// Makes `sslmode` mean what it means to libpq.
    fn read_tls(&mut self, environment: impl Fn(&str) -> Option<String>) -> Result<(), String> {
        if self.get("sslmode").is_none()
            && let Some(mode) = environment("PGSSLMODE").filter(|mode| !mode.is_empty())
        {
            check_mode(&mode)?;
            self.set("sslmode", mode);
        }
        if matches!(self.get("sslmode"), Some("require" | "verify-ca" | "verify-full"))
            && self.get("sslrootcert").is_none()
            && environment("PGSSLROOTCERT").is_none()
            && let Some(path) = environment("HOME").map(|home| home + "/.postgresql/root.crt")
            && std::fs::exists(&path).unwrap_or(true)
        {
            self.read("sslrootcert", path, 0)?;
        }
        if self.get("sslrootcert") == Some("system") {
            if self.get("sslmode").is_some_and(|mode| mode != "verify-full") {
                return Err("says sslrootcert=system, which goes with sslmode=verify-full only".to_owned());
            }
            self.0.remove("sslrootcert");
            self.set("sslmode", "verify-full".to_owned());
        }
        let root = self.get("sslrootcert").is_some();
        match self.get("sslmode") {
            None | Some("disable" | "allow" | "prefer") if root => {
                return Err(
                    "says sslrootcert, but not sslmode=verify-full or verify-ca; nothing would be verified".to_owned()
                );
            }
            Some("require") if root || environment("PGSSLROOTCERT").is_some() => {
                self.set("sslmode", "verify-ca".to_owned());
            }
            // sqlx never encrypts with `allow`.
            Some("allow") => self.set("sslmode", "prefer".to_owned()),
            _ => {}
        }
        Ok(())
    }

    fn finish(self) -> Result<Dsn, String> {
        let query = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(&self.0).finish();
        let options: PgConnectOptions =
            format!("postgres:///?{query}").parse().map_err(|_| "is not a valid address".to_owned())?;
        let local = |host: &str| {
            host.starts_with('/') || host == "localhost" || host.parse().is_ok_and(|host: IpAddr| host.is_loopback())
        };
        let encryption_unsaid =
            self.get("sslmode").is_none() && options.get_socket().is_none() && !local(options.get_host());
        Ok(Dsn { options, encryption_unsaid, password: self.get("password").map(SecretString::from) })
    }
}

fn unsupported(position: usize) -> String {
    format!("has a parameter (number {position}) that is not supported; these are: {SUPPORTED}")
}

fn check_mode(mode: &str) -> Result<(), String> {
    if SSL_MODES.contains(&mode) {
        Ok(())
    } else {
        Err(format!("has an sslmode that is none of {}", SSL_MODES.join(", ")))
    }
}

impl fmt::Debug for Dsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dsn(********)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_certificate_in_libpqs_own_place_verifies() {
        let home = std::env::temp_dir().join(format!("auth-dsn-{}", std::process::id()));
        let root = home.join(".postgresql/root.crt");
        let read = |mode: &str| {
            let mut parameters = Parameters::default();
            parameters.set("sslmode", mode.to_owned());
            parameters.read_tls(|name| (name == "HOME").then(|| home.to_str().unwrap().to_owned())).unwrap();
            (parameters.get("sslmode").unwrap().to_owned(), parameters.get("sslrootcert").map(str::to_owned))
        };
        assert_eq!(read("require"), ("require".to_owned(), None));
        std::fs::create_dir_all(root.parent().unwrap()).unwrap();
        std::fs::write(&root, "").unwrap();
        let root = Some(root.to_str().unwrap().to_owned());
        assert_eq!(read("require"), ("verify-ca".to_owned(), root.clone()));
        assert_eq!(read("verify-full"), ("verify-full".to_owned(), root));
        assert_eq!(read("prefer"), ("prefer".to_owned(), None));
        std::fs::remove_dir_all(home).unwrap();
    }
}
