//! Types that are valid by construction, and all cryptography. Nothing here knows HTTP, SQL or the system clock.

pub mod client;
pub mod email;
pub mod ids;
mod jws;
pub mod keys;
pub mod mail;
pub mod mail_token;
pub mod network;
pub mod page;
pub mod password;
pub mod role;
pub mod session;
pub mod throttle;
pub mod tokens;
