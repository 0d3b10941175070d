-- Every replica has in memory which sessions ended lately, and reads four times a second which have ended since it looked
-- last (src/db/revocations.rs). A time cannot tell that: a transaction may commit long after it took the time. So a session
-- notes the transaction that ended it, and a reader asks for what its last snapshot did not see.
--
-- By a trigger, so that no way to end a session is missed: not a statement typed by hand, nor the deletion of a user by
-- another service, which leaves the session without a user. One that expired is left out: its access tokens expired
-- before it.

ALTER TABLE sessions ADD COLUMN ended_xid xid8;

CREATE INDEX sessions_ended_xid_idx ON sessions (ended_xid) WHERE ended_xid IS NOT NULL;

CREATE FUNCTION auth_number_end_of_session() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.ended_xid := pg_catalog.pg_current_xact_id();
    RETURN NEW;
END
$$;

CREATE TRIGGER sessions_number_end BEFORE UPDATE ON sessions FOR EACH ROW
WHEN (
    OLD.ended_at IS NULL AND (NEW.ended_at IS NOT NULL OR NEW.user_id IS NULL)
    AND NEW.end_reason IS DISTINCT FROM 'expired'
)
EXECUTE FUNCTION auth_number_end_of_session();
