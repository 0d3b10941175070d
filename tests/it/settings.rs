//! What settings mean, and which are refused with which sentence: `auth serve` with flags for variables.

use std::time::Duration;

use auth::config::{Config, CorsOrigins, Dsn, Environment, Given, LogFormat};
use auth::domain::role::Role;
use clap::Parser;
use percent_encoding::percent_decode_str;
use secrecy::ExposeSecret;
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

const RANDOM: &str = "41d8d5f7c6a0b1e29f3be0a5a4f0c7d3";

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    settings: Given<Config>,
}

/// Production with the two settings that it needs, and further flags.
fn given(flags: &[&str]) -> Given<Config> {
    let needed = [format!("--jwt-secret={RANDOM}"), "--postgres-dsn=postgres://auth:pass@localhost/auth".to_owned()];
    let name = |flag: &str| flag.split_once('=').unwrap().0.to_owned();
    let needed = needed.iter().map(String::as_str).filter(|needed| !flags.iter().any(|f| name(f) == name(needed)));
    let flags = std::iter::once("test").chain(needed).chain(flags.iter().copied());
    Flags::try_parse_from(flags).unwrap().settings
}

fn config(flags: &[&str]) -> Result<Config, Vec<String>> {
    given(flags).resolve().map_err(|error| error.0)
}

/// The one problem with these flags.
fn problem(flags: &[&str]) -> Option<String> {
    let problems = config(flags).err()?;
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems.into_iter().next()
}

fn dsn(text: &str) -> Result<Dsn, String> {
    match problem(&[&format!("--postgres-dsn={text}")]) {
        Some(problem) => Err(problem.strip_prefix("POSTGRES_DSN ").unwrap().to_owned()),
        None => Ok(config(&[&format!("--postgres-dsn={text}")]).unwrap().database.postgres_dsn),
    }
}

fn warns_of_encryption(dsn: &str) -> bool {
    !config(&[&format!("--postgres-dsn={dsn}")]).unwrap().warnings().is_empty()
}

#[test]
fn what_is_not_set_has_its_default_or_is_asked_for() {
    for flags in [&[][..], &["--batch-size="]] {
        assert_eq!(config(flags).unwrap().batch_size, 128);
    }
    let problem = problem(&["--jwt-secret="]).unwrap();
    assert!(problem.starts_with("JWT_SECRET is not set. Signs tokens; in production at least 32 "), "{problem}");
}

#[test]
fn every_problem_is_named_by_its_variable() {
    let flags = ["--jwt-secret=secret", "--throttle=maybe", "--refresh-batch-size=-1", "--log-level=loud"];
    let problems = config(&flags).unwrap_err();
    let named: Vec<_> = problems.iter().map(|problem| problem.split(' ').next().unwrap()).collect();
    assert_eq!(named, ["LOG_LEVEL", "REFRESH_BATCH_SIZE", "THROTTLE", "JWT_SECRET"]);
}

#[test]
fn another_name_is_read_where_the_first_is_not_set() {
    assert_eq!(config(&["--refresh-batch-size=5"]).unwrap().batch_size, 5);
    assert_eq!(config(&["--refresh-batch-size=5", "--batch-size=6"]).unwrap().batch_size, 6);
    let flags = ["--postgres-dsn=", "--database-url=postgres://u:p@other.example/d"];
    assert_eq!(config(&flags).unwrap().database.postgres_dsn.options.get_host(), "other.example");
}

