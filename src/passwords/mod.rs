//! Password hashing under load: the only expensive thing the service does, and one that a request can cause.
//!
//! The schemes themselves are in [`crate::domain::password`]; here is when and where they run.

pub mod hasher;
pub mod pool;
mod timings;
