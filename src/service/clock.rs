//! The clock follows the database's, so that replicas agree on the time whatever their hosts say.

use std::time::Duration;

use chrono::TimeDelta;

use crate::app::App;
use crate::db;
use crate::error::Error;

/// How often the clocks are compared.
const INTERVAL: Duration = Duration::from_mins(1);
/// A difference that somebody should know of.
const NOTEWORTHY: TimeDelta = TimeDelta::seconds(1);

/// Compares the clocks for ever.
pub async fn follow(app: App) {
    loop {
        if let Err(error) = adjust(&app).await {
            tracing::debug!(%error, "could not compare the clock with the database's");
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Moves the clock to the database's, which is taken to have told its time in the middle of a round trip. What may be
/// due to the round trip is left.
pub async fn adjust(app: &App) -> Result<(), Error> {
    let mut connection = app.db.acquire().await?;
    // The first time the server has to plan the statement.
    db::now(&mut connection).await?;
    let before = app.clock.now();
    let there = db::now(&mut connection).await?;
    let half = (app.clock.now() - before) / 2;
    let difference = there - (before + half);
    if difference.abs() > half {
        app.clock.advance(difference);
    }
    if difference.abs() > NOTEWORTHY {
        let seconds = difference.as_seconds_f64();
        tracing::warn!(seconds, "this host's clock differed from the database's, which is followed");
    }
    Ok(())
}
