//! What the tests stand on: a database of their own, the service as a process, the gateway, and requests to them. All of it is
//! on loopback, and ends with the value that stands for it.

use std::{
    fs::File,
    io::Write as _,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use reqwest::header::HeaderMap;
use serde_json::{Map, Value, json};

pub(crate) use crate::database::Database;

/// What the services of a test sign with, unless it says otherwise.
pub(crate) const SECRET: &str = "known-to-the-end-to-end-tests-only";

/// How long anything may take to come up, on a machine that is busy with the other tests.
const START: Duration = Duration::from_secs(30);

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A name no other test has, in this process or another.
pub(crate) fn unique(kind: &str) -> String {
    format!("e2e_{kind}_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A file of this test's own below `target/`, where it stays for whoever looks into a failure.
pub(crate) fn scratch(kind: &str, ending: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.{ending}", unique(kind)))
}

/// A program of the virtual environment.
pub(crate) fn installed(program: &str) -> PathBuf {
    installed_in("AUTH_E2E_VENV", "e2e-venv", program)
}

/// A program of the virtual environment for consumers of access tokens that a private key signs.
pub(crate) fn installed_for_keys(program: &str) -> PathBuf {
    installed_in("AUTH_E2E_KEYS_VENV", "e2e-keys-venv", program)
}

fn installed_in(variable: &str, folder: &str, program: &str) -> PathBuf {
    let venv = std::env::var_os(variable)
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target").join(folder), PathBuf::from);
    let program = venv.join("bin").join(program);
    assert!(program.exists(), "{} is missing: scripts/test installs it", program.display());
    program
}

pub(crate) fn free_address() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .expect("loopback has a free port")
}

// --- Processes --------------------------------------------------------------------------------------------------------

/// A process of ours, killed with the value.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    pub(crate) fn spawn(command: &mut Command, kind: &str) -> Self {
        let log = scratch(kind, "log");
        let file = File::create(&log).expect("target/ takes files");
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a file has a second handle"))
            .stderr(file)
            .spawn()
            .expect("the program starts");
        Self { child, log }
    }

    fn exit_code(&mut self) -> Option<i32> {
        self.child.try_wait().expect("a child can be waited for").map(|status| status.code().unwrap_or(-1))
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Waits for `url` to answer 200. `Err` is what the process wrote, if it ended meanwhile.
async fn answering(process: &mut Process, url: &str) -> Result<(), String> {
    let client = client();
    let begin = Instant::now();
    loop {
        if let Some(code) = process.exit_code() {
            return Err(format!("ended with code {code}:\n{}", process.log()));
        }
        if let Ok(answer) = client.get(url).send().await
            && answer.status() == 200
        {
            return Ok(());
        }
        assert!(begin.elapsed() < START, "{url} does not answer:\n{}", process.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// `auth serve` in development, with `SECRET`, on a free port.
pub(crate) struct Service {
    process: Process,
    pub(crate) address: SocketAddr,
}

impl Service {
    pub(crate) async fn start(dsn: &str) -> Self {
        Self::start_with(dsn, &[]).await
    }

    /// With further settings, which win over those of `start`.
    pub(crate) async fn start_with(dsn: &str, settings: &[(&str, &str)]) -> Self {
        Self::start_by(auth, dsn, settings).await
    }

    /// With this as its current folder.
    pub(crate) async fn start_in(folder: &Path, dsn: &str) -> Self {
        let there = || {
            let mut auth = auth();
            auth.current_dir(folder);
            auth
        };
        Self::start_by(there, dsn, &[]).await
    }

    /// Where the system gives it no more than so many open files.
    pub(crate) async fn start_with_open_files(dsn: &str, open_files: u32, settings: &[(&str, &str)]) -> Self {
        let limited = || {
            let mut shell = Command::new("/bin/sh");
            shell.env_clear().args(["-c", "ulimit -n \"$0\" && exec \"$@\"", &open_files.to_string()]);
            shell.arg(env!("CARGO_BIN_EXE_auth"));
            shell
        };
        Self::start_by(limited, dsn, settings).await
    }

    async fn start_by(auth: impl Fn() -> Command, dsn: &str, settings: &[(&str, &str)]) -> Self {
        let mut failure = String::new();
        for _ in 0..3 {
            let address = free_address();
            let mut process = Process::spawn(
                auth()
                    .arg("serve")
                    .env("APP_ENV", "development")
                    .env("POSTGRES_DSN", dsn)
                    .env("JWT_SECRET", SECRET)
                    .env("LISTEN_ADDR", address.to_string())
                    .envs(settings.iter().copied()),
                "service",
            );
            // Another process may have taken the port since; then it ends at once, and the next one is tried.
            match answering(&mut process, &format!("http://{address}/auth/health")).await {
                Ok(()) => return Self { process, address },
                Err(words) => failure = words,
            }
        }
        panic!("the service {failure}");
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Asks it to stop, as a container engine does.
    pub(crate) fn terminate(&self) {
        terminate(&self.process.child);
    }

    /// Its exit code, once it has ended by itself.
    pub(crate) async fn exit_code(&mut self, within: Duration) -> i32 {
        let begin = Instant::now();
        loop {
            if let Some(code) = self.process.exit_code() {
                return code;
            }
            assert!(begin.elapsed() < within, "the service does not end:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) fn log(&self) -> String {
        self.process.log()
    }
}

/// Asks a process to stop, as a container engine does.
pub(crate) fn terminate(process: &Child) {
    let sent = Command::new("sh").args(["-c", "kill -TERM \"$0\"", &process.id().to_string()]).status();
    assert!(sent.expect("a shell starts").success(), "the process is there to be stopped");
}

/// The binary, seeing nothing of this process's environment.
pub(crate) fn auth() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_auth"));
    command.env_clear();
    command
}

/// Traefik with the routers of `deploy/docker-compose.yaml`, in front of one service.
pub(crate) struct Gateway {
    _process: Process,
    pub(crate) address: SocketAddr,
}

impl Gateway {
    pub(crate) async fn start(service: &Service) -> Self {
        Self::start_with_routes(&[("auth", Self::rule(), service.address)]).await
    }

    /// With another rule for what is let through.
    pub(crate) async fn start_with_rule(service: &Service, rule: &str) -> Self {
        Self::start_with_routes(&[("auth", rule, service.address)]).await
    }

    /// With a web server behind it that has everything else of the host.
    pub(crate) async fn start_with_shop(service: &Service, shop: SocketAddr) -> Self {
        Self::start_with_routes(&[("auth", Self::rule(), service.address), ("shop", "PathPrefix(`/`)", shop)]).await
    }

    fn rule() -> &'static str {
        let compose = include_str!("../../deploy/docker-compose.yaml");
        let (_, rule) = compose.split_once("traefik.http.routers.auth.rule: ").expect("the router has a rule");
        rule.lines().next().expect("the rule is one line")
    }

    async fn start_with_routes(of: &[(&str, &str, SocketAddr)]) -> Self {
        let address = free_address();
        let file = scratch("gateway", "yaml");
        let (mut routers, mut services) = (Map::new(), Map::new());
        for (name, rule, behind) in of {
            routers.insert((*name).to_owned(), json!({"entryPoints": ["web"], "rule": rule, "service": name}));
            let servers = json!([{"url": format!("http://{behind}")}]);
            services.insert((*name).to_owned(), json!({"loadBalancer": {"servers": servers}}));
        }
        // JSON is YAML.
        let text = json!({"http": {"routers": routers, "services": services}}).to_string();
        std::fs::write(&file, text).expect("target/ takes files");
        let mut process = Process::spawn(
            Command::new(installed("traefik")).args([
                "--global.checkNewVersion=false",
                "--global.sendAnonymousUsage=false",
                &format!("--entryPoints.web.address={address}"),
                &format!("--providers.file.filename={}", file.display()),
                "--providers.file.watch=false",
            ]),
            "gateway",
        );
        if let Err(words) = answering(&mut process, &format!("http://{address}/auth/health")).await {
            panic!("the gateway {words}");
        }
        Self { _process: process, address }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

// --- Requests ---------------------------------------------------------------------------------------------------------

pub(crate) fn client_builder() -> reqwest::ClientBuilder {
    // Needed even where nothing is encrypted; fails where there is one already.
    rustls::crypto::ring::default_provider().install_default().ok();
    reqwest::Client::builder().no_proxy()
}

pub(crate) fn client() -> reqwest::Client {
    client_builder()
        .timeout(Duration::from_mins(1))
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .expect("a client without TLS needs nothing")
}

/// An answer with its body read. A body that is not JSON stands as a string.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// A string of the body, such as a token.
    pub(crate) fn text(&self, name: &str) -> String {
        self.body[name].as_str().unwrap_or_else(|| panic!("{name} is missing in {self:?}")).to_owned()
    }

    pub(crate) fn detail(&self) -> &str {
        self.body["detail"].as_str().unwrap_or_default()
    }
}

pub(crate) async fn send(request: reqwest::RequestBuilder) -> Answer {
    let answer = request.send().await.expect("an answer comes");
    let status = answer.status().as_u16();
    let headers = answer.headers().clone();
    let text = answer.text().await.expect("the body comes whole");
    let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
    Answer { status, headers, body }
}

pub(crate) async fn get(url: &str) -> Answer {
    send(client().get(url)).await
}

pub(crate) async fn post(url: &str, body: &Value) -> Answer {
    send(client().post(url).json(body)).await
}

/// Runs a program to its end and gives its exit code, standard output and standard error.
pub(crate) fn finish(command: &mut Command, input: &str, within: Duration) -> (i32, String, String) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdin = child.stdin.take().expect("BUG: it is piped");
    // It may end without having read it.
    stdin.write_all(input.as_bytes()).ok();
    drop(stdin);
    let stdout = reading(child.stdout.take().expect("BUG: it is piped"));
    let stderr = reading(child.stderr.take().expect("BUG: it is piped"));
    let begin = Instant::now();
    let code = loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            break status.code().unwrap_or(-1);
        }
        if begin.elapsed() > within {
            child.kill().ok();
            child.wait().ok();
            panic!("{command:?} does not end within {within:?}");
        }
        thread::sleep(Duration::from_millis(10));
    };
    let text = |reader: JoinHandle<String>| reader.join().expect("the reader ends with the program");
    (code, text(stdout), text(stderr))
}

fn reading(mut pipe: impl std::io::Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).ok();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
