-- At a thousand refreshes a second a 32-bit id lasts 25 days. Both tables are rewritten once, under an exclusive lock:
-- about a second per million rows.

ALTER TABLE users ALTER COLUMN id TYPE bigint;
ALTER TABLE refresh_tokens ALTER COLUMN id TYPE bigint, ALTER COLUMN user_id TYPE bigint;
ALTER SEQUENCE users_id_seq AS bigint;
ALTER SEQUENCE refresh_tokens_id_seq AS bigint;
