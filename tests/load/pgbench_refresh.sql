-- The limit of every service that commits each refresh by itself: what PostgreSQL does with ONE statement and ONE
-- commit per refresh, when there is no service at all.
--
-- It is the service's own statement, for one token: the same rows are looked up by the same keys under the same
-- conditions, the presented token is marked as used, and its successor inserted with the same columns into the same
-- tables, indexes and foreign keys, on the same server in the same run. It is made as cheap as one statement can be:
-- prepared, its plan made once, nothing computed in it but two names of tokens (one md5 each, well under a
-- microsecond), no arrays. There are as many clients as the service has connections, and each begins the next refresh
-- when the last is committed, as those do; but nobody signs, verifies, parses JSON or speaks HTTP. A service that sends
-- one statement and one commit per refresh has to do all this and its own work as well, so it stays below.
--
--   psql -v round=1 -v clients=64 -f tests/load/pgbench_seed.sql
--   pgbench -n -M prepared -c 64 -D round=1 -D n=0 -f tests/load/pgbench_refresh.sql
--
-- Each client walks a chain of tokens of its own, as a session does: token n of client c in round r is named by
-- md5(r * 10^12 + c * 10^8 + n), so names are as random as the service's, and so are their places in the index.

\if :n = 0
SELECT md5('session ' || :round || ' ' || :client_id) AS session_id, 'pgbench-' || :client_id || '@example.com' AS subject
\gset
\endif
\set presented :round * 1000000000000 + :client_id * 100000000 + :n
\set n :n + 1
\set next :round * 1000000000000 + :client_id * 100000000 + :n
WITH named AS MATERIALIZED (
    SELECT md5(:presented::bigint::text) AS jti, md5(:next::bigint::text) AS next_jti
), rotated AS (
    UPDATE refresh_tokens AS token
    SET revoked = true, used_at = now() AT TIME ZONE 'utc', successor_jti = named.next_jti, session_id = session.id
    FROM named, sessions AS session, users AS owner
    WHERE token.jti = named.jti
      AND token.token_hash = repeat(named.jti, 2)
      AND NOT token.revoked AND token.used_at IS NULL AND token.expires_at > now() AT TIME ZONE 'utc'
      AND token.session_id = :session_id::uuid
      AND session.id = :session_id::uuid AND session.ended_at IS NULL AND session.user_id = token.user_id
      AND owner.id = token.user_id AND owner.email = :subject::text
    RETURNING token.user_id, owner.role, token.session_id, named.next_jti
), inserted AS (
    INSERT INTO refresh_tokens (user_id, jti, token_hash, expires_at, revoked, created_at, session_id)
    SELECT
        user_id, next_jti, repeat(next_jti, 2), now() AT TIME ZONE 'utc' + interval '30 days', false,
        now() AT TIME ZONE 'utc', session_id
    FROM rotated
)
SELECT user_id, role FROM rotated;
