-- The two tables as the Python service's Alembic revision 20250823142355 makes them: created where they are missing,
-- left as they are where that service made them. Everything here keeps its names, so that later migrations and both
-- services find the same constraints and sequences. That existing tables are indeed those is checked before the first
-- migration runs (src/db/schema.rs).

CREATE TABLE IF NOT EXISTS users (
    id            serial,
    email         varchar(255) NOT NULL,
    password_hash varchar(255) NOT NULL,
    role          varchar(32)  NOT NULL DEFAULT 'customer',
    created_at    timestamp    NOT NULL DEFAULT (now() AT TIME ZONE 'utc'),
    updated_at    timestamp    NOT NULL DEFAULT (now() AT TIME ZONE 'utc'),
    CONSTRAINT users_pkey PRIMARY KEY (id),
    CONSTRAINT users_email_key UNIQUE (email)
);

CREATE TABLE IF NOT EXISTS refresh_tokens (
    id         serial,
    user_id    integer     NOT NULL,
    jti        varchar(64) NOT NULL,
    token_hash varchar(64) NOT NULL,
    expires_at timestamp   NOT NULL,
    revoked    boolean     NOT NULL DEFAULT false,
    created_at timestamp   NOT NULL DEFAULT (now() AT TIME ZONE 'utc'),
    CONSTRAINT refresh_tokens_pkey PRIMARY KEY (id),
    CONSTRAINT refresh_tokens_jti_key UNIQUE (jti),
    CONSTRAINT refresh_tokens_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE
);
