-- The key pairs that passwords are encrypted with on their way to the servers, which all have the same. Each is sealed: the private key
-- in PKCS#8, which the public one follows from.
CREATE TABLE password_keys (
  id                  text COLLATE "C" PRIMARY KEY,
  sealed              bytea            NOT NULL,
  key_version         text COLLATE "C" NOT NULL,
  created_at          timestamptz      NOT NULL
);

-- The nonces that were used, by their digests: each serves once. One that nobody has used stands nowhere.
CREATE TABLE password_nonces (
  digest              bytea            PRIMARY KEY,
  expires_at          timestamptz      NOT NULL
);
CREATE INDEX password_nonces_by_end ON password_nonces (expires_at);
