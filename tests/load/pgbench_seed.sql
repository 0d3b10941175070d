-- A user, a session and an unused refresh token for each pgbench client of one round, whose chains then begin afresh.
--
--   psql -v round=1 -v clients=64 -f tests/load/pgbench_seed.sql

INSERT INTO users (email, password_hash, role)
SELECT 'pgbench-' || client || '@example.com', '!', 'customer' FROM generate_series(0, :clients - 1) AS client
ON CONFLICT (email) DO NOTHING;

WITH seeded AS (
    SELECT users.id AS user_id, client, md5('session ' || :round || ' ' || client)::uuid AS session_id
    FROM generate_series(0, :clients - 1) AS client
    JOIN users ON users.email = 'pgbench-' || client || '@example.com'
), opened AS (
    INSERT INTO sessions (id, user_id, created_at, last_seen_at)
    SELECT session_id, user_id, now() AT TIME ZONE 'utc', now() AT TIME ZONE 'utc' FROM seeded
)
INSERT INTO refresh_tokens (user_id, jti, token_hash, expires_at, session_id)
SELECT
    user_id,
    md5((:round * 1000000000000 + client::bigint * 100000000)::text),
    repeat(md5((:round * 1000000000000 + client::bigint * 100000000)::text), 2),
    now() AT TIME ZONE 'utc' + interval '30 days',
    session_id
FROM seeded;
