//! Whether a secret is good enough to sign tokens in production.

use crate::domain::tokens::TokenAlgorithm;

const WELL_KNOWN: [&str; 9] = [
    "devsecret", "secret", "changeme", "change-me", "jwt-secret", "sample-secret-for-development-only",
    // The samples of jwt.io.
    "your-256-bit-secret", "your-512-bit-secret", "a-string-secret-at-least-256-bits-long",
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
    let found = if WELL_KNOWN.contains(&secret.to_lowercase().as_str()) {
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
