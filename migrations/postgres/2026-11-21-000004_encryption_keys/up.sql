-- The keys of the ring that were used, by a digest of each: a start with another key under one's version is refused.
CREATE TABLE encryption_keys (
  version    text COLLATE "C" PRIMARY KEY,
  digest     bytea            NOT NULL,
  created_at timestamptz      NOT NULL
);
