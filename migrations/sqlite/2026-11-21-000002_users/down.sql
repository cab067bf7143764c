DROP TABLE invitations;

-- Deleted users stay, since others may refer to them, under an address that nobody has. They have no password.
CREATE TABLE users_old (
  id                TEXT    PRIMARY KEY NOT NULL,
  organization_id   TEXT    NOT NULL REFERENCES organizations (id),
  email             TEXT    NOT NULL UNIQUE,
  full_name         TEXT    NOT NULL,
  role              TEXT    NOT NULL,
  status            TEXT    NOT NULL,
  password_hash     TEXT,
  email_verified_at TEXT,
  last_sign_in_at   TEXT,
  created_at        TEXT    NOT NULL,
  updated_at        TEXT    NOT NULL,
  version           INTEGER NOT NULL
) STRICT;
INSERT INTO users_old
  SELECT id, organization_id, coalesce(email_key, id || '@deleted.invalid'), full_name, role, status, password_hash,
         email_verified_at, last_sign_in_at, created_at, updated_at, version
  FROM users;
DROP TABLE users;
ALTER TABLE users_old RENAME TO users;
CREATE INDEX users_by_organization ON users (organization_id, created_at, id);
