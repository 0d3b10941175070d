//! `refresh_tokens`: rotation, and why a token was refused.
//!
//! [`Rotation`] is executed in one statement, many at once; [`classify_refused`] only reads, afterwards, what a
//! refused token was: everything it reports (used, revoked, expired, ended) can never become untrue again.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use ipnet::IpNet;
use sqlx::{PgConnection, PgExecutor};

use super::batch::BatchedCall;
use super::revocations::Revocations;
use super::timestamp::Timestamp;
use super::unanswered::Settle;
use super::{column, sign_out};
use crate::domain::client::ClientInfo;
use crate::domain::ids::{SessionId, UserId};
use crate::domain::role::Role;
use crate::domain::session::EndReason;
use crate::domain::throttle::Limit;
use crate::domain::tokens::{Jti, RefreshClaims, StoredToken, TokenHash};

/// A verified token, and the successor it is to be exchanged for.
#[derive(Clone, Debug)]
pub struct Rotation {
    pub presented: RefreshClaims,
    /// The presented token's session, or a new one for a token of the Python service.
    pub session_id: SessionId,
    pub next: StoredToken,
    /// Of the client, for a session that is opened.
    pub client: ClientInfo,
    /// How many live sessions the user may have, if this opens one.
    pub max_sessions: i64,
    /// Where sessions go that end because of that.
    pub revocations: Revocations,
    /// Of the session.
    pub limit: Option<Limit>,
    pub now: DateTime<Utc>,
}

/// What became of a [`Rotation`].
#[derive(Clone, Debug)]
pub enum Decision {
    /// The token was exchanged for this successor, in this attempt or in an earlier one. The new access token gets this
    /// role.
    Rotated(Role),
    /// It was not; [`classify_refused`] tells why.
    Refused {
        /// Whether the token was unused when the statement began: another request was being decided at that moment.
        overlapped: bool,
    },
}

impl BatchedCall for Rotation {
    type Answer = Decision;

    /// A token that several calls bring goes in once, for the first of them. Where that exchanges it, the others find it used
    /// while they were executed; else they get the same refusal. Rows are locked in the order of their `jti`, by every batch
    /// of every replica.
    ///
    /// The key of a rotation is the `jti` of the successor: a token whose successor it is was exchanged by an earlier attempt.
    async fn execute(connection: &mut PgConnection, calls: &[&Self]) -> sqlx::Result<Vec<Self::Answer>> {
        let token = |index: usize| (calls[index].presented.jti.as_str(), calls[index].presented.hash.as_str());
        let mut order: Vec<usize> = (0..calls.len()).collect();
        // Stable: who brought a token first stays first.
        order.sort_by(|a, b| token(*a).cmp(&token(*b)));
        let of_one_token: Vec<&[usize]> = order.chunk_by(|a, b| token(*a) == token(*b)).collect();
        let rotations: Vec<&Self> = of_one_token.iter().map(|indices| calls[indices[0]]).collect();
        let mut answers = vec![Decision::Refused { overlapped: false }; calls.len()];
        for (indices, answer) in of_one_token.into_iter().zip(rotate(connection, &rotations).await?) {
            let overlapped = !matches!(answer, Decision::Refused { overlapped: false });
            for &other in &indices[1..] {
                answers[other] = Decision::Refused { overlapped };
            }
            answers[indices[0]] = answer;
        }
        Ok(answers)
    }
}

