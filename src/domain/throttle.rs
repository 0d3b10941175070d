//! Limits on logins, registrations and refreshes, by the generic cell rate algorithm: a bucket is one timestamp, the theoretical
//! arrival time (TAT). Each event moves it one interval ahead; the bucket is full when it stands `burst` intervals ahead
//! of the clock. No timer, no counter to reset, and waiting always helps.
//!
//! Here is what is counted in which bucket. The counting itself is a statement (`db::users::Lookup`), so that all
//! replicas share it.

use chrono::TimeDelta;
use ipnet::IpNet;
use sha2::{Digest, Sha256};
use std::net::IpAddr;

use super::email::Email;
use super::network::{counted_network, counted_site};

/// How many events at once, and how fast the allowance comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    pub burst: i32,
    pub interval: TimeDelta,
}

impl Limit {
    const fn new(burst: i32, seconds: i64) -> Self {
        Self { burst, interval: TimeDelta::seconds(seconds) }
    }

    /// How far one event moves a bucket, in microseconds.
    #[must_use]
    pub fn step(&self) -> i64 {
        self.interval.num_microseconds().unwrap_or(i64::MAX)
    }

    /// How far all that fit at once move it.
    #[must_use]
    pub fn size(&self) -> i64 {
        self.step().saturating_mul(self.burst.into())
    }
}

/// The limits. A network is an IPv4 address or an IPv6 /64, a site an IPv6 /48.
#[derive(Clone, Copy, Debug)]
pub struct Throttle {
    /// Failed logins for one account from one network. An attacker elsewhere fills another bucket, so nobody can lock a
    /// customer out.
    pub login_account: Limit,
    /// Failed logins for one account from all networks that it was never used from.
    pub login_account_elsewhere: Limit,
    /// Failed logins from one network. Wide, because a whole company or mobile carrier may share an address.
    pub login_network: Limit,
    /// Failed logins from one site.
    pub login_site: Limit,
    /// Registrations from one network.
    pub register_network: Limit,
    /// Registrations from one site.
    pub register_site: Limit,
    /// Refreshes of one session after its login. Not in a bucket: each token hands it on to its successor
    /// (`db::refresh_tokens`).
    pub refresh_session: Limit,
}

/// The limits in force where the throttle is on.
pub const THROTTLE: Throttle = Throttle {
    login_account: Limit::new(20, 60),
    login_account_elsewhere: Limit::new(60, 30),
    login_network: Limit::new(1000, 2),
    login_site: Limit::new(2000, 1),
    register_network: Limit::new(500, 10),
    register_site: Limit::new(1000, 5),
    refresh_session: Limit::new(60, 10),
};

impl Throttle {
    /// What a login is counted in.
    #[must_use]
    pub fn login(&self, email: &Email, client: IpAddr) -> Vec<Bucket> {
        let elsewhere = Bucket {
            spares_known_networks: true,
            ..Bucket::new(BucketKey::login_account_elsewhere(email), self.login_account_elsewhere)
        };
        let mut buckets = vec![
            Bucket::new(BucketKey::login_account(email, client), self.login_account),
            elsewhere,
            Bucket::new(BucketKey::login_network(client), self.login_network),
        ];
        buckets.extend(BucketKey::login_site(client).map(|key| Bucket::new(key, self.login_site)));
        buckets
    }

    /// What a registration is counted in.
    #[must_use]
    pub fn register(&self, client: IpAddr) -> Vec<Bucket> {
        let mut buckets = vec![Bucket::new(BucketKey::register_network(client), self.register_network)];
        buckets.extend(BucketKey::register_site(client).map(|key| Bucket::new(key, self.register_site)));
        buckets
    }
}

/// A bucket and its limit: what an event is counted in.
#[derive(Clone, Debug)]
pub struct Bucket {
    pub key: BucketKey,
    pub limit: Limit,
    /// Whether events do not count that come from a network the account was used from.
    pub spares_known_networks: bool,
}

impl Bucket {
    fn new(key: BucketKey, limit: Limit) -> Self {
        Self { key, limit, spares_known_networks: false }
    }
}

/// The name of a bucket: a digest, so that the table holds neither addresses nor e-mails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketKey(pub Vec<u8>);

impl BucketKey {
    #[must_use]
    pub fn login_account(email: &Email, client: IpAddr) -> Self {
        Self::digest("login-account", Some(counted_network(client)), email.lowered())
    }

    #[must_use]
    pub fn login_account_elsewhere(email: &Email) -> Self {
        Self::digest("login-account-elsewhere", None, email.lowered())
    }

    #[must_use]
    pub fn login_network(client: IpAddr) -> Self {
        Self::digest("login-network", Some(counted_network(client)), "")
    }

    #[must_use]
    pub fn login_site(client: IpAddr) -> Option<Self> {
        counted_site(client).map(|site| Self::digest("login-site", Some(site), ""))
    }

    #[must_use]
    pub fn register_network(client: IpAddr) -> Self {
        Self::digest("register-network", Some(counted_network(client)), "")
    }

    #[must_use]
    pub fn register_site(client: IpAddr) -> Option<Self> {
        counted_site(client).map(|site| Self::digest("register-site", Some(site), ""))
    }

    fn digest(kind: &str, network: Option<IpNet>, account: &str) -> Self {
        let network = network.map(|network| network.to_string()).unwrap_or_default();
        Self(Sha256::digest(format!("{kind}\0{network}\0{account}"))[..16].to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_differ_by_kind_account_and_network() {
        let email = |text| Email::parse(text).unwrap();
        let here: IpAddr = "2001:db8::1".parse().unwrap();
        let next_door: IpAddr = "2001:db8::2".parse().unwrap();
        let away: IpAddr = "2001:db8:0:1::1".parse().unwrap();
        let key = BucketKey::login_account(&email("A@example.com"), here);
        assert_eq!(key, BucketKey::login_account(&email("a@example.com"), next_door));
        assert_ne!(key, BucketKey::login_account(&email("a@example.com"), away));
        assert_ne!(key, BucketKey::login_account(&email("b@example.com"), here));
        assert_ne!(BucketKey::login_network(here), BucketKey::register_network(here));
        assert_eq!(BucketKey::login_site(here), BucketKey::login_site(away));
        assert_ne!(BucketKey::login_site(here), BucketKey::register_site(here));
    }
}
