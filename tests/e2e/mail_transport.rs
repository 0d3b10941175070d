//! How mails leave, and what the faults of a real server mean.

use auth::{
    config::{Config, Given},
    domain::{email::Email, mail::Locale, mail_token::MailToken},
    mail::{Content, Mailer, Message, SEND_TIMEOUT, SendError},
};
use chrono::DateTime;
use clap::Parser;
use uuid::Uuid;

use crate::mail_server::{MailServer, token, until};

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    settings: Given<Config>,
}

fn mailer(smtp_url: &str, flags: &[&str]) -> Mailer {
    let base = ["test", "--app-env=development", "--postgres-dsn=postgres://unused", "--smtp-url", smtp_url];
    let given = Flags::try_parse_from(base.iter().chain(flags)).expect("the flags are right").settings;
    Mailer::new(&given.resolve().expect("the settings are right").mail).expect("all templates render")
}

fn message(to: &str, content: Content) -> Message {
    Message { id: Uuid::now_v7(), to: Email::parse(to).expect("a valid address"), locale: Locale::En, content }
}

fn notice(to: &str) -> Message {
    message(to, Content::PasswordChanged)
}

#[tokio::test]
async fn a_mail_has_both_forms_and_says_what_it_is() {
    let server = MailServer::start(&[]).await;
    let flags =
        ["--mail-from=Blumen Böhm <no-reply@shop.example>", "--password-reset-url=https://shop.example/reset?x=1"];
    let mailer = mailer(&server.url(), &flags);
    let secret = MailToken::generate();
    let message = message("Cust+1@bücher.example", Content::ResetPassword { token: secret.clone() });
    mailer.send(&message).await.unwrap();

    let [mail] = &server.mails()[..] else { panic!("not one mail") };
    assert_eq!(mail["from"], "no-reply@shop.example");
    assert_eq!(mail["to"], "Cust+1@xn--bcher-kva.example");
    assert_eq!(mail["hello"], "shop.example");
    let header = |name: &str| mail["headers"][name].as_str().unwrap_or_default().to_owned();
    assert_eq!(header("message-id"), format!("<{}@shop.example>", message.id));
    assert_eq!(header("from"), "Blumen Böhm <no-reply@shop.example>");
    assert_eq!(header("to"), "Cust+1@xn--bcher-kva.example");
    assert_eq!(header("subject"), "Choose a new password");
    assert_eq!(header("auto-submitted"), "auto-generated");
    assert!(DateTime::parse_from_rfc2822(&header("date")).is_ok(), "{mail:#}");
    assert_eq!(mail["parts"], serde_json::json!(["multipart/alternative", "text/plain", "text/html"]));
    assert_eq!(token(mail), secret.expose());
    let link = format!("https://shop.example/reset?x=1#token={}", secret.expose());
    assert!(mail["text"].as_str().unwrap().contains(&format!("\n{link}\n")), "{mail:#}");
    let html = mail["html"].as_str().unwrap();
    assert_eq!(html.replace("&#x2f;", "/").matches(&format!("href=\"{link}\"")).count(), 2, "{html}");
    // Nothing is loaded from anywhere.
    assert!(!html.contains("<img") && !html.contains("<link") && !html.contains("url("), "{html}");
}

#[tokio::test]
async fn without_a_page_the_mail_shows_the_token() {
    let server = MailServer::start(&[]).await;
    let secret = MailToken::generate();
    let message = message("cust@example.com", Content::VerifyEmail { token: secret.clone() });
    mailer(&server.url(), &[]).send(&message).await.unwrap();
    let [mail] = &server.mails()[..] else { panic!("not one mail") };
    assert_eq!(token(mail), secret.expose());
    assert!(mail["html"].as_str().unwrap().contains(secret.expose()));
    assert!(!mail["html"].as_str().unwrap().contains("href"));
}

#[tokio::test]
async fn what_is_refused_for_good_is_told_from_what_may_pass() {
    let server = MailServer::start(&[]).await;
    let mailer = mailer(&server.url(), &[]);
    let failed = |words: &str| SendError::Failed(words.to_owned());
    let rejected = |words: &str| SendError::Rejected(words.to_owned());
    for (to, outcome) in [
        ("rejected@example.com", rejected("permanent error (550): 5.1.1 <[address]>: there is no such mailbox")),
        ("unwanted@example.com", rejected("permanent error (554): 5.7.1 this mail is not wanted")),
        ("deferred@example.com", failed("transient error (451): 4.7.1 come back later")),
    ] {
        assert_eq!(mailer.send(&notice(to)).await, Err(outcome), "{to}");
    }
    assert_eq!(mailer.send(&notice("deferred@example.com")).await, Ok(()));
    assert_eq!(server.mails().len(), 1);
}

