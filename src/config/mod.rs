//! Every setting, and the only reader of the environment.
//!
//! A setting is declared once, as a field in [`settings`]: type, default, bounds and help. [`Given`] reads it from its
//! flag, its environment variable or a file, and checks all settings at once. Adding one takes its declaration, its use,
//! and its row in the README's table, which a test compares.

mod dsn;
mod given;
mod keys;
mod mail;
mod secret;
mod settings;
mod values;

pub use dsn::Dsn;
pub use given::{ConfigError, Given, Settings, without_byte_order_mark};
pub use keys::KeyFile;
pub use mail::{MailFrom, MailSettings, SmtpServer, SmtpTls};
pub use settings::{
    Config, CorsOrigins, DatabaseSettings, Environment, HistorySettings, KeySettings, ListenSettings, LogFormat,
    PasswordSettings,
};