#[test]
fn a_secret_comes_from_a_file_without_its_mark_and_its_last_line_break() {
    let path = std::env::temp_dir().join(format!("auth-settings-{}", std::process::id()));
    let file = path.to_str().unwrap();
    let flags = ["--jwt-secret=", &format!("--jwt-secret-file={file}")];
    std::fs::write(&path, format!("\u{feff}{RANDOM}\r\n")).unwrap();
    assert_eq!(config(&flags).unwrap().jwt_secret.expose_secret(), RANDOM);
    assert_eq!(problem(&flags[1..]).unwrap(), "JWT_SECRET and JWT_SECRET_FILE are both set; set one");
    std::fs::write(&path, "\u{feff} \n").unwrap();
    assert_eq!(config(&flags).unwrap_err()[0], format!("JWT_SECRET_FILE: {file} is empty"));
    std::fs::write(&path, [0xff, 0xfe, b's', 0]).unwrap();
    assert!(config(&flags).unwrap_err()[0].contains("UTF-8"));
    std::fs::remove_file(&path).unwrap();
    assert!(config(&flags).unwrap_err()[0].starts_with(&format!("JWT_SECRET_FILE: {file}: ")));
}

#[test]
fn what_is_in_effect_is_printed_with_secrets_masked() {
    let lines = given(&["--refresh-batch-size=5", "--database-max-connections="]).effective().unwrap();
    for line in ["JWT_SECRET=********", "POSTGRES_DSN=********", "JWT_SECRET_PREVIOUS=", "BATCH_SIZE=5"] {
        assert!(lines.lines().any(|found| found == line), "{line} is not in\n{lines}");
    }
    assert_eq!(
        (lines.lines().next(), lines.lines().nth(1)),
        (Some("POSTGRES_DSN=********"), Some("DATABASE_MAX_CONNECTIONS=10"))
    );
    assert!(!lines.contains(RANDOM) && !lines.contains("pass@"), "{lines}");
}

#[test]
fn the_environment_picks_the_defaults_and_each_can_be_set_on_its_own() {
    let production = config(&[]).unwrap();
    assert_eq!(production.log_format, LogFormat::Json);
    assert!(!production.users_list_is_public);
    assert_eq!(production.register_open_roles[..], [Role::customer()]);
    for name in ["development", "Development"] {
        let flags = [&format!("--app-env={name}"), "--jwt-secret=", "--users-list-access=admin"];
        let development = config(&flags).unwrap();
        assert_eq!(development.app_env, Environment::Development);
        assert_eq!(development.log_format, LogFormat::Pretty);
        assert!(!development.users_list_is_public);
        assert_eq!(development.register_open_roles[..], [Role::customer(), Role::admin()]);
        assert_eq!(development.jwt_secret.expose_secret(), "devsecret");
    }
}

#[test]
fn a_value_that_cannot_be_is_refused_with_a_sentence() {
    for (flag, problem) in [
        ("--app-env=staging", "APP_ENV must be production or development, not 'staging'"),
        ("--request-timeout-seconds=0", "REQUEST_TIMEOUT_SECONDS must be a whole number from 1 to 300, not '0'"),
        ("--batch-size=1.5", "BATCH_SIZE must be a whole number from 1 to 1024, not '1.5'"),
        ("--throttle=yes", "THROTTLE must be on or off, not 'yes'"),
        ("--listen-addr=8000", "LISTEN_ADDR must be an address and port such as 127.0.0.1:8000, not '8000'"),
        (
            "--trusted-proxies=10.0.0.0/8,10.0.0.0/99,all",
            "TRUSTED_PROXIES has '10.0.0.0/99', which is no network such as 10.0.0.0/8, \
             'all', which is no network such as 10.0.0.0/8",
        ),
        ("--register-open-roles=staff,", "REGISTER_OPEN_ROLES has an entry that is empty"),
        (
            r#"--register-open-roles=["customer"]"#,
            "REGISTER_OPEN_ROLES is written as JSON; a list is written without brackets and quotes, with commas",
        ),
        (
            "--register-open-roles=customer admin",
            "REGISTER_OPEN_ROLES has 'customer admin', but roles are written with commas between them, as in customer,admin",
        ),
        (
            "--otel-exporter-otlp-endpoint=http://collector:4318?key=hidden",
            "OTEL_EXPORTER_OTLP_ENDPOINT must be a URL without user and query, such as http://collector:4318",
        ),
        (
            "--cors-allowed-origins=https://Shop.example/cart,http://u:hidden@a.example:80,https://*.shop.example",
            "CORS_ALLOWED_ORIGINS has 'https://Shop.example/cart', but browsers send it as https://shop.example, \
             an entry, but browsers send it as http://a.example, \
             'https://*.shop.example', which is no origin such as https://shop.example",
        ),
    ] {
        assert_eq!(config(&[flag]).unwrap_err(), [problem]);
    }
}

