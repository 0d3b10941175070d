//! `sessions`: opening and listing them. How they end stands in [`super::sign_out`].

use chrono::{DateTime, Utc};
use ipnet::IpNet;
use sqlx::types::Uuid;
use sqlx::{PgConnection, PgExecutor};
use std::net::IpAddr;
use std::sync::Arc;

use super::batch::BatchedCall;
use super::mail_outbox::MAX_NOTICES_A_DAY;
use super::revocations::Revocations;
use super::timestamp::Timestamp;
use super::unanswered::Settle;
use super::{column, sign_out};
use crate::domain::client::ClientInfo;
use crate::domain::ids::{SessionId, UserId};
use crate::domain::password::PasswordHash;
use crate::domain::session::EndReason;
use crate::domain::throttle::Bucket;
use crate::domain::tokens::{Jti, StoredToken};

/// A session about to be opened, with its first refresh token, for a user whose password was just verified.
#[derive(Debug)]
pub struct NewSession {
    pub id: SessionId,
    pub user_id: UserId,
    pub verified: PasswordHash,
    /// What is to be stored in its stead.
    pub replacement: Option<PasswordHash>,
    pub client: ClientInfo,
    pub token: StoredToken,
    /// Where the login was counted in case its password was wrong; that is taken back.
    pub counted: Vec<Bucket>,
    /// How many live sessions the user may have with this one.
    pub max_sessions: i64,
    /// The id of the notice that the user gets if the device was not seen before; none where there are no notices.
    pub notice: Option<Uuid>,
    /// Where sessions go that end because of it.
    pub revocations: Revocations,
    pub now: DateTime<Utc>,
}

impl NewSession {
    /// Its key, for the case that the client is not told of it.
    pub fn opened(&self) -> OpenedSession {
        OpenedSession { id: self.id, jti: self.token.jti.clone() }
    }
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

impl BatchedCall for NewSession {
    /// False if the account has another hash by now: somebody changed the password or refreshed the hash in between,
    /// and the attempt has to start over.
    type Answer = bool;

    /// The row of the user is locked against such a change until the commit, so that a password change that ends the
    /// user's sessions finds this one too. Users are locked in the order of their ids, though those whose hash is
    /// replaced apart from the others.
    ///
    /// The key of a call is the session's id: a session that exists was opened by an earlier attempt.
    ///
    /// A device is a user agent, whatever its numbers, in a wide network (IPv4 /16, IPv6 /32): browsers update
    /// themselves, and providers change addresses. One was seen before if one of the last thousand sessions is from it.
    /// What a new user does first is no news.
    #[expect(clippy::too_many_lines, reason = "nearly all of it is one statement")]
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
                    $9::timestamp[], $10::timestamp[], $15::uuid[], $16::text[]
                ) AS asked (
                    id, user_id, verified, replacement, user_agent, ip, jti, token_hash, expires_at, now, notice, locale
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
            ), noticed AS (
                INSERT INTO mail_outbox (id, template, locale, user_id, session_id, created_at, due_at, give_up_at)
                SELECT notice, 'new_sign_in', locale, user_id, id, now, now, now + interval '1 day'
                FROM admitted
                WHERE notice IS NOT NULL
                  AND $17 > (
                      SELECT count(*) FROM mail_outbox AS earlier
                      WHERE earlier.user_id = admitted.user_id AND earlier.template = 'new_sign_in'
                        AND earlier.created_at > admitted.now - interval '1 day'
                  ) + (
                      SELECT count(*) FROM admitted AS before
                      WHERE before.user_id = admitted.user_id AND before.id < admitted.id
                  )
                  AND NOT EXISTS (
                      SELECT FROM (
                          SELECT user_agent, ip FROM sessions
                          WHERE sessions.user_id = admitted.user_id ORDER BY sessions.id DESC LIMIT 1000
                      ) AS recent
                      WHERE regexp_replace(recent.user_agent, '[0-9]+', '', 'g')
                            IS NOT DISTINCT FROM regexp_replace(admitted.user_agent, '[0-9]+', '', 'g')
                        AND recent.ip <<= network(set_masklen(
                            admitted.ip, CASE family(admitted.ip) WHEN 4 THEN 16 ELSE 32 END
                        ))
                  )
                  AND EXISTS (
                      SELECT FROM users
                      WHERE users.id = admitted.user_id AND (
                          users.created_at < admitted.now - interval '1 day'
                          OR EXISTS (SELECT FROM sessions WHERE sessions.user_id = admitted.user_id)
                      )
                  )
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
            column(&sessions, |session| session.token.jti.as_str()) as _,
            column(&sessions, |session| session.token.hash.as_str()) as _,
            &column(&sessions, |session| session.token.expires_at.naive_utc()),
            &column(&sessions, |session| session.now.naive_utc()),
            &column(&counted, |(id, _)| id.0),
            &column(&counted, |(_, bucket)| bucket.key.clone()),
            &column(&counted, |(_, bucket)| bucket.limit.step()),
            max_sessions,
            column(&sessions, |session| session.notice) as _,
            column(&sessions, |session| session.client.locale.label()) as _,
            MAX_NOTICES_A_DAY,
        )
        .fetch_all(&mut *connection)
        .await?;
        let crowded: Vec<UserId> = opened.iter().filter_map(|row| row.crowded_user).collect();
        sign_out::end_surplus(connection, &calls[0].revocations, &crowded, max_sessions, calls[0].now).await;
        Ok(calls.iter().map(|session| opened.iter().any(|opened| opened.id == session.id)).collect())
    }
}

/// A session by its id and its first token, whose client was not told of it. No client can use it, so it is deleted.
#[derive(Clone, Debug)]
pub struct OpenedSession {
    pub id: SessionId,
    pub jti: Jti,
}

impl Settle for OpenedSession {
    const WHAT: &str = "logins";

    async fn settle(connection: &mut PgConnection, opened: &[Arc<Self>]) -> sqlx::Result<()> {
        sqlx::query!(
            r"
            WITH tokens AS (
                DELETE FROM refresh_tokens WHERE jti = ANY ($2) AND session_id = ANY ($1) AND NOT revoked
                RETURNING session_id, user_id
            )
            DELETE FROM sessions WHERE id IN (SELECT session_id FROM tokens)
            ",
            &column(opened, |session| session.id.0),
            column(opened, |session| session.jti.as_str()) as _,
        )
        .execute(connection)
        .await
        .map(|_| ())
    }
}

pub async fn origin(
    executor: impl PgExecutor<'_>,
    id: SessionId,
) -> sqlx::Result<Option<(DateTime<Utc>, Option<IpAddr>)>> {
    let row = sqlx::query!(r#"SELECT created_at AS "created_at: Timestamp", ip FROM sessions WHERE id = $1"#, id as _)
        .fetch_optional(executor)
        .await?;
    Ok(row.map(|row| (row.created_at.0, row.ip.map(|net| net.addr()))))
}

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
            ended: row.ended_at.map(|at| (at.0, row.end_reason.as_deref().and_then(EndReason::from_label))),
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
