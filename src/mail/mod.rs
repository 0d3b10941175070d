//! What a mail says, and how it leaves. When it is sent, and again, is decided elsewhere.

mod smtp;
mod templates;
mod unencrypted;

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, Utc};
use lettre::Address;
use lettre::message::header::{HeaderName, HeaderValue};
use lettre::message::{Mailbox, MultiPart};
use url::Url;
use uuid::Uuid;

use crate::config::{ConfigError, MailSettings};
use crate::domain::email::Email;
use crate::domain::mail::{Locale, Template};
use crate::domain::mail_token::MailToken;
use smtp::Smtp;
use templates::{Templates, Values};

/// The longest time that [`Mailer::send`] takes.
pub const SEND_TIMEOUT: Duration = Duration::from_mins(1);

/// Where mails are written in development without a server, from the current folder.
const DEVELOPMENT_FOLDER: &str = "target/dev/mail";

/// One mail to one user.
#[derive(Clone, Debug)]
pub struct Message {
    /// Becomes its `Message-ID`: two mails with the same one are the same mail, sent twice.
    pub id: Uuid,
    pub to: Email,
    pub locale: Locale,
    pub content: Content,
}

/// What a mail tells. Nothing that a stranger wrote is in it: anybody can have a mail sent to an address.
#[derive(Clone, Debug)]
pub enum Content {
    ResetPassword { token: MailToken },
    VerifyEmail { token: MailToken },
    PasswordChanged,
    PasswordReset,
    NewSignIn { at: DateTime<Utc>, ip: Option<IpAddr> },
}

impl Content {
    pub fn template(&self) -> Template {
        match self {
            Self::ResetPassword { .. } => Template::ResetPassword,
            Self::VerifyEmail { .. } => Template::VerifyEmail,
            Self::PasswordChanged => Template::PasswordChanged,
            Self::PasswordReset => Template::PasswordReset,
            Self::NewSignIn { .. } => Template::NewSignIn,
        }
    }
}

/// Why a mail was not sent. The sentence has the server's words, but not the address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The server refuses the recipient or the mail for good (5xx): another attempt would end the same.
    #[error("{0}")]
    Rejected(String),
    /// Another attempt may succeed (4xx, no connection, no login, too slow). The mail may have been sent: the line may have broken
    /// behind the server's answer.
    #[error("{0}")]
    Failed(String),
}

/// Sends mails.
#[derive(Debug)]
pub struct Mailer {
    templates: Templates,
    transport: Transport,
    from: Mailbox,
    shop: String,
    password_reset_url: Option<Url>,
    email_verify_url: Option<Url>,
}

#[derive(Debug)]
enum Transport {
    Smtp(Box<Smtp>),
    /// For development: into the log, and into files where they can be written.
    Files(&'static Path),
}

impl Mailer {
    /// # Errors
    /// When mail is off, a template does not render, or there are no certificates to trust a server by.
    pub fn new(settings: &MailSettings) -> Result<Self, ConfigError> {
        let problem = |problem: String| ConfigError(vec![problem]);
        let from =
            settings.mail_from.as_ref().ok_or_else(|| problem("MAIL_FROM is not set: mail is off".to_owned()))?;
        let address = address(&from.address).map_err(|error| problem(format!("MAIL_FROM: {error}")))?;
        let domain = address.domain().to_owned();
        let transport = match &settings.smtp_url {
            None => Transport::Files(Path::new(DEVELOPMENT_FOLDER)),
            Some(server) => {
                let smtp = Smtp::new(server.clone(), domain.clone());
                Transport::Smtp(Box::new(smtp.map_err(|error| problem(format!("SMTP_URL: {error}")))?))
            }
        };
        Ok(Self {
            templates: Templates::load(settings.mail_templates_dir.as_deref()).map_err(ConfigError)?,
            transport,
            shop: from.name.clone().unwrap_or(domain),
            from: Mailbox::new(from.name.clone(), address),
            password_reset_url: settings.password_reset_url.clone(),
            email_verify_url: settings.email_verify_url.clone(),
        })
    }

    /// Sends one mail. It has left when this is `Ok`; otherwise see [`SendError`].
    pub async fn send(&self, message: &Message) -> Result<(), SendError> {
        let to = address(&message.to).map_err(SendError::Rejected)?;
        let sent = tokio::time::timeout(SEND_TIMEOUT, self.deliver(message, to.clone())).await;
        sent.unwrap_or_else(|_| Err(SendError::Failed(format!("not sent within {} s", SEND_TIMEOUT.as_secs()))))
            .map_err(|error| redacted(error, &to, self.values(message).token))
    }

