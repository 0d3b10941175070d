//! `auth key`.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use secrecy::ExposeSecret;
use serde_json::json;

use super::CliError;
use super::output::{print, print_json, print_row};
use crate::config::{Given, KeyFile, KeySettings};
use crate::domain::keys::{self, KeyAlgorithm, TokenKey};

#[derive(Subcommand)]
pub(super) enum KeyCommand {
    /// Make a private key for `JWT_SIGNING_KEY_FILE`
    Generate {
        /// What it signs with
        #[arg(long, default_value = "ed25519",
            value_parser = PossibleValuesParser::new(["ed25519", "es256"]).map(|name| algorithm(&name)))]
        algorithm: KeyAlgorithm,
        /// The file to write; it must not exist
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// List the keys of access tokens: id, algorithm, what it does, file
    List {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        keys: Given<KeySettings>,
    },
}

fn algorithm(name: &str) -> KeyAlgorithm {
    if name == "es256" { KeyAlgorithm::Es256 } else { KeyAlgorithm::Ed25519 }
}

pub(super) fn run(command: KeyCommand) -> Result<(), CliError> {
    match command {
        KeyCommand::Generate { algorithm, out } => generate(algorithm, &out),
        KeyCommand::List { json, keys } => list(&keys.resolve()?, json),
    }
}

fn generate(algorithm: KeyAlgorithm, path: &Path) -> Result<(), CliError> {
    let failed = |error: &dyn std::fmt::Display| CliError::Failed(format!("{}: {error}", path.display()));
    let pem = keys::generate(algorithm);
    let key = TokenKey::parse(pem.expose_secret()).map_err(|error| failed(&error))?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(|e| failed(&e))?;
    file.write_all(pem.expose_secret().as_bytes()).and_then(|()| file.sync_all()).map_err(|e| failed(&e))?;
    print(&format!("{}: {} key {}", path.display(), key.algorithm(), key.kid()))
}

fn list(keys: &KeySettings, json: bool) -> Result<(), CliError> {
    let signing = keys.signing.iter().map(|file| (file, "signs, verifies"));
    let all = signing.chain(keys.verifying.iter().map(|file| (file, "verifies")));
    if json {
        let described = |(file, does): (&KeyFile, &str)| {
            let key = &file.key;
            json!({"kid": key.kid(), "algorithm": key.algorithm(), "signs": does != "verifies", "path": file.path})
        };
        return print_json(&all.map(described).collect::<Vec<_>>());
    }
    for (file, does) in all {
        print_row(&[file.key.kid(), file.key.algorithm(), does, &file.path])?;
    }
    if keys.signing.is_none() { print("the secret signs access tokens") } else { Ok(()) }
}
