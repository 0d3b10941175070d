//! The sessions that ended lately: in memory, and how they are read.
//!
//! An access token is good until it expires, so a session that ended is remembered for that long. Others end sessions, too,
//! so the table is read again and again (`service::revocations`).
//!
//! Why no end is missed. `sessions.ended_xid` is the transaction that ended the session; a trigger sets it. A reading returns
//! its snapshot, and the next one asks for the sessions whose transaction that snapshot did not see, and its own does.
//! PostgreSQL decides by the same snapshot which rows a statement sees. So each end is in exactly one reading: in the first
//! that begins after its commit, however long the transaction was open, and whatever any clock says. Numbers of
//! transactions mean something until the server crashes or another one takes its place: then they can be used again. Nothing
//! tells of a crash but the connection, which ends. So a [`Mark`] is good for its connection only, and for the run of the
//! server that it names (behind a pooler a connection outlasts it); else everything is read anew.

use std::collections::HashSet;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use parking_lot::{Mutex, RwLock};
use sqlx::PgConnection;

use crate::domain::ids::SessionId;
use crate::domain::session::EndReason;

/// How many sessions are added under one lock, so that no request waits for a long list.
const CHUNK: usize = 1024;

/// The sessions that ended lately. Cheap to clone; all clones are one list.
#[derive(Clone, Debug)]
pub struct Revocations(Arc<RwLock<List>>);

/// Two sets: whenever the newer one is as old as a session must be remembered, it takes the place of the older one. So an
/// entry needs no time of its own, and memory is given back at once.
#[derive(Debug)]
struct List {
    newer: HashSet<SessionId>,
    older: HashSet<SessionId>,
    /// When `newer` was begun.
    begun: Instant,
    lifetime: Duration,
    /// When the last reading began, or else this list.
    read: Instant,
    /// Whether there was a reading.
    complete: bool,
}

impl List {
    fn rotate(&mut self) {
        if self.begun.elapsed() > self.lifetime {
            self.older = mem::take(&mut self.newer);
            self.begun = Instant::now();
        }
    }
}

impl Default for Revocations {
    /// Of a command, which decides about no token; the replicas read what it has done.
    fn default() -> Self {
        Self::new(Duration::ZERO)
    }
}

impl Revocations {
    /// An empty list, whose entries are remembered for `lifetime` at least.
    pub fn new(lifetime: Duration) -> Self {
        let now = Instant::now();
        let (newer, older) = (HashSet::new(), HashSet::new());
        Self(Arc::new(RwLock::new(List { newer, older, begun: now, lifetime, read: now, complete: false })))
    }

    pub fn contains(&self, id: SessionId) -> bool {
        let list = self.0.read();
        list.newer.contains(&id) || list.older.contains(&id)
    }

    /// Adds sessions that have ended. Their end must be committed: nothing takes them out again.
    pub fn add(&self, ended: &[SessionId]) {
        for chunk in ended.chunks(CHUNK) {
            self.0.write().newer.extend(chunk);
        }
    }

    /// Adds what a reading found that began at `began`.
    pub fn add_read(&self, ended: &[SessionId], began: Instant) {
        self.add(ended);
        let mut list = self.0.write();
        list.rotate();
        (list.read, list.complete) = (began, true);
    }

    /// How old the list is: for so long, sessions that ended elsewhere may be missing.
    pub fn age(&self) -> Duration {
        self.0.read().read.elapsed()
    }

    /// The same, or `None` before the first reading.
    pub fn age_if_complete(&self) -> Option<Duration> {
        let list = self.0.read();
        list.complete.then(|| list.read.elapsed())
    }

    pub fn count(&self) -> usize {
        let list = self.0.read();
        list.newer.len() + list.older.len()
    }
}

/// A write that ends sessions: why, when, and which. Whatever ends sessions (`db::sign_out`) asks for one, so that this
/// replica refuses them before it answers, and does not wait for the next reading.
#[derive(Debug)]
pub struct Ending {
    revocations: Revocations,
    pub reason: EndReason,
    pub now: DateTime<Utc>,
    /// Of all attempts at the write: where one was committed unnoticed, the next one finds nothing to end.
    ended: Mutex<Vec<SessionId>>,
}

impl Ending {
    pub fn new(revocations: &Revocations, reason: EndReason, now: DateTime<Utc>) -> Self {
        Self { revocations: revocations.clone(), reason, now, ended: Mutex::default() }
    }

    pub fn add(&self, ended: &[SessionId]) {
        self.ended.lock().extend(ended);
    }

    /// The write is committed, in whichever attempt.
    pub fn committed(&self) {
        self.revocations.add(&mem::take(&mut *self.ended.lock()));
    }
}

/// Up to where the table was read.
#[derive(Clone, Debug)]
pub struct Mark {
    /// The run of the server: when it was started.
    server: String,
    snapshot: String,
}

/// What a reading found.
#[derive(Debug)]
pub struct Reading {
    pub ended: Vec<SessionId>,
    pub mark: Mark,
}

/// Reads which sessions have ended since a reading on this connection. Without one, or where it was on another run of the
/// server: which have ended after `earliest`, and which have lost their user and not ended yet.
pub async fn read(
    connection: &mut PgConnection,
    since: Option<&Mark>,
    earliest: DateTime<Utc>,
) -> sqlx::Result<Reading> {
    let row = sqlx::query!(
        r#"
        SELECT
            pg_postmaster_start_time()::text AS "server!",
            pg_current_snapshot()::text AS "snapshot!",
            pg_is_in_recovery() AS "standby!",
            CASE WHEN pg_postmaster_start_time()::text = $1 THEN ARRAY(
                SELECT id FROM sessions
                WHERE ended_xid >= pg_snapshot_xmin($2::text::pg_snapshot)
                  AND ended_xid < pg_snapshot_xmax(pg_current_snapshot())
                  AND NOT pg_visible_in_snapshot(ended_xid, $2::text::pg_snapshot)
            ) ELSE ARRAY(
                SELECT id FROM sessions WHERE ended_at > $3 AND end_reason <> 'expired'
                UNION ALL SELECT id FROM sessions WHERE user_id IS NULL AND ended_at IS NULL
            ) END AS "ended!: Vec<SessionId>"
        "#,
        since.map(|mark| mark.server.as_str()),
        since.map(|mark| mark.snapshot.as_str()),
        earliest.naive_utc(),
    )
    .fetch_one(connection)
    .await?;
    // One may be far behind.
    if row.standby {
        return Err(sqlx::Error::Protocol("the database is a standby".to_owned()));
    }
    Ok(Reading { ended: row.ended, mark: Mark { server: row.server, snapshot: row.snapshot } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_remembered_for_its_lifetime_and_not_for_ever() {
        let revocations = Revocations::new(Duration::from_secs(100));
        let age = |seconds| revocations.0.write().begun -= Duration::from_secs(seconds);
        let (first, second) = (SessionId::generate(), SessionId::generate());
        revocations.add(&[first]);
        let read = |ended: &[SessionId]| revocations.add_read(ended, Instant::now());
        age(101);
        read(&[second]);
        assert!(revocations.contains(first) && revocations.contains(second));
        age(99);
        read(&[]);
        assert!(revocations.contains(first) && revocations.contains(second));
        age(2);
        read(&[]);
        assert_eq!(revocations.count(), 0);
    }
}
