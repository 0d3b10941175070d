//! Every command once: what it prints, its exit code, and the audit line it leaves on standard error.

use std::time::Duration;

use serde_json::{Value, json};

use crate::stack::{Database, SECRET, Service, auth, finish, post, scratch};

/// What a command left behind.
struct Ran {
    code: i32,
    output: String,
    complaint: String,
}

impl Ran {
    #[track_caller]
    fn assert(&self, code: i32, output: &str) {
        assert_eq!((self.code, self.output.as_str()), (code, output), "{}", self.complaint);
    }

    /// Standard error is these audit lines, without their times, and nothing else.
    #[track_caller]
    fn assert_audit(&self, expected: &[Value]) {
        let lines = self.complaint.lines().map(|line| {
            let mut line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            let members = line.as_object_mut().expect("a line is an object");
            members.retain(|name, _| !["timestamp", "level", "message", "target"].contains(&name.as_str()));
            line
        });
        assert_eq!(lines.collect::<Vec<_>>(), expected);
    }
}

/// A database of the test's own, and commands on it.
struct Scene(Database);

impl Scene {
    async fn new() -> Self {
        let scene = Self(Database::create().await);
        assert_eq!(scene.run(&["migrate"], "").code, 0);
        scene
    }

    fn run(&self, arguments: &[&str], input: &str) -> Ran {
        let mut command = auth();
        // As cheap as a hash may be.
        command.env("PASSWORD_ARGON2_MEMORY_KIB", "8").env("PASSWORD_ARGON2_PASSES", "1");
        command.args(arguments).env("POSTGRES_DSN", self.0.dsn());
        let (code, output, complaint) = finish(&mut command, input, Duration::from_mins(1));
        Ran { code, output, complaint }
    }

    fn create(&self, email: &str, role: &str) -> Ran {
        self.run(&["user", "create", "--email", email, "--role", role], "P@ssw0rd!\n")
    }

    async fn execute(&self, statement: &'static str) {
        sqlx::query(statement).execute(&mut self.0.connect().await).await.expect("the statement is right");
    }

    async fn value(&self, query: &'static str) -> i64 {
        sqlx::query_scalar(query).fetch_one(&mut self.0.connect().await).await.expect("the query is right")
    }
}

fn audit(event: &str, outcome: &str, user: i64) -> Value {
    json!({"audit": true, "event": event, "outcome": outcome, "actor": "command_line", "user.id": user})
}

#[tokio::test]
async fn migrate_lists_applies_and_then_has_nothing_to_do() {
    let scene = Scene(Database::create().await);
    let listed = scene.run(&["migrate", "--dry-run"], "");
    assert_eq!((listed.code, listed.complaint.as_str()), (0, ""));
    assert!(
        listed.output.starts_with("would apply 20260110090000 adopt users and refresh tokens\n"),
        "{}",
        listed.output
    );
    let applied = scene.run(&["migrate"], "");
    applied.assert(0, &listed.output.replace("would apply", "applied"));
    scene.run(&["migrate"], "").assert(0, "nothing to do: the schema is up to date\n");
}

#[tokio::test]
async fn user_create_makes_a_user_once() {
    let scene = Scene::new().await;
    let created = scene.create("Boss@example.com", "admin");
    created.assert(0, "created user 1 (admin)\n");
    created.assert_audit(&[audit("register", "success", 1)]);
    let again = scene.create("boss@example.com", "customer");
    again.assert(1, "");
    let line = json!({"audit": true, "event": "register", "outcome": "email_taken", "actor": "command_line"});
    let (log, complaint) = again.complaint.split_once('\n').expect("there are two lines");
    Ran { code: 0, output: String::new(), complaint: log.to_owned() }.assert_audit(&[line]);
    assert_eq!(complaint, "auth: boss@example.com is already registered\n");
}

#[tokio::test]
async fn what_is_no_address_or_no_password_is_a_mistake_of_the_caller() {
    let scene = Scene::new().await;
    let no_address = scene.create("boss", "admin");
    no_address.assert(2, "");
    assert!(no_address.complaint.starts_with("auth: 'boss' is not a valid email address"), "{}", no_address.complaint);
    let short = scene.run(&["user", "create", "--email", "boss@example.com"], "short");
    short.assert(2, "");
    let nobody = scene.run(&["user", "set-role", "--email", "nobody@example.com", "--role", "admin"], "");
    nobody.assert(1, "");
    assert_eq!(nobody.complaint, "auth: no user has the address nobody@example.com\n");
}

