//! Sign-in service of a storefront.
//!
//! ```text
//! main      -> cli
//! cli       -> app background clock config domain error http mail passwords service telemetry
//! http      -> app background config domain error metrics service traces
//! service   -> app clock config db domain error mail passwords
//! app       -> clock coalesce config db domain error metrics passwords
//! mail      -> config domain
//! telemetry -> config traces
//! config    -> domain passwords
//! error     -> db domain passwords
//! passwords -> domain metrics traces
//! db        -> background domain traces
//! ```
//!
//! Layers that are not named on the left use no other one. `scripts/check` compares this map with the code.
//!
//! - Only [`http`] uses axum, only [`db`] has SQL, only [`domain`] has cryptography, only [`config`] reads the environment, only
//!   [`clock`] reads the time, only [`cli`] prints.
//! - [`service`] decides. A handler extracts, calls one service function, and maps the result.

pub mod app;
pub mod background;
pub mod cli;
pub mod clock;
pub mod coalesce;
pub mod config;
pub mod db;
pub mod domain;
pub mod error;
pub mod http;
pub mod mail;
pub mod metrics;
pub mod passwords;
pub mod service;
pub mod telemetry;
pub mod traces;
