CREATE TABLE api_keys (
  id                                text COLLATE "C" PRIMARY KEY,
  organization_id                   text COLLATE "C" NOT NULL REFERENCES organizations (id),
  owner_id                          text COLLATE "C" NOT NULL REFERENCES users (id),
  client_id                         text COLLATE "C" REFERENCES clients (id) ON DELETE SET NULL,
  name                              text COLLATE "C" NOT NULL,
  name_folded                       text COLLATE "C" NOT NULL,
  search_text                       text COLLATE "C" NOT NULL,
  description                       text COLLATE "C",
  key_prefix                        text COLLATE "C" NOT NULL,
  scopes                            text COLLATE "C" NOT NULL,
  -- The role of whoever issued the raw key to somebody else: it never acts with more.
  issued_with                       text COLLATE "C",
  allowed_ips                       text COLLATE "C" NOT NULL,
  allowed_models                    text COLLATE "C" NOT NULL,
  rate_limit_per_minute             integer,
  rate_limit_per_hour               integer,
  concurrency_limit                 integer,
  token_limit_per_day               bigint,
  cost_limit_micro_usd_per_month    bigint,
  expires_at                        timestamptz,
  -- The year 9999 where it never does: a list is sorted by it.
  expires_sort                      timestamptz NOT NULL,
  revoked_at                        timestamptz,
  last_used_at                      timestamptz,
  -- The year 1970 where it never was.
  last_used_sort                    timestamptz NOT NULL,
  last_used_ip                      text COLLATE "C",
  created_by                        text COLLATE "C" REFERENCES users (id) ON DELETE SET NULL,
  created_at                        timestamptz NOT NULL,
  updated_at                        timestamptz NOT NULL,
  version                           integer NOT NULL
);
CREATE INDEX api_keys_by_created_at ON api_keys (organization_id, created_at, id);
CREATE INDEX api_keys_by_name ON api_keys (organization_id, name_folded, id);
CREATE INDEX api_keys_by_expires_at ON api_keys (organization_id, expires_sort, id);
CREATE INDEX api_keys_by_last_used_at ON api_keys (organization_id, last_used_sort, id);
CREATE INDEX api_keys_by_owner ON api_keys (owner_id, created_at, id);
CREATE INDEX api_keys_by_client ON api_keys (client_id, created_at, id);

-- What the raw keys are found by: the one that is current, which never expires by itself, and the one that it replaced.
CREATE TABLE api_key_digests (
  digest                            bytea PRIMARY KEY,
  api_key_id                        text COLLATE "C" NOT NULL REFERENCES api_keys (id) ON DELETE CASCADE,
  key_version                       text COLLATE "C" NOT NULL,
  expires_at                        timestamptz
);
CREATE INDEX api_key_digests_by_api_key ON api_key_digests (api_key_id);
-- For the change of keys.
CREATE INDEX api_key_digests_by_key_version ON api_key_digests (key_version, api_key_id);

ALTER TABLE audit_logs ADD COLUMN api_key_id text COLLATE "C";
CREATE INDEX audit_logs_by_api_key ON audit_logs (organization_id, api_key_id, sequence);
