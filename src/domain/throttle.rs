//! Limits on logins, registrations, mails and refreshes, by the generic cell rate algorithm: a bucket is one timestamp, the theoretical
//! arrival time (TAT). Each event moves it one interval ahead; the bucket is full when it stands `burst` intervals ahead
//! of the clock. No timer, no counter to reset, and waiting always helps.
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
    /// Mails to one address, from all networks together.
    pub mail_address: Limit,
    /// Mails that one network asks for.
    pub mail_network: Limit,
    /// Mails that one site asks for.
    pub mail_site: Limit,
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
    mail_address: Limit::new(3, 3600),
    mail_network: Limit::new(10, 600),
    mail_site: Limit::new(20, 300),
    refresh_session: Limit::new(60, 10),
};

impl Throttle {
    /// What a login is counted in.
    pub fn login(&self, email: &Email, client: IpAddr) -> Vec<Bucket> {
        let mut buckets = self.login_of_account(email, client).to_vec();
        buckets.push(Bucket::new("login-network", Some(counted_network(client)), "", self.login_network));
        buckets.extend(counted_site(client).map(|site| Bucket::new("login-site", Some(site), "", self.login_site)));
        buckets
    }

    /// As [`Throttle::login`], only for this account.
    pub fn login_of_account(&self, email: &Email, client: IpAddr) -> [Bucket; 2] {
        let (account, network) = (email.lowered(), Some(counted_network(client)));
        let elsewhere = Bucket::new("login-account-elsewhere", None, account, self.login_account_elsewhere);
        [
            Bucket::new("login-account", network, account, self.login_account),
            Bucket { spares_known_networks: true, ..elsewhere },
        ]
    }

    /// What a registration is counted in.
    pub fn register(&self, client: IpAddr) -> Vec<Bucket> {
        let network = Some(counted_network(client));
        let mut buckets = vec![Bucket::new("register-network", network, "", self.register_network)];
        let site = counted_site(client);
        buckets.extend(site.map(|site| Bucket::new("register-site", Some(site), "", self.register_site)));
        buckets
    }

    /// What a mail is counted in that a client asks for.
    pub fn mail(&self, template: Template, email: &Email, client: IpAddr) -> Vec<Bucket> {
        let mut buckets = vec![
            Bucket::new(template.label(), None, email.lowered(), self.mail_address),
            Bucket::new("mail-network", Some(counted_network(client)), "", self.mail_network),
        ];
        buckets.extend(counted_site(client).map(|site| Bucket::new("mail-site", Some(site), "", self.mail_site)));
        buckets
    }
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
