-- One row a request of the relay. Nothing refers from here to what it is of: a key, a user, a client or an account may go, and what
-- was used stays. The sequence is the row's place among its organization's, from 1: rows come in its order, whichever server writes
-- them. Costs are in billionths of a US dollar. The model is by what rows are added up: callers name what they like, and sums are for good.
CREATE TABLE usage_records (
  id                    TEXT    PRIMARY KEY NOT NULL,
  organization_id       TEXT    NOT NULL,
  sequence              INTEGER NOT NULL,
  occurred_at           TEXT    NOT NULL,
  api_key_id            TEXT,
  user_id               TEXT,
  client_id             TEXT,
  claude_account_id     TEXT,
  model                 TEXT    NOT NULL,
  asked_model           TEXT    NOT NULL,
  endpoint              TEXT    NOT NULL,
  status_code           INTEGER NOT NULL,
  error_type            TEXT,
  streamed              INTEGER NOT NULL,
  interrupted           INTEGER NOT NULL,
  attempts              INTEGER NOT NULL,
  input_tokens          INTEGER NOT NULL,
  output_tokens         INTEGER NOT NULL,
  cache_write_5m_tokens INTEGER NOT NULL,
  cache_write_1h_tokens INTEGER NOT NULL,
  cache_read_tokens     INTEGER NOT NULL,
  web_searches          INTEGER NOT NULL,
  cost_nano_usd         INTEGER NOT NULL,
  is_estimated          INTEGER NOT NULL,
  is_known_model        INTEGER NOT NULL,
  latency_ms            INTEGER NOT NULL,
  time_to_first_token_ms INTEGER,
  request_id            TEXT    NOT NULL,
  upstream_request_id   TEXT,
  session_id            TEXT
) STRICT;
CREATE UNIQUE INDEX usage_records_by_sequence ON usage_records (organization_id, sequence);
CREATE INDEX usage_records_by_time ON usage_records (organization_id, occurred_at, id);
CREATE INDEX usage_records_by_key ON usage_records (organization_id, api_key_id, occurred_at, id);
CREATE INDEX usage_records_by_user ON usage_records (organization_id, user_id, occurred_at, id);
CREATE INDEX usage_records_by_client ON usage_records (organization_id, client_id, occurred_at, id) WHERE client_id IS NOT NULL;
CREATE INDEX usage_records_by_account ON usage_records (organization_id, claude_account_id, occurred_at, id)
  WHERE claude_account_id IS NOT NULL;
CREATE INDEX usage_records_by_model ON usage_records (organization_id, model, occurred_at, id);

-- How far each organization's records are. Whoever writes records has its row locked.
CREATE TABLE usage_heads (
  organization_id TEXT    PRIMARY KEY NOT NULL,
  sequence        INTEGER NOT NULL
) STRICT;

-- The same added up, by the hour and by the day, written in the transaction of the records. An id that there is none of is ''.
CREATE TABLE usage_rollups (
  organization_id       TEXT    NOT NULL,
  span                  TEXT    NOT NULL,
  start_at              TEXT    NOT NULL,
  api_key_id            TEXT    NOT NULL,
  user_id               TEXT    NOT NULL,
  client_id             TEXT    NOT NULL,
  claude_account_id     TEXT    NOT NULL,
  model                 TEXT    NOT NULL,
  requests              INTEGER NOT NULL,
  failed_requests       INTEGER NOT NULL,
  input_tokens          INTEGER NOT NULL,
  output_tokens         INTEGER NOT NULL,
  cache_creation_tokens INTEGER NOT NULL,
  cache_read_tokens     INTEGER NOT NULL,
  cost_nano_usd         INTEGER NOT NULL,
  latency_ms            INTEGER NOT NULL,
  PRIMARY KEY (organization_id, span, start_at, api_key_id, user_id, client_id, claude_account_id, model)
) STRICT, WITHOUT ROWID;
CREATE INDEX usage_rollups_by_key ON usage_rollups (organization_id, api_key_id, span, start_at);
CREATE INDEX usage_rollups_by_user ON usage_rollups (organization_id, user_id, span, start_at);

-- How much of its limits an API key has used, and what servers hold of them for requests that run. A key without such limits has no row.
-- The beat counts up as long as the server is there: what a server holds that has gone silent is given back.
CREATE TABLE budgets (
  api_key_id      TEXT    PRIMARY KEY NOT NULL,
  organization_id TEXT    NOT NULL,
  key_version     INTEGER NOT NULL,
  day             TEXT    NOT NULL,
  tokens          INTEGER NOT NULL,
  month           TEXT    NOT NULL,
  cost_nano_usd   INTEGER NOT NULL
) STRICT;
CREATE TABLE budget_holds (
  api_key_id      TEXT    NOT NULL,
  server          TEXT    NOT NULL,
  organization_id TEXT    NOT NULL,
  beat            INTEGER NOT NULL,
  requests        INTEGER NOT NULL,
  tokens          INTEGER NOT NULL,
  cost_nano_usd   INTEGER NOT NULL,
  PRIMARY KEY (api_key_id, server)
) STRICT, WITHOUT ROWID;

-- Whether it is known, and told, that most of the account's limit is used.
ALTER TABLE claude_accounts ADD COLUMN is_near_limit INTEGER NOT NULL DEFAULT 0;
