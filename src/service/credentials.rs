//! The user and the password for the database follow the file that they come from, so that a new password needs no restart.

use std::time::Duration;

use crate::app::App;
use crate::config::{DatabaseSettings, Given};

/// How often the file is read.
const INTERVAL: Duration = Duration::from_secs(5);

/// Reads the database's address for ever. What cannot be read, such as a file that is half written, changes nothing.
pub async fn follow(app: App, settings: Given<DatabaseSettings>) {
    let mut current = app.config.database.postgres_dsn.clone();
    let mut problem = None;
    loop {
        tokio::time::sleep(INTERVAL).await;
        let settings = settings.clone();
        // A file may be slow to read.
        let Ok(read) = tokio::task::spawn_blocking(move || settings.resolve()).await else { continue };
        let found = read.map(|settings| settings.postgres_dsn).map_err(|error| error.to_string());
        if let Ok(dsn) = &found
            && !dsn.has_credentials_of(&current)
        {
            // Connections that are open go on.
            for pool in [&app.db, &app.refresh_db] {
                pool.set_connect_options(dsn.with_credentials((*pool.connect_options()).clone()));
            }
            current = dsn.clone();
            tracing::info!("the database's user or password has changed; new connections use the new one");
        }
        let before = std::mem::replace(&mut problem, found.err());
        if let Some(problem) = problem.as_ref().filter(|problem| before.as_ref() != Some(problem)) {
            tracing::warn!(problem, "could not read the database's address again");
        }
    }
}
