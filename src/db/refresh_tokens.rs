//! `refresh_tokens`: rotation, and why a token was refused.
//!
//! [`Rotation`] is executed in one statement, many at once; [`classify_refused`] only reads, afterwards, what a
//! refused token was: everything it reports (used, revoked, expired, ended) can never become untrue again.

use chrono::{DateTime, Utc};
use ipnet::IpNet;
use sqlx::{PgConnection, PgExecutor};

use super::batch::{BatchedCall, column};
use crate::domain::client::ClientInfo;
use crate::domain::ids::{SessionId, UserId};
use crate::domain::role::Role;
use crate::domain::session::EndReason;
use crate::domain::tokens::{Jti, RefreshClaims, TokenHash};

/// A verified token, and the successor it is to be exchanged for.
#[derive(Clone, Debug)]
pub struct Rotation {
    pub presented: RefreshClaims,
    /// The presented token's session, or a new one for a token of the Python service.
    pub session_id: SessionId,
    pub next_jti: Jti,
    pub next_hash: TokenHash,
    pub next_expires_at: DateTime<Utc>,
    /// Of the client, for a session that is opened.
    pub client: ClientInfo,
    pub now: DateTime<Utc>,
}

/// A token was exchanged: what the new access token has to say.
#[derive(Clone, Debug)]
pub struct Rotated {
    pub user_id: UserId,
    pub role: Role,
}

impl BatchedCall for Rotation {
    /// `None` where the token was refused.
    type Answer = Option<Rotated>;

    /// A token that several calls bring goes in once, for the first of them; the others find it used, exactly as if
    /// they had come a moment later. Rows are locked in the order of their `jti`, by every batch of every replica.
    async fn execute(connection: &mut PgConnection, calls: &[&Self]) -> sqlx::Result<Vec<Self::Answer>> {
        let token = |&index: &usize| (calls[index].presented.jti.as_str(), calls[index].presented.hash.as_str());
        let mut firsts: Vec<usize> = (0..calls.len()).collect();
        // Stable: who brought a token first stays first.
        firsts.sort_by(|a, b| token(a).cmp(&token(b)));
        firsts.dedup_by(|a, b| token(a) == token(b));
        let rotations: Vec<&Self> = firsts.iter().map(|&index| calls[index]).collect();
        let mut answers = vec![None; calls.len()];
        for (index, answer) in firsts.into_iter().zip(rotate(connection, &rotations).await?) {
            answers[index] = answer;
        }
        Ok(answers)
    }
}

/// Exchanges tokens that are unused, unexpired, their user's own and of a living session for their successors, all in
/// one statement and one commit. The answer has an entry for each rotation, `None` where the token was refused.
///
/// The rotations are sorted by `jti` and hold none twice. A row locked by somebody else is waited for and then looked at
/// anew, so of two that present one token exactly one succeeds.
async fn rotate(connection: &mut PgConnection, rotations: &[&Rotation]) -> sqlx::Result<Vec<Option<Rotated>>> {
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
            RETURNING presented.*, token.user_id, owner.role
        ), opened AS (
            INSERT INTO sessions (id, user_id, created_at, last_seen_at, user_agent, ip)
            SELECT session_id, user_id, now, now, user_agent, ip FROM rotated WHERE NOT names_session
        ), inserted AS (
            INSERT INTO refresh_tokens (user_id, jti, token_hash, expires_at, revoked, created_at, session_id)
            SELECT user_id, next_jti, next_hash, next_expires_at, false, now, session_id FROM rotated
        )
        SELECT position AS "position!", user_id AS "user_id!: UserId", role AS "role!: Role" FROM rotated
        "#,
        column(rotations, |rotation| rotation.presented.jti.as_str()) as _,
        column(rotations, |rotation| rotation.presented.hash.as_str()) as _,
        column(rotations, |rotation| rotation.presented.subject.as_str()) as _,
        &column(rotations, |rotation| rotation.presented.session_id.is_some()),
        &column(rotations, |rotation| rotation.session_id.0),
        column(rotations, |rotation| rotation.next_jti.as_str()) as _,
        column(rotations, |rotation| rotation.next_hash.as_str()) as _,
        &column(rotations, |rotation| rotation.next_expires_at.naive_utc()),
        column(rotations, |rotation| rotation.client.user_agent.as_deref()) as _,
        &column(rotations, |rotation| IpNet::from(rotation.client.ip)),
        &column(rotations, |rotation| rotation.now.naive_utc()),
    )
    .fetch_all(connection)
    .await?;
    let mut answers = vec![None; rotations.len()];
    for row in rows {
        // `WITH ORDINALITY` counts from one.
        let answer = usize::try_from(row.position - 1).ok().and_then(|index| answers.get_mut(index));
        *answer.expect("BUG: the statement numbers the rotations it was given") =
            Some(Rotated { user_id: row.user_id, role: row.role });
    }
    Ok(answers)
}

/// What a refused token is.
#[derive(Debug)]
pub enum TokenState {
    /// No such row, another hash, or not the subject's.
    Unknown,
    /// The token's session is over.
    SessionEnded(EndReason),
    Expired,
    /// Revoked without having been used: logged out, or rotated by the Python service.
    Revoked,
    /// Exchanged before.
    Used(Box<Used>),
}

/// A token that was exchanged before, in a session that lives.
#[derive(Debug)]
pub struct Used {
    pub used_at: DateTime<Utc>,
    pub session_id: SessionId,
    pub user_id: UserId,
    pub role: Role,
    pub successor: Option<Successor>,
}

