//! The service through its public router: one file per URL, one database per test.
//!
//! `#[sqlx::test]` makes a migrated database for each test on the server that `DATABASE_URL` names.

mod support;

mod health;
