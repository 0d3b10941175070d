//! The service through its public router: one file per URL, one database per test.
//!
//! `#[sqlx::test]` makes a migrated database for each test on the server that `DATABASE_URL` names.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod forge;
#[path = "../load/forwarder.rs"]
#[expect(dead_code, reason = "the drills use more of it")]
mod forwarder;
mod key_files;
mod mailbox;
mod python_service;
mod recorder;
mod support;

mod background;
mod batch;
mod bearer;
mod bodies;
mod claim_attacks;
mod cleanup;
mod clock;
mod contract;
mod email;
mod forgot_password;
mod health;
mod http;
mod key_attacks;
mod keys;
mod login;
mod login_batch;
mod logout;
mod lost_connection;
mod mail;
mod metrics;
mod migrations;
mod openapi;
mod origin;
mod password;
mod password_pool;
mod refresh;
mod refresh_adopted;
mod refresh_batch;
mod refresh_reuse;
mod register;
mod reset_password;
mod revocations;
mod secrets;
mod server;
mod sessions;
mod sessions_limit;
mod sessions_race;
mod settings;
mod signing_keys;
mod statements;
mod takeover;
mod throttle;
mod timestamps;
mod token_attacks;
mod users;
mod users_admin;
mod verify;
mod verify_email;
