//! A start with wrong settings, and what the README says of the right ones.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::stack::{Database, Service, auth, finish, get, post, scratch};

#[test]
fn every_mistake_in_the_configuration_is_named_at_once() {
    let (code, output, complaint) = finish(
        auth()
            .arg("serve")
            .env("POSTGRES_DSN", "mysql://root:hidden-pass@127.0.0.1/shop")
            .env("JWT_SECRET", "too-short-to-sign")
            .env("JWT_SECRET_PREVIOUS", "a secret of which there is quite enough,devsecret")
            .env("REGISTER_OPEN_ROLES", "staff,")
            .env("LISTEN_ADDR", "everywhere")
            .env("LOG_LEVEL", "WARNING")
            .env("ACCESS_TOKEN_EXPIRES_SECONDS", "a quarter of an hour")
            .env("REFRESH_GRACE_SECONDS", "perhaps")
            .env("THROTTLE", "sometimes")
            .env("TRUSTED_PROXIES", "10.0.0.0/99"),
        "",
        Duration::from_secs(30),
    );
    assert_eq!(code, 2, "{output}{complaint}");
    for name in [
        "POSTGRES_DSN", "JWT_SECRET has", "JWT_SECRET_PREVIOUS is a well-known default", "REGISTER_OPEN_ROLES",
        "LISTEN_ADDR", "LOG_LEVEL", "ACCESS_TOKEN_EXPIRES_SECONDS", "REFRESH_GRACE_SECONDS", "THROTTLE",
        "TRUSTED_PROXIES",
    ] {
        assert!(complaint.contains(name), "{name} is not named in\n{complaint}");
    }
    for secret in ["too-short-to-sign", "hidden-pass"] {
        assert!(!complaint.contains(secret), "a secret stands in\n{complaint}");
    }
}

#[tokio::test]
async fn an_empty_variable_counts_as_one_that_is_not_set() {
    let database = Database::create().await;
    for command in ["cleanup", "health"] {
        let (code, output, complaint) = finish(
            auth()
                .arg(command)
                .env("POSTGRES_DSN", database.dsn())
                .env("LISTEN_ADDR", "")
                .env("SESSION_HISTORY_DAYS", "")
                .env("DATABASE_MAX_CONNECTIONS", ""),
            "",
            Duration::from_secs(30),
        );
        // There are no tables yet, and perhaps nobody to ask; 2 would be a mistake in the settings.
        assert_ne!(code, 2, "{command}: {output}{complaint}");
    }
}

#[test]
fn a_start_without_any_setting_asks_for_the_two_that_production_needs() {
    let (code, output, complaint) = finish(auth().arg("serve"), "", Duration::from_secs(30));
    assert_eq!(code, 2, "{output}{complaint}");
    assert!(complaint.contains("JWT_SECRET"), "{complaint}");
    assert!(complaint.contains("POSTGRES_DSN"), "{complaint}");
}

#[test]
fn no_command_prints_a_part_of_an_address_with_a_password() {
    for dsn in [
        "postgres://shop:pq7/ssw0rd@db.example/shop", "postgres://shop:1234/ssw0rd@db.example/shop",
        "shop:pq7://ssw0rd@db.example/shop", "postgresql+psycopg:/shop:ssw0rd@db.example",
    ] {
        for command in ["config", "cleanup"] {
            let (_, output, complaint) = finish(
                auth().arg(command).env("APP_ENV", "development").env("POSTGRES_DSN", dsn),
                "",
                Duration::from_secs(30),
            );
            for part in ["pq7", "ssw0rd", "1234"] {
                let printed = format!("{output}{complaint}");
                assert!(!printed.contains(part), "{command}: {part} of {dsn} stands in\n{printed}");
            }
        }
    }
}

#[tokio::test]
async fn a_start_that_finds_a_removed_setting_says_so_once_and_goes_on() {
    let database = Database::create().await;
    let removed = [
        ("JWT_LEEWAY_SECONDS", "60"),
        ("REFRESH_CONNECTIONS", "4"),
        ("REFRESH_GRACE_ANSWER", "replay"),
        ("REFRESH_BATCH_SIZE", "64"),
    ];
    let service = Service::start_with(&database.dsn(), &removed).await;
    let log = service.log();
    for (name, said) in
        [("JWT_LEEWAY_SECONDS", 1), ("REFRESH_CONNECTIONS", 1), ("REFRESH_GRACE_ANSWER", 1), ("REFRESH_BATCH_SIZE", 0)]
    {
        assert_eq!(log.matches(name).count(), said, "{name} in\n{log}");
    }
}

