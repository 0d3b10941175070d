//! The clock follows the database's, so that replicas agree on the time whatever their hosts say.

use std::time::Duration;

use chrono::TimeDelta;
use sqlx::PgConnection;

use crate::app::App;
use crate::clock::Clock;
use crate::db;
use crate::error::Error;

const INTERVAL: Duration = Duration::from_mins(1);
/// A difference that somebody should know of.
pub(super) const NOTEWORTHY: TimeDelta = TimeDelta::seconds(1);

pub async fn follow(app: App) {
    loop {
        if let Err(error) = adjust(&app).await {
            tracing::debug!(%error, "could not compare the clock with the database's");
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// By how much the database's clock is ahead of this one, which is taken to have told its time in the middle of a round
/// trip. What may be due to the round trip counts as nothing.
pub async fn difference(connection: &mut PgConnection, clock: &Clock) -> sqlx::Result<TimeDelta> {
    // The first time the server has to plan the statement.
    db::server::now(connection).await?;
    let before = clock.now();
    let there = db::server::now(connection).await?;
    let half = (clock.now() - before) / 2;
    let difference = there - (before + half);
    Ok(if difference.abs() > half { difference } else { TimeDelta::zero() })
}

pub async fn adjust(app: &App) -> Result<(), Error> {
    let difference = difference(&mut *app.db.acquire().await?, &app.clock).await?;
    app.clock.advance(difference);
    if difference.abs() > NOTEWORTHY {
        let seconds = difference.as_seconds_f64();
        tracing::warn!(seconds, "this host's clock differed from the database's, which is followed");
    }
    Ok(())
}
