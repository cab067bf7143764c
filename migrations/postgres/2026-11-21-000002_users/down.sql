DROP TABLE invitations;

-- Deleted users stay, since others may refer to them, under an address that nobody has. They have no password.
UPDATE users SET email = id || '@deleted.invalid' WHERE email_key IS NULL;
DROP INDEX users_by_last_sign_in;
DROP INDEX users_by_name;
DROP INDEX users_by_email;
ALTER TABLE users
  DROP COLUMN email_key,
  DROP COLUMN full_name_folded,
  DROP COLUMN search_text,
  DROP COLUMN last_sign_in_rank,
  DROP COLUMN deleted_at;
ALTER TABLE users ADD CONSTRAINT users_email_key UNIQUE (email);
