//! The connections to the mail server (RFC 5321), kept open between mails.
//!
//! lettre speaks the protocol. Its pool is not used, because its errors do not tell a refused recipient, which is final,
//! from a refused login or sender, which a person must mend and which must cost no mail.

use std::fmt;
use std::time::{Duration, Instant};

use lettre::Address;
use lettre::transport::smtp::Error;
use lettre::transport::smtp::authentication::{Credentials, Mechanism};
use lettre::transport::smtp::client::{AsyncSmtpConnection, TlsParameters};
use lettre::transport::smtp::commands::{Data, Mail, Rcpt};
use lettre::transport::smtp::extension::{ClientId, MailBodyParameter, MailParameter};
use parking_lot::Mutex;
use secrecy::ExposeSecret;

use super::SendError;
use super::unencrypted::Unencrypted;
use crate::config::{SmtpServer, SmtpTls};

/// Time for TCP; [`SEND_TIMEOUT`](super::SEND_TIMEOUT) bounds the whole.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection waits for the next mail. Servers close one sooner or later.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_IDLE: usize = 8;

pub(super) struct Smtp {
    server: SmtpServer,
    tls: Option<TlsParameters>,
    /// What the client calls itself.
    hello: ClientId,
    idle: Mutex<Vec<(AsyncSmtpConnection, Instant)>>,
}

impl fmt::Debug for Smtp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Smtp").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Smtp {
    pub(super) fn new(server: SmtpServer, domain: String) -> Result<Self, Error> {
        let tls = match server.tls {
            SmtpTls::Off => None,
            SmtpTls::Implicit | SmtpTls::StartTls => Some(TlsParameters::new_rustls(server.host.clone())?),
        };
        Ok(Self { server, tls, hello: ClientId::Domain(domain), idle: Mutex::default() })
    }

    pub(super) async fn send(&self, from: &Address, to: Address, mail: &[u8]) -> Result<(), SendError> {
        let mut connection = self.begin(from, &to).await?;
        connection.command(Rcpt::new(to, Vec::new())).await.map_err(refused)?;
        connection.command(Data).await.map_err(refused)?;
        connection.message(mail).await.map_err(refused)?;
        self.keep(connection);
        Ok(())
    }

    /// Connects and signs in.
    pub(super) async fn check(&self) -> Result<(), SendError> {
        let mut connection = self.connect().await?;
        let _ = connection.quit().await;
        Ok(())
    }

    /// A connection that has taken the sender.
    async fn begin(&self, from: &Address, to: &Address) -> Result<AsyncSmtpConnection, SendError> {
        // What is beyond ASCII in an address takes a server that knows RFC 6531. Others refuse it here.
        let (parameters, refusal): (_, fn(Error) -> SendError) = if AsRef::<str>::as_ref(to).is_ascii() {
            (Vec::new(), failed)
        } else {
            (vec![MailParameter::SmtpUtfEight, MailParameter::Body(MailBodyParameter::EightBitMime)], refused)
        };
        let mail = Mail::new(Some(from.clone()), parameters);
        // The server may have closed it, or take no further mail on it. A new one settles that at once.
        if let Some(mut connection) = self.idle_connection()
            && connection.command(mail.clone()).await.is_ok()
        {
            return Ok(connection);
        }
        let mut connection = self.connect().await?;
        connection.command(mail).await.map_err(refusal)?;
        Ok(connection)
    }

    async fn connect(&self) -> Result<AsyncSmtpConnection, SendError> {
        let server = (self.server.host.as_str(), self.server.port);
        let mut connection = match self.tls.clone() {
            Some(tls) if self.server.tls == SmtpTls::StartTls => {
                let stream = Unencrypted::connect(server, CONNECT_TIMEOUT)
                    .await
                    .map_err(|error| SendError::Failed(error.to_string()))?;
                let connection = AsyncSmtpConnection::connect_with_transport(Box::new(stream), &self.hello).await;
                let mut connection = connection.map_err(failed)?;
                connection.starttls(tls, &self.hello).await.map_err(failed)?;
                connection
            }
            tls => {
                let timeout = Some(CONNECT_TIMEOUT);
                AsyncSmtpConnection::connect_tokio1(server, timeout, &self.hello, tls, None).await.map_err(failed)?
            }
        };
        if let Some((user, password)) = &self.server.login {
            let credentials = Credentials::new(user.clone(), password.expose_secret().to_owned());
            connection.auth(&[Mechanism::Plain, Mechanism::Login], &credentials).await.map_err(failed)?;
        }
        Ok(connection)
    }

    fn idle_connection(&self) -> Option<AsyncSmtpConnection> {
        let mut idle = self.idle.lock();
        idle.retain(|(_, since)| since.elapsed() < IDLE_TIMEOUT);
        idle.pop().map(|(connection, _)| connection)
    }

    fn keep(&self, connection: AsyncSmtpConnection) {
        let mut idle = self.idle.lock();
        if idle.len() < MAX_IDLE {
            idle.push((connection, Instant::now()));
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn failed(error: Error) -> SendError {
    SendError::Failed(error.to_string())
}

/// What an answer to the recipient or to the mail itself means.
fn refused(error: Error) -> SendError {
    // 530: the server wants a login first (RFC 4954 §6), which is not the recipient's fault.
    let wants_login = error.status().is_some_and(|code| u16::from(code) == 530);
    if error.is_permanent() && !wants_login { SendError::Rejected(error.to_string()) } else { failed(error) }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn an_answer_behind_the_one_to_starttls_ends_the_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = SmtpServer { host: "127.0.0.1".to_owned(), port, tls: SmtpTls::StartTls, login: None };
        let smtp = Smtp::new(server, "shop.example".to_owned()).unwrap();
        let attacker = async {
            let (mut line, _) = listener.accept().await.unwrap();
            line.write_all(b"220 mail\r\n").await.unwrap();
            let mut read = [0; 1024];
            for answer in ["250-mail\r\n250 STARTTLS\r\n", "220 begin\r\n250 another answer\r\n"] {
                let _ = line.read(&mut read).await.unwrap();
                line.write_all(answer.as_bytes()).await.unwrap();
            }
            line
        };
        // The line stays open: a client that waited for the server's part of the handshake would wait for ever.
        let connected = async { tokio::join!(smtp.check(), attacker).0 };
        let error = tokio::time::timeout(Duration::from_secs(10), connected).await.unwrap().unwrap_err();
        assert!(error.to_string().contains("corrupt message"), "{error}");
    }
}
