-- Look-ups ignore case. Not unique: an adopted database may hold two accounts whose addresses differ only in case.
CREATE INDEX users_lower_email_idx ON users (lower(email));

-- Which accounts still have a bcrypt hash, by cost; it empties itself as their owners sign in.
CREATE INDEX users_bcrypt_cost_idx ON users (substr(password_hash, 5, 2)) WHERE password_hash LIKE '$2%';