#[test]
fn secrets_are_judged_in_production_only_and_the_former_ones_too() {
    let flags = ["--jwt-secret=secret", "--jwt-secret-previous=old,older"];
    let problems = config(&flags).unwrap_err();
    let named = |name: &str| problems.iter().filter(|problem| problem.starts_with(name)).count();
    assert_eq!((named("JWT_SECRET "), named("JWT_SECRET_PREVIOUS "), problems.len()), (1, 2, 3));
    assert!(config(&["--app-env=development", flags[0], flags[1]]).is_ok());
}

#[test]
fn zero_turns_cleaning_up_off() {
    assert_eq!(config(&[]).unwrap().cleanup_interval(), Some(Duration::from_mins(5)));
    assert_eq!(config(&["--cleanup-interval-seconds=0"]).unwrap().cleanup_interval(), None);
}

#[test]
fn one_star_among_origins_means_any() {
    let origins = |flag: &str| config(&[flag]).unwrap().cors_allowed_origins;
    assert_eq!(origins("--cors-allowed-origins="), None);
    assert_eq!(origins("--cors-allowed-origins=https://shop.example, *"), Some(CorsOrigins::Any));
    let shop = CorsOrigins::List(vec!["https://shop.example".to_owned()]);
    assert_eq!(origins("--cors-allowed-origins=https://shop.example"), Some(shop));
}

#[test]
fn an_origin_is_taken_only_as_browsers_send_it() {
    for (given, sent) in [
        ("https://shop.example", Some("https://shop.example")),
        ("http://localhost:3000", Some("http://localhost:3000")),
        ("http://[::1]:3000", Some("http://[::1]:3000")),
        ("https://shop.example/", Some("https://shop.example")),
        ("https://shop.example?x", Some("https://shop.example")),
        ("HTTPS://SHOP.example:443", Some("https://shop.example")),
        ("http://shop.example:443", Some("http://shop.example:443")),
        ("http://[0:0::1]", Some("http://[::1]")),
        ("https://user@shop.example", Some("https://shop.example")),
        ("https://schön.example", Some("https://xn--schn-7qa.example")),
        ("https://*.shop.example", None),
        ("shop.example", None),
        ("https://", None),
        ("https://shop.example:port", None),
        ("ftp://shop.example", None),
        ("null", None),
    ] {
        let problem = problem(&[&format!("--cors-allowed-origins={given}")]);
        match (problem, sent) {
            (None, sent) => assert_eq!(sent, Some(given)),
            (Some(problem), Some(sent)) => {
                assert!(problem.ends_with(&format!("browsers send it as {sent}")), "{problem}");
            }
            (Some(problem), None) => assert!(problem.contains("no origin"), "{problem}"),
        }
    }
}

#[test]
fn a_secret_that_can_be_guessed_is_refused() {
    for secret in [
        "a".repeat(32),
        " ".repeat(32),
        "devsecret".repeat(4),
        "0123456789".repeat(4),
        "devsecretdevsecretdevsecretdevsec".to_owned(),
        "abcdefghijklmnopqrstuvwxyz012345".to_owned(),
        "zyxwvutsrqponmlkjihgfedcba987654".to_owned(),
        "abababababababababababababababac".to_owned(),
        format!("My-Shop-1{}", ".".repeat(32)),
        "A-string-secret-at-least-256-bits-long".to_owned(),
    ] {
        let problem = problem(&[&format!("--jwt-secret={secret}")]).unwrap_or_else(|| panic!("{secret}"));
        assert!(problem.contains("openssl rand -hex 32") && !problem.contains(&secret), "{problem}");
    }
}

