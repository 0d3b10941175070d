-- Mails: each is written in the transaction of its cause, and sent by any replica afterwards. A row holds no token.
CREATE TABLE mail_outbox (
    -- Becomes the Message-ID. Ordered by time (UUID version 7).
    id          uuid        NOT NULL,
    template    varchar(32) NOT NULL,
    locale      varchar(8)  NOT NULL,
    -- The recipient; or the address that a reset was asked for, whose account is looked up when the mail is sent.
    user_id     bigint,
    email       varchar(255),
    -- The sign-in that a notice is about.
    session_id  uuid,
    created_at  timestamp   NOT NULL,
    -- When it is to be sent. While a replica is sending it: when another one may.
    due_at      timestamp   NOT NULL,
    give_up_at  timestamp   NOT NULL,
    attempts    integer     NOT NULL DEFAULT 0,
    -- Since when a replica has been sending it.
    claimed_at  timestamp,
    finished_at timestamp,
    outcome     varchar(16),
    last_error  varchar(500),
    CONSTRAINT mail_outbox_pkey PRIMARY KEY (id),
    CONSTRAINT mail_outbox_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT mail_outbox_recipient_check CHECK ((user_id IS NULL) <> (email IS NULL)),
    CONSTRAINT mail_outbox_template_check CHECK (template IN (
        'reset_password', 'verify_email', 'password_changed', 'password_reset', 'new_sign_in'
    )),
    CONSTRAINT mail_outbox_finished_with_outcome_check CHECK ((finished_at IS NULL) = (outcome IS NULL)),
    CONSTRAINT mail_outbox_outcome_check CHECK (outcome IN ('sent', 'dead'))
);

CREATE INDEX mail_outbox_due_at_idx ON mail_outbox (due_at) WHERE finished_at IS NULL;
CREATE INDEX mail_outbox_finished_at_idx ON mail_outbox (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX mail_outbox_user_id_idx ON mail_outbox (user_id);

-- The one token of a user for a purpose, which is the template of the mail that it is sent in.
CREATE TABLE mail_tokens (
    user_id       bigint       NOT NULL,
    purpose       varchar(32)  NOT NULL,
    mail_id       uuid         NOT NULL,
    -- The address that the token shows to be the user's.
    email         varchar(255) NOT NULL,
    -- SHA-256, and that of the attempt before to send the same mail, which may have arrived.
    token_hash    bytea        NOT NULL,
    previous_hash bytea,
    expires_at    timestamp    NOT NULL,
    CONSTRAINT mail_tokens_pkey PRIMARY KEY (user_id, purpose),
    CONSTRAINT mail_tokens_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT mail_tokens_purpose_check CHECK (purpose IN ('reset_password', 'verify_email'))
);

CREATE INDEX mail_tokens_token_hash_idx ON mail_tokens (token_hash);
CREATE INDEX mail_tokens_previous_hash_idx ON mail_tokens (previous_hash) WHERE previous_hash IS NOT NULL;
CREATE INDEX mail_tokens_expires_at_idx ON mail_tokens (expires_at);
