//! Where a request comes from: the client's address behind trusted proxies, and the network it is counted under.

use ipnet::IpNet;
use std::net::IpAddr;

/// The networks whose `X-Forwarded-For` is believed.
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies(pub Vec<IpNet>);

impl TrustedProxies {
    fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }

    /// The client's address: the peer's, or, while the hop before is a trusted proxy, the next entry of
    /// `X-Forwarded-For` read from the right. Entries to the left of the first untrusted address may be
    /// forged and are never read.
    pub fn client_address<'a>(&self, peer: IpAddr, forwarded_for: impl DoubleEndedIterator<Item = &'a str>) -> IpAddr {
        let mut client = peer.to_canonical();
        for entry in forwarded_for.rev() {
            if !self.contains(client) {
                break;
            }
            let Some(address) = parse_hop(entry) else { break };
            client = address.to_canonical();
        }
        client
    }

    /// Whether `peer` is no trusted proxy.
    #[must_use]
    pub fn distrusts(&self, peer: IpAddr) -> bool {
        !self.contains(peer.to_canonical())
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
#[must_use]
pub fn counted_network(address: IpAddr) -> IpNet {
    network(address.to_canonical(), 64)
}

/// The /48 of an IPv6 address: all /64s that one site commonly has to choose from.
#[must_use]
pub fn counted_site(address: IpAddr) -> Option<IpNet> {
    let address = address.to_canonical();
    address.is_ipv6().then(|| network(address, 48))
}

fn network(address: IpAddr, ipv6_prefix: u8) -> IpNet {
    let prefix = if address.is_ipv6() { ipv6_prefix } else { 32 };
    IpNet::new(address, prefix).expect("BUG: no prefix is longer than its address").trunc()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(trusted: &[&str], peer: &str, forwarded: &[&str]) -> String {
        let trusted = TrustedProxies(trusted.iter().map(|net| net.parse().unwrap()).collect());
        trusted.client_address(peer.parse().unwrap(), forwarded.iter().copied()).to_string()
    }

    #[test]
    fn an_untrusted_peer_is_the_client() {
        assert_eq!(client(&[], "203.0.113.9", &["198.51.100.1"]), "203.0.113.9");
        assert_eq!(client(&["10.0.0.0/8"], "203.0.113.9", &["198.51.100.1"]), "203.0.113.9");
    }

    #[test]
    fn the_list_is_read_from_the_right_past_trusted_proxies_only() {
        let trusted = &["10.0.0.0/8", "fd00::/8"];
        assert_eq!(client(trusted, "10.1.1.1", &["6.6.6.6", "198.51.100.1"]), "198.51.100.1");
        assert_eq!(client(trusted, "10.1.1.1", &["6.6.6.6", "198.51.100.1", "10.2.2.2"]), "198.51.100.1");
        assert_eq!(client(trusted, "::ffff:10.1.1.1", &["198.51.100.1:4711"]), "198.51.100.1");
        assert_eq!(client(trusted, "fd00::1", &["[2001:db8::7]"]), "2001:db8::7");
    }

    #[test]
    fn an_entry_that_is_no_address_ends_the_search() {
        assert_eq!(client(&["10.0.0.0/8"], "10.1.1.1", &["198.51.100.1", "unknown"]), "10.1.1.1");
        assert_eq!(client(&["10.0.0.0/8"], "10.1.1.1", &[]), "10.1.1.1");
    }

    #[test]
    fn an_ipv6_customer_is_counted_by_the_64_bits_of_the_network() {
        let network = |text: &str| counted_network(text.parse().unwrap()).to_string();
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64");
        assert_eq!(network("::ffff:203.0.113.9"), "203.0.113.9/32");
        assert_eq!(network("203.0.113.9"), "203.0.113.9/32");
    }

    #[test]
    fn only_an_ipv6_customer_has_a_site() {
        let site = |text: &str| counted_site(text.parse().unwrap()).map(|site| site.to_string());
        assert_eq!(site("2001:db8:1:2:3:4:5:6").as_deref(), Some("2001:db8:1::/48"));
        assert_eq!(site("203.0.113.9"), None);
        assert_eq!(site("::ffff:203.0.113.9"), None);
    }
}
