//! A mail server as a process, which can be stopped and started again.

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::stack::{Process, free_address, installed, scratch};

/// aiosmtpd with the faults that `mail_server.py` lists.
pub(crate) struct MailServer {
    address: SocketAddr,
    folder: PathBuf,
    options: Vec<String>,
    process: Option<Process>,
}

impl MailServer {
    pub(crate) async fn start(options: &[&str]) -> Self {
        let mut server = Self::away(options);
        server.come_back().await;
        server
    }

    /// One that is not running yet.
    pub(crate) fn away(options: &[&str]) -> Self {
        let folder = scratch("mails", "d");
        std::fs::create_dir_all(&folder).expect("target/ takes folders");
        let options = options.iter().map(|&option| option.to_owned()).collect();
        Self { address: free_address(), folder, options, process: None }
    }

    pub(crate) fn go_away(&mut self) {
        self.process = None;
    }

    pub(crate) async fn come_back(&mut self) {
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/mail_server.py");
        let mut command = Command::new(installed("python"));
        command.arg(program).arg(self.address.port().to_string()).arg(&self.folder).args(&self.options);
        self.process = Some(Process::spawn(&mut command, "mail_server"));
        until("the mail server answers", async || tokio::net::TcpStream::connect(self.address).await.ok()).await;
    }

    /// `SMTP_URL` without encryption.
    pub(crate) fn url(&self) -> String {
        format!("smtp://{}?tls=none", self.address)
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    pub(crate) fn folder(&self) -> &std::path::Path {
        &self.folder
    }

    /// The mails so far, in their order.
    pub(crate) fn mails(&self) -> Vec<Value> {
        let files = std::fs::read_dir(&self.folder).expect("the folder is there").filter_map(Result::ok);
        let mut files: Vec<_> = files.map(|file| file.path()).collect();
        files.retain(|file| file.extension().is_some_and(|ending| ending == "json"));
        files.sort();
        let read = |file| std::fs::read(file).expect("a mail can be read");
        files.iter().map(|file| serde_json::from_slice(&read(file)).expect("a mail is JSON")).collect()
    }
}

/// The token of a mail, behind `#token=` or on a line of its own.
pub(crate) fn token(mail: &Value) -> String {
    let words = mail["text"].as_str().expect("a mail has a text").split_whitespace();
    let mut words = words.map(|word| word.split_once("#token=").map_or(word, |(_, token)| token));
    let is_token = |word: &&str| {
        word.len() == 43 && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    words.rfind(is_token).unwrap_or_else(|| panic!("no token in {mail:#}")).to_owned()
}

/// Asks until there is a value.
pub(crate) async fn until<T>(what: &str, ask: impl AsyncFn() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(value) = ask().await {
            return value;
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
