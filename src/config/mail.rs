//! The settings of mail: the server, the sender, the shop's pages.

use clap::{ArgAction, Args};
use percent_encoding::percent_decode_str;
use secrecy::SecretString;
use url::{Host, Url};

use super::values::{ON_OFF, word};
use crate::domain::email::Email;

/// Mail, which is on where there is a sender. Outside development it takes a server as well.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Mail")]
pub struct MailSettings {
    /// Server that takes the mails: smtp://user:password@host:port?tls=required (or tls=none), or smtps://
    /// [default: none, mail is off]
    #[arg(env, hide_env_values = true, value_name = "URL", value_parser = SmtpServer::parse)]
    pub smtp_url: Option<SmtpServer>,
    /// Sender of the mails
    #[arg(help = "Sender of the mails, such as Shop <no-reply@shop.example> [default: none; development: Shop <no-reply@shop.example>]",
        env, default_value_if("app_env", "development", "Shop <no-reply@shop.example>"), hide_default_value = true,
        value_name = "ADDRESS", value_parser = MailFrom::parse)]
    pub mail_from: Option<MailFrom>,
    /// Page of the shop where a new password is chosen; the token follows as #token=... [default: none, the mail shows
    /// the token]
    #[arg(env, value_name = "URL", value_parser = page)]
    pub password_reset_url: Option<Url>,
    /// Page of the shop where an address is verified; the token follows as #token=... [default: none, the mail shows the
    /// token]
    #[arg(env, value_name = "URL", value_parser = page)]
    pub email_verify_url: Option<Url>,
    /// Folder with texts that replace the built-in ones, file by file [default: none]
    #[arg(env, value_name = "PATH")]
    pub mail_templates_dir: Option<std::path::PathBuf>,
    /// Tell users by mail of a changed password and of a new device: on or off
    #[arg(env, default_value = "on", value_name = "ON_OFF", action = ArgAction::Set, value_parser = word(&ON_OFF))]
    pub mail_notices: bool,
    /// Refuse logins until the address is verified: on or off
    #[arg(env, default_value = "off", value_name = "ON_OFF", action = ArgAction::Set, value_parser = word(&ON_OFF))]
    pub login_requires_verified_email: bool,
}

impl MailSettings {
    pub fn is_on(&self) -> bool {
        self.mail_from.is_some()
    }

    /// Whether users are told of what happens to their accounts.
    pub fn has_notices(&self) -> bool {
        self.is_on() && self.mail_notices
    }

    /// What is wrong with values that are right each by itself. In development mail needs no server.
    pub(super) fn problems(&self, in_development: bool) -> Vec<String> {
        let mut problems = Vec::new();
        match (&self.smtp_url, &self.mail_from) {
            (Some(_), None) => problems.push("SMTP_URL is set, but not MAIL_FROM, the sender of the mails"),
            (None, Some(_)) if !in_development => {
                problems.push("MAIL_FROM is set, but not SMTP_URL, the server that takes the mails");
            }
            (None, None) if self.login_requires_verified_email => {
                problems.push("LOGIN_REQUIRES_VERIFIED_EMAIL is on, but mail is off: set SMTP_URL and MAIL_FROM");
            }
            _ => {}
        }
        problems.into_iter().map(str::to_owned).collect()
    }

    /// A setting that is less safe than it may seem.
    pub(super) fn warning(&self) -> Option<String> {
        let server = self.smtp_url.as_ref()?;
        let is_local =
            server.host == "localhost" || server.host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
        (server.tls == SmtpTls::Off && !is_local).then(|| {
            "SMTP_URL has tls=none and names another host: tokens and the password cross the network in plain"
                .to_owned()
        })
    }
}

/// The server that takes the mails.
#[derive(Clone, Debug)]
pub struct SmtpServer {
    pub host: String,
    pub port: u16,
    pub tls: SmtpTls,
    pub login: Option<(String, SecretString)>,
}

/// How the line to the server is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SmtpTls {
    /// From the first byte (RFC 8314).
    Implicit,
    /// By STARTTLS, or not at all: without it nothing is sent (RFC 3207).
    StartTls,
    Off,
}

impl SmtpServer {
    /// No problem repeats a part of the text: with a mistake in it, any part may be one of the password.
    fn parse(text: &str) -> Result<Self, String> {
        let expected =
            || "must be smtp://user:password@host:587?tls=required, or smtps://user:password@host:465".to_owned();
        let url = Url::parse(text).map_err(|_| expected())?;
        if url.fragment().is_some() || !matches!(url.path(), "" | "/") {
            return Err("has a / or # behind the host; in a password they are written %2F and %23".to_owned());
        }
        let (tls, port) = match (url.scheme(), url.query()) {
            ("smtps", None) => (SmtpTls::Implicit, 465),
            ("smtp", None | Some("tls=required")) => (SmtpTls::StartTls, 587),
            ("smtp", Some("tls=none")) => (SmtpTls::Off, 25),
            ("smtp", Some(_)) => return Err("takes tls=required or tls=none behind the ?, and nothing else".to_owned()),
            ("smtps", Some(_)) => return Err("takes nothing behind the ?: smtps:// is always encrypted".to_owned()),
            _ => return Err(expected()),
        };
        let host = match url.host() {
            Some(Host::Domain(name)) if !name.is_empty() => name.to_owned(),
            Some(Host::Ipv4(address)) => address.to_string(),
            Some(Host::Ipv6(address)) => address.to_string(),
            _ => return Err("names no host".to_owned()),
        };
        let decode = |part: &str| {
            let decoded = percent_decode_str(part).decode_utf8();
            decoded.map(String::from).map_err(|_| "has a %-encoded character that is not UTF-8".to_owned())
        };
        let login = match (decode(url.username())?, url.password()) {
            (user, None) if user.is_empty() => None,
            (user, Some(password)) if !user.is_empty() => Some((user, decode(password)?.into())),
            _ => return Err("has only one of user and password before the @".to_owned()),
        };
        Ok(Self { host, port: url.port().unwrap_or(port), tls, login })
    }
}

