DROP INDEX audit_logs_rate_limited;
DROP INDEX api_keys_by_end;
DROP TABLE devices;
DROP TABLE notifications;
