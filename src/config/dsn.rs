//! The address of the database.

use std::fmt;

use sqlx::postgres::PgConnectOptions;

/// Where the database is.
#[derive(Clone)]
pub struct Dsn {
    pub options: PgConnectOptions,
}

impl Dsn {
    /// Reads a database address, with SQLAlchemy's `+driver` or without. The problem never repeats a part of it: it has a
    /// password. No text is an address that nobody uses, see [`Settings`](super::Settings).
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self { options: PgConnectOptions::new_without_pgpass() });
        }
        let rest = text.split_once("://").filter(|(scheme, _)| {
            let (scheme, _driver) = scheme.split_once('+').unwrap_or((scheme, ""));
            ["postgres", "postgresql"].contains(&scheme)
        });
        let (_, rest) = rest.ok_or("must begin with postgres:// or postgresql://")?;
        let options = format!("postgres://{rest}").parse().map_err(|_| "is not a valid PostgreSQL URL")?;
        Ok(Self { options })
    }
}

impl fmt::Debug for Dsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dsn(********)")
    }
}
