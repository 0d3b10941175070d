//! The audit log: who did what from where, and whether it was allowed. Ids only; addresses by their network.

use std::net::IpAddr;

use super::bearer::Bearer;
use crate::domain::ids::{SessionId, UserId};
use crate::domain::network::counted_network;

/// What a client did to its own account.
pub(super) fn audit(
    event: &'static str,
    outcome: &'static str,
    user: Option<UserId>,
    session: Option<SessionId>,
    client: IpAddr,
) {
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

/// What an administrator did to a user.
pub(super) fn audit_admin(event: &'static str, outcome: &'static str, admin: &Bearer, user: UserId, client: IpAddr) {
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
