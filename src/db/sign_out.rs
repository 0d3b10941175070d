//! Ending sessions, and what must happen to their tokens together with it.
//!
//! A session that has ended has no valid tokens: refresh checks the session's row in the statement that rotates
//! (`db::refresh_tokens`), so one update here ends it, whatever is in progress. Its tokens are marked `revoked` as well, for
//! the Python service, which knows no sessions.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgExecutor};

use super::database_message;
use super::revocations::{Ending, Revocations};
use crate::domain::ids::{SessionId, UserId};
use crate::domain::session::EndReason;
use crate::domain::tokens::{Jti, RefreshClaims};

/// What is left alone where everything of a user ends.
#[derive(Clone, Copy, Debug)]
pub enum Except<'a> {
    Nothing,
    Session(SessionId),
    /// A token without a session.
    Token(&'a Jti),
}

/// Which of a user's live sessions are meant.
#[derive(Clone, Copy)]
enum Which {
    One(SessionId),
    AllBut(Option<SessionId>),
    /// All but so many of the newest.
    Surplus(i64),
}

/// How many sessions beyond the limit end at once, at most; the next login ends more.
const SURPLUS_AT_ONCE: i64 = 1000;

/// Ends one session of a user. Says whether it was alive.
pub async fn end_one(
    connection: &mut PgConnection,
    ending: &Ending,
    user_id: UserId,
    id: SessionId,
) -> sqlx::Result<bool> {
    Ok(end(connection, ending, &[user_id], Which::One(id)).await? > 0)
}

/// Ends everything of a user but `except`, and returns how many sessions that were. Whatever ends "all" goes through
/// here.
///
/// Tokens without a session, which are the Python service's and not refreshed here yet, are revoked first: one whose
/// refresh is in flight is waited for there, and the session that it opened is among those that end then.
pub async fn end_all(
    connection: &mut PgConnection,
    ending: &Ending,
    user_id: UserId,
    except: Except<'_>,
) -> sqlx::Result<u64> {
    let (session, token) = match except {
        Except::Nothing => (None, None),
        Except::Session(id) => (Some(id), None),
        Except::Token(jti) => (None, Some(jti)),
    };
    revoke_sessionless(&mut *connection, user_id, token).await?;
    end(connection, ending, &[user_id], Which::AllBut(session)).await
}

/// How many sessions of a user, or of this one, an earlier attempt at the same write has ended: at exactly its time, for
/// its reason.
pub async fn count_ended(
    connection: &mut PgConnection,
    ending: &Ending,
    user_id: UserId,
    only: Option<SessionId>,
) -> sqlx::Result<u64> {
    let ended = sqlx::query_scalar!(
        r#"
        SELECT id AS "id: SessionId" FROM sessions
        WHERE user_id = $1 AND ($2::uuid IS NULL OR id = $2) AND ended_at = $3 AND end_reason = $4
        "#,
        user_id as _,
        only as _,
        ending.now.naive_utc(),
        ending.reason.label(),
    );
    let ended = ended.fetch_all(connection).await?;
    ending.add(&ended);
    Ok(ended.len() as u64)
}

/// Ends the oldest sessions of users that have more than `max` live ones. The new session is committed already, so a
/// failure is only logged; the next login tries again.
pub(super) async fn end_surplus(
    connection: &mut PgConnection,
    revocations: &Revocations,
    users: &[UserId],
    max: i64,
    now: DateTime<Utc>,
) {
    if users.is_empty() {
        return;
    }
    let ending = Ending::new(revocations, EndReason::SessionLimit, now);
    match end(connection, &ending, users, Which::Surplus(max)).await {
        Ok(_) => ending.committed(),
        Err(error) => {
            let error = database_message(&error);
            tracing::warn!(%error, users = users.len(), "could not end the oldest sessions of users");
        }
    }
}

/// Logs a token out: its session ends, if it has one, with that for its reason, and the valid token of it is revoked. Says
/// whose it was, if the token is known.
///
/// One statement, unless a refresh overtakes it: that has inserted a successor (and, for a token of the Python service,
/// opened a session) which the statement cannot see. Then it is done once more.
pub async fn log_out(
    connection: &mut PgConnection,
    ending: &Ending,
    presented: &RefreshClaims,
) -> sqlx::Result<Option<UserId>> {
    loop {
        let row = sqlx::query!(
            r#"
            WITH presented AS (
                SELECT id, user_id, session_id FROM refresh_tokens WHERE jti = $1 AND token_hash = $2
            ), latest AS (
                SELECT token.id, token.created_at
                FROM presented
                CROSS JOIN LATERAL (
                    SELECT id, created_at FROM refresh_tokens
                    WHERE user_id = presented.user_id AND session_id = presented.session_id
                    ORDER BY id DESC
                    LIMIT 1
                ) AS token
            ), ended AS (
                UPDATE sessions
                SET ended_at = $3, end_reason = 'logout',
                    last_seen_at = greatest(sessions.last_seen_at, (SELECT created_at FROM latest))
                FROM presented
                WHERE sessions.id = presented.session_id AND sessions.ended_at IS NULL
            ), seen AS (
                SELECT id FROM refresh_tokens
                WHERE id = ANY (ARRAY(SELECT id FROM latest UNION SELECT id FROM presented)) AND NOT revoked
            ), live AS (
                SELECT id FROM refresh_tokens WHERE id = ANY (ARRAY(SELECT id FROM seen)) AND NOT revoked
                ORDER BY jti FOR NO KEY UPDATE
            ), revoked AS (
                UPDATE refresh_tokens SET revoked = true WHERE id = ANY (ARRAY(SELECT id FROM live))
            )
            SELECT
                user_id AS "user_id: UserId",
                session_id AS "session_id: SessionId",
                (SELECT count(*) FROM seen) > (SELECT count(*) FROM live) AS "overtaken!"
            FROM presented
            "#,
            presented.jti.as_str(),
            presented.hash.as_str(),
            ending.now.naive_utc(),
        )
        .fetch_optional(&mut *connection)
        .await?;
        match row {
            Some(row) if row.overtaken => {}
            row => {
                ending.add(row.as_ref().and_then(|row| row.session_id).as_slice());
                return Ok(row.map(|row| row.user_id));
            }
        }
    }
}

