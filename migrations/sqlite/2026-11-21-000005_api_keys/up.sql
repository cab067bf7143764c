CREATE TABLE api_keys (
  id                                TEXT PRIMARY KEY NOT NULL,
  organization_id                   TEXT NOT NULL REFERENCES organizations (id),
  owner_id                          TEXT NOT NULL REFERENCES users (id),
  client_id                         TEXT REFERENCES clients (id) ON DELETE SET NULL,
  name                              TEXT NOT NULL,
  name_folded                       TEXT NOT NULL,
  search_text                       TEXT NOT NULL,
  description                       TEXT,
  key_prefix                        TEXT NOT NULL,
  scopes                            TEXT NOT NULL,
  -- The role of whoever issued the raw key to somebody else: it never acts with more.
  issued_with                       TEXT,
  allowed_ips                       TEXT NOT NULL,
  allowed_models                    TEXT NOT NULL,
  rate_limit_per_minute             INTEGER,
  rate_limit_per_hour               INTEGER,
  concurrency_limit                 INTEGER,
  token_limit_per_day               INTEGER,
  cost_limit_micro_usd_per_month    INTEGER,
  expires_at                        TEXT,
  -- The year 9999 where it never does: a list is sorted by it.
  expires_sort                      TEXT NOT NULL,
  revoked_at                        TEXT,
  last_used_at                      TEXT,
  -- The year 1970 where it never was.
  last_used_sort                    TEXT NOT NULL,
  last_used_ip                      TEXT,
  created_by                        TEXT REFERENCES users (id) ON DELETE SET NULL,
  created_at                        TEXT NOT NULL,
  updated_at                        TEXT NOT NULL,
  version                           INTEGER NOT NULL
) STRICT;
CREATE INDEX api_keys_by_created_at ON api_keys (organization_id, created_at, id);
CREATE INDEX api_keys_by_name ON api_keys (organization_id, name_folded, id);
CREATE INDEX api_keys_by_expires_at ON api_keys (organization_id, expires_sort, id);
CREATE INDEX api_keys_by_last_used_at ON api_keys (organization_id, last_used_sort, id);
CREATE INDEX api_keys_by_owner ON api_keys (owner_id, created_at, id);
CREATE INDEX api_keys_by_client ON api_keys (client_id, created_at, id);

-- What the raw keys are found by: the one that is current, which never expires by itself, and the one that it replaced.
CREATE TABLE api_key_digests (
  digest                            BLOB PRIMARY KEY NOT NULL,
  api_key_id                        TEXT NOT NULL REFERENCES api_keys (id) ON DELETE CASCADE,
  key_version                       TEXT NOT NULL,
  expires_at                        TEXT
) STRICT;
CREATE INDEX api_key_digests_by_api_key ON api_key_digests (api_key_id);
-- For the change of keys.
CREATE INDEX api_key_digests_by_key_version ON api_key_digests (key_version, api_key_id);

ALTER TABLE audit_logs ADD COLUMN api_key_id TEXT;
CREATE INDEX audit_logs_by_api_key ON audit_logs (organization_id, api_key_id, sequence);