#[tokio::test]
async fn a_server_that_quotes_the_mail_gets_no_token_into_the_log() {
    let server = MailServer::start(&[]).await;
    let message = message("quoted@example.com", Content::ResetPassword { token: MailToken::generate() });
    for (flags, quoted) in [
        (vec![], "[token]"),
        (vec!["--password-reset-url=https://shop.example/reset"], "https://shop.example/reset#token=[token]"),
    ] {
        let outcome = mailer(&server.url(), &flags).send(&message).await;
        let words = format!("permanent error (554): 5.7.1 blocked link: {quoted}");
        assert_eq!(outcome, Err(SendError::Rejected(words)));
    }
}

#[tokio::test]
async fn a_mail_whose_answer_is_lost_keeps_its_id_when_it_is_sent_again() {
    let server = MailServer::start(&[]).await;
    let mailer = mailer(&server.url(), &[]);
    let message = notice("dropped@example.com");
    assert!(matches!(mailer.send(&message).await, Err(SendError::Failed(_))));
    assert_eq!(mailer.send(&message).await, Ok(()));
    let ids: Vec<_> = server.mails().iter().map(|mail| mail["headers"]["message-id"].clone()).collect();
    assert_eq!(ids.len(), 2);
    assert_eq!(ids[0], ids[1]);
}

#[tokio::test]
async fn a_server_that_is_silent_is_given_up() {
    let server = MailServer::start(&[]).await;
    let mailer = mailer(&server.url(), &[]);
    let sending = tokio::spawn(async move { mailer.send(&notice("silent@example.com")).await });
    until("the server is asked", async || server.folder().join("silent").exists().then_some(())).await;
    // From here on no time passes but by the runtime, which goes on to the next moment that anything waits for.
    tokio::time::pause();
    let begin = tokio::time::Instant::now();
    let outcome = sending.await.unwrap();
    assert_eq!(outcome, Err(SendError::Failed(format!("not sent within {} s", SEND_TIMEOUT.as_secs()))));
    assert!(begin.elapsed() <= SEND_TIMEOUT);
}

#[tokio::test]
async fn a_connection_is_kept_for_the_next_mail_and_replaced_when_the_server_has_closed_it() {
    let mut server = MailServer::start(&[]).await;
    let mailer = mailer(&server.url(), &[]);
    for to in ["a@example.com", "last@example.com", "b@example.com", "c@example.com"] {
        assert_eq!(mailer.send(&notice(to)).await, Ok(()), "{to}");
    }
    let connections: Vec<_> = server.mails().iter().map(|mail| mail["connection"].as_u64().unwrap()).collect();
    // Without those that only looked whether the server is up, which sent nothing.
    assert_eq!(connections, [0, 0, 1, 1]);

    server.go_away();
    assert!(matches!(mailer.send(&notice("d@example.com")).await, Err(SendError::Failed(_))));
    server.come_back().await;
    assert_eq!(mailer.send(&notice("d@example.com")).await, Ok(()));
    server.go_away();
    server.come_back().await;
    assert_eq!(mailer.send(&notice("e@example.com")).await, Ok(()));
    assert_eq!(server.mails().len(), 6);
}

#[tokio::test]
async fn a_refused_login_or_a_missing_one_costs_no_mail() {
    let server = MailServer::start(&["--login", "shop@example.com:p@ss/word"]).await;
    let url = |login: &str| server.url().replace("//", &format!("//{login}"));
    for login in ["", "shop%40example.com:guess@"] {
        let outcome = mailer(&url(login), &[]).send(&notice("cust@example.com")).await;
        assert!(matches!(outcome, Err(SendError::Failed(_))), "{login}: {outcome:?}");
    }
    assert_eq!(mailer(&url("shop%40example.com:p%40ss%2Fword@"), &[]).send(&notice("cust@example.com")).await, Ok(()));
    let [mail] = &server.mails()[..] else { panic!("not one mail") };
    assert_eq!(mail["authenticated"], true);
}

#[tokio::test]
async fn nothing_is_sent_in_plain_where_encryption_is_wanted() {
    let server = MailServer::start(&[]).await;
    for url in [format!("smtp://127.0.0.1:{}", server.port()), format!("smtps://127.0.0.1:{}", server.port())] {
        let outcome = mailer(&url, &[]).send(&notice("cust@example.com")).await;
        assert!(matches!(outcome, Err(SendError::Failed(_))), "{url}: {outcome:?}");
    }
    assert!(server.mails().is_empty());
}

#[tokio::test]
async fn an_address_beyond_ascii_takes_a_server_that_knows_such() {
    let server = MailServer::start(&[]).await;
    assert_eq!(mailer(&server.url(), &[]).send(&notice("jörg@example.com")).await, Ok(()));
    let [mail] = &server.mails()[..] else { panic!("not one mail") };
    assert_eq!(
        (mail["to"].as_str(), mail["headers"]["to"].as_str()),
        (Some("jörg@example.com"), Some("jörg@example.com"))
    );

    let server = MailServer::start(&["--ascii"]).await;
    let outcome = mailer(&server.url(), &[]).send(&notice("jörg@example.com")).await;
    assert_eq!(outcome, Err(SendError::Rejected("permanent error (501): Error: SMTPUTF8 disabled".to_owned())));
}
