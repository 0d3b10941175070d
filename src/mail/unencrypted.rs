//! The line to a mail server until STARTTLS (RFC 3207).
//!
//! lettre reads ahead, and keeps what it has read when it begins to encrypt. So whoever is on the line could write answers
//! behind the one to STARTTLS, and each later answer would be taken for that of the command before: a mail that the server
//! refuses would count as sent.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use lettre::transport::smtp::client::AsyncTokioStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::smtp::CONNECT_TIMEOUT;

/// What every record of a TLS handshake begins with (RFC 8446 §5.1). No command does.
const HANDSHAKE: u8 = 0x16;

/// Gives a byte at a time until the client has begun to encrypt, so that nothing is read ahead. What else has come by then
/// is no TLS, and ends the connection.
#[derive(Debug)]
pub(super) struct Unencrypted {
    stream: TcpStream,
    encrypted: bool,
}

impl Unencrypted {
    pub(super) async fn connect(server: (&str, u16)) -> io::Result<Self> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for address in tokio::net::lookup_host(server).await? {
            match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(Self { stream, encrypted: false }),
                Ok(Err(error)) => last = error,
                Err(_elapsed) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(last)
    }
}

impl AsyncTokioStream for Unencrypted {
    fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.stream.peer_addr()
    }
}

impl AsyncRead for Unencrypted {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.encrypted {
            return Pin::new(&mut self.stream).poll_read(context, into);
        }
        let mut byte = [0];
        let mut one = ReadBuf::new(&mut byte);
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut one))?;
        into.put_slice(one.filled());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Unencrypted {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.encrypted |= bytes.first() == Some(&HANDSHAKE);
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::super::smtp::Smtp;
    use crate::config::{SmtpServer, SmtpTls};

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
