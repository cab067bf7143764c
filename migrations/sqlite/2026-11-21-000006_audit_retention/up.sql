-- What stands in the place of the oldest entries once their time is over: the last of them, with its hash, signed by a key of
-- the ring. The triggers keep it from going back, and the signature from being made by whoever can write the database.
CREATE TABLE audit_seals (
  organization_id TEXT    PRIMARY KEY NOT NULL,
  sequence        INTEGER NOT NULL,
  hash            BLOB    NOT NULL,
  sealed_at       TEXT    NOT NULL,
  key_version     TEXT    NOT NULL,
  signature       BLOB    NOT NULL
) STRICT;
CREATE INDEX audit_seals_by_key_version ON audit_seals (key_version, organization_id);

-- The same point may be signed anew: the keys change.
CREATE TRIGGER audit_seals_refuse_update BEFORE UPDATE ON audit_seals
WHEN NEW.organization_id <> OLD.organization_id OR NEW.sequence < OLD.sequence
     OR (NEW.sequence = OLD.sequence AND NEW.hash <> OLD.hash)
BEGIN
  SELECT RAISE(ABORT, 'the seal of the audit log only moves on');
END;
CREATE TRIGGER audit_seals_refuse_replace BEFORE INSERT ON audit_seals
WHEN EXISTS (SELECT 1 FROM audit_seals WHERE organization_id = NEW.organization_id)
BEGIN
  SELECT RAISE(ABORT, 'the seal of the audit log only moves on');
END;
CREATE TRIGGER audit_seals_refuse_delete BEFORE DELETE ON audit_seals
BEGIN
  SELECT RAISE(ABORT, 'the seal of the audit log only moves on');
END;

DROP TRIGGER audit_logs_refuse_delete;
CREATE TRIGGER audit_logs_refuse_delete BEFORE DELETE ON audit_logs
WHEN NOT EXISTS (SELECT 1 FROM audit_seals
                 WHERE organization_id = OLD.organization_id AND sequence >= OLD.sequence)
BEGIN
  SELECT RAISE(ABORT, 'the audit log is append-only');
END;
