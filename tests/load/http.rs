//! A client that costs little: prepared requests on a kept connection, and no more parsing than the measure needs.

use std::future::poll_fn;
use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

/// The longest any answer is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// One kept connection. An answer that says `connection: close`, or an error, ends it; the next request opens another.
pub(crate) struct Client {
    address: SocketAddr,
    stream: Option<TcpStream>,
    input: Vec<u8>,
}

/// What came back, as long as the client is not asked again.
pub(crate) struct Answer<'a> {
    pub(crate) status: u16,
    head: &'a [u8],
    pub(crate) body: &'a [u8],
}

impl Answer<'_> {
    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        header(self.head, name)
    }

    /// The string that follows `"name":` in the body.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let mut quoted = self.body.split(|&byte| byte == b'"');
        quoted.find(|part| *part == name.as_bytes())?;
        std::str::from_utf8(quoted.nth(1)?).ok()
    }
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, stream: None, input: vec![0; 16 * 1024] }
    }

    /// Opens the connection, where it is not open.
    pub(crate) async fn connect(&mut self) -> Result<&mut TcpStream> {
        if self.stream.is_none() {
            let stream = TcpStream::connect(self.address).await?;
            stream.set_nodelay(true)?;
            self.stream = Some(stream);
        }
        self.stream.as_mut().ok_or_else(|| ErrorKind::NotConnected.into())
    }

    /// Closes the connection, whatever is on its way.
    pub(crate) fn disconnect(&mut self) {
        self.stream = None;
    }

    /// Sends a request and waits for the whole answer.
    pub(crate) async fn ask(&mut self, request: &[u8]) -> Result<Answer<'_>> {
        let asked =
            tokio::time::timeout(PATIENCE, self.exchange(request)).await.unwrap_or(Err(ErrorKind::TimedOut.into()));
        match asked {
            Ok(whole) => {
                if whole.closes {
                    self.stream = None;
                }
                let (head, rest) = self.input.split_at(whole.head);
                Ok(Answer { status: whole.status, head, body: &rest[..whole.body] })
            }
            Err(error) => {
                self.stream = None;
                Err(error)
            }
        }
    }

    /// Exchanges a refresh token.
    pub(crate) async fn refresh(&mut self, token: &str) -> Result<Answer<'_>> {
        self.ask(&post("/auth/refresh", &format!(r#"{{"refresh_token":"{token}"}}"#))).await
    }

    async fn exchange(&mut self, request: &[u8]) -> Result<Whole> {
        self.connect().await?;
        let Self { stream: Some(stream), input, .. } = self else { return Err(ErrorKind::NotConnected.into()) };
        let mut sent = 0;
        while sent < request.len() {
            match stream.try_write(&request[sent..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => stream.writable().await?,
                Err(error) => return Err(error),
            }
        }
        let mut filled = 0;
        loop {
            if filled == input.len() {
                input.resize(filled * 2, 0);
            }
            let mut buffer = ReadBuf::new(&mut input[filled..]);
            poll_fn(|context| Pin::new(&mut *stream).poll_read(context, &mut buffer)).await?;
            let count = buffer.filled().len();
            if count == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            filled += count;
            if let Some(whole) = Whole::read(&input[..filled])? {
                return Ok(whole);
            }
        }
    }
}

/// The measures of a complete answer.
struct Whole {
    status: u16,
    head: usize,
    body: usize,
    closes: bool,
}

impl Whole {
    /// `None` while some of it is missing.
    fn read(input: &[u8]) -> Result<Option<Self>> {
        let Some(head) = input.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4) else {
            return Ok(None);
        };
        let broken = || Error::new(ErrorKind::InvalidData, "not an HTTP/1.1 answer with a content-length");
        let number = |text: Option<&str>| text.and_then(|text| text.parse::<usize>().ok());
        let status = number(input.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok())).ok_or_else(broken)?;
        let status = u16::try_from(status).map_err(|_| broken())?;
        let body = number(header(&input[..head], "content-length")).ok_or_else(broken)?;
        let closes = header(&input[..head], "connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        Ok((input.len() >= head + body).then_some(Self { status, head, body, closes }))
    }
}

fn header<'a>(head: &'a [u8], name: &str) -> Option<&'a str> {
    head.split(|&byte| byte == b'\n').find_map(|line| {
        let (_, value) =
            line.split_at_checked(name.len()).filter(|(start, _)| start.eq_ignore_ascii_case(name.as_bytes()))?;
        let value = value.strip_prefix(b":")?;
        std::str::from_utf8(value).ok().map(str::trim)
    })
}

pub(crate) fn get(path: &str, bearer: Option<&str>) -> Vec<u8> {
    let authorization = bearer.map_or(String::new(), |token| format!("authorization: Bearer {token}\r\n"));
    format!("GET {path} HTTP/1.1\r\nhost: load\r\n{authorization}\r\n").into_bytes()
}

pub(crate) fn post(path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    let head = "host: load\r\ncontent-type: application/json\r\ncontent-length:";
    format!("POST {path} HTTP/1.1\r\n{head} {length}\r\n\r\n{body}").into_bytes()
}