/// Exchanges tokens that are unused, unexpired, their user's own and of a living session for their successors, all in
/// one statement and one commit.
///
/// The rotations are sorted by `jti` and hold none twice. A row locked by somebody else is waited for and then looked at
/// anew, so of two that present one token exactly one succeeds. The second half of the last part runs only where a
/// token was refused; it sees the rows as they were when the statement began.
async fn rotate(connection: &mut PgConnection, rotations: &[&Rotation]) -> sqlx::Result<Vec<Decision>> {
    let max_sessions = rotations.iter().map(|rotation| rotation.max_sessions).min().unwrap_or(i64::MAX);
    let rows = sqlx::query!(
        r#"
        WITH presented AS (
            SELECT * FROM unnest(
                $1::text[], $2::text[], $3::text[], $4::bool[], $5::uuid[], $6::text[], $7::text[], $8::timestamp[],
                $9::text[], $10::inet[], $11::timestamp[]
            ) WITH ORDINALITY AS presented (
                jti, token_hash, subject, names_session, session_id, next_jti, next_hash, next_expires_at,
                user_agent, ip, now, position
            )
        ), rotated AS (
            UPDATE refresh_tokens AS token
            SET revoked = true,
                used_at = presented.now,
                successor_jti = presented.next_jti,
                session_id = presented.session_id
            FROM presented
            LEFT JOIN sessions AS session ON session.id = presented.session_id AND session.ended_at IS NULL,
            users AS owner
            WHERE token.jti = presented.jti
              AND token.token_hash = presented.token_hash
              AND NOT token.revoked AND token.used_at IS NULL AND token.expires_at > presented.now
              AND CASE WHEN presented.names_session
                  THEN token.session_id = presented.session_id AND session.user_id = token.user_id
                  ELSE token.session_id IS NULL END
              AND owner.id = token.user_id AND owner.email = presented.subject
              -- One that is twice as far ahead as the limit allows was set by a clock that was wrong.
              AND (coalesce(token.refresh_tat, token.created_at + $13::bigint * interval '1 microsecond') BETWEEN
                presented.now + ($14::bigint + 1) * interval '1 microsecond'
                AND presented.now + 2 * $14::bigint * interval '1 microsecond') IS NOT TRUE
            RETURNING presented.*, token.user_id, owner.role,
                coalesce(token.refresh_tat, token.created_at + $13::bigint * interval '1 microsecond') AS tat
        ), opened AS (
            INSERT INTO sessions (id, user_id, created_at, last_seen_at, user_agent, ip)
            SELECT session_id, user_id, now, now, user_agent, ip FROM rotated WHERE NOT names_session
        ), inserted AS (
            INSERT INTO refresh_tokens (user_id, jti, token_hash, expires_at, revoked, created_at, session_id, refresh_tat)
            SELECT
                user_id, next_jti, next_hash, next_expires_at, false, now, session_id,
                CASE WHEN tat > now AND tat <= now + 2 * $14::bigint * interval '1 microsecond'
                    THEN tat + $13::bigint * interval '1 microsecond' END
            FROM rotated
        )
        SELECT
            position AS "position!",
            role AS "role?: Role",
            false AS "overlapped!",
            CASE WHEN NOT names_session AND (
                SELECT count(*) FROM (
                    SELECT FROM sessions
                    WHERE sessions.user_id = rotated.user_id AND sessions.ended_at IS NULL
                    LIMIT $12
                ) AS live
            ) >= $12 THEN user_id END AS "crowded_user?: UserId"
        FROM rotated
        UNION ALL
        SELECT
            presented.position,
            CASE WHEN token.successor_jti = presented.next_jti THEN owner.role END,
            NOT token.revoked,
            NULL
        FROM unnest($1::text[], $2::text[], $6::text[])
            WITH ORDINALITY AS presented (jti, token_hash, next_jti, position)
        JOIN refresh_tokens AS token ON token.jti = presented.jti AND token.token_hash = presented.token_hash
        JOIN users AS owner ON owner.id = token.user_id
        WHERE (SELECT count(*) FROM rotated) < cardinality($1)
          AND presented.position NOT IN (SELECT position FROM rotated)
        "#,
        column(rotations, |rotation| rotation.presented.jti.as_str()) as _,
        column(rotations, |rotation| rotation.presented.hash.as_str()) as _,
        column(rotations, |rotation| rotation.presented.subject.as_str()) as _,
        &column(rotations, |rotation| rotation.presented.session_id.is_some()),
        &column(rotations, |rotation| rotation.session_id.0),
        column(rotations, |rotation| rotation.next.jti.as_str()) as _,
        column(rotations, |rotation| rotation.next.hash.as_str()) as _,
        &column(rotations, |rotation| rotation.next.expires_at.naive_utc()),
        column(rotations, |rotation| rotation.client.user_agent.as_deref()) as _,
        &column(rotations, |rotation| IpNet::from(rotation.client.ip)),
        &column(rotations, |rotation| rotation.now.naive_utc()),
        max_sessions,
        rotations[0].limit.map(|limit| limit.step()),
        rotations[0].limit.map(|limit| limit.size()),
    )
    .fetch_all(&mut *connection)
    .await?;
    let crowded: Vec<UserId> = rows.iter().filter_map(|row| row.crowded_user).collect();
    sign_out::end_surplus(connection, &rotations[0].revocations, &crowded, max_sessions, rotations[0].now).await;
    let mut answers = vec![Decision::Refused { overlapped: false }; rotations.len()];
    for row in rows {
        // `WITH ORDINALITY` counts from one.
        let answer = usize::try_from(row.position - 1).ok().and_then(|index| answers.get_mut(index));
        *answer.expect("BUG: the statement numbers the rotations it was given") = match row.role {
            Some(role) => Decision::Rotated(role),
            None => Decision::Refused { overlapped: row.overlapped },
        };
    }
    Ok(answers)
}