#[test]
fn a_random_one_is_taken_however_it_is_written() {
    for secret in [
        "41d8d5f7c6a0b1e29f3be0a5a4f0c7d3",
        "qL8x0Zt1b3m5o7wR2yU9vA4cE6gI0kMn",
        "correct horse battery staple, and a little more",
        "3Jk!x9#Lq2@Zr7$Wm5%Tn8^Yp4&Ub6*V",
    ] {
        assert_eq!(problem(&[&format!("--jwt-secret={secret}")]), None, "{secret}");
    }
}

#[test]
fn the_secret_is_as_long_as_the_hash() {
    let hex = |bytes: usize| "41d8d5f7c6a0b1e29f3be0a5a4f0c7d35c27aa90de1433bb8e6f7082194d6ce1"[..bytes].to_owned();
    for (algorithm, bytes) in [("HS256", 32), ("HS384", 48), ("HS512", 64)] {
        let problem =
            |secret: &str| problem(&[&format!("--jwt-algorithm={algorithm}"), &format!("--jwt-secret={secret}")]);
        assert_eq!(problem(&hex(bytes)), None);
        let problem = problem(&hex(bytes - 1)).unwrap();
        assert!(problem.contains(&format!("openssl rand -hex {bytes}")), "{problem}");
    }
}

/// User, password, host or socket, port, database.
fn parts(text: &str) -> [String; 5] {
    let dsn = dsn(text).unwrap_or_else(|problem| panic!("{text} {problem}"));
    let url = dsn.with_credentials(PgConnectOptions::new_without_pgpass().host("h")).to_url_lossy();
    let password = url.password().map(|text| percent_decode_str(text).decode_utf8().unwrap().into_owned());
    let options = dsn.options;
    let socket = options.get_socket().map(|path| path.display().to_string());
    [
        options.get_username().to_owned(),
        password.unwrap_or_default(),
        socket.unwrap_or_else(|| options.get_host().to_owned()),
        options.get_port().to_string(),
        options.get_database().unwrap_or_default().to_owned(),
    ]
}

#[test]
fn an_address_is_read_as_libpq_and_sqlalchemy_read_it() {
    for (text, expected) in [
        ("postgres://u:p@h:5433/d", ["u", "p", "h", "5433", "d"]),
        ("postgresql+psycopg://u:p@h/d", ["u", "p", "h", "5432", "d"]),
        ("postgresql+psycopg://u:p@/d?host=/var/run/postgresql", ["u", "p", "/var/run/postgresql", "5432", "d"]),
        ("postgres://u:p@%2Fvar%2Frun%2Fpostgresql:5433/d", ["u", "p", "/var/run/postgresql", "5433", "d"]),
        ("postgresql:///d?user=u&password=p&host=h&port=6432", ["u", "p", "h", "6432", "d"]),
        ("postgres://u:p@h/?dbname=d", ["u", "p", "h", "5432", "d"]),
        ("postgres://u:p#a?b:c+d%40%2F%25%C3%A9@h/d", ["u", "p#a?b:c+d@/%é", "h", "5432", "d"]),
        ("postgres://u:p@[::1]:5433/d", ["u", "p", "::1", "5433", "d"]),
        ("postgres://u:p@[::1]/d", ["u", "p", "::1", "5432", "d"]),
        ("postgres://u:p@h/d?hostaddr=", ["u", "p", "h", "5432", "d"]),
        ("postgresql+asyncpg://u:p@h/d?options=-c+search_path%3Dauth", ["u", "p", "h", "5432", "d"]),
        ("postgres://u:p@/d?hostaddr=192.0.2.1&connect_timeout=5", ["u", "p", "192.0.2.1", "5432", "d"]),
    ] {
        assert_eq!(parts(text), expected, "{text}");
    }
}

