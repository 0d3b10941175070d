//! Mails through the binary and a real server: what customers live through, and what operators do.

use std::{collections::BTreeSet, path::PathBuf, process::Command, time::Duration};

use serde_json::{Value, json};
use sqlx::Connection as _;

use crate::{
    mail_server::{MailServer, token, until},
    stack::{Database, Service, auth, client, finish, post, scratch, send},
};

const EMAIL: &str = "cust@example.com";
const FROM: (&str, &str) = ("MAIL_FROM", "Flowers <no-reply@shop.example>");

/// In production, where the log goes to machines.
async fn start(database: &Database, settings: &[(&str, &str)]) -> Service {
    Service::start_with(&database.dsn(), &[&[("APP_ENV", "production"), FROM], settings].concat()).await
}

async fn register(service: &Service, email: &str) {
    let account = json!({"email": email, "password": "Cust-pass1"});
    let answer = post(&service.url("/auth/register"), &account).await;
    assert_eq!(answer.status, 201, "{answer:?}");
}

async fn mail_about(server: &MailServer, subject: &str) -> Value {
    let is_wanted = |mail: &Value| mail["headers"]["subject"] == subject;
    until(subject, async || server.mails().into_iter().find(is_wanted)).await
}

/// Whatever could be a token in a text: 43 characters, or a longer form of it.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let is_apart = |c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_';
    text.split(is_apart).filter(|word| word.len() >= 43)
}

#[tokio::test]
async fn a_forgotten_password_is_reset_by_a_button_and_by_nothing_else() {
    let (database, server) = (Database::create().await, MailServer::start(&[]).await);
    let url = server.url();
    let page = ("PASSWORD_RESET_URL", "https://shop.example/new-password");
    let service = start(&database, &[("SMTP_URL", &url), page]).await;
    register(&service, EMAIL).await;
    let login = post(&service.url("/auth/login"), &json!({"email": EMAIL, "password": "Cust-pass1"})).await;
    let answer = post(&service.url("/auth/password/forgot"), &json!({"email": EMAIL, "locale": "de-AT"})).await;
    assert_eq!((answer.status, answer.body), (202, json!({"status": "accepted"})));
    let mail = mail_about(&server, "Neues Passwort wählen").await;
    let secret = token(&mail);

    // What scanners and previews do to links: the fragment never reaches a server, but suppose that it did.
    let reset = service.url("/auth/password/reset");
    for _ in 0..50 {
        for path in [format!("{reset}?token={secret}"), format!("{reset}#token={secret}")] {
            assert_eq!(send(client().get(&path)).await.status, 405);
            assert_eq!(send(client().head(&path)).await.status, 405);
        }
    }
    // What a thief of backups or logs finds.
    let (code, dump, complaint) = finish(Command::new("pg_dump").arg(database.dsn()), "", Duration::from_secs(30));
    assert_eq!(code, 0, "{complaint}");
    let log = service.log();
    assert!(dump.contains("mail_tokens") && log.contains("password_forgot"), "{log}");
    let found: BTreeSet<_> = words(&dump).chain(words(&log)).collect();
    assert!(!found.contains(secret.as_str()), "the token is stored or logged");
    for word in found {
        let answer = post(&reset, &json!({"token": word, "new_password": "Thief-pass1"})).await;
        assert_eq!(answer.status, 400, "{word} is a token");
    }

    let button = json!({"token": secret, "new_password": "Cust-pass2"});
    assert_eq!(post(&reset, &button).await.status, 200);
    let again = post(&reset, &button).await;
    assert_eq!((again.status, again.detail()), (400, "Invalid or expired token"));
    let refresh = json!({"refresh_token": login.text("refresh_token")});
    let refreshed = post(&service.url("/auth/refresh"), &refresh).await;
    assert_eq!((refreshed.status, refreshed.header("x-auth-reason")), (401, Some("password_reset")));
    for (password, status) in [("Cust-pass1", 401), ("Cust-pass2", 200)] {
        let login = post(&service.url("/auth/login"), &json!({"email": EMAIL, "password": password})).await;
        assert_eq!(login.status, status, "{password}");
    }
    let notice = until("the notice", async || {
        server.mails().into_iter().find(|mail| {
            ["Your password was reset", "Ihr Passwort wurde zurückgesetzt"]
                .iter()
                .any(|said| mail["headers"]["subject"] == *said)
        })
    });
    assert_eq!(notice.await["to"], EMAIL);
    assert!(is_verified(&database).await);
}

async fn is_verified(database: &Database) -> bool {
    let mut connection = database.connect().await;
    let verified = sqlx::query_scalar("SELECT email_verified_at IS NOT NULL FROM users WHERE email = $1").bind(EMAIL);
    let verified = verified.fetch_one(&mut connection).await.expect("the user is there");
    connection.close().await.ok();
    verified
}