#[tokio::test]
async fn user_list_has_a_line_for_each_user() {
    let scene = Scene::new().await;
    scene.create("boss@example.com", "admin");
    scene.create("cust@example.com", "customer");
    scene.run(&["user", "list"], "").assert(0, "1\tadmin\tboss@example.com\n2\tcustomer\tcust@example.com\n");
}

#[tokio::test]
async fn every_list_is_there_as_json() {
    let scene = Scene(Database::create().await);
    let listed = |arguments: &[&str]| {
        let ran = scene.run(arguments, "");
        assert_eq!(ran.code, 0, "{}", ran.complaint);
        serde_json::from_str::<Value>(&ran.output).unwrap_or_else(|error| panic!("{error}: {}", ran.output))
    };
    assert_eq!(listed(&["migrate", "--dry-run", "--json"])[0]["version"], 20_260_110_090_000_i64);
    listed(&["migrate", "--json"]);
    assert_eq!(listed(&["migrate", "--dry-run", "--json"]), json!([]));
    assert_eq!(listed(&["user", "list", "--json"]), json!([]));
    scene.create("cust@example.com", "customer");
    assert_eq!(
        listed(&["user", "list", "--json"]),
        json!([{"id": 1, "role": "customer", "email": "cust@example.com"}])
    );
    open_session(&scene).await;
    let sessions = scene.run(&["session", "list", "--email", "cust@example.com", "--json"], "");
    assert!(!sessions.output.contains(['\u{1b}', '\u{202e}']), "{}", sessions.output);
    assert_eq!(
        listed(&["session", "list", "--email", "cust@example.com", "--json"]),
        json!([{
            "id": "019b0000-0000-7000-8000-000000000001", "created_at": "2025-08-23T14:23:55Z",
            "last_seen_at": "2025-08-24T14:23:55Z", "ended_at": null, "end_reason": null, "ip": "203.0.113.9",
            "user_agent": "Phone\u{1b}[2J\u{202e}/1",
        }])
    );
}

#[test]
fn completions_are_there_for_the_usual_shells() {
    for shell in ["bash", "zsh", "fish"] {
        let (code, output, complaint) = finish(auth().args(["completions", shell]), "", Duration::from_secs(30));
        assert_eq!((code, complaint.as_str()), (0, ""));
        assert!(output.contains("set-password") && output.contains("doctor"), "{shell}: {output}");
    }
}

#[tokio::test]
async fn user_set_role_changes_the_role() {
    let scene = Scene::new().await;
    scene.create("cust@example.com", "customer");
    let changed = scene.run(&["user", "set-role", "--email", "cust@example.com", "--role", "support"], "");
    changed.assert(0, "user 1 is support now\n");
    changed.assert_audit(&[audit("role_change", "success", 1)]);
}

#[tokio::test]
async fn user_set_password_ends_the_sessions() {
    let scene = Scene::new().await;
    scene.create("cust@example.com", "customer");
    open_session(&scene).await;
    let set = scene.run(&["user", "set-password", "--email", "cust@example.com"], "another password\n");
    set.assert(0, "password of user 1 set, 1 sessions ended\n");
    set.assert_audit(&[audit("password_change", "success", 1)]);
    assert_eq!(scene.value("SELECT count(*) FROM sessions WHERE end_reason = 'password_changed'").await, 1);
    assert_eq!(scene.value("SELECT count(*) FROM mail_outbox").await, 0);
    let german = ["--mail-from", "shop@shop.example", "--locale", "de"];
    let set = [&["user", "set-password", "--email", "cust@example.com"][..], &german].concat();
    scene.run(&set, "yet another one\n").assert(0, "password of user 1 set, 0 sessions ended\n");
    let told = "SELECT count(*) FROM mail_outbox WHERE template = 'password_changed' AND locale = 'de'";
    assert_eq!(scene.value(told).await, 1);
}

