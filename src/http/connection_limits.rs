//! Limits on connections: in all, for each peer, and a few more for probes only. With all connections taken the service
//! must still pass its health check, or it would be restarted.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use parking_lot::Mutex;

use crate::domain::network::{TrustedProxies, counted_network};

/// Connections beyond the limit, on which only probes are answered.
pub(super) const PROBE_PLACES: usize = 32;
/// How many of these one peer may have.
const PROBE_PLACES_PER_PEER: usize = 4;

/// All places. What is taken is given back when the [`Place`] is dropped.
pub(super) struct Places {
    trusted_proxies: TrustedProxies,
    general: Mutex<Group>,
    probes: Mutex<Group>,
}

#[derive(Default)]
struct Group {
    limit: usize,
    taken: usize,
    by_peer: HashMap<IpNet, usize>,
}

impl Group {
    fn of(limit: usize) -> Mutex<Self> {
        Mutex::new(Self { limit, ..Self::default() })
    }

    /// Takes a place for `peer`, which may have `share` of them.
    fn take(&mut self, peer: IpNet, share: usize) -> bool {
        let of_peer = self.by_peer.get(&peer).copied().unwrap_or(0);
        let free = self.taken < self.limit && of_peer < share;
        if free {
            self.taken += 1;
            self.by_peer.insert(peer, of_peer + 1);
        }
        free
    }

    fn give_back(&mut self, peer: IpNet) {
        self.taken -= 1;
        match self.by_peer.get_mut(&peer) {
            Some(of_peer) if *of_peer > 1 => *of_peer -= 1,
            _ => drop(self.by_peer.remove(&peer)),
        }
    }
}

/// The place of one connection.
pub(super) struct Place {
    places: Arc<Places>,
    peer: IpNet,
    pub probes_only: bool,
}

impl Places {
    pub(super) fn new(limit: usize, trusted_proxies: TrustedProxies) -> Self {
        Self { trusted_proxies, general: Group::of(limit), probes: Group::of(PROBE_PLACES) }
    }

    /// A place for a connection from `peer`, if there is one. A gateway may take all, anybody else a quarter.
    pub(super) fn take(self: &Arc<Self>, peer: IpAddr) -> Option<Place> {
        let untrusted = self.trusted_proxies.distrusts(peer);
        let peer = counted_network(peer);
        let place = |probes_only| Place { places: Arc::clone(self), peer, probes_only };
        let mut general = self.general.lock();
        let share = if untrusted { (general.limit / 4).max(1) } else { general.limit };
        if general.take(peer, share) {
            return Some(place(false));
        }
        drop(general);
        self.probes.lock().take(peer, PROBE_PLACES_PER_PEER).then(|| place(true))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let group = if self.probes_only { &self.places.probes } else { &self.places.general };
        group.lock().give_back(self.peer);
    }
}
