-- email_key: the address of a user who is not deleted. A deleted user keeps the address to be read, and frees it to be taken.
-- The folded columns and last_sign_in_rank follow from others, as for claude_accounts; a user who never signed in ranks as 1970.
-- Names that are here already are folded by SQL, which knows ASCII only; the next change of such a user folds all of it.
CREATE TABLE users_new (
  id                TEXT    PRIMARY KEY NOT NULL,
  organization_id   TEXT    NOT NULL REFERENCES organizations (id),
  email             TEXT    NOT NULL,
  email_key         TEXT    UNIQUE,
  full_name         TEXT    NOT NULL,
  full_name_folded  TEXT    NOT NULL,
  search_text       TEXT    NOT NULL,
  role              TEXT    NOT NULL,
  status            TEXT    NOT NULL,
  password_hash     TEXT,
  email_verified_at TEXT,
  last_sign_in_at   TEXT,
  last_sign_in_rank TEXT    NOT NULL,
  created_at        TEXT    NOT NULL,
  updated_at        TEXT    NOT NULL,
  deleted_at        TEXT,
  version           INTEGER NOT NULL
) STRICT;
INSERT INTO users_new
  SELECT id, organization_id, email, email, full_name, lower(full_name), lower(full_name) || char(10) || email, role, status,
         password_hash, email_verified_at, last_sign_in_at, coalesce(last_sign_in_at, '1970-01-01T00:00:00.000000Z'),
         created_at, updated_at, NULL, version
  FROM users;
DROP TABLE users;
ALTER TABLE users_new RENAME TO users;
CREATE INDEX users_by_organization ON users (organization_id, created_at, id);
CREATE INDEX users_by_email ON users (organization_id, email, id);
CREATE INDEX users_by_name ON users (organization_id, full_name_folded, id);
CREATE INDEX users_by_last_sign_in ON users (organization_id, last_sign_in_rank, id);

-- The one invitation of a user who has not accepted it yet; it goes when it is accepted.
CREATE TABLE invitations (
  user_id    TEXT    PRIMARY KEY NOT NULL REFERENCES users (id) ON DELETE CASCADE,
  digest     BLOB    NOT NULL UNIQUE,
  created_at TEXT    NOT NULL,
  expires_at TEXT    NOT NULL
) STRICT;
