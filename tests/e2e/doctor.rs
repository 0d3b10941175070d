//! `auth doctor` on installations that are broken in one way each: it names what is wrong, and what to do.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use serde_json::{Value, json};

use crate::stack::{Database, SECRET, Service, auth, client, finish, send};

/// What it found, by check, and its exit code.
struct Examined {
    code: i32,
    findings: Vec<Value>,
}

impl Examined {
    fn of(dsn: &str, settings: &[(&str, &str)]) -> Self {
        let mut command = auth();
        command.args(["doctor", "--json"]).env("POSTGRES_DSN", dsn).env("JWT_SECRET", SECRET);
        // Nothing listens there, unless a test says otherwise.
        command.env("LISTEN_ADDR", "127.0.0.1:9").envs(settings.iter().copied());
        let (code, output, complaint) = finish(&mut command, "", Duration::from_mins(1));
        assert_eq!(complaint, "");
        let findings = serde_json::from_str(&output).unwrap_or_else(|error| panic!("{error}: {output}"));
        Self { code, findings }
    }

    /// That a check went so, and what it found and advises.
    #[track_caller]
    fn assert(&self, check: &str, level: &str, found: &str, cure: &str) {
        let is_it = |finding: &&Value| {
            let text = |name: &str| finding[name].as_str().unwrap_or_default();
            finding["check"] == check
                && finding["level"] == level
                && text("found").contains(found)
                && text("cure").contains(cure)
        };
        assert!(self.findings.iter().any(|finding| is_it(&finding)), "no {level} of {check} in {:#?}", self.findings);
        if level == "fail" {
            assert_eq!(self.code, 1);
        }
    }
}

async fn migrated() -> Database {
    let database = Database::create().await;
    let (code, _, complaint) =
        finish(auth().arg("migrate").env("POSTGRES_DSN", database.dsn()), "", Duration::from_mins(1));
    assert_eq!(code, 0, "{complaint}");
    database
}

async fn execute(database: &Database, statement: &'static str) {
    sqlx::raw_sql(statement).execute(&mut database.connect().await).await.expect("the statement is right");
}

/// A statement about the test's own role or database.
async fn execute_for(database: &Database, statement: &str, name: &str) {
    let statement = format!("DO $do$ BEGIN EXECUTE format('{statement}', {name}); END $do$");
    sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut database.connect().await).await.expect("it is right");
}

#[tokio::test]
async fn a_sound_installation_is_found_sound() {
    let database = Database::create().await;
    let service = Service::start(&database.dsn()).await;
    let address = service.address.to_string();
    let examined = Examined::of(&database.dsn(), &[("LISTEN_ADDR", address.as_str())]);
    for check in
        ["settings", "database", "encryption", "writes", "rights", "connections", "clock", "migrations", "proxies"]
    {
        examined.assert(check, "ok", "", "");
    }
    assert_eq!(examined.code, 0);
    let hashing = examined.findings.iter().find(|finding| finding["check"] == "hashing").expect("hashes are measured");
    assert!(hashing["found"].as_str().is_some_and(|found| found.contains("logins a second")), "{hashing}");
}

#[tokio::test]
async fn wrong_settings_are_listed_and_the_rest_is_looked_at() {
    let database = migrated().await;
    let examined = Examined::of(&database.dsn(), &[("JWT_SECRET", "short"), ("BATCH_SIZE", "many")]);
    examined.assert("settings", "fail", "JWT_SECRET", "auth serve --help");
    examined.assert("settings", "fail", "BATCH_SIZE", "auth serve --help");
    examined.assert("migrations", "ok", "", "");
}

#[tokio::test]
async fn a_database_that_cannot_be_reached_is_named_with_the_reason() {
    let database = Database::create().await;
    Examined::of("postgres://auth:pass@127.0.0.1:9/auth", &[])
        .assert("database", "fail", "127.0.0.1:9", "start the server");
    let gone = format!("{}_gone", database.dsn());
    Examined::of(&gone, &[]).assert("database", "fail", "does not exist", "create the database");
    let role = database.create_role().await.replace(":former@", ":wrong@");
    Examined::of(&role, &[]).assert("database", "fail", "password authentication failed", "user and password");
}

#[tokio::test]
async fn missing_rights_are_named() {
    let database = Database::create().await;
    let role = database.create_role().await;
    execute(&database, "REVOKE CREATE ON SCHEMA public FROM PUBLIC").await;
    execute_for(&database, "REVOKE CREATE ON SCHEMA public FROM %I", "current_database() || '_role'").await;
    let examined = Examined::of(&role, &[]);
    examined.assert("migrations", "warn", "pending", "auth migrate");
    examined.assert("rights", "fail", "may not create tables", "GRANT CREATE");
    let (code, ..) = finish(auth().arg("migrate").env("POSTGRES_DSN", database.dsn()), "", Duration::from_mins(1));
    assert_eq!(code, 0);
    execute_for(&database, "GRANT SELECT ON _sqlx_migrations_auth TO %I", "current_database() || '_role'").await;
    Examined::of(&role, &[]).assert("rights", "fail", "users", "GRANT SELECT, INSERT");
}

