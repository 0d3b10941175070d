//! The audit log: who did what from where, and whether it was allowed. Ids only; addresses by their network.

use std::net::IpAddr;

use crate::domain::client::ClientInfo;
use crate::domain::ids::{SessionId, UserId};
use crate::domain::network::counted_network;

/// Who does something to an account.
#[derive(Clone, Copy, Debug)]
pub enum Actor {
    /// Its user, or somebody who tries to be.
    Client(IpAddr),
    /// An administrator, to the account of somebody else.
    Admin {
        id: UserId,
        ip: IpAddr,
    },
    CommandLine,
}

impl From<&ClientInfo> for Actor {
    fn from(client: &ClientInfo) -> Self {
        Self::Client(client.ip)
    }
}

/// Writes what was done to a user, or to one session of it.
pub(super) fn audit(
    actor: impl Into<Actor>,
    event: &'static str,
    outcome: &'static str,
    user: Option<UserId>,
    session: Option<SessionId>,
) {
    audit_with_reason(actor, event, outcome, None, user, session);
}

/// As [`audit`], with the reason of the outcome.
pub(super) fn audit_with_reason(
    actor: impl Into<Actor>,
    event: &'static str,
    outcome: &'static str,
    reason: Option<&'static str>,
    user: Option<UserId>,
    session: Option<SessionId>,
) {
    let (actor, admin, ip) = match actor.into() {
        Actor::Client(ip) => (None, None, Some(ip)),
        Actor::Admin { id, ip } => (None, Some(id.0), Some(ip)),
        Actor::CommandLine => (Some("command_line"), None, None),
    };
    tracing::info!(
        audit = true,
        event,
        outcome,
        reason,
        actor,
        admin.id = admin,
        user.id = user.map(|id| id.0),
        session.id = session.map(tracing::field::display),
        network = ip.map(|ip| tracing::field::display(counted_network(ip).addr())),
        "audit"
    );
}
