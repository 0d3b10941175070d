//! The built binary as a process, behind the gateway it is made for and in front of the consumers of its tokens.
//!
//! `scripts/test` brings what these tests need: a database server (`DATABASE_URL`), and a virtual environment with the
//! gateway, `PyJWT`, schemathesis, TypeScript and playwright (`AUTH_E2E_VENV`, else `target/e2e-venv`), and a browser
//! (`AUTH_E2E_BROWSER`). Each test has a database, ports and processes of its own; what can be tried without a process belongs in `tests/it`.

mod cli;
#[path = "../load/clients.rs"]
mod clients;
mod configuration;
mod consumer_keys;
mod consumers;
mod database;
mod docs;
mod doctor;
#[path = "../load/forwarder.rs"]
#[expect(dead_code, reason = "others use more of it")]
mod forwarder;
mod gateway;
#[path = "../load/http.rs"]
#[expect(dead_code, reason = "the load generator uses more of it")]
mod http;
mod limits;
mod mail;
mod mail_server;
mod mail_transport;
mod openapi;
mod outage;
mod readme;
mod revocation;
mod shop;
mod shutdown;
mod stack;
mod traces;
