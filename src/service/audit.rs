//! The audit log: who did what from where, and whether it was allowed. Ids only; addresses by their network.

use std::net::IpAddr;

use crate::domain::ids::{SessionId, UserId};
use crate::domain::network::counted_network;

/// Who changes the account of somebody else.
#[derive(Clone, Copy, Debug)]
pub enum Actor {
    Admin { id: UserId, ip: IpAddr },
    CommandLine,
}

/// What a client did to its own account.
pub(super) fn audit(
    event: &'static str,
    outcome: &'static str,
    user: Option<UserId>,
    session: Option<SessionId>,
    client: IpAddr,
) {
    audit_with_reason(event, outcome, None, user, session, client);
}

/// As [`audit`], with the reason of the outcome.
pub(super) fn audit_with_reason(
    event: &'static str,
    outcome: &'static str,
    reason: Option<&'static str>,
    user: Option<UserId>,
    session: Option<SessionId>,
    client: IpAddr,
) {
    tracing::info!(
        audit = true,
        event,
        outcome,
        reason,
        user.id = user.map(|id| id.0),
        session.id = session.map(tracing::field::display),
        network = %counted_network(client).addr(),
        "audit"
    );
}

/// What was done to a user, or to one session of it, by somebody else.
pub(super) fn audit_by(
    actor: Actor,
    event: &'static str,
    outcome: &'static str,
    user: Option<UserId>,
    session: Option<SessionId>,
) {
    let (actor, admin, ip) = match actor {
        Actor::Admin { id, ip } => (None, Some(id.0), Some(ip)),
        Actor::CommandLine => (Some("command_line"), None, None),
    };
    tracing::info!(
        audit = true,
        event,
        outcome,
        actor,
        admin.id = admin,
        user.id = user.map(|id| id.0),
        session.id = session.map(tracing::field::display),
        network = ip.map(|ip| tracing::field::display(counted_network(ip).addr())),
        "audit"
    );
}
