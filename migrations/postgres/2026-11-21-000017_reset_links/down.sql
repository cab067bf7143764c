DELETE FROM mail_tokens WHERE purpose = 'RESET_PASSWORD';
DROP INDEX mail_tokens_by_owner;
DROP INDEX mail_tokens_by_user;
CREATE UNIQUE INDEX mail_tokens_by_user ON mail_tokens (user_id, purpose);
