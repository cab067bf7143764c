ALTER FUNCTION refuse_audit_seal_change() RESET search_path;
ALTER FUNCTION refuse_audit_removal() RESET search_path;
ALTER FUNCTION refuse_audit_change() RESET search_path;
