-- Without its seal a log whose beginning was removed can no longer be verified.
DROP TRIGGER audit_logs_refuse_delete;
CREATE TRIGGER audit_logs_refuse_delete BEFORE DELETE ON audit_logs
BEGIN
  SELECT RAISE(ABORT, 'the audit log is append-only');
END;
DROP TABLE audit_seals;
