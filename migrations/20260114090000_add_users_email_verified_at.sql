-- Since when an address is known to be its user's. The Python service does not notice the column.
ALTER TABLE users ADD COLUMN email_verified_at timestamp;