    /// Connects, greets, encrypts and signs in as for a mail, and sends none.
    pub async fn check(&self, limit: Duration) -> Result<(), SendError> {
        let Transport::Smtp(smtp) = &self.transport else { return Ok(()) };
        let checked = tokio::time::timeout(limit, smtp.check()).await;
        checked.unwrap_or_else(|_| Err(SendError::Failed(format!("no answer within {} s", limit.as_secs()))))
    }

    async fn deliver(&self, message: &Message, to: Address) -> Result<(), SendError> {
        let failed = |error: &dyn std::fmt::Display| SendError::Failed(error.to_string());
        let rendered = self.templates.render(message.content.template(), message.locale, &self.values(message));
        let rendered = rendered.map_err(|error| failed(&error))?;
        let mail = lettre::Message::builder()
            .message_id(Some(format!("<{}@{}>", message.id, self.from.email.domain())))
            .from(self.from.clone())
            .to(Mailbox::new(None, to.clone()))
            .subject(rendered.subject)
            // So that no absence notice answers it (RFC 3834 §5).
            .raw_header(HeaderValue::new(HeaderName::new_from_ascii_str("Auto-Submitted"), "auto-generated".to_owned()))
            .multipart(MultiPart::alternative_plain_html(rendered.text.clone(), rendered.html))
            .map_err(|error| failed(&error))?
            .formatted();
        match &self.transport {
            Transport::Smtp(smtp) => smtp.send(&self.from.email, to, &mail).await,
            Transport::Files(folder) => {
                let file = folder.join(format!("{}.eml", message.id));
                // Blocks a thread for a moment, in development only.
                let written = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&file, &mail));
                // In a container there is no place for it.
                let place = written.map_or_else(|_| String::new(), |()| format!(", see {}", file.display()));
                tracing::info!("mail to {}{place}\n{}", message.to.as_str(), rendered.text);
                Ok(())
            }
        }
    }

    fn values<'a>(&'a self, message: &'a Message) -> Values<'a> {
        let (token, page) = match &message.content {
            Content::ResetPassword { token } => (Some(token.expose()), self.password_reset_url.as_ref()),
            Content::VerifyEmail { token } => (Some(token.expose()), self.email_verify_url.as_ref()),
            Content::PasswordChanged | Content::PasswordReset | Content::NewSignIn { .. } => (None, None),
        };
        let (at, ip) = match message.content {
            Content::NewSignIn { at, ip } => (Some(at), ip),
            _ => (None, None),
        };
        Values {
            shop: &self.shop,
            to: message.to.as_str(),
            locale: message.locale.label(),
            token,
            // In the fragment, which browsers send to no server.
            link: page.zip(token).map(|(page, token)| format!("{page}#token={token}")),
            minutes: message.content.template().token_lifetime().map_or(0, |lifetime| lifetime.num_minutes()),
            at: at.map(|at| time(at, message.locale)),
            ip: ip.map(|ip| ip.to_string()),
        }
    }
}

/// The address for SMTP, with its domain in ASCII, which every server takes.
fn address(email: &Email) -> Result<Address, String> {
    let (local, domain) = email.as_str().rsplit_once('@').unwrap_or_default();
    let domain =
        idna::domain_to_ascii(domain).map_err(|error| format!("no mail can be sent to the domain: {error}"))?;
    Address::new(local, domain).map_err(|error| format!("no mail can be sent to the address: {error}"))
}

fn time(at: DateTime<Utc>, locale: Locale) -> String {
    let format = match locale {
        Locale::En => "%-d %B %Y, %H:%M UTC",
        Locale::De => "%d.%m.%Y, %H:%M Uhr (UTC)",
    };
    at.format(format).to_string()
}

/// Servers repeat the address in their answers, and spam filters the link. Neither belongs in logs.
fn redacted(error: SendError, address: &Address, token: Option<&str>) -> SendError {
    let hide = |sentence: String| {
        let mut sentence = sentence.replace(address.to_string().as_str(), "[address]");
        if let Some(token) = token {
            sentence = sentence.replace(token, "[token]");
        }
        sentence.chars().take(500).collect()
    };
    match error {
        SendError::Rejected(sentence) => SendError::Rejected(hide(sentence)),
        SendError::Failed(sentence) => SendError::Failed(hide(sentence)),
    }
}
