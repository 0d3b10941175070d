//! Whether a secret is good enough to sign tokens in production.

use crate::domain::tokens::TokenAlgorithm;

/// Secrets that everybody knows.
const KNOWN: [&str; 9] = [
    "devsecret",
    "secret",
    "changeme",
    "change-me",
    "jwt-secret",
    "sample-secret-for-development-only",
    // The samples of jwt.io.
    "your-256-bit-secret",
    "your-512-bit-secret",
    "a-string-secret-at-least-256-bits-long",
];

/// Random bytes have more even when they are written as 32 hex digits.
const MIN_DISTINCT_BYTES: usize = 8;

/// Why a secret must not sign tokens in production, and what to do; it does not repeat the secret.
pub(super) fn problem(name: &str, secret: &str, algorithm: TokenAlgorithm) -> Option<String> {
    // As long as the output of the hash (RFC 7518 section 3.2).
    let min_bytes = match algorithm {
        TokenAlgorithm::Hs256 => 32,
        TokenAlgorithm::Hs384 => 48,
        TokenAlgorithm::Hs512 => 64,
    };
    let bytes = secret.len();
    let found = if KNOWN.contains(&secret.to_lowercase().as_str()) {
        "is a well-known default".to_owned()
    } else if bytes < min_bytes {
        format!("has {bytes} bytes, and {algorithm:?} takes at least {min_bytes}").replace("Hs", "HS")
    } else if is_pattern(secret.as_bytes()) {
        "is a pattern that can be guessed".to_owned()
    } else {
        return None;
    };
    Some(format!(
        "{name} {found}: anybody could sign tokens. `openssl rand -hex {min_bytes}` makes a good one; the other services that \
         verify tokens need the same. To try things out, set APP_ENV=development"
    ))
}

/// Few different bytes, mostly one of them, a unit that is repeated, or a sequence.
fn is_pattern(secret: &[u8]) -> bool {
    let mut counts = [0_usize; 256];
    for byte in secret {
        counts[usize::from(*byte)] += 1;
    }
    let distinct = counts.iter().filter(|count| **count > 0).count();
    let most = counts.iter().max().copied().unwrap_or_default();
    let repeats = |unit: usize| secret.iter().zip(&secret[unit..]).all(|(byte, next)| byte == next);
    let steps = |step: u8| secret.windows(2).filter(|pair| pair[1] == pair[0].wrapping_add(step)).count();
    distinct < MIN_DISTINCT_BYTES
        || most * 2 > secret.len()
        || (1..=secret.len() / 2).any(repeats)
        || steps(1).max(steps(255)) * 2 > secret.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_can_be_guessed_is_refused() {
        for secret in [
            "a".repeat(32),
            " ".repeat(32),
            "devsecret".repeat(4),
            "0123456789".repeat(4),
            "devsecretdevsecretdevsecretdevsec".to_owned(),
            "abcdefghijklmnopqrstuvwxyz012345".to_owned(),
            "zyxwvutsrqponmlkjihgfedcba987654".to_owned(),
            "abababababababababababababababac".to_owned(),
            format!("My-Shop-1{}", ".".repeat(32)),
            "A-string-secret-at-least-256-bits-long".to_owned(),
        ] {
            let problem = problem("JWT_SECRET", &secret, TokenAlgorithm::Hs256).unwrap_or_else(|| panic!("{secret}"));
            assert!(problem.contains("openssl rand -hex 32") && !problem.contains(&secret), "{problem}");
        }
    }

    #[test]
    fn a_random_one_is_taken_however_it_is_written() {
        for secret in [
            "41d8d5f7c6a0b1e29f3be0a5a4f0c7d3",
            "qL8x0Zt1b3m5o7wR2yU9vA4cE6gI0kMn",
            "correct horse battery staple, and a little more",
            "3Jk!x9#Lq2@Zr7$Wm5%Tn8^Yp4&Ub6*V",
        ] {
            assert_eq!(problem("JWT_SECRET", secret, TokenAlgorithm::Hs256), None, "{secret}");
        }
    }

    #[test]
    fn the_secret_is_as_long_as_the_hash() {
        let hex = |bytes: usize| "41d8d5f7c6a0b1e29f3be0a5a4f0c7d35c27aa90de1433bb8e6f7082194d6ce1"[..bytes].to_owned();
        for (algorithm, bytes) in
            [(TokenAlgorithm::Hs256, 32), (TokenAlgorithm::Hs384, 48), (TokenAlgorithm::Hs512, 64)]
        {
            assert_eq!(problem("JWT_SECRET", &hex(bytes), algorithm), None);
            let problem = problem("JWT_SECRET", &hex(bytes - 1), algorithm).unwrap();
            assert!(problem.contains(&format!("openssl rand -hex {bytes}")), "{problem}");
        }
    }
}
