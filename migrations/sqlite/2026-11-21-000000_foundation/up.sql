-- Times are RFC 3339 text of fixed width, which sorts by time. Ids, times and versions are made by the program.

CREATE TABLE organizations (
  id         TEXT    PRIMARY KEY NOT NULL,
  name       TEXT    NOT NULL,
  plan       TEXT    NOT NULL,
  settings   TEXT    NOT NULL,
  created_at TEXT    NOT NULL,
  updated_at TEXT    NOT NULL
) STRICT;

CREATE TABLE users (
  id                TEXT    PRIMARY KEY NOT NULL,
  organization_id   TEXT    NOT NULL REFERENCES organizations (id),
  email             TEXT    NOT NULL UNIQUE,
  full_name         TEXT    NOT NULL,
  role              TEXT    NOT NULL,
  status            TEXT    NOT NULL,
  password_hash     TEXT,
  email_verified_at TEXT,
  last_sign_in_at   TEXT,
  created_at        TEXT    NOT NULL,
  updated_at        TEXT    NOT NULL,
  version           INTEGER NOT NULL
) STRICT;
CREATE INDEX users_by_organization ON users (organization_id, created_at, id);

-- One sign-in on one device: a family of refresh tokens, of which the newest generation is current.
CREATE TABLE sessions (
  id              TEXT    PRIMARY KEY NOT NULL,
  organization_id TEXT    NOT NULL REFERENCES organizations (id),
  user_id         TEXT    NOT NULL REFERENCES users (id) ON DELETE CASCADE,
  generation      INTEGER NOT NULL,
  ip_address      TEXT,
  user_agent      TEXT,
  created_at      TEXT    NOT NULL,
  last_used_at    TEXT    NOT NULL,
  expires_at      TEXT    NOT NULL,
  revoked_at      TEXT
) STRICT;
CREATE INDEX sessions_by_user ON sessions (user_id, created_at, id);
CREATE INDEX sessions_by_organization ON sessions (organization_id);

-- Every token that a session ever had: a used one that comes back tells of theft.
CREATE TABLE refresh_tokens (
  id         TEXT    PRIMARY KEY NOT NULL,
  session_id TEXT    NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
  digest     BLOB    NOT NULL UNIQUE,
  generation INTEGER NOT NULL,
  created_at TEXT    NOT NULL
) STRICT;
CREATE UNIQUE INDEX refresh_tokens_by_session ON refresh_tokens (session_id, generation);

CREATE TABLE claude_accounts (
  id                  TEXT    PRIMARY KEY NOT NULL,
  organization_id     TEXT    NOT NULL REFERENCES organizations (id),
  account_name        TEXT    NOT NULL,
  -- Folded for sorting and searching: no database folds case the way another does.
  account_name_folded TEXT    NOT NULL,
  search_text         TEXT    NOT NULL,
  email               TEXT,
  organization        TEXT,
  status              TEXT    NOT NULL,
  tier                TEXT    NOT NULL,
  api_key_sealed      BLOB    NOT NULL,
  api_key_key_version TEXT    NOT NULL,
  api_key_version     INTEGER NOT NULL,
  api_key_fingerprint BLOB    NOT NULL,
  api_key_hint        TEXT    NOT NULL,
  usage_limit         INTEGER,
  current_usage       INTEGER NOT NULL,
  usage_resets_at     TEXT    NOT NULL,
  base_url            TEXT,
  priority            INTEGER NOT NULL,
  health_state        TEXT    NOT NULL,
  health_until        TEXT,
  health_last_error   TEXT,
  last_used_at        TEXT,
  features            TEXT,
  metadata            TEXT,
  created_at          TEXT    NOT NULL,
  updated_at          TEXT    NOT NULL,
  version             INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX claude_accounts_by_fingerprint ON claude_accounts (organization_id, api_key_fingerprint);
CREATE INDEX claude_accounts_by_created_at ON claude_accounts (organization_id, created_at, id);
CREATE INDEX claude_accounts_by_updated_at ON claude_accounts (organization_id, updated_at, id);
CREATE INDEX claude_accounts_by_name ON claude_accounts (organization_id, account_name_folded, id);
CREATE INDEX claude_accounts_by_status ON claude_accounts (organization_id, status, id);
CREATE INDEX claude_accounts_by_tier ON claude_accounts (organization_id, tier, id);
CREATE INDEX claude_accounts_by_usage ON claude_accounts (organization_id, current_usage, id);
CREATE INDEX claude_accounts_by_priority ON claude_accounts (organization_id, priority, id);

-- No foreign keys: an entry outlives what it speaks of.
-- The texts of changes and metadata are part of the hash, so they are kept to the byte.
CREATE TABLE audit_logs (
  id              TEXT    PRIMARY KEY NOT NULL,
  organization_id TEXT    NOT NULL,
  sequence        INTEGER NOT NULL,
  occurred_at     TEXT    NOT NULL,
  action          TEXT    NOT NULL,
  operation       TEXT    NOT NULL,
  outcome         TEXT    NOT NULL,
  error_code      TEXT,
  resource_type   TEXT    NOT NULL,
  resource_id     TEXT,
  changes         TEXT,
  metadata        TEXT,
  user_id         TEXT,
  ip_address      TEXT,
  user_agent      TEXT,
  request_id      TEXT    NOT NULL,
  hash            BLOB    NOT NULL
) STRICT;
CREATE UNIQUE INDEX audit_logs_by_sequence ON audit_logs (organization_id, sequence);
CREATE INDEX audit_logs_by_time ON audit_logs (organization_id, occurred_at, sequence);
CREATE INDEX audit_logs_by_resource ON audit_logs (organization_id, resource_id, sequence);
CREATE INDEX audit_logs_by_user ON audit_logs (organization_id, user_id, sequence);
CREATE INDEX audit_logs_by_request ON audit_logs (organization_id, request_id, sequence);

-- The end of each organization's hash chain; its row is what appending locks.
CREATE TABLE audit_heads (
  organization_id TEXT    PRIMARY KEY NOT NULL,
  sequence        INTEGER NOT NULL,
  hash            BLOB    NOT NULL
) STRICT;

CREATE TRIGGER audit_logs_refuse_update BEFORE UPDATE ON audit_logs
BEGIN
  SELECT RAISE(ABORT, 'the audit log is append-only');
END;
-- OR REPLACE deletes the row that is in its way, without asking the trigger for deletions.
CREATE TRIGGER audit_logs_refuse_replace BEFORE INSERT ON audit_logs
WHEN EXISTS (SELECT 1 FROM audit_logs
             WHERE id = NEW.id OR (organization_id = NEW.organization_id AND sequence = NEW.sequence))
BEGIN
  SELECT RAISE(ABORT, 'the audit log is append-only');
END;
CREATE TRIGGER audit_logs_refuse_delete BEFORE DELETE ON audit_logs
BEGIN
  SELECT RAISE(ABORT, 'the audit log is append-only');
END;
