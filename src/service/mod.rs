//! The use cases. They own decisions and transactions, and are the same for HTTP and for the command line.

pub mod admin;
pub mod auth;
pub mod cleanup;
pub mod refresh;
pub mod sessions;
pub mod users;

use std::net::IpAddr;

use crate::domain::ids::{SessionId, UserId};
use crate::domain::network::counted_network;
use crate::domain::tokens::{AccessToken, RefreshToken};

/// What a sign-in or a refresh hands out.
#[derive(Clone, Debug)]
pub struct TokenPair {
    pub access: AccessToken,
    pub refresh: RefreshToken,
}

/// One line of the audit log: who did what from where, and whether it was let. Ids only; addresses by their network.
fn audit(event: &'static str, outcome: &'static str, user: Option<UserId>, session: Option<SessionId>, client: IpAddr) {
    tracing::info!(
        audit = true,
        event,
        outcome,
        user.id = user.map(|id| id.0),
        session.id = session.map(tracing::field::display),
        network = %counted_network(client),
        "audit"
    );
}
