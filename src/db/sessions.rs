//! `sessions`, and what must happen to a session's tokens together with it.
//!
//! A session that has ended has no valid tokens: refresh checks the session's row in the statement that rotates
//! (`db::refresh_tokens`), so one update here ends it, whatever is in flight. The tokens are marked `revoked` as well,
//! for the Python service, which knows no sessions.

use chrono::{DateTime, Utc};
use ipnet::IpNet;
use sqlx::{PgConnection, PgExecutor};
use std::net::IpAddr;
use std::sync::Arc;

use super::batch::{BatchedCall, column};
use super::refresh_tokens;
use super::timestamp::Timestamp;
use super::unanswered::Settle;
use crate::domain::client::ClientInfo;
use crate::domain::ids::{SessionId, UserId};
use crate::domain::password::PasswordHash;
use crate::domain::session::EndReason;
use crate::domain::throttle::Bucket;
use crate::domain::tokens::{Jti, TokenHash};

/// A session about to be opened, with its first refresh token, for a user whose password was just verified.
#[derive(Debug)]
pub struct NewSession {
    pub id: SessionId,
    pub user_id: UserId,
    /// What the password was verified against.
    pub verified: PasswordHash,
    /// What is to be stored in its stead.
    pub replacement: Option<PasswordHash>,
    pub client: ClientInfo,
    pub jti: Jti,
    pub token_hash: TokenHash,
    pub expires_at: DateTime<Utc>,
    /// Where the login was counted in case its password was wrong; that is taken back.
    pub counted: Vec<Bucket>,
    /// How many live sessions the user may have with this one.
    pub max_sessions: i64,
    pub now: DateTime<Utc>,
}

/// A session as its user sees it.
#[derive(Clone, Debug)]
pub struct Session {
    pub id: SessionId,
    pub created_at: DateTime<Utc>,
    /// When it was opened or last refreshed.
    pub last_seen_at: DateTime<Utc>,
    pub ended: Option<(DateTime<Utc>, Option<EndReason>)>,
    pub user_agent: Option<String>,
    pub ip: Option<IpAddr>,
}

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

impl BatchedCall for NewSession {
    /// False if the account has another hash by now: somebody changed the password or refreshed the hash in between,
    /// and the attempt has to start over.
    type Answer = bool;

