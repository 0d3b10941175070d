-- Which schemes and parameters the password hashes have: `$2b$12`, `$argon2id$v=19$m=7168,t=5,p=1`. There are few, and
-- the service looks for them every few minutes (db::users::hash_parameters).
CREATE INDEX users_hash_parameters_idx ON users (substring(password_hash FROM '^\$(?:2.\$..|argon2.*p=[0-9]+)'));
DROP INDEX users_bcrypt_cost_idx;