#[tokio::test]
async fn a_database_that_is_read_only_or_commits_loosely_is_named() {
    let database = migrated().await;
    execute_for(&database, "ALTER DATABASE %I SET synchronous_commit = off", "current_database()").await;
    Examined::of(&database.dsn(), &[]).assert("commits", "warn", "synchronous_commit is off", "set it to `on`");
    execute_for(&database, "ALTER DATABASE %I SET default_transaction_read_only = on", "current_database()").await;
    Examined::of(&database.dsn(), &[]).assert("writes", "fail", "no writes", "primary");
}

#[tokio::test]
async fn a_schema_that_is_not_this_versions_is_named() {
    let database = migrated().await;
    execute(
        &database,
        "INSERT INTO _sqlx_migrations_auth (version, description, success, checksum, execution_time)
         VALUES (29990101000000, 'to come', true, '', 0)",
    )
    .await;
    Examined::of(&database.dsn(), &[]).assert("migrations", "warn", "newer version", "update this replica");
    execute(&database, "CREATE SCHEMA other").await;
    execute_for(&database, "ALTER DATABASE %I SET search_path = other, public", "current_database()").await;
    Examined::of(&database.dsn(), &[]).assert("migrations", "fail", "in the schema `public`", "search path");
}

#[tokio::test]
async fn what_a_restored_database_lacks_is_named() {
    let database = migrated().await;
    execute(&database, "ALTER TABLE sessions DISABLE TRIGGER sessions_number_end").await;
    Examined::of(&database.dsn(), &[]).assert("migrations", "fail", "trigger sessions_number_end", "ENABLE TRIGGER");
    execute(&database, "DROP TABLE mail_tokens").await;
    Examined::of(&database.dsn(), &[]).assert("migrations", "fail", "table mail_tokens", "from a backup");
}

#[tokio::test]
async fn a_hash_that_is_too_cheap_is_named() {
    let database = migrated().await;
    let cheap = [("PASSWORD_ARGON2_MEMORY_KIB", "8"), ("PASSWORD_ARGON2_PASSES", "1")];
    Examined::of(&database.dsn(), &cheap).assert("hashing", "warn", "a hash takes", "PASSWORD_ARGON2_PASSES");
}

#[tokio::test]
async fn a_gateway_that_is_not_trusted_is_named_by_the_running_service() {
    let database = Database::create().await;
    let service = Service::start(&database.dsn()).await;
    let address = service.address.to_string();
    let login = json!({"email": "cust@example.com", "password": "Cust-pass1"});
    let request = client().post(service.url("/auth/login")).header("x-forwarded-for", "203.0.113.9").json(&login);
    assert_eq!(send(request).await.status, 401);
    let examined = Examined::of(&database.dsn(), &[("LISTEN_ADDR", address.as_str())]);
    examined.assert("proxies", "warn", "1 requests", "TRUSTED_PROXIES");
    let away = Examined::of(&database.dsn(), &[]);
    away.assert("proxies", "warn", "no service answers at 127.0.0.1:9", "LISTEN_ADDR");
    assert_eq!(away.code, 0, "a warning is no failure");
}

#[tokio::test]
async fn a_mail_server_and_a_collector_that_do_not_answer_are_named() {
    let database = migrated().await;
    let settings = [
        ("SMTP_URL", "smtp://user:pass@127.0.0.1:9"),
        ("MAIL_FROM", "Shop <no-reply@shop.example>"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9"),
    ];
    let examined = Examined::of(&database.dsn(), &settings);
    examined.assert("mail", "fail", "takes none", "SMTP_URL");
    examined.assert("traces", "warn", "http://127.0.0.1:9/v1/traces", "4318");
    // This one the exporter reads by itself.
    let settings =
        [("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://user:hidden-pass@127.0.0.1:9/v1/traces?key=hidden-key")];
    let examined = Examined::of(&database.dsn(), &settings);
    examined.assert("traces", "warn", "127.0.0.1:9", "4318");
    assert!(!format!("{:?}", examined.findings).contains("hidden"), "{:?}", examined.findings);
}

#[tokio::test]
async fn a_mail_server_that_says_nothing_is_named() {
    let database = migrated().await;
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = silent.local_addr().expect("it is bound");
    let url = format!("smtp://{address}?tls=none");
    let settings = [("SMTP_URL", url.as_str()), ("MAIL_FROM", "Shop <no-reply@shop.example>")];
    let examined = Examined::of(&database.dsn(), &settings);
    examined.assert("mail", "fail", "no answer within", "SMTP_URL");
    examined.assert("proxies", "warn", "Connection refused", "start the service");
}

#[tokio::test]
async fn a_person_reads_a_line_for_each_check_and_what_to_do() {
    let free: SocketAddr = TcpListener::bind("127.0.0.1:0").and_then(|held| held.local_addr()).expect("a port is free");
    let mut command = auth();
    command.arg("doctor").env("POSTGRES_DSN", format!("postgres://auth:hidden-pass@{free}/auth"));
    let (code, output, _) = finish(&mut command, "", Duration::from_mins(1));
    assert_eq!(code, 1);
    let database = output.lines().position(|line| line.starts_with("fail  database ")).expect("the database is away");
    assert!(output.lines().nth(database + 1).is_some_and(|line| line.contains("do: start the server")), "{output}");
    assert!(!output.contains("hidden-pass"), "{output}");
}
