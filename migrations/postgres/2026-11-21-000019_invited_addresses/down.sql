-- Whoever is invited holds the address again where nobody does; of several the first.
UPDATE users SET email_key = email
  WHERE status = 'INVITED' AND deleted_at IS NULL
    AND NOT EXISTS (SELECT 1 FROM users AS holder WHERE holder.email_key = users.email)
    AND id = (SELECT min(other.id) FROM users AS other
              WHERE other.email = users.email AND other.status = 'INVITED' AND other.deleted_at IS NULL);