#[tokio::test]
async fn what_the_database_says_is_printed_without_the_line_of_its_source() {
    let database = Database::create().await;
    let dsn = format!("{}_gone", database.dsn());
    for arguments in [&["migrate"][..], &["serve", "--app-env=development"], &["cleanup"]] {
        let (code, _, complaint) =
            finish(auth().args(arguments).env("POSTGRES_DSN", &dsn), "", Duration::from_secs(30));
        assert_eq!(code, 1, "{complaint}");
        let sentence = complaint.strip_prefix("auth: the database failed: database \"").unwrap_or_default();
        assert!(sentence.ends_with("_gone\" does not exist\n"), "{arguments:?}: {complaint}");
    }
}

#[tokio::test]
async fn a_new_password_of_the_database_is_read_from_the_file_without_a_restart() {
    let database = Database::create().await;
    let file = scratch("dsn", "txt");
    std::fs::write(&file, database.create_role().await).expect("the file can be written");
    let service = Service::start_with("", &[("POSTGRES_DSN_FILE", file.to_str().expect("a plain path"))]).await;
    let account = json!({"email": "cust@example.com", "password": "Cust-pass1"});
    assert_eq!(post(&service.url("/auth/register"), &account).await.status, 201);
    let login = post(&service.url("/auth/login"), &account).await;
    let refresh = json!({"refresh_token": login.text("refresh_token")});
    let rotated = post(&service.url("/auth/refresh"), &refresh).await;
    let refresh = json!({"refresh_token": rotated.text("refresh_token")});

    std::fs::write(&file, database.change_password().await).expect("the file can be written");
    let begin = Instant::now();
    while get(&service.url("/auth/ready")).await.status != 200 {
        assert!(begin.elapsed() < Duration::from_secs(20), "the former password is still used:\n{}", service.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let rotated = post(&service.url("/auth/refresh"), &refresh).await;
    assert_eq!(rotated.status, 200, "{rotated:?}\n{}", service.log());
}

/// Every setting's default, as `auth serve --help` states it; empty where it states none.
fn defaults_in_help() -> BTreeMap<String, String> {
    let (code, help, complaint) = finish(auth().args(["serve", "--help"]), "", Duration::from_secs(30));
    assert_eq!(code, 0, "{complaint}");
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    let between = |text: &str, from: &str, to: char| {
        text.split_once(from).and_then(|(_, rest)| rest.split_once(to)).map(|(inside, _)| inside.to_owned())
    };
    help.split(" --")
        .filter_map(|option| {
            let name = between(option, "[env: ", ']')?.trim_end_matches('=').to_owned();
            Some((name, between(option, "[default: ", ']').unwrap_or_default()))
        })
        .collect()
}

/// The same from the README's table. A row names a setting, and perhaps the one for a file that holds its value.
fn defaults_in_readme() -> BTreeMap<String, String> {
    let page =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).expect("there is a README");
    let section = page.split("\n## ").find(|section| section.starts_with("Configuration\n")).unwrap_or_default();
    let rows = section.lines().filter_map(|line| {
        let (names, rest) = line.strip_prefix("| `")?.split_once('|')?;
        Some((names.trim().trim_end_matches('`').split("`, `"), rest.split('|').next()?.trim().replace('`', "")))
    });
    rows.flat_map(|(names, default)| {
        names
            .enumerate()
            .map(move |(at, name)| (name.to_owned(), if at == 0 { default.clone() } else { String::new() }))
    })
    .collect()
}

#[test]
fn the_readme_lists_every_setting_with_its_default() {
    let help = defaults_in_help();
    assert!(help.len() >= 30, "{help:?}");
    assert_eq!(defaults_in_readme(), help);
}

#[test]
fn compose_passes_every_setting() {
    let compose = include_str!("../../deploy/docker-compose.yaml");
    let service = compose.split_once("\n  auth:\n").and_then(|(_, rest)| rest.split_once("    environment:\n"));
    let (_, environment) = service.expect("the service has an environment");
    let lines = environment.lines().map_while(|line| line.strip_prefix("      "));
    let mut passed: BTreeSet<_> = lines.filter_map(|line| Some(line.split_once(':')?.0)).collect();
    passed.retain(|line| !line.starts_with('#'));

    let help = defaults_in_help();
    let left_out = |name: &str| match name {
        // There is POSTGRES_DSN; and the gateway and the other services know the port.
        "DATABASE_URL" | "LISTEN_ADDR" => true,
        // The value itself is passed.
        _ => name.strip_suffix("_FILE").is_some_and(|value| help.contains_key(value)),
    };
    let mut expected: BTreeSet<_> = help.keys().map(String::as_str).filter(|name| !left_out(name)).collect();
    // OpenTelemetry's own are not in the help.
    expected.extend(include_str!("../../deploy/operations.md").split('`').filter(|word| word.starts_with("OTEL_")));
    assert_eq!(passed, expected);
}