/// Whom the mails come from.
#[derive(Clone, Debug)]
pub struct MailFrom {
    /// The name of the shop.
    pub name: Option<String>,
    pub address: Email,
}

impl MailFrom {
    fn parse(text: &str) -> Result<Self, String> {
        let address =
            Email::parse(text).map_err(|error| format!("has no address such as no-reply@shop.example: {error}"))?;
        let name = text.rsplit_once('<').map_or("", |(name, _)| name.trim().trim_matches('"'));
        if name.contains(char::is_control) {
            return Err("has a control character".to_owned());
        }
        Ok(Self { name: Some(name.to_owned()).filter(|name| !name.is_empty()), address })
    }
}

fn page(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).ok().filter(|url| ["https", "http"].contains(&url.scheme()) && url.has_host());
    let url =
        url.ok_or_else(|| format!("must be the address of a page, such as https://shop.example/reset, not '{text}'"))?;
    if url.fragment().is_some() {
        return Err(format!("must have no #, because the token follows as #token=..., not '{text}'"));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn a_server_is_read_with_its_login_and_encrypted_unless_said_otherwise() {
        for (text, host, port, tls, login) in [
            ("smtp://mail.example", "mail.example", 587, SmtpTls::StartTls, None),
            ("smtp://mail.example:2525?tls=required", "mail.example", 2525, SmtpTls::StartTls, None),
            (
                "smtp://u%40shop.example:p%2F%25@mail.example/",
                "mail.example",
                587,
                SmtpTls::StartTls,
                Some(("u@shop.example", "p/%")),
            ),
            ("smtps://user:p@ss@mail.example", "mail.example", 465, SmtpTls::Implicit, Some(("user", "p@ss"))),
            ("smtp://127.0.0.1?tls=none", "127.0.0.1", 25, SmtpTls::Off, None),
            ("smtp://[::1]:1025?tls=none", "::1", 1025, SmtpTls::Off, None),
        ] {
            let server = SmtpServer::parse(text).unwrap();
            let found = server.login.as_ref().map(|(user, password)| (user.as_str(), password.expose_secret()));
            assert_eq!((server.host.as_str(), server.port, server.tls, found), (host, port, tls, login), "{text}");
        }
    }

    #[test]
    fn a_server_with_a_mistake_is_refused_without_a_part_of_its_password() {
        for text in [
            "smtp://user:hid/den@mail.example",
            "smtp://user:hid#den@mail.example",
            "smtp://user:hidden@mail.example?tls=sometimes",
            "smtps://user:hidden@mail.example?tls=none",
            "smtp://user@mail.example",
            "smtp://:hidden@mail.example",
            "smtp://user:hidden@",
            "smtp://user:%ffhidden@mail.example",
            "http://user:hidden@mail.example",
            "mail.example:587",
            "hidden",
        ] {
            let problem = SmtpServer::parse(text).unwrap_err();
            assert!(!problem.contains("hid") && !problem.contains("den@"), "{problem}");
        }
    }

    #[test]
    fn the_sender_is_an_address_with_or_without_a_name() {
        for (text, name, address) in [
            ("no-reply@shop.example", None, "no-reply@shop.example"),
            ("<no-reply@shop.example>", None, "no-reply@shop.example"),
            ("Blumen Böhm <no-reply@shop.example>", Some("Blumen Böhm"), "no-reply@shop.example"),
            ("\"Shop, Inc.\" <no-reply@shop.example>", Some("Shop, Inc."), "no-reply@shop.example"),
        ] {
            let from = MailFrom::parse(text).unwrap();
            assert_eq!((from.name.as_deref(), from.address.as_str()), (name, address), "{text}");
        }
        assert!(MailFrom::parse("Shop").is_err());
        assert!(MailFrom::parse("\"Shop\nBcc: a@b.example\" <no-reply@shop.example>").is_err());
    }

    #[test]
    fn a_page_is_an_address_without_a_fragment() {
        assert!(page("https://shop.example/reset?lang=de").is_ok());
        assert!(page("http://localhost:3000/reset").is_ok());
        for text in ["shop.example/reset", "javascript:alert(1)", "https://shop.example/#/reset"] {
            assert!(page(text).is_err(), "{text}");
        }
    }
}
