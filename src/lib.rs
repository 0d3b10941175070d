//! Sign-in service of a storefront.
//!
//! ```text
//! main -> cli -> config, app, http, service, domain, telemetry
//! http -> service, app, domain, error        service -> app, db, passwords, domain, error
//! app  -> config, clock, coalesce, domain, error, db, passwords, metrics
//! config -> passwords, domain                db, passwords -> domain
//! clock, coalesce, domain, error, metrics, telemetry -> nothing above them
//! ```
//!
//! - [`http`] alone knows axum, [`db`] alone knows SQL, [`domain`] alone knows cryptography, [`config`] alone reads the
//!   environment, [`clock`] alone the time, [`cli`] alone prints. `scripts/check` holds these lines.
//! - [`service`] decides; a handler extracts, calls one service function, and maps the result.
//! - A feature has the same file name in every layer.

pub mod app;
pub mod cli;
pub mod clock;
pub mod coalesce;
pub mod config;
pub mod db;
pub mod domain;
pub mod error;
pub mod http;
pub mod metrics;
pub mod passwords;
pub mod service;
pub mod telemetry;