#[tokio::test]
async fn user_delete_ends_the_sessions_too() {
    let scene = Scene::new().await;
    scene.create("cust@example.com", "customer");
    open_session(&scene).await;
    let deleted = scene.run(&["user", "delete", "--email", "cust@example.com"], "");
    deleted.assert(0, "user 1 deleted\n");
    deleted.assert_audit(&[audit("user_delete", "success", 1)]);
    assert_eq!(scene.value("SELECT count(*) FROM users").await, 0);
    assert_eq!(scene.value("SELECT count(*) FROM sessions WHERE end_reason = 'user_deleted'").await, 1);
    let again = scene.run(&["user", "delete", "--email", "cust@example.com"], "");
    again.assert(1, "");
}

async fn open_session(scene: &Scene) {
    scene
        .execute(
            "INSERT INTO sessions (id, user_id, created_at, last_seen_at, user_agent, ip)
             VALUES ('019b0000-0000-7000-8000-000000000001', 1, '2025-08-23 14:23:55', '2025-08-24 14:23:55',
                     E'Phone\\x1b[2J\\u202e/1', '203.0.113.9')",
        )
        .await;
}

const HEADING: &str = "id\topened\tlast seen\tstate\taddress\tuser agent\n";

#[tokio::test]
async fn session_list_and_end_show_no_control_character_of_a_stranger() {
    let scene = Scene::new().await;
    scene.create("cust@example.com", "customer");
    open_session(&scene).await;
    let id = "019b0000-0000-7000-8000-000000000001";
    let row = |state: &str| {
        format!(
            "{id}\t2025-08-23 14:23:55\t2025-08-24 14:23:55\t{state}\t203.0.113.9\tPhone\\u{{1b}}[2J\\u{{202e}}/1\n"
        )
    };
    let list = || scene.run(&["session", "list", "--email", "cust@example.com"], "");
    list().assert(0, &format!("{HEADING}{}", row("live")));
    let ended = scene.run(&["session", "end", "--email", "cust@example.com", "--id", id], "");
    ended.assert(0, "1 sessions of user 1 ended\n");
    let mut line = audit("session_end", "by_admin", 1);
    line["session.id"] = json!(id);
    ended.assert_audit(&[line]);
    let listed = list();
    assert!(listed.output.contains("\tby_admin 20"), "{}", listed.output);
    let all = scene.run(&["session", "end", "--email", "cust@example.com"], "");
    all.assert(0, "0 sessions of user 1 ended\n");
    all.assert_audit(&[audit("session_end", "by_admin", 1)]);
}

#[tokio::test]
async fn a_role_or_address_of_a_strangers_choice_is_escaped_too() {
    let scene = Scene::new().await;
    scene.execute("INSERT INTO users (email, password_hash, role) VALUES (E'a\\x1b]0;\\tb@example.com', 'x', E'\\u202enimda\\n')").await;
    scene.run(&["user", "list"], "").assert(0, "1\t\\u{202e}nimda\\n\ta\\u{1b}]0;\\tb@example.com\n");
    let role = scene.run(&["user", "create", "--email", "cust@example.com", "--role", "\u{1b}[31m"], "P@ssw0rd!");
    role.assert(0, "created user 2 (\\u{1b}[31m)\n");
}

#[tokio::test]
async fn cleanup_says_what_it_deleted() {
    let scene = Scene::new().await;
    scene.create("cust@example.com", "customer");
    scene
        .execute("INSERT INTO refresh_tokens (user_id, jti, token_hash, expires_at) VALUES (1, 'x', 'x', '2020-01-01')")
        .await;
    let cleaned = scene.run(&["cleanup"], "");
    cleaned
        .assert(0, "deleted 1 expired tokens, 0 ended sessions, 0 throttle buckets, 0 mails, 0 expired mail tokens\n");
    assert_eq!(cleaned.complaint, "");
}

