DROP INDEX audit_logs_by_api_key;
ALTER TABLE audit_logs DROP COLUMN api_key_id;
DROP TABLE api_key_digests;
DROP TABLE api_keys;
