//! A start with wrong settings.

use std::time::Duration;

use crate::stack::{auth, finish};

#[test]
fn every_mistake_in_the_configuration_is_named_at_once() {
    let (code, output, complaint) = finish(
        auth()
            .arg("serve")
            .env("POSTGRES_DSN", "mysql://root:hidden-pass@127.0.0.1/shop")
            .env("JWT_SECRET", "too-short-to-sign")
            .env("LISTEN_ADDR", "everywhere")
            .env("ACCESS_TOKEN_EXPIRES_SECONDS", "a quarter of an hour")
            .env("REFRESH_GRACE_ANSWER", "perhaps")
            .env("THROTTLE", "sometimes")
            .env("TRUSTED_PROXIES", "10.0.0.0/99"),
        "",
        Duration::from_secs(30),
    );
    assert_eq!(code, 2, "{output}{complaint}");
    for name in [
        "POSTGRES_DSN",
        "JWT_SECRET",
        "LISTEN_ADDR",
        "ACCESS_TOKEN_EXPIRES_SECONDS",
        "REFRESH_GRACE_ANSWER",
        "THROTTLE",
        "TRUSTED_PROXIES",
    ] {
        assert!(complaint.contains(name), "{name} is not named in\n{complaint}");
    }
    for secret in ["too-short-to-sign", "hidden-pass"] {
        assert!(!complaint.contains(secret), "a secret stands in\n{complaint}");
    }
}

#[test]
fn a_start_without_any_setting_asks_for_the_two_that_production_needs() {
    let (code, output, complaint) = finish(auth().arg("serve"), "", Duration::from_secs(30));
    assert_eq!(code, 2, "{output}{complaint}");
    assert!(complaint.contains("JWT_SECRET"), "{complaint}");
    assert!(complaint.contains("POSTGRES_DSN"), "{complaint}");
}
