//! Deleting what has expired: off the request path, in small steps, on one replica at a time.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{PgConnection, PgPool};

use crate::app::App;
use crate::db;
use crate::domain::password::HashCost;
use crate::error::Error;

/// Rows a step looks at.
const STEP: i64 = 2000;
/// How often to look for foreign hashes where nothing else is to be done.
const LOOK_INTERVAL: Duration = Duration::from_mins(5);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub tokens: i64,
    pub sessions: u64,
    pub throttle_buckets: u64,
    pub mails: u64,
    pub mail_tokens: u64,
}

/// How far to look for expired tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// To the first step without any: tokens expire in about the order of their ids.
    Usual,
    Full,
}

/// Cleans up, unless another replica is doing so: then `None`.
pub async fn clean_up(
    pool: &PgPool,
    now: DateTime<Utc>,
    history: TimeDelta,
    depth: Depth,
) -> Result<Option<Report>, Error> {
    let mut connection = pool.acquire().await?;
    if !db::cleanup::try_lock(&mut connection).await? {
        return Ok(None);
    }
    let report = delete_all(&mut connection, now, history, depth).await;
    if db::cleanup::unlock(&mut connection).await.is_err() {
        // The lock goes with the connection.
        connection.detach();
    }
    Ok(Some(report?))
}

async fn delete_all(
    connection: &mut PgConnection,
    now: DateTime<Utc>,
    history: TimeDelta,
    depth: Depth,
) -> sqlx::Result<Report> {
    let mut report = Report::default();
    let mut after = 0;
    loop {
        let step = db::cleanup::delete_expired_tokens(&mut *connection, after, STEP, now).await?;
        report.tokens += step.deleted;
        after = step.last_id;
        if step.seen < STEP || (step.deleted == 0 && depth == Depth::Usual) {
            break;
        }
    }
    db::cleanup::end_orphaned_sessions(&mut *connection, now).await?;
    loop {
        let sessions = db::cleanup::delete_ended_sessions(&mut *connection, now - history, STEP).await?;
        let mails = db::mail_outbox::delete_finished(&mut *connection, now - history, STEP).await?;
        let mail_tokens = db::mail_tokens::delete_expired(&mut *connection, now, STEP).await?;
        let throttle_buckets = db::throttle::delete_full(&mut *connection, STEP, now).await?;
        report.sessions += sessions;
        report.mails += mails;
        report.mail_tokens += mail_tokens;
        report.throttle_buckets += throttle_buckets;
        if sessions + mails + mail_tokens + throttle_buckets == 0 {
            return Ok(report);
        }
    }
}

/// Cleans up for ever, at jittered intervals, so that replicas do not wake at once. Also looks which foreign hashes
/// are left, even where cleaning up is turned off.
pub async fn run(app: App) {
    loop {
        tokio::time::sleep(jittered(app.config.cleanup_interval().unwrap_or(LOOK_INTERVAL))).await;
        look_for_foreign_hashes(&app).await;
        if app.config.cleanup_interval().is_none() {
            continue;
        }
        match clean_up(&app.db, app.clock.now(), app.config.history.sessions, Depth::Usual).await {
            Ok(None) => tracing::debug!("another replica is cleaning up"),
            Ok(Some(report)) if report == Report::default() => tracing::debug!("nothing to clean up"),
            Ok(Some(Report { tokens, sessions, throttle_buckets, mails, mail_tokens })) => {
                tracing::info!(tokens, sessions, throttle_buckets, mails, mail_tokens, "cleaned up");
            }
            Err(error) => {
                tracing::warn!(%error, "clean-up failed; it will be tried again");
            }
        }
    }
}

/// Tells the hasher what password hashes there are of another scheme or at another cost than new ones.
pub async fn look_for_foreign_hashes(app: &App) {
    match db::users::hash_parameters(&app.db).await {
        Ok(parameters) => {
            let costs = parameters.iter().filter_map(|text| HashCost::from_parameters(text));
            app.hasher.set_foreign(costs.collect()).await;
        }
        Err(error) => tracing::warn!(error = %db::database_message(&error), "could not look for foreign hashes"),
    }
}

/// Varies an interval by up to a fifth.
pub(super) fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(rand::random_range(0.8..=1.2))
}