/// What a refused token is.
#[derive(Debug)]
pub enum TokenState {
    /// Good, but its session has refreshed too often; it may again after this long.
    Throttled(TimeDelta),
    /// No such row, another hash, or not the subject's.
    Unknown,
    SessionEnded(EndReason),
    Expired,
    /// Revoked without having been used: logged out, or rotated by the Python service.
    Revoked,
    /// Exchanged before.
    Used(Box<Used>),
}

impl TokenState {
    /// The name in the audit log.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Throttled(_) => "throttled",
            Self::Unknown => "unknown",
            Self::SessionEnded(reason) => reason.label(),
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Used(_) => "used",
        }
    }
}

/// A token that was exchanged before, in a session that lives.
#[derive(Debug)]
pub struct Used {
    /// `None` if no client was told of the exchange ([`Exchange`]).
    pub used_at: Option<DateTime<Utc>>,
    pub session_id: SessionId,
    pub user_id: UserId,
    pub role: Role,
    pub successor: Option<Successor>,
}

/// What a token was exchanged for.
#[derive(Debug)]
pub struct Successor {
    pub token: StoredToken,
    pub used_at: Option<DateTime<Utc>>,
}

pub async fn classify_refused(
    executor: impl PgExecutor<'_>,
    presented: &RefreshClaims,
    limit: Option<Limit>,
    now: DateTime<Utc>,
) -> sqlx::Result<TokenState> {
    let row = sqlx::query!(
        r#"
        SELECT
            owner.id AS "user_id?: UserId",
            owner.role AS "role?: Role",
            token.expires_at AS "expires_at?: Timestamp",
            token.used_at AS "used_at: Timestamp",
            token.session_id AS "session_id: SessionId",
            token.revoked AS "revoked?",
            coalesce(token.refresh_tat, token.created_at + $5::bigint * interval '1 microsecond') AS "tat: Timestamp",
            session.end_reason AS "end_reason?",
            token.successor_jti AS "exchanged_for: Jti",
            successor.jti AS "successor_jti?: Jti",
            successor.token_hash AS "successor_hash?: TokenHash",
            successor.expires_at AS "successor_expires_at?: Timestamp",
            successor.used_at AS "successor_used_at?: Timestamp"
        FROM (SELECT) AS always
        LEFT JOIN refresh_tokens AS token ON token.jti = $1 AND token.token_hash = $2
        LEFT JOIN users AS owner ON owner.id = token.user_id AND owner.email = $3
        LEFT JOIN sessions AS session ON session.id = coalesce(token.session_id, $4)
        LEFT JOIN refresh_tokens AS successor ON successor.jti = token.successor_jti
            -- One that was revoked without having been exchanged is worth nothing.
            AND (NOT successor.revoked OR successor.successor_jti IS NOT NULL)
        "#,
        presented.jti.as_str(),
        presented.hash.as_str(),
        presented.subject,
        presented.session_id as _,
        limit.map(|limit| limit.step()),
    )
    .fetch_one(executor)
    .await?;
    if let Some(reason) = row.end_reason.as_deref().and_then(EndReason::from_label) {
        return Ok(TokenState::SessionEnded(reason));
    }
    let (Some(user_id), Some(role), Some(expires_at)) = (row.user_id, row.role, row.expires_at) else {
        return Ok(TokenState::Unknown);
    };
    if expires_at.0 <= now {
        return Ok(TokenState::Expired);
    }
    if let (Some(false), Some(limit), Some(tat)) = (row.revoked, limit, row.tat) {
        let excess = tat.0 - now - limit.interval * limit.burst;
        if excess > TimeDelta::zero() {
            return Ok(TokenState::Throttled(excess));
        }
    }
    let (Some(_), Some(session_id)) = (row.exchanged_for, row.session_id) else { return Ok(TokenState::Revoked) };
    let successor = match (row.successor_jti, row.successor_hash, row.successor_expires_at) {
        (Some(jti), Some(hash), Some(expires_at)) => {
            let token = StoredToken { jti, hash, expires_at: expires_at.0 };
            Some(Successor { token, used_at: row.successor_used_at.map(|at| at.0) })
        }
        _ => None,
    };
    let used_at = row.used_at.map(|at| at.0);
    Ok(TokenState::Used(Box::new(Used { used_at, session_id, user_id, role, successor })))
}

