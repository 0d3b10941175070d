//! Where a request comes from: the client's address behind trusted proxies, and the network it is counted under.

use ipnet::IpNet;
use std::net::IpAddr;

/// The networks whose `X-Forwarded-For` is believed.
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies(pub Vec<IpNet>);

impl TrustedProxies {
    pub fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    /// The client's address: the peer's, or, while the hop before is a trusted proxy, the next entry of
    /// `X-Forwarded-For` read from the right. Entries to the left of the first untrusted address may be
    /// forged and are never read.
    pub fn client_address<'a>(&self, peer: IpAddr, forwarded_for: impl DoubleEndedIterator<Item = &'a str>) -> IpAddr {
        let mut client = peer.to_canonical();
        for entry in forwarded_for.rev() {
            if !self.trusts(client) {
                break;
            }
            let Some(address) = parse_hop(entry) else { break };
            client = address.to_canonical();
        }
        client
    }
}

/// One entry of `X-Forwarded-For`: an address, perhaps with a port, an IPv6 one perhaps in brackets.
fn parse_hop(entry: &str) -> Option<IpAddr> {
    let entry = entry.trim();
    entry
        .parse()
        .ok()
        .or_else(|| entry.parse::<std::net::SocketAddr>().ok().map(|address| address.ip()))
        .or_else(|| entry.strip_prefix('[')?.strip_suffix(']')?.parse().ok())
}

/// The network an address is counted under: itself for IPv4, its /64 for IPv6, where one customer commonly has a whole
/// /64 to choose addresses from.
pub fn counted_network(address: IpAddr) -> IpNet {
    network(address.to_canonical(), 64)
}

/// The /48 of an IPv6 address: all /64s that one site commonly has to choose from.
pub fn counted_site(address: IpAddr) -> Option<IpNet> {
    let address = address.to_canonical();
    address.is_ipv6().then(|| network(address, 48))
}

fn network(address: IpAddr, ipv6_prefix: u8) -> IpNet {
    let prefix = if address.is_ipv6() { ipv6_prefix } else { 32 };
    IpNet::new(address, prefix).expect("BUG: no prefix is longer than its address").trunc()
}
