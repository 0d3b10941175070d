-- A session that ended because the password was reset by mail.
ALTER TABLE sessions
    DROP CONSTRAINT sessions_end_reason_check,
    ADD CONSTRAINT sessions_end_reason_check CHECK (end_reason IN (
        'logout', 'logged_out_elsewhere', 'replay_detected', 'password_changed', 'by_admin', 'expired', 'user_deleted',
        'session_limit', 'password_reset'
    ));