/// Revokes what a user has of tokens without a session, all but `except` (see [`end_all`]).
async fn revoke_sessionless(executor: impl PgExecutor<'_>, user_id: UserId, except: Option<&Jti>) -> sqlx::Result<()> {
    sqlx::query!(
        r"
        WITH live AS (
            SELECT id FROM refresh_tokens
            WHERE user_id = $1 AND session_id IS NULL AND NOT revoked AND jti IS DISTINCT FROM $2
            ORDER BY jti FOR NO KEY UPDATE
        )
        UPDATE refresh_tokens SET revoked = true WHERE id = ANY (ARRAY(SELECT id FROM live))
        ",
        user_id as _,
        except.map(Jti::as_str),
    )
    .execute(executor)
    .await
    .map(|_| ())
}

/// Ends live sessions of users and returns how many those were. What is no longer alive costs nothing.
///
/// The first statement is the end. A refresh that is in flight at that moment may still insert a successor the
/// statement cannot see; the session being over, it is worth nothing here, and the second statement, which sees it,
/// marks it for the Python service. Rows are picked by arrays, so that no estimate can lead to a scan of a table.
async fn end(connection: &mut PgConnection, ending: &Ending, users: &[UserId], which: Which) -> sqlx::Result<u64> {
    let (only, except, keep, at_once) = match which {
        Which::One(id) => (Some(id), None, 0, None),
        Which::AllBut(id) => (None, id, 0, None),
        Which::Surplus(keep) => (None, None, keep, Some(SURPLUS_AT_ONCE)),
    };
    let ended = sqlx::query_scalar!(
        r#"
        WITH doomed AS (
            SELECT id, user_id
            FROM sessions
            WHERE ended_at IS NULL AND id = ANY (ARRAY(
                SELECT chosen.id
                FROM unnest($1::bigint[]) AS owner (id)
                CROSS JOIN LATERAL (
                    SELECT id
                    FROM sessions
                    WHERE user_id = owner.id AND ended_at IS NULL
                      AND ($2::uuid IS NULL OR id = $2) AND ($3::uuid IS NULL OR id <> $3)
                      AND id <= (
                          SELECT id FROM sessions WHERE user_id = owner.id AND ended_at IS NULL
                          ORDER BY id DESC OFFSET $6 LIMIT 1
                      )
                    ORDER BY id
                    LIMIT $7
                ) AS chosen
            ))
            ORDER BY id
            FOR NO KEY UPDATE
        ), latest AS (
            SELECT token.id
            FROM doomed
            CROSS JOIN LATERAL (
                SELECT id FROM refresh_tokens
                WHERE user_id = doomed.user_id AND session_id = doomed.id
                ORDER BY id DESC
                LIMIT 1
            ) AS token
        ), ended AS (
            UPDATE sessions
            SET ended_at = $4, end_reason = $5, last_seen_at = greatest(last_seen_at, (
                SELECT created_at FROM refresh_tokens
                WHERE user_id = sessions.user_id AND session_id = sessions.id
                ORDER BY refresh_tokens.id DESC
                LIMIT 1
            ))
            WHERE id = ANY (ARRAY(SELECT id FROM doomed))
        ), live AS (
            SELECT id FROM refresh_tokens
            WHERE id = ANY (ARRAY(SELECT id FROM latest)) AND NOT revoked
            ORDER BY jti FOR NO KEY UPDATE
        ), revoked AS (
            UPDATE refresh_tokens SET revoked = true WHERE id = ANY (ARRAY(SELECT id FROM live))
        )
        SELECT id AS "id: SessionId" FROM doomed
        "#,
        users as _,
        only as _,
        except as _,
        ending.now.naive_utc(),
        ending.reason.label(),
        keep,
        at_once,
    )
    .fetch_all(&mut *connection)
    .await?;
    ending.add(&ended);
    // Usually once; again only while refreshes follow each other this fast.
    let mut overtaken = !ended.is_empty();
    while overtaken {
        let revoked = sqlx::query!(
            r"
            UPDATE refresh_tokens SET revoked = true
            WHERE NOT revoked AND id = ANY (ARRAY(
                SELECT latest.id
                FROM sessions
                CROSS JOIN LATERAL (
                    SELECT id FROM refresh_tokens
                    WHERE user_id = sessions.user_id AND session_id = sessions.id
                    ORDER BY id DESC
                    LIMIT 1
                ) AS latest
                WHERE sessions.id = ANY ($1)
            ))
            ",
            &ended[..] as _,
        )
        .execute(&mut *connection)
        .await?;
        overtaken = revoked.rows_affected() > 0;
    }
    Ok(ended.len() as u64)
}