#[test]
fn what_cannot_be_read_is_refused_with_a_sentence_that_repeats_nothing() {
    for (text, sentence) in [
        ("mysql://u:secret@h/d", "must begin with postgres://"),
        ("jdbc:postgresql://u:secret@h/d", "must begin with postgres://"),
        ("u:secret://x@h", "must begin with postgres://"),
        ("host=h password=secret", "has white space"),
        ("postgres://u:secret@h/d\n", "has white space"),
        ("postgres://u:secr/et@h/d", "has an @ behind a /"),
        ("postgres://u:secr@et@h/d", "has two @"),
        ("postgres://u:secret:x@h:5x/d", "has a port"),
        ("postgres://u:secret@h:0x1/d", "has a port"),
        ("postgres://u:secret%@h/d", "has a % that is not followed"),
        ("postgres://u:secret%ff@h/d", "has a %-encoded character"),
        ("postgres://u:secret@a,b/d", "names several hosts"),
        ("postgres://u:secret@/d?host=a,b", "names several hosts"),
        ("postgres://u:secret@h/d?sslmod=require", "has a parameter (number 1) that is not supported"),
        ("postgres://h/d?password=x&secret", "has a parameter (number 2)"),
        ("postgres://u:secret@h/d?sslmode=verify_full", "has an sslmode that is none of disable"),
        ("postgres://u:secret@h/d?sslmode=require&channel_binding=require", "has a parameter (number 2)"),
        ("postgres://u:secret@h/d?target_session_attrs=standby", "has a parameter (number 1)"),
        ("postgres://u:secret@h/d?hostaddr=192.0.2.1", "has a hostaddr"),
        ("postgres://u:secret@h/d?sslmode=require&sslrootcert=/nowhere/root.crt", "has sslrootcert=/nowhere/root.crt"),
        ("postgres://u:secret@h/d?sslmode=prefer&sslrootcert=/etc/passwd", "says sslrootcert, but not"),
        ("postgres://u:secret@h/d?sslrootcert=/etc/passwd", "says sslrootcert, but not"),
        ("postgres://u:secret@h/d?sslmode=require&sslrootcert=system", "says sslrootcert=system"),
    ] {
        let problem = dsn(text).unwrap_err();
        assert!(problem.starts_with(sentence), "{text} {problem}");
        assert!(!problem.contains("secr"), "{text} {problem}");
    }
}

#[test]
fn only_user_and_password_of_another_address_are_taken() {
    let [former, new] = ["postgres://u:p@h/d", "postgres://v:q@i/e"].map(|text| dsn(text).unwrap());
    assert!(!new.has_credentials_of(&former) && new.has_credentials_of(&new.clone()));
    assert!(!dsn("postgres://u:q@h/d").unwrap().has_credentials_of(&former));
    let url = new.with_credentials(former.options).to_url_lossy();
    assert!(url.as_str().starts_with("postgres://v:q@h:5432/d"), "{url}");
}

#[test]
fn sslmode_verifies_what_libpq_verifies() {
    for (query, mode, unsaid) in [
        ("", PgSslMode::Prefer, true),
        ("sslmode=disable", PgSslMode::Disable, false),
        ("sslmode=allow", PgSslMode::Prefer, false),
        ("sslmode=require", PgSslMode::Require, false),
        ("ssl=true", PgSslMode::Require, false),
        ("ssl=verify-full", PgSslMode::VerifyFull, false),
        ("sslmode=require&sslrootcert=/etc/passwd", PgSslMode::VerifyCa, false),
        ("sslrootcert=/etc/passwd&sslmode=verify-full", PgSslMode::VerifyFull, false),
        ("sslrootcert=system", PgSslMode::VerifyFull, false),
    ] {
        let text = format!("postgres://u:p@db.example/d?{query}");
        assert_eq!(format!("{:?}", dsn(&text).unwrap().options.get_ssl_mode()), format!("{mode:?}"), "{query}");
        assert_eq!(warns_of_encryption(&text), unsaid, "{query}");
    }
    for local in ["localhost", "127.0.0.1", "[::1]", "%2Frun"] {
        assert!(!warns_of_encryption(&format!("postgres://u:p@{local}/d")), "{local}");
    }
}
