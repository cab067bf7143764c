-- What mails carry to show who reads them, by a keyed digest: one that verifies an address, and one that sets a new password. A user
-- has the newest of each purpose; it goes when it is used. One without a user was asked for with an address that is nobody's: what
-- is written then is the same.
CREATE TABLE mail_tokens (
  digest              bytea            PRIMARY KEY,
  purpose             text COLLATE "C" NOT NULL,
  user_id             text COLLATE "C" REFERENCES users (id) ON DELETE CASCADE,
  email               text COLLATE "C" NOT NULL,
  created_at          timestamptz      NOT NULL,
  expires_at          timestamptz      NOT NULL
);
CREATE UNIQUE INDEX mail_tokens_by_user ON mail_tokens (user_id, purpose);
CREATE INDEX mail_tokens_by_expires_at ON mail_tokens (expires_at);

-- The mails that are to be sent, sealed; gone once they are sent or given up. due_at: when one is tried next. A server that sends one
-- moves it on first, so that no other does the same meanwhile, and attempts, which counts up with that, says whose turn it is.
CREATE TABLE outbox (
  id                  text COLLATE "C" PRIMARY KEY,
  organization_id     text COLLATE "C" NOT NULL REFERENCES organizations (id),
  sealed              bytea            NOT NULL,
  key_version         text COLLATE "C" NOT NULL,
  attempts            integer          NOT NULL,
  due_at              timestamptz      NOT NULL,
  created_at          timestamptz      NOT NULL,
  give_up_at          timestamptz      NOT NULL
);
CREATE INDEX outbox_by_due_at ON outbox (due_at, id);
-- For the change of keys.
CREATE INDEX outbox_by_key_version ON outbox (key_version, organization_id, id);
