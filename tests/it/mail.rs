//! The outbox and its worker: no mail is lost, none is sent twice without need, and users are told what matters.

use auth::app::App;
use auth::domain::ids::UserId;
use auth::domain::mail::{Locale, Template};
use auth::domain::mail_token::MailToken;
use auth::domain::password::PasswordHash;
use auth::error::Error;
use auth::mail::{Content, Mailer, SendError};
use auth::service::audit::Actor;
use auth::service::mail;
use auth::service::password::set_password;
use axum::http::Method;
use serde_json::json;
use sqlx::PgPool;
use uuid::Uuid;

use crate::mailbox::templates;
use crate::support::{MAIL_OFF, PASSWORD, TestApp, config, pair, together};

const CUST: &str = "cust@example.com";
const FIREFOX: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";
const NEWER_FIREFOX: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:141.0) Gecko/20100101 Firefox/141.0";
const SAFARI: &str =
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 Version/18.5 Safari/605.1.15";

fn failed() -> Result<(), SendError> {
    Err(SendError::Failed("450 try again later".to_owned()))
}

fn mails(app: &App, outcome: &str, template: &str) -> u64 {
    app.metrics.mails.with_label_values(&[outcome, template]).get()
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_mail_whose_replica_died_is_sent_by_another_as_the_same_mail(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register(CUST, "customer").await;
    let other = TestApp::with_clock(app.db.clone(), &[], app.clock.clone());
    // Killed between the server's acceptance and the mark.
    let first = mail::next(&app.app).await.unwrap().unwrap().message;
    assert!(mail::next(&other.app).await.unwrap().is_none());
    app.advance(299);
    assert!(mail::next(&other.app).await.unwrap().is_none());
    app.advance(1);
    let second = other.deliver().await;
    assert_eq!((second.len(), second[0].id), (1, first.id));
    for message in [&first, &second[0]] {
        let Content::VerifyEmail { token } = &message.content else { panic!("{message:?}") };
        assert_eq!(app.verify_email(token.expose()).await.status, 200);
    }
    app.advance(3600);
    assert!(app.deliver().await.is_empty());
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn replicas_share_the_mails_and_send_each_once(pool: PgPool) {
    let app = TestApp::with(pool, &["--throttle=off"]);
    app.verified_customer(CUST).await;
    app.execute(
        "INSERT INTO mail_outbox (id, template, locale, user_id, created_at, due_at, give_up_at)
         SELECT gen_random_uuid(), 'password_changed', 'en', users.id, now(), timestamp 'epoch', 'infinity'
         FROM users, generate_series(1, 60)",
    )
    .await;
    let replica = TestApp::with_clock(app.db.clone(), &[], app.clock.clone());
    let sent = together((0..6).map(|n| {
        let app = if n % 2 == 0 { app.clone() } else { replica.clone() };
        async move { app.deliver().await.into_iter().map(|message| message.id).collect::<Vec<_>>() }
    }))
    .await;
    let mut ids: Vec<Uuid> = sent.concat();
    ids.sort();
    ids.dedup();
    assert_eq!((sent.concat().len(), ids.len()), (60, 60));
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_mail_that_failed_is_tried_for_a_day_at_growing_intervals(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register(CUST, "customer").await;
    assert_eq!(app.try_to_deliver(&failed()).await.len(), 1);
    assert!(app.deliver().await.is_empty(), "tried again without a pause");
    let mut attempts = 1;
    for minute in 1..=24 * 60 {
        app.advance(60);
        let tried = app.try_to_deliver(&failed()).await.len();
        assert!(tried <= 1 + usize::from(minute == 1), "at minute {minute}");
        attempts += tried;
    }
    assert!((110..=200).contains(&attempts), "{attempts} attempts");
    let outbox = app.outbox().await;
    assert_eq!((&outbox[0]["outcome"], &outbox[0]["last_error"]), (&json!("dead"), &json!("450 try again later")));
    assert_eq!(mails(&app.app, "dead", "verify_email"), 1);
    // The last attempt gave it up; or there was to be one more, within the last minute, and the day was over by then.
    let retried = usize::try_from(mails(&app.app, "retried", "verify_email")).unwrap();
    assert!((attempts - 1..=attempts).contains(&retried), "{retried} of {attempts} attempts");
    app.advance(86_400);
    assert!(app.deliver().await.is_empty());
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_mail_that_the_server_refuses_for_good_is_a_dead_letter_until_an_operator_sees_to_it(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register(CUST, "customer").await;
    app.register("two@example.com", "customer").await;
    let rejected = Err(SendError::Rejected("550 no such mailbox\0".to_owned()));
    assert_eq!(app.try_to_deliver(&rejected).await.len(), 2);
    app.advance(86_400);
    assert!(app.deliver().await.is_empty());
    let listed = mail::list_unsent(&app.db, Uuid::nil(), auth::domain::page::PageSize::MAX).await.unwrap().entries;
    let found: Vec<_> =
        listed.iter().map(|mail| (mail.email.as_str(), mail.due_at, mail.last_error.as_deref())).collect();
    let error = Some("550 no such mailbox");
    assert_eq!(found, [(CUST, None, error), ("two@example.com", None, error)]);

    let retried = mail::retry(&app.db, Actor::CommandLine, Some(listed[0].id), app.clock.now()).await.unwrap();
    assert_eq!((retried, app.deliver().await[0].id), (1, listed[0].id));
    // It is sent, and so nothing that an operator could do something about.
    let again = mail::retry(&app.db, Actor::CommandLine, Some(listed[0].id), app.clock.now()).await;
    assert!(matches!(again, Err(Error::NotFound)), "{again:?}");
    let again = mail::delete_unsent(&app.db, Actor::CommandLine, Some(listed[0].id)).await;
    assert!(matches!(again, Err(Error::NotFound)), "{again:?}");
    assert_eq!(mail::delete_unsent(&app.db, Actor::CommandLine, None).await.unwrap(), 1);
    assert_eq!(app.outbox().await.len(), 1);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_mail_that_waited_while_mail_was_off_is_not_sent_after_a_day(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register(CUST, "customer").await;
    app.advance(86_400);
    assert!(app.deliver().await.is_empty());
    assert_eq!(app.outbox().await[0]["outcome"], json!("dead"));
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_sign_in_from_a_device_that_was_not_seen_before_is_told(pool: PgPool) {
    let app = TestApp::new(pool);
    app.verified_customer(CUST).await;
    for (agent, ip, told) in [
        // What a new user does first is no news.
        (FIREFOX, "198.51.100.7", false),
        (FIREFOX, "198.51.100.7", false),
        (NEWER_FIREFOX, "198.51.7.7", false),
        (SAFARI, "198.51.100.7", true),
        (SAFARI, "198.51.100.7", false),
        (FIREFOX, "203.0.113.7", true),
        (FIREFOX, "2001:db8::1", true),
        (FIREFOX, "2001:db8:ffff::1", false),
        (FIREFOX, "2001:db9::1", true),
    ] {
        assert_eq!(app.login_with(agent, ip, CUST).await.status, 200);
        let messages = app.deliver().await;
        let expected = if told { vec!["new_sign_in"] } else { vec![] };
        assert_eq!(templates(&messages), expected, "{agent} {ip}");
        if let Some(message) = messages.first() {
            let Content::NewSignIn { at, ip: Some(from) } = message.content else { panic!("{message:?}") };
            assert_eq!(from.to_string(), ip);
            assert!((app.clock.now() - at).num_seconds() < 60, "{at}");
        }
    }
    // An account whose sessions are all forgotten is not a new one.
    app.execute("DELETE FROM sessions").await;
    app.advance(2 * 86_400);
    assert_eq!(app.login_with(FIREFOX, "198.51.100.7", CUST).await.status, 200);
    assert_eq!(templates(&app.deliver().await), ["new_sign_in"]);
    // A login that nobody was told of has left no session.
    assert_eq!(app.login_with(SAFARI, "192.0.2.1", CUST).await.status, 200);
    app.execute("DELETE FROM sessions").await;
    assert!(app.deliver().await.is_empty());
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn who_has_the_password_cannot_flood_the_mailbox(pool: PgPool) {
    let app = TestApp::new(pool);
    app.verified_customer(CUST).await;
    app.login(CUST).await;
    for n in 0..12 {
        assert_eq!(app.login_with(&format!("{SAFARI} {}", "x".repeat(n)), "198.51.100.7", CUST).await.status, 200);
    }
    assert_eq!(app.deliver().await.len(), 10);
    app.advance(86_400);
    assert_eq!(app.login_with("another", "198.51.100.7", CUST).await.status, 200);
    assert_eq!(app.deliver().await.len(), 1);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn who_gets_a_password_from_an_operator_is_told_or_keeps_the_old_one(pool: PgPool) {
    let app = TestApp::new(pool);
    app.verified_customer(CUST).await;
    let id = UserId(app.user_id(CUST).await);
    let set = async |flags: &[&str]| {
        let (hash, mail, now) = (PasswordHash::from_stored("new".to_owned()), config(flags).mail, app.clock.now());
        set_password(&app.db, Actor::CommandLine, id, &hash, &mail, Locale::De, now).await
    };
    app.execute("ALTER TABLE mail_outbox RENAME TO away").await;
    set(&[]).await.unwrap_err();
    app.execute("ALTER TABLE away RENAME TO mail_outbox").await;
    app.login(CUST).await;
    app.deliver().await;
    for (flags, told) in [(&[][..], true), (&["--mail-notices=off"], false), (&MAIL_OFF, false)] {
        set(flags).await.unwrap();
        let messages = app.deliver().await;
        let found: Vec<_> = messages.iter().map(|message| (message.content.template(), message.locale)).collect();
        let expected = if told { vec![(Template::PasswordChanged, Locale::De)] } else { vec![] };
        assert_eq!(found, expected, "{flags:?}");
    }
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn nor_by_changing_it_again_and_again(pool: PgPool) {
    let app = TestApp::with(pool, &["--throttle=off"]);
    app.verified_customer(CUST).await;
    let mut tokens = app.login(CUST).await;
    let body = json!({"current_password": PASSWORD, "new_password": PASSWORD});
    for _ in 0..12 {
        tokens = pair(&app.request_as(Method::POST, "/auth/password", &tokens.access, Some(body.clone())).await);
    }
    assert_eq!(app.deliver().await.len(), 10);
    app.advance(86_400);
    tokens = app.login(CUST).await;
    app.deliver().await;
    pair(&app.request_as(Method::POST, "/auth/password", &tokens.access, Some(body)).await);
    assert_eq!(templates(&app.deliver().await), ["password_changed"]);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn there_are_no_notices_where_they_are_off(pool: PgPool) {
    let app = TestApp::with(pool, &["--mail-notices=off"]);
    app.verified_customer(CUST).await;
    let tokens = app.login(CUST).await;
    assert_eq!(app.login_with(SAFARI, "203.0.113.7", CUST).await.status, 200);
    let body = json!({"current_password": PASSWORD, "new_password": "another password"});
    assert_eq!(app.request_as(Method::POST, "/auth/password", &tokens.access, Some(body)).await.status, 200);
    let token = app.reset_token(CUST).await;
    assert_eq!(app.reset_password(&token, "yet another password").await.status, 200);
    assert!(app.deliver().await.is_empty());
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn the_mails_of_a_user_go_with_the_user(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register(CUST, "customer").await;
    app.register("two@example.com", "customer").await;
    let claimed = mail::next(&app.app).await.unwrap().unwrap().claimed;
    app.execute("DELETE FROM users WHERE email = 'cust@example.com'").await;
    mail::finish(&app.app, &claimed, &failed()).await.unwrap();
    assert_eq!(app.outbox().await.len(), 1);
    assert_eq!(app.value::<i64>("SELECT count(*) FROM mail_tokens").await, 0);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn the_worker_sends_at_once_what_its_replica_inserts_and_ends_when_asked_to(pool: PgPool) {
    let app = TestApp::new(pool);
    let mailer = Mailer::new(&app.app.config.mail).unwrap();
    let worker = tokio::spawn(mail::run(app.app.clone(), std::sync::Arc::new(mailer)));
    let started = std::time::Instant::now();
    app.register(CUST, "customer").await;
    while app.value::<i64>("SELECT count(*) FROM mail_outbox WHERE outcome = 'sent'").await == 0 {
        assert!(started.elapsed().as_secs() < 30, "not sent");
        tokio::task::yield_now().await;
    }
    app.app.stopping.cancel();
    worker.await.unwrap();
    assert_eq!(mails(&app.app, "sent", "verify_email"), 1);
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn the_age_of_the_oldest_mail_is_known_where_no_worker_runs(pool: PgPool) {
    let app = TestApp::new(pool);
    app.register(CUST, "customer").await;
    app.advance(600);
    let started = std::time::Instant::now();
    let measuring = tokio::spawn(mail::measure(app.app.clone()));
    while app.app.metrics.mail_oldest_unsent.get() < 600.0 {
        assert!(started.elapsed().as_secs() < 30, "not measured");
        tokio::task::yield_now().await;
    }
    measuring.abort();
}

#[sqlx::test(migrator = "auth::db::MIGRATOR")]
async fn a_cleanup_forgets_spent_mails_and_expired_tokens_and_no_others(pool: PgPool) {
    let app = TestApp::with(pool, &["--session-history-days=7"]);
    app.register(CUST, "customer").await;
    app.deliver().await;
    app.reset_token(CUST).await;
    app.advance(86_400);
    assert_eq!(app.forgot(CUST).await.status, 202);
    app.try_to_deliver(&failed()).await;
    let clean = async || {
        let history = app.app.config.history.sessions;
        let depth = auth::service::cleanup::Depth::Usual;
        auth::service::cleanup::clean_up(&app.db, app.clock.now(), history, depth).await.unwrap().unwrap()
    };
    let report = clean().await;
    assert_eq!((report.mails, report.mail_tokens), (0, 1), "the token to verify the address has expired");
    app.advance(6 * 86_400);
    let report = clean().await;
    assert_eq!((report.mails, report.mail_tokens), (2, 1));
    assert_eq!(app.outbox().await.len(), 1, "one is unsent");
}

#[test]
fn a_token_fits_into_a_link_and_does_not_show() {
    let token = MailToken::generate();
    assert_eq!(token.expose().len(), 43);
    assert!(token.expose().bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
    assert!(!format!("{token:?}").contains(token.expose()));
    assert_ne!(token.expose(), MailToken::generate().expose());
    assert_eq!(token.hash(), MailToken::presented(token.expose().to_owned()).hash());
}
