-- Nothing that a user or an administrator does with sessions may cost more because of what was there before: sessions
-- that have ended, and tokens that were used. Three indexes take about two seconds per million rows; the Python service
-- has to wait for so long with its writes, and notices nothing else.

-- The live sessions of a user, and the pages of all of them. The second replaces one of the user alone.
CREATE INDEX sessions_live_idx ON sessions (user_id, id) WHERE ended_at IS NULL;
CREATE INDEX sessions_user_id_id_idx ON sessions (user_id, id);
DROP INDEX sessions_user_id_idx;

-- The latest token of a session is its only one that can be valid, and tells when the session was last used. Replaces
-- an index without the id. No column changes when a token is used, so that stays a HOT update.
CREATE INDEX refresh_tokens_user_id_session_id_id_idx ON refresh_tokens (user_id, session_id, id);
DROP INDEX refresh_tokens_user_id_session_id_idx;

-- Whether an administrator would be left.
CREATE INDEX users_admin_idx ON users (id) WHERE role = 'admin';

-- A session that had to give way to newer ones of its user (MAX_SESSIONS_PER_USER).
ALTER TABLE sessions
    DROP CONSTRAINT sessions_end_reason_check,
    ADD CONSTRAINT sessions_end_reason_check CHECK (end_reason IN (
        'logout', 'logged_out_elsewhere', 'replay_detected', 'password_changed', 'by_admin', 'expired', 'user_deleted',
        'session_limit'
    ));
