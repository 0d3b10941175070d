//! Limits on failed logins and on registrations, by the generic cell rate algorithm: a bucket is one timestamp, the
//! theoretical arrival time (TAT). Each counted event moves it one interval ahead; the bucket is empty while it stands
//! more than `burst - 1` intervals ahead of the clock. No timer, no counter to reset, and waiting always helps.

use chrono::{DateTime, TimeDelta, Utc};
use sha2::{Digest, Sha256};
use std::net::IpAddr;

use super::email::Email;
use super::network::counted_network;

/// How many events at once, and how fast the allowance comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    pub burst: u32,
    pub interval: TimeDelta,
}

impl Limit {
    /// The wait until one more event fits, or `None` if it fits now.
    #[must_use]
    pub fn wait(&self, tat: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Option<TimeDelta> {
        let ahead = tat? - now;
        let allowance = self.interval * i32::try_from(self.burst).unwrap_or(i32::MAX) - self.interval;
        (ahead > allowance).then(|| ahead - allowance)
    }
}

/// A bucket and its limit: what an event is counted in.
#[derive(Clone, Debug)]
pub struct Bucket {
    pub key: BucketKey,
    pub limit: Limit,
}

/// The name of a bucket: a digest, so that the table holds neither addresses nor e-mails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketKey(pub Vec<u8>);

impl BucketKey {
    /// Failed logins for one account from one network. A stranger elsewhere fills another bucket, so nobody can lock
    /// a customer out.
    #[must_use]
    pub fn login_account(email: &Email, client: IpAddr) -> Self {
        Self::digest("login-account", client, email.lowered())
    }

    /// Failed logins from one network, whatever the account.
    #[must_use]
    pub fn login_network(client: IpAddr) -> Self {
        Self::digest("login-network", client, "")
    }

    /// Registrations from one network.
    #[must_use]
    pub fn register_network(client: IpAddr) -> Self {
        Self::digest("register-network", client, "")
    }

    fn digest(kind: &str, client: IpAddr, account: &str) -> Self {
        let text = format!("{kind}\0{}\0{account}", counted_network(client));
        Self(Sha256::digest(text)[..16].to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_fits_and_then_one_per_interval() {
        let limit = Limit { burst: 3, interval: TimeDelta::seconds(10) };
        let now = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        let mut tat = None;
        for _ in 0..3 {
            assert_eq!(limit.wait(tat, now), None);
            tat = Some(tat.map_or(now, |tat: DateTime<Utc>| tat.max(now)) + limit.interval);
        }
        assert_eq!(limit.wait(tat, now), Some(TimeDelta::seconds(10)));
        assert_eq!(limit.wait(tat, now + TimeDelta::seconds(9)), Some(TimeDelta::seconds(1)));
        assert_eq!(limit.wait(tat, now + TimeDelta::seconds(10)), None);
    }

    #[test]
    fn an_old_bucket_is_full_again() {
        let limit = Limit { burst: 1, interval: TimeDelta::seconds(60) };
        let now = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        assert_eq!(limit.wait(Some(now - TimeDelta::days(1)), now), None);
    }

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
    }
}
