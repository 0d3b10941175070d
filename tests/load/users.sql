-- Users for the pages of the user list.
--
--   psql -v count=1000000 -f tests/load/users.sql

INSERT INTO users (email, password_hash, role)
SELECT 'listed-' || number || '@example.com', '!', 'customer' FROM generate_series(1, :count) AS number;

VACUUM (ANALYZE) users;
