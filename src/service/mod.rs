//! The use cases, one file each. They own decisions and transactions, and are the same for HTTP and for the command line.

pub mod audit;
pub mod bearer;
pub mod cleanup;
pub mod clock;
pub mod credentials;
pub mod doctor;
pub mod forgot_password;
pub mod health;
pub mod login;
pub mod logout;
pub mod mail;
pub mod migrate;
pub mod password;
pub mod refresh;
pub mod register;
pub mod reset_password;
pub mod revocations;
pub mod sessions;
pub mod settle;
mod tokens;
pub mod users;
pub mod verify;
pub mod verify_email;
