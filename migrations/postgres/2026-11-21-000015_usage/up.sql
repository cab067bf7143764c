-- One row a request of the relay. Nothing refers from here to what it is of: a key, a user, a client or an account may go, and what
-- was used stays. The sequence is the row's place among its organization's, from 1: rows come in its order, whichever server writes
-- them. Costs are in billionths of a US dollar. The model is by what rows are added up: callers name what they like, and sums are for good.
CREATE TABLE usage_records (
  id                     text COLLATE "C" PRIMARY KEY,
  organization_id        text COLLATE "C" NOT NULL,
  sequence               bigint           NOT NULL,
  occurred_at            timestamptz      NOT NULL,
  api_key_id             text COLLATE "C",
  user_id                text COLLATE "C",
  client_id              text COLLATE "C",
  claude_account_id      text COLLATE "C",
  model                  text COLLATE "C" NOT NULL,
  asked_model            text COLLATE "C" NOT NULL,
  endpoint               text COLLATE "C" NOT NULL,
  status_code            integer          NOT NULL,
  error_type             text COLLATE "C",
  streamed               boolean          NOT NULL,
  interrupted            boolean          NOT NULL,
  attempts               integer          NOT NULL,
  input_tokens           bigint           NOT NULL,
  output_tokens          bigint           NOT NULL,
  cache_write_5m_tokens  bigint           NOT NULL,
  cache_write_1h_tokens  bigint           NOT NULL,
  cache_read_tokens      bigint           NOT NULL,
  web_searches           bigint           NOT NULL,
  cost_nano_usd          bigint           NOT NULL,
  is_estimated           boolean          NOT NULL,
  is_known_model         boolean          NOT NULL,
  latency_ms             integer          NOT NULL,
  time_to_first_token_ms integer,
  request_id             text COLLATE "C" NOT NULL,
  upstream_request_id    text COLLATE "C",
  session_id             text COLLATE "C"
);
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
  organization_id        text COLLATE "C" PRIMARY KEY,
  sequence               bigint           NOT NULL
);

-- The same added up, by the hour and by the day, written in the transaction of the records. An id that there is none of is ''.
CREATE TABLE usage_rollups (
  organization_id        text COLLATE "C" NOT NULL,
  span                   text COLLATE "C" NOT NULL,
  start_at               timestamptz      NOT NULL,
  api_key_id             text COLLATE "C" NOT NULL,
  user_id                text COLLATE "C" NOT NULL,
  client_id              text COLLATE "C" NOT NULL,
  claude_account_id      text COLLATE "C" NOT NULL,
  model                  text COLLATE "C" NOT NULL,
  requests               bigint           NOT NULL,
  failed_requests        bigint           NOT NULL,
  input_tokens           bigint           NOT NULL,
  output_tokens          bigint           NOT NULL,
  cache_creation_tokens  bigint           NOT NULL,
  cache_read_tokens      bigint           NOT NULL,
  cost_nano_usd          bigint           NOT NULL,
  latency_ms             bigint           NOT NULL,
  PRIMARY KEY (organization_id, span, start_at, api_key_id, user_id, client_id, claude_account_id, model)
) PARTITION BY LIST (span);
-- Days beside each other, and not among twenty times as many hours: a year is read without them.
CREATE TABLE usage_rollups_hour PARTITION OF usage_rollups FOR VALUES IN ('HOUR');
CREATE TABLE usage_rollups_day PARTITION OF usage_rollups FOR VALUES IN ('DAY');
CREATE INDEX usage_rollups_by_key ON usage_rollups (organization_id, api_key_id, span, start_at);
CREATE INDEX usage_rollups_by_user ON usage_rollups (organization_id, user_id, span, start_at);

-- How much of its limits an API key has used, and what servers hold of them for requests that run. A key without such limits has no row.
-- The beat counts up as long as the server is there: what a server holds that has gone silent is given back.
CREATE TABLE budgets (
  api_key_id             text COLLATE "C" PRIMARY KEY,
  organization_id        text COLLATE "C" NOT NULL,
  key_version            integer          NOT NULL,
  day                    timestamptz      NOT NULL,
  tokens                 bigint           NOT NULL,
  month                  timestamptz      NOT NULL,
  cost_nano_usd          bigint           NOT NULL
);
CREATE TABLE budget_holds (
  api_key_id             text COLLATE "C" NOT NULL,
  server                 text COLLATE "C" NOT NULL,
  organization_id        text COLLATE "C" NOT NULL,
  beat                   bigint           NOT NULL,
  requests               bigint           NOT NULL,
  tokens                 bigint           NOT NULL,
  cost_nano_usd          bigint           NOT NULL,
  PRIMARY KEY (api_key_id, server)
);

-- Whether it is known, and told, that most of the account's limit is used.
ALTER TABLE claude_accounts ADD COLUMN is_near_limit boolean NOT NULL DEFAULT false;
