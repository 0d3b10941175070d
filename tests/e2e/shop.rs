//! The two pages of the shop that deploy/mail.md prints, in a real browser, behind the gateway, opened by the links of mails
//! that arrived. `shop.cjs` is the customer.

use std::{path::Path, process::Command, time::Duration};

use serde_json::{Value, json};

use crate::{
    mail_server::{MailServer, until},
    stack::{Database, Gateway, Process, Service, finish, free_address, get, installed, post, scratch},
};

const EMAIL: &str = "cust@example.com";
/// Opening a page so often does what scanners and previews do to a link.
const LOOKS: usize = 100;

/// The shop: a gateway with the service behind it, and beside that the pages.
struct Shop {
    database: Database,
    mails: MailServer,
    gateway: Gateway,
    pages: Process,
    service: Service,
}

impl Shop {
    async fn open() -> Self {
        let (database, mails) = (Database::create().await, MailServer::start(&[]).await);
        let settings = [
            ("APP_ENV", "production"),
            ("MAIL_FROM", "Flowers <no-reply@shop.example>"),
            ("SMTP_URL", &mails.url()),
            ("PASSWORD_RESET_URL", "http://shop.example/password_reset_url.html"),
            ("EMAIL_VERIFY_URL", "http://shop.example/email_verify_url.html"),
        ];
        let service = Service::start_with(&database.dsn(), &settings).await;
        let address = free_address();
        let mut command = Command::new(installed("python"));
        command.args(["-m", "http.server", "--bind", "127.0.0.1", &address.port().to_string()]);
        let pages = Process::spawn(command.arg("--directory").arg(printed_pages()), "pages");
        until("the pages are served", async || tokio::net::TcpStream::connect(address).await.ok()).await;
        let gateway = Gateway::start_with_shop(&service, address).await;
        Self { database, mails, gateway, pages, service }
    }

    /// The link in the newest mail with this subject.
    async fn link(&self, subject: &str) -> String {
        let about = |mail: &Value| mail["headers"]["subject"] == subject;
        let mail = until(subject, async || self.mails.mails().into_iter().rfind(about)).await;
        let text = mail["text"].as_str().expect("a mail has a text");
        let link = text.split_whitespace().find(|word| word.starts_with("http://shop.example/"));
        link.unwrap_or_else(|| panic!("no link in {text}")).to_owned()
    }

    /// What the page says after this.
    fn visit(&self, link: &str, arguments: &[&str]) -> Value {
        let (code, seen, complaint) = finish(
            Command::new(installed("node"))
                .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/shop.cjs"))
                .args([&self.gateway.address.to_string(), link])
                .args(arguments)
                .env("NODE_PATH", installed("node").with_file_name("../node_modules")),
            "",
            Duration::from_mins(2),
        );
        assert_eq!(code, 0, "{seen}\n{complaint}\n{}", self.service.log());
        serde_json::from_str(&seen).expect("shop.cjs prints JSON")
    }

    fn press(&self, link: &str, password: &[&str]) -> String {
        let seen = self.visit(link, &[&["press"], password].concat());
        seen["said"].as_str().unwrap_or_default().to_owned()
    }

    /// Has a link opened by what opens links, and asserts that nothing comes of it.
    async fn scan(&self, link: &str) {
        let before = self.rows().await;
        let (page, _) = link.split_once('#').expect("the token is in the fragment");
        let path = page.strip_prefix("http://shop.example").expect("it is a page of the shop");
        for _ in 0..LOOKS {
            assert_eq!(get(&self.gateway.url(path)).await.status, 200);
        }
        let seen = self.visit(link, &["look", &LOOKS.to_string()]);
        assert_eq!(seen, json!({"said": "", "problems": []}));
        assert_eq!(self.rows().await, before);
    }

    /// What the buttons change.
    async fn rows(&self) -> Value {
        let rows = "SELECT jsonb_build_array(
            (SELECT jsonb_agg(users ORDER BY id) FROM users), (SELECT jsonb_agg(mail_tokens ORDER BY purpose) FROM mail_tokens))";
        sqlx::query_scalar(rows).fetch_one(&mut self.database.connect().await).await.expect("the tables are there")
    }

    async fn login(&self, password: &str) -> u16 {
        post(&self.gateway.url("/auth/login"), &json!({"email": EMAIL, "password": password})).await.status
    }
}

/// A folder with the pages, each a file by the name of the setting that its first line tells.
fn printed_pages() -> std::path::PathBuf {
    let folder = scratch("pages", "d");
    std::fs::create_dir_all(&folder).expect("target/ takes folders");
    let text = include_str!("../../deploy/mail.md");
    let pages: Vec<_> = text.split("```html\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(pages.len(), 2, "deploy/mail.md shows two pages");
    for page in pages {
        let setting =
            page.strip_prefix("<!-- ").and_then(|rest| rest.split_once(" -->")).expect("it tells its setting").0;
        let file = folder.join(format!("{}.html", setting.to_lowercase()));
        std::fs::write(file, page).expect("target/ takes files");
    }
    // Browsers ask for it.
    std::fs::write(folder.join("favicon.ico"), "").expect("target/ takes files");
    folder
}

#[tokio::test]
async fn a_customer_verifies_an_address_and_resets_a_password_on_the_pages_of_the_shop() {
    let shop = Shop::open().await;
    let account = json!({"email": EMAIL, "password": "Cust-pass1"});
    assert_eq!(post(&shop.gateway.url("/auth/register"), &account).await.status, 201);
    let verify = shop.link("Please confirm your e-mail address").await;
    shop.scan(&verify).await;
    assert_eq!(shop.rows().await[0][0]["email_verified_at"], Value::Null);
    for _ in 0..2 {
        assert_eq!(shop.press(&verify, &[]), "Thank you.");
    }
    assert_ne!(shop.rows().await[0][0]["email_verified_at"], Value::Null);

    assert_eq!(post(&shop.gateway.url("/auth/password/forgot"), &json!({"email": EMAIL})).await.status, 202);
    let reset = shop.link("Choose a new password").await;
    shop.scan(&reset).await;
    assert_eq!(shop.press(&reset, &["Cust-pass2"]), "Saved. Please sign in.");
    assert_eq!((shop.login("Cust-pass1").await, shop.login("Cust-pass2").await), (401, 200));
    let expired = "This link has expired. Please ask for another one.";
    assert_eq!(shop.press(&reset, &["Cust-pass3"]), expired);
    assert_eq!(shop.press(&verify, &[]), expired);
    assert_eq!(shop.login("Cust-pass2").await, 200);

    // Who runs the shop's web server finds no token in its log.
    for link in [verify, reset] {
        let (_, token) = link.split_once("#token=").expect("the token is in the fragment");
        assert!(!shop.pages.log().contains(token), "{}", shop.pages.log());
    }
}
