//! Limits on connections: in all, for each peer, and a few more for probes only. With all connections taken the service
//! must still pass its health check, or it would be restarted.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use parking_lot::Mutex;

use crate::domain::network::{TrustedProxies, counted_network, counted_site};

/// Connections beyond the limit, on which only probes are answered.
pub(super) const PROBE_CONNECTIONS: usize = 32;
/// How many of these one peer may have.
const PROBE_CONNECTIONS_PER_PEER: usize = 4;

/// Gives each connection a [`Permit`], or none.
pub(super) struct ConnectionLimits {
    limit: usize,
    trusted_proxies: TrustedProxies,
    general: Arc<Mutex<Permits>>,
    probes: Arc<Mutex<Permits>>,
}

/// The permits that are out.
#[derive(Default)]
struct Permits {
    count: usize,
    by_peer: HashMap<IpNet, usize>,
}

/// The permit of one connection, until it is dropped.
pub(super) struct Permit {
    permits: Arc<Mutex<Permits>>,
    peer: IpNet,
    pub probes_only: bool,
}

impl ConnectionLimits {
    pub(super) fn new(limit: usize, trusted_proxies: TrustedProxies) -> Self {
        Self { limit, trusted_proxies, general: Arc::default(), probes: Arc::default() }
    }

    /// A permit for a connection from `peer`. A gateway may have all, anybody else a quarter: an IPv4 address, or an IPv6
    /// /48, because one customer commonly has many /64s.
    pub(super) fn acquire(&self, peer: IpAddr) -> Option<Permit> {
        let share = if self.trusted_proxies.trusts(peer) { self.limit } else { (self.limit / 4).max(1) };
        let peer = counted_site(peer).unwrap_or_else(|| counted_network(peer));
        let general = Permit::new(&self.general, self.limit, peer, share, false);
        general.or_else(|| Permit::new(&self.probes, PROBE_CONNECTIONS, peer, PROBE_CONNECTIONS_PER_PEER, true))
    }
}

impl Permit {
    /// One of `limit` permits, of which `peer` may have `share`.
    fn new(permits: &Arc<Mutex<Permits>>, limit: usize, peer: IpNet, share: usize, probes_only: bool) -> Option<Self> {
        let mut out = permits.lock();
        let of_peer = out.by_peer.get(&peer).copied().unwrap_or(0);
        if out.count >= limit || of_peer >= share {
            return None;
        }
        out.count += 1;
        out.by_peer.insert(peer, of_peer + 1);
        Some(Self { permits: Arc::clone(permits), peer, probes_only })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut out = self.permits.lock();
        out.count -= 1;
        match out.by_peer.get_mut(&self.peer) {
            Some(of_peer) if *of_peer > 1 => *of_peer -= 1,
            _ => _ = out.by_peer.remove(&self.peer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_has_the_share_of_one_peer_whichever_of_its_networks_it_comes_from() {
        let limits = ConnectionLimits::new(8, TrustedProxies::default());
        let permits = ["2001:db8:0:1::1", "2001:db8:0:2::1", "2001:db8:0:3::1", "2001:db8:1::1", "::ffff:192.0.2.1"]
            .map(|peer| limits.acquire(peer.parse().unwrap()).unwrap());
        assert_eq!(permits.each_ref().map(|permit| permit.probes_only), [false, false, true, false, false]);
    }
}