/// A certificate for localhost that signs itself, and its key.
fn certificate() -> (PathBuf, PathBuf) {
    let (certificate, key) = (scratch("certificate", "pem"), scratch("key", "pem"));
    let command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=localhost \
        -addext subjectAltName=DNS:localhost -addext basicConstraints=critical,CA:FALSE -out \"$0\" -keyout \"$1\"";
    let (code, _, complaint) =
        finish(Command::new("sh").args(["-c", command]).args([&certificate, &key]), "", Duration::from_secs(30));
    assert_eq!(code, 0, "{complaint}");
    (certificate, key)
}

#[tokio::test]
async fn an_address_is_verified_by_a_mail_that_travels_encrypted() {
    let (certificate, key) = certificate();
    let [certificate, key] = [&certificate, &key].map(|path| path.to_str().expect("a plain path"));
    for (scheme, kind) in [("smtp", &[][..]), ("smtps", &["--implicit"][..])] {
        let options = [&["--login", "shop:p@ss", "--certificate", certificate, "--key", key], kind].concat();
        let (database, server) = (Database::create().await, MailServer::start(&options).await);
        let url = format!("{scheme}://shop:p%40ss@localhost:{}", server.port());
        let service = start(&database, &[("SMTP_URL", &url), ("SSL_CERT_FILE", certificate)]).await;
        let account = json!({"email": EMAIL, "password": "Cust-pass1"});
        let request = client().post(service.url("/auth/register")).header("accept-language", "de-DE, en;q=0.5");
        assert_eq!(send(request.json(&account)).await.status, 201);
        let mail = mail_about(&server, "Bitte bestätigen Sie Ihre E-Mail-Adresse").await;
        assert_eq!((&mail["encrypted"], &mail["authenticated"]), (&json!(true), &json!(true)), "{scheme}");
        assert!(!is_verified(&database).await);
        for _ in 0..2 {
            let answer = post(&service.url("/auth/email/verify"), &json!({"token": token(&mail)})).await;
            assert_eq!((answer.status, answer.body), (200, json!({"status": "ok"})));
        }
        assert!(is_verified(&database).await);
        assert!(!service.log().contains("p@ss"), "{}", service.log());
    }
}

#[tokio::test]
async fn no_mail_is_lost_or_doubled_while_the_server_is_away() {
    let (database, mut server) = (Database::create().await, MailServer::away(&[]));
    let url = server.url();
    let settings = [("SMTP_URL", url.as_str()), ("PASSWORD_ARGON2_MEMORY_KIB", "8"), ("PASSWORD_ARGON2_PASSES", "1")];
    let replicas = [start(&database, &settings).await, start(&database, &settings).await];
    let addresses: BTreeSet<_> = (0..60).map(|n| format!("cust{n}@example.com")).collect();
    for (address, replica) in addresses.iter().zip(replicas.iter().cycle()) {
        register(replica, address).await;
    }
    let log = || replicas.iter().map(Service::log).collect::<String>();
    until("every mail has been tried", async || (log().matches("mail retried").count() >= 60).then_some(())).await;

    server.come_back().await;
    let command = |arguments: &[&str]| {
        finish(auth().args(arguments).env("POSTGRES_DSN", database.dsn()), "", Duration::from_secs(30))
    };
    let (_, listed, _) = command(&["mail", "list"]);
    assert!(listed.contains("Connection refused"), "{listed}");
    let (code, _, complaint) = command(&["mail", "retry"]);
    assert_eq!(code, 0, "{complaint}");
    until("every mail is sent", async || (log().matches("mail sent").count() >= 60).then_some(())).await;
    let mails = server.mails();
    let arrived: Vec<_> = mails.iter().map(|mail| mail["to"].as_str().unwrap_or_default().to_owned()).collect();
    assert_eq!(arrived.len(), 60);
    assert_eq!(arrived.into_iter().collect::<BTreeSet<_>>(), addresses);
}

#[tokio::test]
async fn in_development_a_mail_is_in_the_log_where_no_file_can_be_written() {
    let (database, home) = (Database::create().await, scratch("home", "d"));
    std::fs::create_dir_all(&home).expect("target/ takes folders");
    std::fs::write(home.join("target"), "no folder").expect("target/ takes files");
    let service = Service::start_in(&home, &database.dsn()).await;
    register(&service, EMAIL).await;
    until("the mail is logged", async || service.log().contains(&format!("mail to {EMAIL}\n")).then_some(())).await;
}

#[tokio::test]
async fn a_template_with_a_mistake_ends_the_start() {
    let folder = scratch("templates", "d");
    std::fs::create_dir_all(&folder).expect("target/ takes folders");
    std::fs::write(folder.join("verify_email.de.txt"), "Subject: Hallo\n\n{{ vorname }}").expect("target/ takes files");
    let (code, output, complaint) = finish(
        auth()
            .arg("serve")
            .envs([("APP_ENV", "development"), ("POSTGRES_DSN", "postgres://unused")])
            .env("MAIL_TEMPLATES_DIR", &folder),
        "",
        Duration::from_secs(30),
    );
    assert_eq!(code, 2, "{output}{complaint}");
    assert!(complaint.contains("MAIL_TEMPLATES_DIR") && complaint.contains("verify_email.de.txt:3"), "{complaint}");
}
