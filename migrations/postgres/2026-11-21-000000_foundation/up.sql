-- Text that is compared or sorted has the "C" collation, so that its order is the same everywhere.
-- Ids, times and versions are made by the program.

CREATE TABLE organizations (
  id                  text COLLATE "C" PRIMARY KEY,
  name                text COLLATE "C" NOT NULL,
  plan                text COLLATE "C" NOT NULL,
  settings            text COLLATE "C" NOT NULL,
  created_at          timestamptz      NOT NULL,
  updated_at          timestamptz      NOT NULL
);

CREATE TABLE users (
  id                  text COLLATE "C" PRIMARY KEY,
  organization_id     text COLLATE "C" NOT NULL REFERENCES organizations (id),
  email               text COLLATE "C" NOT NULL UNIQUE,
  full_name           text COLLATE "C" NOT NULL,
  role                text COLLATE "C" NOT NULL,
  status              text COLLATE "C" NOT NULL,
  password_hash       text COLLATE "C",
  email_verified_at   timestamptz,
  last_sign_in_at     timestamptz,
  created_at          timestamptz      NOT NULL,
  updated_at          timestamptz      NOT NULL,
  version             integer          NOT NULL
);
CREATE INDEX users_by_organization ON users (organization_id, created_at, id);

-- One sign-in on one device: a family of refresh tokens, of which the newest generation is current.
CREATE TABLE sessions (
  id                  text COLLATE "C" PRIMARY KEY,
  organization_id     text COLLATE "C" NOT NULL REFERENCES organizations (id),
  user_id             text COLLATE "C" NOT NULL REFERENCES users (id) ON DELETE CASCADE,
  generation          integer          NOT NULL,
  ip_address          text COLLATE "C",
  user_agent          text COLLATE "C",
  created_at          timestamptz      NOT NULL,
  last_used_at        timestamptz      NOT NULL,
  expires_at          timestamptz      NOT NULL,
  revoked_at          timestamptz
);
CREATE INDEX sessions_by_user ON sessions (user_id, created_at, id);
CREATE INDEX sessions_by_organization ON sessions (organization_id);

-- Every token that a session ever had: a used one that comes back tells of theft.
CREATE TABLE refresh_tokens (
  id                  text COLLATE "C" PRIMARY KEY,
  session_id          text COLLATE "C" NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
  digest              bytea            NOT NULL UNIQUE,
  generation          integer          NOT NULL,
  created_at          timestamptz      NOT NULL
);
CREATE UNIQUE INDEX refresh_tokens_by_session ON refresh_tokens (session_id, generation);

CREATE TABLE claude_accounts (
  id                  text COLLATE "C" PRIMARY KEY,
  organization_id     text COLLATE "C" NOT NULL REFERENCES organizations (id),
  account_name        text COLLATE "C" NOT NULL,
  -- Folded for sorting and searching: no database folds case the way another does.
  account_name_folded text COLLATE "C" NOT NULL,
  search_text         text COLLATE "C" NOT NULL,
  email               text COLLATE "C",
  organization        text COLLATE "C",
  status              text COLLATE "C" NOT NULL,
  tier                text COLLATE "C" NOT NULL,
  api_key_sealed      bytea            NOT NULL,
  api_key_key_version text COLLATE "C" NOT NULL,
  api_key_version             integer          NOT NULL,
  api_key_fingerprint bytea            NOT NULL,
  api_key_hint        text COLLATE "C" NOT NULL,
  usage_limit         bigint,
  current_usage       bigint           NOT NULL,
  usage_resets_at     timestamptz      NOT NULL,
  base_url            text COLLATE "C",
  priority            integer          NOT NULL,
  health_state        text COLLATE "C" NOT NULL,
  health_until        timestamptz,
  health_last_error   text COLLATE "C",
  last_used_at        timestamptz,
  features            text COLLATE "C",
  metadata            text COLLATE "C",
  created_at          timestamptz      NOT NULL,
  updated_at          timestamptz      NOT NULL,
  version             integer          NOT NULL
);
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
  id                  text COLLATE "C" PRIMARY KEY,
  organization_id     text COLLATE "C" NOT NULL,
  sequence            bigint           NOT NULL,
  occurred_at         timestamptz      NOT NULL,
  action              text COLLATE "C" NOT NULL,
  operation           text COLLATE "C" NOT NULL,
  outcome             text COLLATE "C" NOT NULL,
  error_code          text COLLATE "C",
  resource_type       text COLLATE "C" NOT NULL,
  resource_id         text COLLATE "C",
  changes             text COLLATE "C",
  metadata            text COLLATE "C",
  user_id             text COLLATE "C",
  ip_address          text COLLATE "C",
  user_agent          text COLLATE "C",
  request_id          text COLLATE "C" NOT NULL,
  hash                bytea            NOT NULL
);
CREATE UNIQUE INDEX audit_logs_by_sequence ON audit_logs (organization_id, sequence);
CREATE INDEX audit_logs_by_time ON audit_logs (organization_id, occurred_at, sequence);
CREATE INDEX audit_logs_by_resource ON audit_logs (organization_id, resource_id, sequence);
CREATE INDEX audit_logs_by_user ON audit_logs (organization_id, user_id, sequence);
CREATE INDEX audit_logs_by_request ON audit_logs (organization_id, request_id, sequence);

-- The end of each organization's hash chain; its row is what appending locks.
CREATE TABLE audit_heads (
  organization_id     text COLLATE "C" PRIMARY KEY,
  sequence            bigint           NOT NULL,
  hash                bytea            NOT NULL
);

CREATE FUNCTION refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'the audit log is append-only';
END
$$;
CREATE TRIGGER audit_logs_refuse_change BEFORE UPDATE OR DELETE ON audit_logs
  FOR EACH ROW EXECUTE FUNCTION refuse_audit_change();
CREATE TRIGGER audit_logs_refuse_truncate BEFORE TRUNCATE ON audit_logs
  FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_change();
