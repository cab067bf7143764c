CREATE TABLE credentials (
  id                  TEXT PRIMARY KEY NOT NULL,
  organization_id     TEXT NOT NULL REFERENCES organizations (id),
  client_id           TEXT NOT NULL REFERENCES clients (id) ON DELETE CASCADE,
  label               TEXT NOT NULL,
  label_folded        TEXT NOT NULL,
  search_text         TEXT NOT NULL,
  username            TEXT,
  url                 TEXT,
  -- The newest, and which key seals it: lists show both without reading a secret.
  secret_version      INTEGER NOT NULL,
  key_version         TEXT NOT NULL,
  created_by          TEXT REFERENCES users (id) ON DELETE SET NULL,
  updated_by          TEXT REFERENCES users (id) ON DELETE SET NULL,
  last_accessed_at    TEXT,
  -- The year 1970 where it never was: a list is sorted by it.
  last_accessed_sort  TEXT NOT NULL,
  created_at          TEXT NOT NULL,
  updated_at          TEXT NOT NULL,
  version             INTEGER NOT NULL
) STRICT;
CREATE INDEX credentials_by_created_at ON credentials (organization_id, created_at, id);
CREATE INDEX credentials_by_updated_at ON credentials (organization_id, updated_at, id);
CREATE INDEX credentials_by_label ON credentials (organization_id, label_folded, id);
CREATE INDEX credentials_by_last_accessed_at ON credentials (organization_id, last_accessed_sort, id);
CREATE INDEX credentials_by_key_version ON credentials (organization_id, key_version, created_at, id);
CREATE INDEX credentials_by_client ON credentials (client_id, created_at, id);

-- Every secret that a credential ever had.
CREATE TABLE credential_secrets (
  credential_id       TEXT NOT NULL REFERENCES credentials (id) ON DELETE CASCADE,
  secret_version      INTEGER NOT NULL,
  organization_id     TEXT NOT NULL REFERENCES organizations (id),
  sealed              BLOB NOT NULL,
  key_version         TEXT NOT NULL,
  created_by          TEXT REFERENCES users (id) ON DELETE SET NULL,
  created_at          TEXT NOT NULL,
  PRIMARY KEY (credential_id, secret_version)
) STRICT;
-- For the change of keys: which are still in use, and what they seal.
CREATE INDEX credential_secrets_by_key_version
  ON credential_secrets (key_version, organization_id, credential_id, secret_version);
CREATE INDEX claude_accounts_by_key_version ON claude_accounts (api_key_key_version, organization_id, id);
