//! Limits on logins, registrations, mails and refreshes, by the generic cell rate algorithm: a bucket is one timestamp,
//! the theoretical arrival time (TAT). Each event moves it one interval ahead; the bucket is full when it stands `burst`
//! intervals ahead of the clock. No timer, no counter to reset, and waiting always helps.
//!
//! Here is what is counted in which bucket. The counting itself is done by statements (`db::users::Lookup`,
//! `db::mail_outbox::insert`), so that all replicas share it.

use chrono::TimeDelta;
use ipnet::IpNet;
use sha2::{Digest, Sha256};
use std::net::IpAddr;

use super::email::Email;
use super::mail::Template;
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
    pub fn step(&self) -> i64 {
        self.interval.num_microseconds().unwrap_or(i64::MAX)
    }

    /// How far all that fit at once move it.
    pub fn size(&self) -> i64 {
        self.step().saturating_mul(self.burst.into())
    }
}

// The limits. A network is an IPv4 address or an IPv6 /64, a site an IPv6 /48.

/// Failed logins for one account from one network. An attacker elsewhere fills another bucket, so nobody can lock a customer
/// out.
pub const LOGIN_ACCOUNT: Limit = Limit::new(20, 60);
/// Failed logins for one account from all networks that it was never used from.
pub const LOGIN_ACCOUNT_ELSEWHERE: Limit = Limit::new(60, 30);
/// Failed logins from one network. Wide, because a whole company or mobile carrier may share an address.
pub const LOGIN_NETWORK: Limit = Limit::new(1000, 2);
pub const LOGIN_SITE: Limit = Limit::new(2000, 1);
pub const REGISTER_NETWORK: Limit = Limit::new(500, 10);
pub const REGISTER_SITE: Limit = Limit::new(1000, 5);
/// Mails to one address, from all networks together.
pub const MAIL_ADDRESS: Limit = Limit::new(3, 3600);
/// Mails that one network asks for.
pub const MAIL_NETWORK: Limit = Limit::new(10, 600);
pub const MAIL_SITE: Limit = Limit::new(20, 300);
/// Refreshes of one session after its login. Not in a bucket: each token hands it on to its successor
/// (`db::refresh_tokens`).
pub const REFRESH_SESSION: Limit = Limit::new(60, 10);

/// What a login is counted in.
pub fn login(email: &Email, client: IpAddr) -> Vec<Bucket> {
    let mut buckets = login_of_account(email, client).to_vec();
    buckets.push(Bucket::new("login-network", Some(counted_network(client)), "", LOGIN_NETWORK));
    buckets.extend(counted_site(client).map(|site| Bucket::new("login-site", Some(site), "", LOGIN_SITE)));
    buckets
}

/// As [`login`], only for this account.
pub fn login_of_account(email: &Email, client: IpAddr) -> [Bucket; 2] {
    let (account, network) = (email.lowered(), Some(counted_network(client)));
    let elsewhere = Bucket::new("login-account-elsewhere", None, account, LOGIN_ACCOUNT_ELSEWHERE);
    [Bucket::new("login-account", network, account, LOGIN_ACCOUNT), Bucket { spares_known_networks: true, ..elsewhere }]
}

/// What a registration is counted in.
pub fn register(client: IpAddr) -> Vec<Bucket> {
    let mut buckets = vec![Bucket::new("register-network", Some(counted_network(client)), "", REGISTER_NETWORK)];
    buckets.extend(counted_site(client).map(|site| Bucket::new("register-site", Some(site), "", REGISTER_SITE)));
    buckets
}

/// What a mail is counted in that a client asks for.
pub fn mail(template: Template, email: &Email, client: IpAddr) -> Vec<Bucket> {
    let mut buckets = vec![
        Bucket::new(template.label(), None, email.lowered(), MAIL_ADDRESS),
        Bucket::new("mail-network", Some(counted_network(client)), "", MAIL_NETWORK),
    ];
    buckets.extend(counted_site(client).map(|site| Bucket::new("mail-site", Some(site), "", MAIL_SITE)));
    buckets
}

/// A bucket and its limit: what an event is counted in.
#[derive(Clone, Debug)]
pub struct Bucket {
    /// Its name: a digest, so that the table holds neither addresses nor e-mails.
    pub key: Vec<u8>,
    pub limit: Limit,
    /// Whether events do not count that come from a network the account was used from.
    pub spares_known_networks: bool,
}

impl Bucket {
    fn new(kind: &str, network: Option<IpNet>, account: &str, limit: Limit) -> Self {
        let network = network.map(|network| network.to_string()).unwrap_or_default();
        let key = Sha256::digest(format!("{kind}\0{network}\0{account}"))[..16].to_vec();
        Self { key, limit, spares_known_networks: false }
    }
}