/// The exchange of a token, by its key, whose client was not told of it.
///
/// No client has the successor, and none may lose its session: the token is answered with its successor until the
/// successor is used. From then on it counts as used, as if that had been the time of the exchange. In the row this state
/// is a successor without `used_at`. (For the Python service it is revoked.)
///
/// Nothing is deleted: a client that has the successor after all, from another replica or within the grace, keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    pub presented: Jti,
    pub next: Jti,
}

impl Settle for Exchange {
    const WHAT: &str = "refreshes";

    async fn settle(connection: &mut PgConnection, exchanges: &[Arc<Self>]) -> sqlx::Result<()> {
        sqlx::query!(
            r"
            WITH untold AS (
                SELECT token.id
                FROM unnest($1::text[], $2::text[]) AS exchange (presented, next)
                JOIN refresh_tokens AS token ON token.jti = exchange.presented AND token.successor_jti = exchange.next
                WHERE token.used_at IS NOT NULL
                FOR NO KEY UPDATE OF token SKIP LOCKED
            )
            UPDATE refresh_tokens SET used_at = NULL WHERE id IN (SELECT id FROM untold)
            ",
            column(exchanges, |exchange| exchange.presented.as_str()) as _,
            column(exchanges, |exchange| exchange.next.as_str()) as _,
        )
        .execute(connection)
        .await
        .map(|_| ())
    }
}

/// The user and session a token belongs to, whatever its state.
#[derive(Debug)]
pub struct Owner {
    pub user_id: UserId,
    pub session_id: Option<SessionId>,
    /// Whether the token could still be exchanged, or would get its successor because no client was told of that
    /// ([`Exchange`]).
    pub current: bool,
}

pub async fn owner(
    executor: impl PgExecutor<'_>,
    presented: &RefreshClaims,
    now: DateTime<Utc>,
) -> sqlx::Result<Option<Owner>> {
    sqlx::query_as!(
        Owner,
        r#"
        SELECT
            token.user_id AS "user_id: UserId",
            token.session_id AS "session_id: SessionId",
            (NOT token.revoked OR (token.used_at IS NULL AND EXISTS (
                SELECT FROM refresh_tokens AS successor
                WHERE successor.jti = token.successor_jti AND successor.used_at IS NULL
            ))) AND token.expires_at > $3
                AND (token.session_id IS NULL OR EXISTS (
                    SELECT FROM sessions WHERE sessions.id = token.session_id AND sessions.ended_at IS NULL
                )) AS "current!"
        FROM refresh_tokens AS token
        WHERE token.jti = $1 AND token.token_hash = $2
        "#,
        presented.jti.as_str(),
        presented.hash.as_str(),
        now.naive_utc(),
    )
    .fetch_optional(executor)
    .await
}