#[tokio::test]
async fn mails_are_asked_for_listed_sent_again_and_dropped() {
    let scene = Scene::new().await;
    scene.create("cust@example.com", "customer");
    let asked = scene.run(&["user", "send-reset", "--email", "CUST@example.com", "--locale", "de-AT"], "");
    asked.assert(0, "a mail for user 1 is to be sent by the service, if mail is on there\n");
    asked.assert_audit(&[audit("password_forgot", "accepted", 1)]);
    assert_eq!(scene.value("SELECT count(*) FROM mail_outbox WHERE user_id = 1 AND locale = 'de'").await, 1);
    assert_eq!(scene.run(&["user", "send-reset", "--email", "cust@example.com", "--locale", "fr"], "").code, 2);
    scene
        .execute(
            "UPDATE mail_outbox SET created_at = '2026-01-02 03:04:05', attempts = 1, outcome = 'dead',
                finished_at = '2026-01-02', last_error = E'550 \\x1b[31m'",
        )
        .await;
    let listed = scene.run(&["mail", "list"], "");
    let line = "reset_password\t2026-01-02 03:04:05\tgiven up\t1\tcust@example.com\t550 \\u{1b}[31m\n";
    assert!(listed.code == 0 && listed.output.ends_with(line), "{}", listed.output);
    scene.run(&["mail", "retry"], "").assert(0, "mails to be sent at once: 1\n");
    let listed = scene.run(&["mail", "list"], "").output;
    assert!(listed.contains("\tdue 2"), "{listed}");
    scene.run(&["mail", "drop"], "").assert(0, "mails deleted: 0\n");
    let id = listed.lines().nth(1).and_then(|line| line.split('\t').next()).expect("a mail is listed");
    let dropped = scene.run(&["mail", "drop", "--id", id], "");
    dropped.assert(0, "mails deleted: 1\n");
    dropped
        .assert_audit(&[json!({"audit": true, "event": "mail_drop", "outcome": "success", "actor": "command_line"})]);
    for command in ["retry", "drop"] {
        let none = scene.run(&["mail", command, "--id", id], "");
        none.assert(1, "");
        assert_eq!(none.complaint, "auth: no mail with this id waits or was given up\n");
    }
}

#[test]
fn openapi_prints_the_document() {
    let (code, output, complaint) = finish(auth().arg("openapi"), "", Duration::from_secs(30));
    assert_eq!((code, complaint.as_str()), (0, ""));
    let document: Value = serde_json::from_str(&output).expect("it is JSON");
    assert!(document["paths"]["/users/{id}"]["get"].is_object());
}

#[tokio::test]
async fn health_is_the_answer_of_the_service() {
    let database = Database::create().await;
    let service = Service::start(&database.dsn()).await;
    let health = |address: &str| finish(auth().arg("health").env("LISTEN_ADDR", address), "", Duration::from_secs(30));
    assert_eq!(health(&service.address.to_string()), (0, String::new(), String::new()));
    // Port 9 is for discarding what comes.
    let (code, output, complaint) = health("127.0.0.1:9");
    assert_eq!((code, output.as_str()), (1, ""));
    assert!(complaint.starts_with("auth: unhealthy: "), "{complaint}");
    // What the command line makes, the service knows at once.
    let scene = Scene(database);
    scene.create("cust@example.com", "customer").assert(0, "created user 1 (customer)\n");
    let body = json!({"email": "cust@example.com", "password": "P@ssw0rd!"});
    assert_eq!(post(&service.url("/auth/login"), &body).await.status, 200);
}

#[tokio::test]
async fn a_byte_order_mark_is_no_part_of_a_password() {
    let scene = Scene::new().await;
    scene
        .run(&["user", "create", "--email", "cust@example.com"], "\u{feff}P@ssw0rd!\r\n")
        .assert(0, "created user 1 (customer)\n");
    let service = Service::start(&scene.0.dsn()).await;
    let body = json!({"email": "cust@example.com", "password": "P@ssw0rd!"});
    assert_eq!(post(&service.url("/auth/login"), &body).await.status, 200);
}

#[test]
fn config_prints_the_settings_without_their_secrets() {
    let mut command = auth();
    command.arg("config").env("POSTGRES_DSN", "postgres://shop:hidden-pass@db:5432/shop").env("JWT_SECRET", SECRET);
    let (code, output, complaint) = finish(&mut command, "", Duration::from_secs(30));
    assert_eq!((code, complaint.as_str()), (0, ""));
    assert!(output.contains("POSTGRES_DSN=********\n"), "{output}");
    assert!(!output.contains("hidden-pass") && !output.contains(SECRET), "{output}");
}

