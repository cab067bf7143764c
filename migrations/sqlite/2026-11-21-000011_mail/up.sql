-- What mails carry to show who reads them, by a keyed digest: one that verifies an address, and one that sets a new password. A user
-- has the newest of each purpose; it goes when it is used. One without a user was asked for with an address that is nobody's: what
-- is written then is the same.
CREATE TABLE mail_tokens (
  digest          BLOB    PRIMARY KEY NOT NULL,
  purpose         TEXT    NOT NULL,
  user_id         TEXT    REFERENCES users (id) ON DELETE CASCADE,
  email           TEXT    NOT NULL,
  created_at      TEXT    NOT NULL,
  expires_at      TEXT    NOT NULL
) STRICT;
CREATE UNIQUE INDEX mail_tokens_by_user ON mail_tokens (user_id, purpose);
CREATE INDEX mail_tokens_by_expires_at ON mail_tokens (expires_at);

-- The mails that are to be sent, sealed; gone once they are sent or given up. due_at: when one is tried next. A server that sends one
-- moves it on first, so that no other does the same meanwhile, and attempts, which counts up with that, says whose turn it is.
CREATE TABLE outbox (
  id              TEXT    PRIMARY KEY NOT NULL,
  organization_id TEXT    NOT NULL REFERENCES organizations (id),
  sealed          BLOB    NOT NULL,
  key_version     TEXT    NOT NULL,
  attempts        INTEGER NOT NULL,
  due_at          TEXT    NOT NULL,
  created_at      TEXT    NOT NULL,
  give_up_at      TEXT    NOT NULL
) STRICT;
CREATE INDEX outbox_by_due_at ON outbox (due_at, id);
-- For the change of keys.
CREATE INDEX outbox_by_key_version ON outbox (key_version, organization_id, id);
