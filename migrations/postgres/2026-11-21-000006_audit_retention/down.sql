-- Without its seal a log whose beginning was removed can no longer be verified.
DROP TRIGGER audit_logs_refuse_removal ON audit_logs;
DROP FUNCTION refuse_audit_removal;
DROP TRIGGER audit_logs_refuse_change ON audit_logs;
CREATE TRIGGER audit_logs_refuse_change BEFORE UPDATE OR DELETE ON audit_logs
  FOR EACH ROW EXECUTE FUNCTION refuse_audit_change();
DROP TABLE audit_seals;
DROP FUNCTION refuse_audit_seal_change;
