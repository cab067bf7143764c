-- The keys of the ring that were used, by a digest of each: a start with another key under one's version is refused.
CREATE TABLE encryption_keys (
  version    TEXT PRIMARY KEY NOT NULL,
  digest     BLOB NOT NULL,
  created_at TEXT NOT NULL
) STRICT;