    /// The row of the user is locked against such a change until the commit, so that a password change that ends the
    /// user's sessions finds this one too. Users are locked in the order of their ids, though those whose hash is
    /// replaced apart from the others.
    ///
    /// The key of a call is the session's id: a session that exists was opened by an earlier attempt.
    async fn execute(connection: &mut PgConnection, calls: &[&Self]) -> sqlx::Result<Vec<bool>> {
        let mut sessions = calls.to_vec();
        sessions.sort_by_key(|session| session.user_id.0);
        let counted: Vec<(SessionId, &Bucket)> =
            sessions.iter().flat_map(|session| session.counted.iter().map(|bucket| (session.id, bucket))).collect();
        let max_sessions = calls.iter().map(|session| session.max_sessions).min().unwrap_or(i64::MAX);
        let opened = sqlx::query!(
            r#"
            WITH asked AS (
                SELECT * FROM unnest(
                    $1::uuid[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::inet[], $7::text[], $8::text[],
                    $9::timestamp[], $10::timestamp[]
                ) AS asked (
                    id, user_id, verified, replacement, user_agent, ip, jti, token_hash, expires_at, now
                )
            ), known AS (
                SELECT id FROM asked WHERE EXISTS (SELECT FROM sessions WHERE sessions.id = asked.id)
            ), rehashed AS (
                UPDATE users SET password_hash = asked.replacement, updated_at = asked.now
                FROM asked
                WHERE asked.replacement IS NOT NULL
                  AND users.id = asked.user_id AND users.password_hash = asked.verified
                RETURNING asked.id
            ), unchanged AS (
                SELECT asked.id
                FROM asked JOIN users ON users.id = asked.user_id AND users.password_hash = asked.verified
                WHERE asked.replacement IS NULL
                ORDER BY users.id FOR SHARE OF users
            ), admitted AS (
                SELECT asked.* FROM asked
                WHERE id IN (SELECT id FROM rehashed UNION ALL SELECT id FROM unchanged)
                  AND id NOT IN (SELECT id FROM known)
            ), opened AS (
                INSERT INTO sessions (id, user_id, created_at, last_seen_at, user_agent, ip)
                SELECT id, user_id, now, now, user_agent, ip FROM admitted
            ), taken_back AS (
                INSERT INTO auth_throttle AS bucket (key, tat)
                SELECT key, timestamp 'epoch' - sum(step)::bigint * interval '1 microsecond'
                FROM unnest($11::uuid[], $12::bytea[], $13::bigint[]) AS event (id, key, step)
                JOIN admitted USING (id)
                GROUP BY key
                ORDER BY key
                ON CONFLICT ON CONSTRAINT auth_throttle_pkey
                DO UPDATE SET tat = bucket.tat + (excluded.tat - timestamp 'epoch')
            ), inserted AS (
                INSERT INTO refresh_tokens (user_id, jti, token_hash, expires_at, revoked, created_at, session_id)
                SELECT user_id, jti, token_hash, expires_at, false, now, id FROM admitted
                RETURNING session_id, user_id
            )
            SELECT
                session_id AS "id!: SessionId",
                CASE WHEN (
                    SELECT count(*) FROM (
                        SELECT FROM sessions
                        WHERE sessions.user_id = inserted.user_id AND sessions.ended_at IS NULL
                        LIMIT $14
                    ) AS live
                ) + (
                    SELECT count(*) FROM admitted WHERE admitted.user_id = inserted.user_id
                ) > $14 THEN user_id END AS "crowded_user?: UserId"
            FROM inserted
            UNION ALL
            SELECT id, NULL FROM known
            "#,
            &column(&sessions, |session| session.id.0),
            &column(&sessions, |session| session.user_id.0),
            column(&sessions, |session| session.verified.as_str()) as _,
            column(&sessions, |session| session.replacement.as_ref().map(PasswordHash::as_str)) as _,
            column(&sessions, |session| session.client.user_agent.as_deref()) as _,
            &column(&sessions, |session| IpNet::from(session.client.ip)),
            column(&sessions, |session| session.jti.as_str()) as _,
            column(&sessions, |session| session.token_hash.as_str()) as _,
            &column(&sessions, |session| session.expires_at.naive_utc()),
            &column(&sessions, |session| session.now.naive_utc()),
            &counted.iter().map(|(id, _)| id.0).collect::<Vec<_>>(),
            &counted.iter().map(|(_, bucket)| bucket.key.0.clone()).collect::<Vec<_>>(),
            &counted.iter().map(|(_, bucket)| bucket.limit.step()).collect::<Vec<_>>(),
            max_sessions,
        )
        .fetch_all(&mut *connection)
        .await?;
        let mut crowded_users: Vec<UserId> = opened.iter().filter_map(|row| row.crowded_user).collect();
        crowded_users.sort_by_key(|id| id.0);
        crowded_users.dedup();
        for user_id in crowded_users {
            end_surplus(connection, user_id, max_sessions, calls[0].now).await;
        }
        Ok(calls.iter().map(|session| opened.iter().any(|opened| opened.id == session.id)).collect())
    }
}

/// A session by its id and its first token, whose client was not told of it: nobody can use it, so it goes.
#[derive(Clone, Debug)]
pub struct OpenedSession {
    pub id: SessionId,
    pub jti: Jti,
}

impl Settle for OpenedSession {
    const WHAT: &str = "logins";

