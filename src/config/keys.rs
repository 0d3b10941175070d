//! Files that hold keys for access tokens.

use std::os::unix::fs::PermissionsExt;

use crate::domain::keys::TokenKey;

/// A key, and the file that it was read from.
#[derive(Clone, Debug)]
pub struct KeyFile {
    pub path: String,
    pub key: TokenKey,
    /// Every user of the machine may read or write it.
    open_to_all: bool,
}

impl KeyFile {
    pub(super) fn warning(&self) -> Option<String> {
        (self.open_to_all && self.key.is_private()).then(|| {
            let path = &self.path;
            format!(
                "{path} holds a private key, and every user of this machine may open it; `chmod 600 {path}` mends that"
            )
        })
    }
}

/// A private key.
pub(super) fn signing_key_file(path: &str) -> Result<KeyFile, String> {
    let file = verify_key_file(path).map_err(|problem| format!("names {problem}"))?;
    if file.key.is_private() {
        Ok(file)
    } else {
        Err(format!("names {path}, which holds a public key; only a private one can sign"))
    }
}

/// A key of either kind. The sentence goes on where the path stands in it.
pub(super) fn verify_key_file(path: &str) -> Result<KeyFile, String> {
    let read = || Ok((std::fs::read_to_string(path)?, std::fs::metadata(path)?.permissions().mode()));
    let (text, mode) = read().map_err(|error: std::io::Error| format!("{path}, which cannot be read: {error}"))?;
    let key = TokenKey::parse(&text).map_err(|error| format!("{path}, which {error}"))?;
    Ok(KeyFile { path: path.to_owned(), key, open_to_all: mode & 0o006 != 0 })
}
