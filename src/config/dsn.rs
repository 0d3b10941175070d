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
    #[must_use]
    pub fn with_credentials(&self, options: PgConnectOptions) -> PgConnectOptions {
        let options = options.username(self.options.get_username());
        match &self.password {
            Some(password) => options.password(password.expose_secret()),
            None => options,
        }
    }

    /// Whether user and password are the same.
    #[must_use]
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
    use sqlx::ConnectOptions;
    use sqlx::postgres::PgSslMode;

    use super::*;

    /// User, password, host or socket, port, database.
    fn parts(text: &str) -> [String; 5] {
        let dsn = Dsn::parse(text).unwrap_or_else(|problem| panic!("{text} {problem}"));
        let options = &dsn.options;
        let socket = options.get_socket().map(|path| path.display().to_string());
        [
            options.get_username().to_owned(),
            dsn.password.map(|password| password.expose_secret().to_owned()).unwrap_or_default(),
            socket.unwrap_or_else(|| options.get_host().to_owned()),
            options.get_port().to_string(),
            options.get_database().unwrap_or_default().to_owned(),
        ]
    }

    #[test]
    fn an_address_is_read_as_libpq_and_sqlalchemy_read_it() {
        for (text, expected) in [
            ("postgres://u:p@h:5433/d", ["u", "p", "h", "5433", "d"]),
            ("postgresql+psycopg://u:p@h/d", ["u", "p", "h", "5432", "d"]),
            ("postgresql+psycopg://u:p@/d?host=/var/run/postgresql", ["u", "p", "/var/run/postgresql", "5432", "d"]),
            ("postgres://u:p@%2Fvar%2Frun%2Fpostgresql:5433/d", ["u", "p", "/var/run/postgresql", "5433", "d"]),
            ("postgresql:///d?user=u&password=p&host=h&port=6432", ["u", "p", "h", "6432", "d"]),
            ("postgres://u:p@h/?dbname=d", ["u", "p", "h", "5432", "d"]),
            ("postgres://u:p#a?b:c+d%40%2F%25%C3%A9@h/d", ["u", "p#a?b:c+d@/%é", "h", "5432", "d"]),
            ("postgres://u:p@[::1]:5433/d", ["u", "p", "::1", "5433", "d"]),
            ("postgres://u:p@[::1]/d", ["u", "p", "::1", "5432", "d"]),
            ("postgres://u:p@h/d?hostaddr=", ["u", "p", "h", "5432", "d"]),
            ("postgresql+asyncpg://u:p@h/d?options=-c+search_path%3Dauth", ["u", "p", "h", "5432", "d"]),
            ("postgres://u:p@/d?hostaddr=192.0.2.1&connect_timeout=5", ["u", "p", "192.0.2.1", "5432", "d"]),
        ] {
            assert_eq!(parts(text), expected, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_a_sentence_that_repeats_nothing() {
        for (text, sentence) in [
            ("mysql://u:secret@h/d", "must begin with postgres://"),
            ("jdbc:postgresql://u:secret@h/d", "must begin with postgres://"),
            ("u:secret://x@h", "must begin with postgres://"),
            ("host=h password=secret", "has white space"),
            ("postgres://u:secret@h/d\n", "has white space"),
            ("postgres://u:secr/et@h/d", "has an @ behind a /"),
            ("postgres://u:secr@et@h/d", "has two @"),
            ("postgres://u:secret:x@h:5x/d", "has a port"),
            ("postgres://u:secret@h:0x1/d", "has a port"),
            ("postgres://u:secret%@h/d", "has a % that is not followed"),
            ("postgres://u:secret%ff@h/d", "has a %-encoded character"),
            ("postgres://u:secret@a,b/d", "names several hosts"),
            ("postgres://u:secret@/d?host=a,b", "names several hosts"),
            ("postgres://u:secret@h/d?sslmod=require", "has a parameter (number 1) that is not supported"),
            ("postgres://h/d?password=x&secret", "has a parameter (number 2)"),
            ("postgres://u:secret@h/d?sslmode=verify_full", "has an sslmode that is none of disable"),
            ("postgres://u:secret@h/d?sslmode=require&channel_binding=require", "has a parameter (number 2)"),
            ("postgres://u:secret@h/d?target_session_attrs=standby", "has a parameter (number 1)"),
            ("postgres://u:secret@h/d?hostaddr=192.0.2.1", "has a hostaddr"),
            (
                "postgres://u:secret@h/d?sslmode=require&sslrootcert=/nowhere/root.crt",
                "has sslrootcert=/nowhere/root.crt",
            ),
            ("postgres://u:secret@h/d?sslmode=prefer&sslrootcert=/etc/passwd", "says sslrootcert, but not"),
            ("postgres://u:secret@h/d?sslrootcert=/etc/passwd", "says sslrootcert, but not"),
            ("postgres://u:secret@h/d?sslmode=require&sslrootcert=system", "says sslrootcert=system"),
        ] {
            let problem = Dsn::parse(text).unwrap_err();
            assert!(problem.starts_with(sentence), "{text} {problem}");
            assert!(!problem.contains("secr"), "{text} {problem}");
        }
    }

    #[test]
    fn only_user_and_password_of_another_address_are_taken() {
        let [former, new] = ["postgres://u:p@h/d", "postgres://v:q@i/e"].map(|text| Dsn::parse(text).unwrap());
        assert!(!new.has_credentials_of(&former) && new.has_credentials_of(&new.clone()));
        assert!(!Dsn::parse("postgres://u:q@h/d").unwrap().has_credentials_of(&former));
        let url = new.with_credentials(former.options).to_url_lossy();
        assert!(url.as_str().starts_with("postgres://v:q@h:5432/d"), "{url}");
    }

    #[test]
    fn sslmode_verifies_what_libpq_verifies() {
        for (query, mode, unsaid) in [
            ("", PgSslMode::Prefer, true),
            ("sslmode=disable", PgSslMode::Disable, false),
            ("sslmode=allow", PgSslMode::Prefer, false),
            ("sslmode=require", PgSslMode::Require, false),
            ("ssl=true", PgSslMode::Require, false),
            ("ssl=verify-full", PgSslMode::VerifyFull, false),
            ("sslmode=require&sslrootcert=/etc/passwd", PgSslMode::VerifyCa, false),
            ("sslrootcert=/etc/passwd&sslmode=verify-full", PgSslMode::VerifyFull, false),
            ("sslrootcert=system", PgSslMode::VerifyFull, false),
        ] {
            let dsn = Dsn::parse(&format!("postgres://u:p@db.example/d?{query}")).unwrap();
            assert_eq!(format!("{:?}", dsn.options.get_ssl_mode()), format!("{mode:?}"), "{query}");
            assert_eq!(dsn.encryption_unsaid, unsaid, "{query}");
        }
        for local in ["localhost", "127.0.0.1", "[::1]", "%2Frun"] {
            assert!(!Dsn::parse(&format!("postgres://u:p@{local}/d")).unwrap().encryption_unsaid, "{local}");
        }
    }
}
