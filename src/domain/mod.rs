//! Types that are valid by construction, and all cryptography. Nothing here knows HTTP, SQL or the system clock.

pub mod email;
pub mod gate;
pub mod hasher;
mod idna;
pub mod ids;
pub mod network;
pub mod password;
pub mod role;
pub mod session;
pub mod throttle;
pub mod tokens;
