//! The use cases. They own decisions and transactions, and are the same for HTTP and for the command line.

pub mod auth;
pub mod cleanup;
pub mod refresh;
pub mod sessions;
pub mod users;

use std::net::IpAddr;

use crate::app::App;
use crate::db;
use crate::domain::ids::{SessionId, UserId};
use crate::domain::network::counted_network;
use crate::domain::tokens::{AccessToken, RefreshToken};
use crate::error::Error;
use users::Bearer;

/// Whether the service can do its work: the database answers.
pub async fn ready(app: &App) -> Result<(), Error> {
    Ok(db::ping(&app.db).await?)
}

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

/// As [`audit`], of what an administrator did to a user.
fn audit_admin(event: &'static str, outcome: &'static str, admin: &Bearer, user: UserId, client: IpAddr) {
    tracing::info!(
        audit = true,
        event,
        outcome,
        admin.id = admin.user.id.0,
        user.id = user.0,
        network = %counted_network(client),
        "audit"
    );
}
