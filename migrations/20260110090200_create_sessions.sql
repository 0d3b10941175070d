-- One row per login. It outlives its user (the reason a session ended is kept for a while), so deleting a user only
-- empties `user_id`; a session without a user is over.

CREATE TABLE sessions (
    id           uuid      NOT NULL,
    user_id      bigint,
    created_at   timestamp NOT NULL,
    last_seen_at timestamp NOT NULL,
    ended_at     timestamp,
    end_reason   varchar(32),
    user_agent   varchar(255),
    ip           inet,
    CONSTRAINT sessions_pkey PRIMARY KEY (id),
    CONSTRAINT sessions_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE SET NULL,
    CONSTRAINT sessions_ended_with_reason_check CHECK ((ended_at IS NULL) = (end_reason IS NULL)),
    CONSTRAINT sessions_end_reason_check CHECK (end_reason IN (
        'logout', 'logged_out_elsewhere', 'replay_detected', 'password_changed', 'by_admin', 'expired', 'user_deleted'
    ))
);

CREATE INDEX sessions_user_id_idx ON sessions (user_id);
CREATE INDEX sessions_ended_at_idx ON sessions (ended_at) WHERE ended_at IS NOT NULL;

-- What the Python service does not know has to be nullable or have a default, or its inserts would fail.
ALTER TABLE refresh_tokens
    ADD COLUMN session_id    uuid,
    ADD COLUMN used_at       timestamp,
    ADD COLUMN successor_jti varchar(64);

-- One index serves the foreign key to users, "all tokens of a session" and "all tokens of a user".
CREATE INDEX refresh_tokens_user_id_session_id_idx ON refresh_tokens (user_id, session_id);

-- Marking a token as used touches no indexed column: with room left on its page that is a HOT update. The table is
-- mostly inserts, so vacuum is told to come by number of rows and not by a share of a table that may be huge.
ALTER TABLE refresh_tokens SET (
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 50000,
    autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 200000,
    autovacuum_analyze_scale_factor = 0.02
);
