DROP TABLE audit_heads;
DROP TABLE audit_logs;
DROP TABLE claude_accounts;
DROP TABLE refresh_tokens;
DROP TABLE sessions;
DROP TABLE users;
DROP TABLE organizations;
DROP FUNCTION refuse_audit_change;
