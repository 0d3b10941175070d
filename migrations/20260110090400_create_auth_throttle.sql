-- Failed logins and registrations per account and network (GCRA: one timestamp says it all). Unlogged, because losing
-- it in a crash costs nothing worth a disk write; it is shared by all replicas.
CREATE UNLOGGED TABLE auth_throttle (
    key bytea     NOT NULL,
    -- "Theoretical arrival time": how far ahead of the clock this is tells how much of the allowance is used up.
    tat timestamp NOT NULL,
    CONSTRAINT auth_throttle_pkey PRIMARY KEY (key)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