    async fn settle(connection: &mut PgConnection, opened: &[Arc<Self>]) -> sqlx::Result<()> {
        let ids: Vec<_> = opened.iter().map(|session| session.id.0).collect();
        let jtis: Vec<_> = opened.iter().map(|session| session.jti.as_str()).collect();
        sqlx::query!(
            r"
            WITH tokens AS (
                DELETE FROM refresh_tokens WHERE jti = ANY ($2) AND session_id = ANY ($1) AND NOT revoked
                RETURNING session_id, user_id
            )
            DELETE FROM sessions WHERE id IN (SELECT session_id FROM tokens)
            ",
            &ids,
            jtis as _,
        )
        .execute(connection)
        .await
        .map(|_| ())
    }
}

/// A row of a list of sessions.
struct Row {
    id: SessionId,
    created_at: Timestamp,
    last_seen_at: Timestamp,
    ended_at: Option<Timestamp>,
    end_reason: Option<String>,
    user_agent: Option<String>,
    ip: Option<IpNet>,
}

impl From<Row> for Session {
    fn from(row: Row) -> Self {
        Self {
            id: row.id,
            created_at: row.created_at.0,
            last_seen_at: row.last_seen_at.0,
            ended: row.ended_at.map(|at| (at.0, row.end_reason.as_deref().and_then(EndReason::from_stored))),
            user_agent: row.user_agent,
            ip: row.ip.map(|net| net.addr()),
        }
    }
}

/// A page of a user's sessions that can still refresh, by the time they were opened, latest first; those older than
/// `after`.
///
/// Only the latest token of a session can be valid: whatever came before was used to get it.
pub async fn list_live(
    executor: impl PgExecutor<'_>,
    user_id: UserId,
    after: Option<SessionId>,
    limit: i64,
    now: DateTime<Utc>,
) -> sqlx::Result<Vec<Session>> {
    let rows = sqlx::query_as!(
        Row,
        r#"
        SELECT
            sessions.id AS "id: SessionId",
            sessions.created_at AS "created_at: Timestamp",
            greatest(sessions.last_seen_at, latest.created_at) AS "last_seen_at!: Timestamp",
            sessions.ended_at AS "ended_at: Timestamp",
            sessions.end_reason,
            sessions.user_agent,
            sessions.ip
        FROM sessions
        CROSS JOIN LATERAL (
            SELECT created_at, NOT revoked AND expires_at > $4 AS valid
            FROM refresh_tokens AS token
            WHERE token.user_id = $1 AND token.session_id = sessions.id
            ORDER BY token.id DESC
            LIMIT 1
        ) AS latest
        WHERE sessions.user_id = $1 AND sessions.ended_at IS NULL AND latest.valid
          AND sessions.id < coalesce($2, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid)
        ORDER BY sessions.id DESC
        LIMIT $3
        "#,
        user_id as _,
        after as _,
        limit,
        now.naive_utc(),
    )
    .fetch_all(executor)
    .await?;
    Ok(rows.into_iter().map(Session::from).collect())
}

/// As [`list_live`], with those that ended or cannot refresh any more.
pub async fn list_all(
    executor: impl PgExecutor<'_>,
    user_id: UserId,
    after: Option<SessionId>,
    limit: i64,
) -> sqlx::Result<Vec<Session>> {
    let rows = sqlx::query_as!(
        Row,
        r#"
        SELECT
            sessions.id AS "id: SessionId",
            sessions.created_at AS "created_at: Timestamp",
            greatest(sessions.last_seen_at, (
                SELECT created_at FROM refresh_tokens AS token
                WHERE token.user_id = $1 AND token.session_id = sessions.id
                ORDER BY token.id DESC
                LIMIT 1
            )) AS "last_seen_at!: Timestamp",
            sessions.ended_at AS "ended_at: Timestamp",
            sessions.end_reason,
            sessions.user_agent,
            sessions.ip
        FROM sessions
        WHERE sessions.user_id = $1
          AND sessions.id < coalesce($2, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid)
        ORDER BY sessions.id DESC
        LIMIT $3
        "#,
        user_id as _,
        after as _,
        limit,
    )
    .fetch_all(executor)
    .await?;
    Ok(rows.into_iter().map(Session::from).collect())
}

/// Ends one session of a user. Says whether it was alive.
pub async fn end_one(
    connection: &mut PgConnection,
    user_id: UserId,
    id: SessionId,
    reason: EndReason,
    now: DateTime<Utc>,
) -> sqlx::Result<bool> {
    Ok(end(connection, user_id, Which::One(id), reason, now).await? > 0)
}

/// Ends everything of a user but `except`, and returns how many sessions that were. Whatever ends "all" goes through
/// here.
///
/// Tokens without a session, which are the Python service's and not refreshed here yet, are revoked first: one whose
/// refresh is in flight is waited for there, and the session that it opened is among those that end then.
pub async fn end_all(
    connection: &mut PgConnection,
    user_id: UserId,
    except: Except<'_>,
    reason: EndReason,
    now: DateTime<Utc>,
) -> sqlx::Result<u64> {
    let (session, token) = match except {
        Except::Nothing => (None, None),
        Except::Session(id) => (Some(id), None),
        Except::Token(jti) => (None, Some(jti)),
    };
    refresh_tokens::revoke_sessionless(&mut *connection, user_id, token).await?;
    end(connection, user_id, Which::AllBut(session), reason, now).await
}

/// How many sessions of a user ended at exactly this time for this reason: the work of whoever has this time.
pub async fn count_ended(
    connection: &mut PgConnection,
    user_id: UserId,
    only: Option<SessionId>,
    reason: EndReason,
    now: DateTime<Utc>,
) -> sqlx::Result<u64> {
    let ended = sqlx::query_scalar!(
        r#"
        SELECT count(*) AS "count!" FROM sessions
        WHERE user_id = $1 AND ($2::uuid IS NULL OR id = $2) AND ended_at = $3 AND end_reason = $4
        "#,
        user_id as _,
        only as _,
        now.naive_utc(),
        reason.as_str(),
    );
    Ok(u64::try_from(ended.fetch_one(connection).await?).unwrap_or(0))
}

/// Ends the oldest sessions of a user that has more than `max` live ones. The new session, for which they give way, is
/// committed; so a failure is not its caller's, and is mended by the next login.
pub(super) async fn end_surplus(connection: &mut PgConnection, user_id: UserId, max: i64, now: DateTime<Utc>) {
    if let Err(error) = end(connection, user_id, Which::Surplus(max), EndReason::SessionLimit, now).await {
        let error = &error as &dyn std::error::Error;
        tracing::warn!(error, user.id = user_id.0, "could not end the oldest sessions of a user");
    }
}

/// Ends live sessions of one user and returns how many those were. What is no longer alive costs nothing.
///
/// The first statement is the end. A refresh that is in flight at that moment may still insert a successor the
/// statement cannot see; the session being over, it is worth nothing here, and the second statement, which sees it,
/// marks it for the Python service. Rows are picked by arrays, so that no estimate can lead to a scan of a table.
async fn end(
    connection: &mut PgConnection,
    user_id: UserId,
    which: Which,
    reason: EndReason,
    now: DateTime<Utc>,
) -> sqlx::Result<u64> {
    let (only, except, keep, at_once) = match which {
        Which::One(id) => (Some(id), None, 0, None),
        Which::AllBut(id) => (None, id, 0, None),
        Which::Surplus(keep) => (None, None, keep, Some(SURPLUS_AT_ONCE)),
    };
    let ended = sqlx::query_scalar!(
        r#"
        WITH doomed AS (
            SELECT id
            FROM sessions
            WHERE user_id = $1 AND ended_at IS NULL
              AND ($2::uuid IS NULL OR id = $2) AND ($3::uuid IS NULL OR id <> $3)
              AND id <= (
                  SELECT id FROM sessions WHERE user_id = $1 AND ended_at IS NULL ORDER BY id DESC OFFSET $6 LIMIT 1
              )
            ORDER BY id
            LIMIT $7
            FOR NO KEY UPDATE
        ), latest AS (
            SELECT token.id
            FROM doomed
            CROSS JOIN LATERAL (
                SELECT id FROM refresh_tokens
                WHERE user_id = $1 AND session_id = doomed.id
                ORDER BY id DESC
                LIMIT 1
            ) AS token
        ), ended AS (
            UPDATE sessions
            SET ended_at = $4, end_reason = $5, last_seen_at = greatest(last_seen_at, (
                SELECT created_at FROM refresh_tokens
                WHERE user_id = $1 AND session_id = sessions.id
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
        user_id as _,
        only as _,
        except as _,
        now.naive_utc(),
        reason.as_str(),
        keep,
        at_once,
    )
    .fetch_all(&mut *connection)
    .await?;
    // Usually once; again only while refreshes follow each other this fast.
    let mut overtaken = !ended.is_empty();
    while overtaken {
        let revoked = sqlx::query!(
            r"
            UPDATE refresh_tokens SET revoked = true
            WHERE NOT revoked AND id = ANY (ARRAY(
                SELECT latest.id
                FROM unnest($2::uuid[]) AS ended (id)
                CROSS JOIN LATERAL (
                    SELECT id FROM refresh_tokens
                    WHERE user_id = $1 AND session_id = ended.id
                    ORDER BY id DESC
                    LIMIT 1
                ) AS latest
            ))
            ",
            user_id as _,
            &ended[..] as _,
        )
        .execute(&mut *connection)
        .await?;
        overtaken = revoked.rows_affected() > 0;
    }
    Ok(ended.len() as u64)
}
