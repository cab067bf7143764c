-- email_key: the address of a user who is not deleted. A deleted user keeps the address to be read, and frees it to be taken.
-- The folded columns and last_sign_in_rank follow from others, as for claude_accounts; a user who never signed in ranks as 1970.
-- Names that are here already are folded by SQL, which knows ASCII only; the next change of such a user folds all of it.
ALTER TABLE users DROP CONSTRAINT users_email_key;
ALTER TABLE users
  ADD COLUMN email_key         text COLLATE "C" UNIQUE,
  ADD COLUMN full_name_folded  text COLLATE "C",
  ADD COLUMN search_text       text COLLATE "C",
  ADD COLUMN last_sign_in_rank timestamptz,
  ADD COLUMN deleted_at        timestamptz;
UPDATE users SET
  email_key = email,
  full_name_folded = lower(full_name),
  search_text = lower(full_name) || chr(10) || email,
  last_sign_in_rank = coalesce(last_sign_in_at, '1970-01-01T00:00:00Z');
ALTER TABLE users
  ALTER COLUMN full_name_folded SET NOT NULL,
  ALTER COLUMN search_text SET NOT NULL,
  ALTER COLUMN last_sign_in_rank SET NOT NULL;
CREATE INDEX users_by_email ON users (organization_id, email, id);
CREATE INDEX users_by_name ON users (organization_id, full_name_folded, id);
CREATE INDEX users_by_last_sign_in ON users (organization_id, last_sign_in_rank, id);

-- The one invitation of a user who has not accepted it yet; it goes when it is accepted.
CREATE TABLE invitations (
  user_id             text COLLATE "C" PRIMARY KEY REFERENCES users (id) ON DELETE CASCADE,
  digest              bytea            NOT NULL UNIQUE,
  created_at          timestamptz      NOT NULL,
  expires_at          timestamptz      NOT NULL
);
