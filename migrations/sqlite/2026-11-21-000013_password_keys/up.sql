-- The key pairs that passwords are encrypted with on their way to the servers, which all have the same. Each is sealed: the private key
-- in PKCS#8, which the public one follows from.
CREATE TABLE password_keys (
  id          TEXT    PRIMARY KEY NOT NULL,
  sealed      BLOB    NOT NULL,
  key_version TEXT    NOT NULL,
  created_at  TEXT    NOT NULL
) STRICT;

-- The nonces that were used, by their digests: each serves once. One that nobody has used stands nowhere.
CREATE TABLE password_nonces (
  digest      BLOB    PRIMARY KEY NOT NULL,
  expires_at  TEXT    NOT NULL
) STRICT;
CREATE INDEX password_nonces_by_end ON password_nonces (expires_at);
