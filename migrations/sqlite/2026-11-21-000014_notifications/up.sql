-- What users should know: a row for each who is told. It is committed with an entry of the organization's audit log and has that one's
-- place there, by which subscriptions find it. needs: the permission without which it is not shown any more. said: what a user is
-- told once. No foreign keys: they would lock users while the end of the log is locked, and who has locked a user waits for that.
CREATE TABLE notifications (
  id              TEXT    PRIMARY KEY NOT NULL,
  organization_id TEXT    NOT NULL,
  user_id         TEXT    NOT NULL,
  sequence        INTEGER NOT NULL,
  kind            TEXT    NOT NULL,
  title           TEXT    NOT NULL,
  body            TEXT    NOT NULL,
  resource_id     TEXT,
  needs           TEXT,
  said            TEXT    NOT NULL,
  read_at         TEXT,
  created_at      TEXT    NOT NULL
) STRICT;
CREATE UNIQUE INDEX notifications_once ON notifications (said, user_id);
CREATE INDEX notifications_by_created_at ON notifications (user_id, created_at, id);
CREATE INDEX notifications_unread ON notifications (user_id, created_at, id) WHERE read_at IS NULL;
CREATE INDEX notifications_by_sequence ON notifications (user_id, sequence, id);
CREATE INDEX notifications_by_age ON notifications (created_at);

-- From where, and with what, users have signed in: by a keyed digest of that and the user.
CREATE TABLE devices (
  digest          BLOB    PRIMARY KEY NOT NULL,
  user_id         TEXT    NOT NULL REFERENCES users (id) ON DELETE CASCADE,
  last_seen_at    TEXT    NOT NULL
) STRICT;
CREATE INDEX devices_by_last_seen_at ON devices (last_seen_at);

-- What is told of by jobs, of all organizations at once: API keys that end soon, and sign-ins that were refused.
CREATE INDEX api_keys_by_end ON api_keys (expires_sort, id) WHERE revoked_at IS NULL;
CREATE INDEX audit_logs_rate_limited ON audit_logs (occurred_at) WHERE error_code = 'RATE_LIMITED';