/// What a token was exchanged for: enough to sign the very same token again.
#[derive(Debug)]
pub struct Successor {
    pub jti: Jti,
    pub token_hash: TokenHash,
    pub expires_at: DateTime<Utc>,
}

/// Says why a [`Rotation`] was refused.
pub async fn classify_refused(
    executor: impl PgExecutor<'_>,
    presented: &RefreshClaims,
    now: DateTime<Utc>,
) -> sqlx::Result<TokenState> {
    let row = sqlx::query!(
        r#"
        SELECT
            owner.id AS "user_id?: UserId",
            owner.role AS "role?: Role",
            token.expires_at AS "expires_at?",
            token.used_at,
            token.session_id AS "session_id: SessionId",
            session.end_reason AS "end_reason?",
            successor.jti AS "successor_jti?: Jti",
            successor.token_hash AS "successor_hash?: TokenHash",
            successor.expires_at AS "successor_expires_at?"
        FROM (SELECT) AS always
        LEFT JOIN refresh_tokens AS token ON token.jti = $1 AND token.token_hash = $2
        LEFT JOIN users AS owner ON owner.id = token.user_id AND owner.email = $3
        LEFT JOIN sessions AS session ON session.id = coalesce(token.session_id, $4)
        LEFT JOIN refresh_tokens AS successor ON successor.jti = token.successor_jti
        "#,
        presented.jti.as_str(),
        presented.hash.as_str(),
        presented.subject,
        presented.session_id as _,
    )
    .fetch_one(executor)
    .await?;
    if let Some(reason) = row.end_reason.as_deref().and_then(EndReason::from_stored) {
        return Ok(TokenState::SessionEnded(reason));
    }
    let (Some(user_id), Some(role), Some(expires_at)) = (row.user_id, row.role, row.expires_at) else {
        return Ok(TokenState::Unknown);
    };
    if expires_at.and_utc() <= now {
        return Ok(TokenState::Expired);
    }
    let (Some(used_at), Some(session_id)) = (row.used_at, row.session_id) else { return Ok(TokenState::Revoked) };
    let successor = match (row.successor_jti, row.successor_hash, row.successor_expires_at) {
        (Some(jti), Some(token_hash), Some(expires_at)) => {
            Some(Successor { jti, token_hash, expires_at: expires_at.and_utc() })
        }
        _ => None,
    };
    Ok(TokenState::Used(Box::new(Used { used_at: used_at.and_utc(), session_id, user_id, role, successor })))
}

/// The user and session a token belongs to, whatever its state.
#[derive(Debug)]
pub struct Owner {
    pub user_id: UserId,
    pub session_id: Option<SessionId>,
    /// Whether the token could still be exchanged.
    pub current: bool,
}

/// Finds whose a token is.
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
            NOT token.revoked AND token.expires_at > $3
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

/// Logs a token out: its session ends, if it has one, and every token of it is revoked. Says whose it was, if the token
/// is known.
///
/// One statement, unless a refresh overtakes it: that has inserted a successor (and, for a token of the Python service,
/// opened a session) which the statement cannot see. Then it is done once more.
pub async fn log_out(
    connection: &mut PgConnection,
    presented: &RefreshClaims,
    now: DateTime<Utc>,
) -> sqlx::Result<Option<UserId>> {
    loop {
        let row = sqlx::query!(
            r#"
            WITH presented AS (
                SELECT id, user_id, session_id FROM refresh_tokens WHERE jti = $1 AND token_hash = $2
            ), ended AS (
                UPDATE sessions
                SET ended_at = $3, end_reason = 'logout', last_seen_at = greatest(sessions.last_seen_at, (
                    SELECT max(created_at) FROM refresh_tokens
                    WHERE refresh_tokens.user_id = presented.user_id
                      AND refresh_tokens.session_id = presented.session_id
                ))
                FROM presented
                WHERE sessions.id = presented.session_id AND sessions.ended_at IS NULL
            ), seen AS (
                SELECT token.id FROM refresh_tokens AS token, presented
                WHERE token.user_id = presented.user_id AND NOT token.revoked
                  AND (token.session_id = presented.session_id OR token.id = presented.id)
            ), live AS (
                SELECT id FROM refresh_tokens WHERE id IN (SELECT id FROM seen) AND NOT revoked
                ORDER BY jti FOR NO KEY UPDATE
            ), revoked AS (
                UPDATE refresh_tokens SET revoked = true WHERE id IN (SELECT id FROM live)
            )
            SELECT
                user_id AS "user_id: UserId",
                (SELECT count(*) FROM seen) > (SELECT count(*) FROM live) AS "overtaken!"
            FROM presented
            "#,
            presented.jti.as_str(),
            presented.hash.as_str(),
            now.naive_utc(),
        )
        .fetch_optional(&mut *connection)
        .await?;
        match row {
            Some(row) if row.overtaken => {}
            row => return Ok(row.map(|row| row.user_id)),
        }
    }
}

/// Revokes what a user has of tokens without a session, which are the Python service's and not refreshed here yet;
/// all but `except`.
pub async fn revoke_sessionless(
    executor: impl PgExecutor<'_>,
    user_id: UserId,
    except: Option<&Jti>,
) -> sqlx::Result<u64> {
    sqlx::query!(
        r"
        UPDATE refresh_tokens SET revoked = true
        WHERE user_id = $1 AND session_id IS NULL AND NOT revoked AND jti IS DISTINCT FROM $2
        ",
        user_id as _,
        except.map(Jti::as_str),
    )
    .execute(executor)
    .await
    .map(|done| done.rows_affected())
}
