use super::*;
use crate::domain::password::Argon2Cost;
use crate::passwords::pool::PoolSettings;

fn server() -> Server {
    Server {
        version_number: 150_018,
        version: "15.18".to_owned(),
        encoding: "UTF8".to_owned(),
        is_local: false,
        uses_tls: true,
        is_read_only: false,
        synchronous_commit: "on".to_owned(),
        max_connections: 97,
        may_create: true,
        closed_tables: Vec::new(),
        lost: Vec::new(),
    }
}

#[track_caller]
fn assert_found(finding: &Finding, level: Level, cure: &str) {
    assert_eq!(finding.level, level, "{finding:?}");
    assert!(finding.cure.as_deref().unwrap_or_default().contains(cure), "{finding:?}");
}

#[test]
fn a_server_is_judged_by_what_it_says() {
    for check in [check_version, check_encryption, check_writes, check_commit] {
        assert_found(&check(&server()), Level::Ok, "");
    }
    let old = Server { version_number: 140_019, version: "14.19".to_owned(), ..server() };
    assert_found(&check_version(&old), Level::Fail, "PostgreSQL 15");
    let ascii = Server { encoding: "SQL_ASCII".to_owned(), ..server() };
    assert_found(&check_version(&ascii), Level::Fail, "ENCODING");
    assert_found(&check_encryption(&Server { uses_tls: false, ..server() }), Level::Warn, "sslmode");
    assert_found(&check_encryption(&Server { uses_tls: false, is_local: true, ..server() }), Level::Ok, "");
    assert_found(&check_connections(&server(), 90), Level::Ok, "");
    assert_found(&check_connections(&server(), 95), Level::Fail, "max_connections");
}

#[test]
fn a_clock_may_differ_by_a_second() {
    assert_found(&judge_clock(TimeDelta::milliseconds(-900)), Level::Ok, "");
    assert_found(&judge_clock(TimeDelta::milliseconds(-1100)), Level::Warn, "NTP");
}

#[test]
fn a_hash_is_judged_by_its_time_and_by_the_memory_there_is() {
    let pool = PoolSettings { concurrency: 4, max_wait: Duration::from_secs(2) };
    let settings = HasherSettings { pool, cost: Argon2Cost { m_kib: 7168, t: 5 }, rehash: true };
    let judged = |ms, limit| judge_hashing(settings, Duration::from_millis(ms), limit);
    let usual = judged(20, None);
    assert_found(&usual, Level::Ok, "");
    assert_eq!(usual.found, "a hash takes 20.0 ms here, so expect 200 logins a second, with 28 MiB for hashing");
    assert_found(&judged(20, Some(64 << 20)), Level::Ok, "");
    assert_found(&judged(20, Some(32 << 20)), Level::Fail, "PASSWORD_HASH_CONCURRENCY");
    assert_found(&judged(300, None), Level::Warn, "PASSWORD_ARGON2_PASSES");
    assert_found(&judged(1, None), Level::Warn, "cheap to guess");
}
