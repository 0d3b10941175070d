//! Keeps the list of ended sessions up to date, so that a session that was ended anywhere is refused here within a second.
//!
//! A reading begins four times a second, on a connection of its own, which waits for no pool. One that fails or takes too
//! long costs the connection; the next one opens another. Meanwhile the list gets older, and `service::verify` says what
//! follows from that.

use std::time::{Duration, Instant};

use chrono::TimeDelta;
use sqlx::{Connection as _, PgConnection};
use tokio::time::{MissedTickBehavior, interval};

use super::verify::MAX_AGE;
use crate::app::App;
pub use crate::db::revocations::Revocations;
use crate::db::revocations::{self, Mark};
use crate::db::within;
use crate::error::Error;

const INTERVAL: Duration = Duration::from_millis(250);
/// A line that carries nothing any more is given up after this long, so that another one is there within a second.
const READ_TIMEOUT: Duration = Duration::from_millis(400);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// For the first reading on a connection: there may be no list yet, or the server may be another one, and everything is read.
const FIRST_READ_TIMEOUT: Duration = Duration::from_secs(10);

pub async fn follow(app: App, mut feed: Feed) {
    let mut reported = false;
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let outcome = feed.read(&app).await;
        let outdated = app.revocations.age() > MAX_AGE;
        if let Err(error) = &outcome {
            tracing::debug!(%error, "could not read which sessions have ended");
            if outdated && !reported {
                tracing::warn!(%error, "it is not known which sessions have ended elsewhere");
            }
        } else if reported {
            tracing::info!("it is known again which sessions have ended elsewhere");
        }
        reported = outdated;
    }
}

/// The connection, and up to where it has read.
#[derive(Debug, Default)]
pub struct Feed {
    last: Option<(PgConnection, Mark)>,
}

impl Feed {
    /// Reads what has ended since the last time, or everything that matters.
    pub async fn read(&mut self, app: &App) -> Result<(), Error> {
        // Not there again if anything fails or takes too long.
        let (mut connection, mark, timeout) = if let Some((connection, mark)) = self.last.take() {
            (connection, Some(mark), READ_TIMEOUT)
        } else {
            let options = app.db.connect_options();
            (within(CONNECT_TIMEOUT, PgConnection::connect_with(&options)).await?, None, FIRST_READ_TIMEOUT)
        };
        let began = Instant::now();
        let earliest = app.clock.now() - TimeDelta::from_std(app.config.revocation_lifetime()).unwrap_or_default();
        let reading = within(timeout, revocations::read(&mut connection, mark.as_ref(), earliest)).await?;
        app.revocations.add_read(&reading.ended, began);
        self.last = Some((connection, reading.mark));
        Ok(())
    }
}
