-- Users with more live sessions than the limit keep the newest hundred. Otherwise the first password change of a user
-- with very many of them would take longer than a statement may.
WITH ranked AS (
    SELECT id, row_number() OVER (PARTITION BY user_id ORDER BY id DESC) AS rank
    FROM sessions
    WHERE ended_at IS NULL AND user_id IS NOT NULL
), ended AS (
    UPDATE sessions SET ended_at = now() AT TIME ZONE 'utc', end_reason = 'session_limit'
    FROM ranked
    WHERE sessions.id = ranked.id AND ranked.rank > 100 AND sessions.ended_at IS NULL
    RETURNING sessions.id, sessions.user_id
)
UPDATE refresh_tokens SET revoked = true
FROM ended
WHERE refresh_tokens.user_id = ended.user_id AND refresh_tokens.session_id = ended.id AND NOT refresh_tokens.revoked;
