-- A token table as some weeks of a shop leave it: one user in ten rows, three sessions each, chains of used tokens with
-- one unused at the end, names as random as the service's.
--
--   psql -v count=10000000 -f tests/load/tokens.sql

SET synchronous_commit = off;
SET maintenance_work_mem = '512MB';

INSERT INTO users (email, password_hash, role)
SELECT 'holder-' || number || '@example.com', '!', 'customer'
FROM generate_series(1, greatest(:count / 10, 1)) AS number;

INSERT INTO sessions (id, user_id, created_at, last_seen_at)
SELECT
    md5('session ' || users.id || ' ' || number)::uuid, users.id,
    now() AT TIME ZONE 'utc' - number * interval '1 day', now() AT TIME ZONE 'utc' - interval '1 hour'
FROM users, generate_series(0, 2) AS number
WHERE users.email LIKE 'holder-%';

-- The rows first and the indexes afterwards, or it would take an hour.
ALTER TABLE refresh_tokens DROP CONSTRAINT refresh_tokens_jti_key, DROP CONSTRAINT refresh_tokens_pkey;
ALTER TABLE refresh_tokens DISABLE TRIGGER ALL;
DROP INDEX refresh_tokens_user_id_session_id_id_idx;

WITH first AS (SELECT min(id) AS id FROM users WHERE email LIKE 'holder-%')
INSERT INTO refresh_tokens (
    user_id, jti, token_hash, expires_at, revoked, created_at, session_id, used_at, successor_jti
)
SELECT
    user_id, md5(number::text), repeat(md5(number::text), 2), now() AT TIME ZONE 'utc' + interval '29 days',
    used, now() AT TIME ZONE 'utc' - interval '1 hour', md5('session ' || user_id || ' ' || number % 3)::uuid,
    CASE WHEN used THEN now() AT TIME ZONE 'utc' - interval '30 minutes' END,
    CASE WHEN used THEN md5((number + 3)::text) END
FROM first, generate_series(1, :count) AS number,
LATERAL (SELECT
    first.id + number % greatest(:count / 10, 1) AS user_id,
    number <= :count - greatest(:count / 10, 1) AS used
) AS facts;

ALTER TABLE refresh_tokens ENABLE TRIGGER ALL;
ALTER TABLE refresh_tokens
    ADD CONSTRAINT refresh_tokens_pkey PRIMARY KEY (id),
    ADD CONSTRAINT refresh_tokens_jti_key UNIQUE (jti);
CREATE INDEX refresh_tokens_user_id_session_id_id_idx ON refresh_tokens (user_id, session_id, id);
VACUUM (ANALYZE) users, sessions, refresh_tokens;
