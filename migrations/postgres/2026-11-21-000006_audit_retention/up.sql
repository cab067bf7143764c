-- What stands in the place of the oldest entries once their time is over: the last of them, with its hash, signed by a key of
-- the ring. The triggers keep it from going back, and the signature from being made by whoever can write the database.
CREATE TABLE audit_seals (
  organization_id     text COLLATE "C" PRIMARY KEY,
  sequence            bigint           NOT NULL,
  hash                bytea            NOT NULL,
  sealed_at           timestamptz      NOT NULL,
  key_version         text COLLATE "C" NOT NULL,
  signature           bytea            NOT NULL
);
CREATE INDEX audit_seals_by_key_version ON audit_seals (key_version, organization_id);

CREATE FUNCTION refuse_audit_seal_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'the seal of the audit log only moves on';
END
$$;
-- The same point may be signed anew: the keys change.
CREATE TRIGGER audit_seals_refuse_update BEFORE UPDATE ON audit_seals
  FOR EACH ROW
  WHEN (NEW.organization_id <> OLD.organization_id OR NEW.sequence < OLD.sequence
        OR (NEW.sequence = OLD.sequence AND NEW.hash <> OLD.hash))
  EXECUTE FUNCTION refuse_audit_seal_change();
CREATE TRIGGER audit_seals_refuse_delete BEFORE DELETE ON audit_seals
  FOR EACH ROW EXECUTE FUNCTION refuse_audit_seal_change();
CREATE TRIGGER audit_seals_refuse_truncate BEFORE TRUNCATE ON audit_seals
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_seal_change();

DROP TRIGGER audit_logs_refuse_change ON audit_logs;
CREATE TRIGGER audit_logs_refuse_change BEFORE UPDATE ON audit_logs
  FOR EACH ROW EXECUTE FUNCTION refuse_audit_change();
CREATE FUNCTION refuse_audit_removal() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NOT EXISTS (SELECT 1 FROM audit_seals
                 WHERE organization_id = OLD.organization_id AND sequence >= OLD.sequence) THEN
    RAISE EXCEPTION 'the audit log is append-only';
  END IF;
  RETURN OLD;
END
$$;
CREATE TRIGGER audit_logs_refuse_removal BEFORE DELETE ON audit_logs
  FOR EACH ROW EXECUTE FUNCTION refuse_audit_removal();
