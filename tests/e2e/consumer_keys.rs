//! Consumers of access tokens that a private key signs: `deploy/verify_access_token.py`, as its page describes it.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};

use crate::stack::{Database, SECRET, Service, auth, finish, get, installed, installed_for_keys, post, scratch};

const JWKS: &str = "/auth/.well-known/jwks.json";

/// The consumer as a process, which keeps the keys between tokens.
struct Consumer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Consumer {
    /// With the secret, as on the way, or without it.
    fn start(service: &Service, secret: Option<&str>, lifespan: u32) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/consumer_keys.py");
        let mut command = Command::new(installed_for_keys("python"));
        command.arg(script).arg(lifespan.to_string()).env("AUTH_JWKS_URL", service.url(JWKS)).env_remove("JWT_SECRET");
        command.env("PYTHONDONTWRITEBYTECODE", "1").envs(secret.map(|secret| ("JWT_SECRET", secret)));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the program starts");
        let input = child.stdin.take().expect("BUG: it is piped");
        let output = BufReader::new(child.stdout.take().expect("BUG: it is piped"));
        Self { child, input, output }
    }

    fn fetch_from(&mut self, service: &Service) {
        writeln!(self.input, "keys {}", service.url(JWKS)).expect("it reads");
    }

    fn verify(&mut self, token: &str) -> Value {
        writeln!(self.input, "{token}").expect("it reads");
        let mut line = String::new();
        self.output.read_line(&mut line).expect("it answers in UTF-8");
        serde_json::from_str(&line).expect("it prints JSON")
    }

    #[track_caller]
    fn accepts(&mut self, token: &str) -> u64 {
        let answer = self.verify(token);
        assert_eq!(answer["claims"]["sub"], "cust@example.com", "{answer}");
        answer["fetched"].as_u64().expect("a number")
    }

    #[track_caller]
    fn refuses(&mut self, token: &str, error: &str) {
        let answer = self.verify(token);
        assert_eq!(answer["refused"], error, "{answer}");
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A new private key in a file.
fn key(algorithm: &str) -> String {
    let file = scratch("key", "pem").to_str().expect("a plain path").to_owned();
    let (code, _, complaint) =
        finish(auth().args(["key", "generate", "--algorithm", algorithm, "--out", &file]), "", Duration::from_mins(1));
    assert_eq!(code, 0, "{complaint}");
    file
}

/// Sessions of one customer who refreshes all the time; each token goes to the consumer.
struct Load {
    sessions: Vec<String>,
    verified: usize,
}

impl Load {
    async fn start(service: &Service, sessions: usize) -> Self {
        let account = json!({"email": "cust@example.com", "password": "Cust-pass1"});
        assert_eq!(post(&service.url("/auth/register"), &account).await.status, 201);
        let mut load = Self { sessions: Vec::new(), verified: 0 };
        for _ in 0..sessions {
            load.sessions.push(post(&service.url("/auth/login"), &account).await.text("refresh_token"));
        }
        load
    }

    /// Refreshes each session once, at one replica after the other, and has the tokens verified.
    async fn round(&mut self, replicas: &[&Service], consumer: &mut Consumer) -> u64 {
        let mut fetched = 0;
        for (session, replica) in self.sessions.iter_mut().zip(replicas.iter().cycle()) {
            let refreshed = post(&replica.url("/auth/refresh"), &json!({"refresh_token": session})).await;
            assert_eq!(refreshed.status, 200, "{refreshed:?}");
            *session = refreshed.text("refresh_token");
            fetched = consumer.accepts(&refreshed.text("access_token"));
            self.verified += 1;
        }
        fetched
    }

    /// Goes on while a replica starts.
    async fn while_starting(
        &mut self,
        dsn: &str,
        settings: Vec<(&'static str, String)>,
        replicas: &[&Service],
        consumer: &mut Consumer,
    ) -> Service {
        let dsn = dsn.to_owned();
        let start = tokio::spawn(async move {
            let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
            Service::start_with(&dsn, &settings).await
        });
        while !start.is_finished() {
            self.round(replicas, consumer).await;
        }
        start.await.expect("it starts")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_was_published_first_takes_over_under_load_without_a_failed_verification() {
    let database = Database::create().await;
    let dsn = database.dsn();
    let (old, new) = (key("ed25519"), key("es256"));
    let unlimited = ("THROTTLE", "off".to_owned());
    let first = [("JWT_SIGNING_KEY_FILE", old.as_str()), ("THROTTLE", "off")];
    let first = Service::start_with(&dsn, &first).await;
    let mut consumer = Consumer::start(&first, None, 1);
    let mut load = Load::start(&first, 4).await;
    load.round(&[&first], &mut consumer).await;

    let publish = vec![("JWT_SIGNING_KEY_FILE", old.clone()), ("JWT_VERIFY_KEY_FILES", new.clone()), unlimited.clone()];
    let published = load.while_starting(&dsn, publish, &[&first], &mut consumer).await;
    consumer.fetch_from(&published);
    // Until the consumer has let go of its copy and fetched another.
    let before = load.round(&[&first, &published], &mut consumer).await;
    while load.round(&[&first, &published], &mut consumer).await == before {}

    let sign = vec![("JWT_SIGNING_KEY_FILE", new.clone()), ("JWT_VERIFY_KEY_FILES", old.clone()), unlimited];
    let signing = load.while_starting(&dsn, sign, &[&first, &published], &mut consumer).await;
    for _ in 0..5 {
        load.round(&[&published, &signing], &mut consumer).await;
    }
    drop((first, published));
    consumer.fetch_from(&signing);
    let before = load.round(&[&signing], &mut consumer).await;
    while load.round(&[&signing], &mut consumer).await == before {}
    assert!(load.verified >= 40, "{}", load.verified);

    // A key that signs before it is published is not known to a consumer that has just fetched the keys.
    let unknown = Service::start_with(&dsn, &[("JWT_SIGNING_KEY_FILE", &key("ed25519"))]).await;
    let account = json!({"email": "cust@example.com", "password": "Cust-pass1"});
    let token = post(&unknown.url("/auth/login"), &account).await.text("access_token");
    consumer.refuses(&token, "PyJWKClientError");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_on_the_way_takes_both_kinds_and_mixes_them_nowhere() {
    let database = Database::create().await;
    let file = key("ed25519");
    let by_secret = Service::start(&database.dsn()).await;
    let by_key = Service::start_with(&database.dsn(), &[("JWT_SIGNING_KEY_FILE", &file)]).await;
    let account = json!({"email": "cust@example.com", "password": "Cust-pass1"});
    assert_eq!(post(&by_key.url("/auth/register"), &account).await.status, 201);
    let [of_secret, of_key] =
        [post(&by_secret.url("/auth/login"), &account).await, post(&by_key.url("/auth/login"), &account).await];
    let mut moving = Consumer::start(&by_key, Some(SECRET), 300);
    let mut moved = Consumer::start(&by_key, None, 300);
    assert_eq!(moving.accepts(&of_secret.text("access_token")), 0, "the secret needs no keys");
    assert_eq!(moving.accepts(&of_key.text("access_token")), 1);
    assert_eq!(moving.accepts(&of_key.text("access_token")), 1, "the keys are kept");
    moved.accepts(&of_key.text("access_token"));
    moved.refuses(&of_secret.text("access_token"), "InvalidAlgorithmError");
    for consumer in [&mut moving, &mut moved] {
        let refused = consumer.verify(&of_key.text("refresh_token"));
        assert!(refused["refused"].is_string(), "{refused}");
    }

    // What CVE-2026-48526 is about: the published key, taken for a secret.
    let set = get(&by_key.url(JWKS)).await.body;
    let jwk = set["keys"][0].to_string();
    let program = "import json, sys, jwt; key = sys.stdin.read(); forged = jwt.encode({'sub': 'x', 'exp': 4000000000, 'type': \
                   'access'}, key, 'HS256', headers={'kid': json.loads(key)['kid']}); \
                   print(forged, jwt.decode(forged, key, algorithms=['EdDSA', 'HS256'])['sub'])";
    let (code, output, complaint) =
        finish(Command::new(installed("python")).args(["-c", program]), &jwk, Duration::from_mins(1));
    assert_eq!(code, 0, "{complaint}");
    let (forged, sub) = output.trim().rsplit_once(' ').expect("both are printed");
    assert_eq!(sub, "x", "PyJWT 2.10.1 with one list of algorithms takes it");
    moving.refuses(forged, "InvalidSignatureError");
    moved.refuses(forged, "InvalidAlgorithmError");
    for service in [&by_secret, &by_key] {
        let me = crate::stack::client().get(service.url("/users/me")).bearer_auth(forged);
        assert_eq!(crate::stack::send(me).await.status, 401);
    }
}