#[test]
fn a_key_is_made_once_for_its_owner_alone_and_listed() {
    use std::os::unix::fs::PermissionsExt;
    let key = |arguments: &[&str], settings: &[(&str, &str)]| {
        let mut command = auth();
        command.arg("key").args(arguments).envs(settings.iter().copied());
        let (code, output, complaint) = finish(&mut command, "", Duration::from_mins(1));
        Ran { code, output, complaint }
    };
    key(&["list"], &[]).assert(0, "the secret signs access tokens\n");
    let mut made = Vec::new();
    for (name, algorithm) in [("ed25519", "EdDSA"), ("es256", "ES256")] {
        let file = scratch("key", "pem");
        let path = file.to_str().expect("a plain path").to_owned();
        let generated = key(&["generate", "--algorithm", name, "--out", &path], &[]);
        let kid = generated.output.trim_end().rsplit(' ').next().unwrap_or_default().to_owned();
        generated.assert(0, &format!("{path}: {algorithm} key {kid}\n"));
        let pem = std::fs::read_to_string(&file).expect("the file is there");
        assert_eq!(std::fs::metadata(&file).expect("it is there").permissions().mode() & 0o777, 0o600);
        let again = key(&["generate", "--out", &path], &[]);
        again.assert(1, "");
        assert!(again.complaint.contains("File exists"), "{}", again.complaint);
        assert_eq!(std::fs::read_to_string(&file).expect("it is there"), pem, "a key is never overwritten");
        assert!(!generated.complaint.contains("PRIVATE") && !generated.output.contains("PRIVATE"));
        made.push((path, kid));
    }
    let [(first, one), (second, other)] = [&made[0], &made[1]];
    let settings = [("JWT_SIGNING_KEY_FILE", first.as_str()), ("JWT_VERIFY_KEY_FILES", second.as_str())];
    key(&["list"], &settings)
        .assert(0, &format!("{one}\tEdDSA\tsigns, verifies\t{first}\n{other}\tES256\tverifies\t{second}\n"));
    key(&["list"], &[settings[1]])
        .assert(0, &format!("{other}\tES256\tverifies\t{second}\nthe secret signs access tokens\n"));
}

#[test]
fn a_wrong_key_file_stops_the_start_with_a_sentence_that_helps() {
    let directory = scratch("keys", "d");
    std::fs::create_dir(&directory).expect("target/ takes folders");
    let file = |name: &str, text: &str| {
        let path = directory.join(name);
        std::fs::write(&path, text).expect("target/ takes files");
        path.to_str().expect("a plain path").to_owned()
    };
    let public = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n\
                  -----END PUBLIC KEY-----\n";
    let empty = file("empty.pem", "");
    let encrypted = file("encrypted.pem", &public.replace("PUBLIC", "ENCRYPTED PRIVATE"));
    let rsa = file("rsa.pem", &public.replace("PUBLIC", "RSA PRIVATE"));
    let several = file("several.pem", &format!("{public}{public}"));
    let public = file("public.pem", public);
    let missing = directory.join("missing.pem").to_str().expect("a plain path").to_owned();
    let start = |name: &str, value: &str| {
        let mut command = auth();
        command.arg("serve").env("APP_ENV", "development").env("POSTGRES_DSN", "postgres://nobody@127.0.0.1:1/none");
        let (code, _, complaint) = finish(command.env(name, value), "", Duration::from_mins(1));
        assert_eq!(code, 2, "{complaint}");
        complaint
    };
    for (path, problem) in [
        (&public, "which holds a public key; only a private one can sign"),
        (&empty, "which is empty"),
        (
            &encrypted,
            "which is encrypted, and nobody is there to type its pass phrase; `openssl pkcs8 -in FILE` decrypts it",
        ),
        (
            &rsa,
            "which holds an RSA key; the service takes Ed25519 and P-256, and `auth key generate --out FILE` makes one",
        ),
        (&several, "which holds several keys; give each a file of its own"),
        (&missing, "which cannot be read: No such file or directory (os error 2)"),
    ] {
        let complaint = start("JWT_SIGNING_KEY_FILE", path);
        assert_eq!(complaint, format!("auth: JWT_SIGNING_KEY_FILE names {path}, {problem}\n"));
    }
    let complaint = start("JWT_VERIFY_KEY_FILES", &format!("{public},{rsa},{empty}"));
    assert!(
        complaint.starts_with(&format!("auth: JWT_VERIFY_KEY_FILES has {rsa}, which holds an RSA key")),
        "{complaint}"
    );
    assert!(complaint.ends_with(&format!(", {empty}, which is empty\n")), "{complaint}");
    let complaint = start("JWT_SECRET_ACCESS", "refuse");
    assert!(
        complaint.starts_with("auth: JWT_SECRET_ACCESS is refuse, but without JWT_SIGNING_KEY_FILE"),
        "{complaint}"
    );
}
