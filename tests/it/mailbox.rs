//! Mails in the tests: taken from the outbox as the worker takes them, and kept in memory.

use auth::domain::mail::Template;
use auth::mail::{Content, Message, SendError};
use auth::service::mail;
use axum::http::{Request, header};
use serde_json::{Value, json};

use crate::support::{Answer, PASSWORD, TestApp};

impl TestApp {
    /// Sends all mails that are due, and gives them in their order.
    pub(crate) async fn deliver(&self) -> Vec<Message> {
        self.try_to_deliver(&Ok(())).await
    }

    /// As [`TestApp::deliver`], with another outcome of each attempt.
    pub(crate) async fn try_to_deliver(&self, outcome: &Result<(), SendError>) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Some(outgoing) = mail::next(&self.app).await.unwrap() {
            mail::finish(&self.app, &outgoing.claimed, outcome).await.unwrap();
            messages.push(outgoing.message);
        }
        messages
    }

    /// Registers a customer whose address gets verified, and forgets the mails of that.
    pub(crate) async fn verified_customer(&self, email: &str) {
        self.register(email, "customer").await;
        let token = token_of(&self.deliver().await, Template::VerifyEmail);
        assert_eq!(self.verify_email(&token).await.status, 200);
    }

    pub(crate) async fn forgot(&self, email: &str) -> Answer {
        self.post("/auth/password/forgot", json!({ "email": email })).await
    }

    /// As [`TestApp::forgot`], from another address.
    pub(crate) async fn forgot_from(&self, ip: &str, email: &str) -> Answer {
        self.post_from(ip, "/auth/password/forgot", json!({ "email": email })).await
    }

    /// The token that the user with this address gets to reset the password with.
    pub(crate) async fn reset_token(&self, email: &str) -> String {
        assert_eq!(self.forgot(email).await.status, 202);
        token_of(&self.deliver().await, Template::ResetPassword)
    }

    pub(crate) async fn reset_password(&self, token: &str, new: &str) -> Answer {
        self.post("/auth/password/reset", json!({"token": token, "new_password": new})).await
    }

    pub(crate) async fn verify_email(&self, token: &str) -> Answer {
        self.post("/auth/email/verify", json!({ "token": token })).await
    }

    /// Signs in with a user agent from an address.
    pub(crate) async fn login_with(&self, agent: &str, forwarded: &str, email: &str) -> Answer {
        let request = Request::post("/auth/login")
            .header(header::USER_AGENT, agent)
            .extension(auth::http::Peer((forwarded.parse::<std::net::IpAddr>().unwrap(), 4711).into()));
        let body = json!({"email": email, "password": PASSWORD}).to_string();
        self.send(request.body(body.into()).unwrap()).await
    }

    /// All mails that were not deleted, the oldest first.
    pub(crate) async fn outbox(&self) -> Vec<Value> {
        let rows: Value = self.value("SELECT coalesce(jsonb_agg(row ORDER BY id), '[]') FROM mail_outbox AS row").await;
        rows.as_array().unwrap().clone()
    }
}

/// The token in the one mail of its kind among these.
#[track_caller]
pub(crate) fn token_of(messages: &[Message], template: Template) -> String {
    let mut tokens = messages.iter().filter_map(|message| match &message.content {
        Content::ResetPassword { token } | Content::VerifyEmail { token } if message.content.template() == template => {
            Some(token.expose().to_owned())
        }
        _ => None,
    });
    let token = tokens.next().unwrap_or_else(|| panic!("no {template:?} among {messages:?}"));
    assert!(tokens.next().is_none(), "more than one {template:?}");
    token
}

/// What kinds of mails these are.
pub(crate) fn templates(messages: &[Message]) -> Vec<&'static str> {
    messages.iter().map(|message| message.content.template().label()).collect()
}
