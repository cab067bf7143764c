-- Which server does a job, one row a job. The term counts the row's changes: whoever takes or keeps a lease changes the row as
-- it was at the term that they have seen. changed_at is for people: no server goes by another's clock.
CREATE TABLE leases (
  name        TEXT    PRIMARY KEY NOT NULL,
  holder      TEXT,
  term        INTEGER NOT NULL,
  changed_at  TEXT    NOT NULL,
  finished_at TEXT
) STRICT;

-- For the cleanup of what has ended.
CREATE INDEX sessions_by_end ON sessions (expires_at);
CREATE INDEX invitations_by_end ON invitations (expires_at);
CREATE INDEX api_key_digests_by_end ON api_key_digests (expires_at) WHERE expires_at IS NOT NULL;
