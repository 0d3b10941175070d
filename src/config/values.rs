//! The parsers of values: text becomes a value, or a sentence that goes on where the variable's name ends. No setting is
//! named here.

use std::net::SocketAddr;
use std::ops::{Deref, RangeInclusive};

use ipnet::IpNet;
use secrecy::SecretString;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use url::Url;

use crate::domain::role::Role;

/// The values of a setting that is a list. clap would take a `Vec` for a flag that can be repeated.
#[derive(Clone, Debug)]
pub struct List<T>(pub(super) Vec<T>);

impl<T> Deref for List<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

pub(super) fn whole<T>(bounds: RangeInclusive<T>) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static
where
    T: std::str::FromStr + PartialOrd + std::fmt::Display + Clone + Send + Sync + 'static,
{
    move |text| {
        let number = text.parse().ok().filter(|number| bounds.contains(number));
        number
            .ok_or_else(|| format!("must be a whole number from {} to {}, not '{text}'", bounds.start(), bounds.end()))
    }
}

pub(super) const ON_OFF: [(&str, bool); 2] = [("on", true), ("off", false)];

pub(super) fn word<T: Copy + Send + Sync + 'static>(
    words: &'static [(&str, T)],
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static {
    move |text| {
        let found = words.iter().find(|(word, _)| word.eq_ignore_ascii_case(text));
        found.map(|(_, value)| *value).ok_or_else(|| {
            let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            format!("must be {}, not '{text}'", known.join(" or "))
        })
    }
}

/// Values with commas between them, of which each must parse.
pub(super) fn list<T: Send + Sync + 'static>(
    parse: fn(&str) -> Result<T, String>,
) -> impl Fn(&str) -> Result<List<T>, String> + Clone + Send + Sync + 'static {
    move |text| {
        if text.is_empty() {
            return Ok(List(Vec::new()));
        }
        if text.starts_with('[') && text.ends_with(']') {
            return Err("is written as JSON; a list is written without brackets and quotes, with commas".to_owned());
        }
        let (mut values, mut problems) = (Vec::new(), Vec::new());
        for entry in text.split(',').map(str::trim) {
            match parse(entry) {
                Ok(value) => values.push(value),
                Err(problem) => problems.push(problem),
            }
        }
        if problems.is_empty() { Ok(List(values)) } else { Err(format!("has {}", problems.join(", "))) }
    }
}

pub(super) fn listen_addr(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("must be an address and port such as 127.0.0.1:8000, not '{text}'"))
}

/// Without a user and a query, which may be secret, because it is printed. And a path follows it.
pub(super) fn http_url(text: &str) -> Result<String, String> {
    let url = Url::parse(text).ok().filter(|url| {
        let is_bare = url.username().is_empty() && url.password().is_none() && url.query().or(url.fragment()).is_none();
        ["http", "https"].contains(&url.scheme()) && is_bare
    });
    let problem = || "must be a URL without user and query, such as http://collector:4318".to_owned();
    url.map(|_| text.to_owned()).ok_or_else(problem)
}

pub(super) fn log_level(text: &str) -> Result<String, String> {
    // The filter would take a lone word for the name of a part, and be silent about all others.
    let is_level = |word: &str| word.contains(['=', '[']) || word.parse::<LevelFilter>().is_ok();
    if text.split(',').map(str::trim).all(is_level) && EnvFilter::try_new(text).is_ok() {
        return Ok(text.to_owned());
    }
    Err(format!("must be trace, debug, info, warn, error or off, or a list such as info,sqlx=debug, not '{text}'"))
}

pub(super) fn network(text: &str) -> Result<IpNet, String> {
    let single = || text.parse::<std::net::IpAddr>().map(IpNet::from);
    text.parse().or_else(|_| single()).map_err(|_| format!("'{text}', which is no network such as 10.0.0.0/8"))
}

/// An origin must be as browsers send it, because it is compared as text.
pub(super) fn origin(text: &str) -> Result<String, String> {
    if text == "*" {
        return Ok(text.to_owned());
    }
    // A user part may be a password.
    let shown = if text.contains('@') { "an entry" } else { &format!("'{text}'") };
    let Some(sent) = as_sent_by_browsers(text) else {
        return Err(format!("{shown}, which is no origin such as https://shop.example"));
    };
    if sent == text { Ok(sent) } else { Err(format!("{shown}, but browsers send it as {sent}")) }
}

fn as_sent_by_browsers(text: &str) -> Option<String> {
    let url = Url::parse(text).ok()?;
    // A star is a pattern, and no pattern is understood.
    let is_origin = ["http", "https"].contains(&url.scheme()) && !url.host_str()?.contains('*');
    is_origin.then(|| url.origin().ascii_serialization())
}

pub(super) fn role(text: &str) -> Result<Role, String> {
    if text.is_empty() {
        return Err("an entry that is empty".to_owned());
    }
    // A role may have these, but here they are a list that is written in another way.
    if text.contains(|c: char| c.is_whitespace() || "[]{}();|\"'".contains(c)) {
        return Err(format!("'{text}', but roles are written with commas between them, as in customer,admin"));
    }
    Role::parse(text).map_err(|error| format!("'{text}', which is no role: {error}"))
}

pub(super) fn former_secret(text: &str) -> Result<SecretString, String> {
    if text.is_empty() { Err("an entry that is empty".to_owned()) } else { Ok(text.into()) }
}
