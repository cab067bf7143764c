-- A user may have several tokens for a new password: whoever asks for one more in the user's place ends none.
DROP INDEX mail_tokens_by_user;
CREATE UNIQUE INDEX mail_tokens_by_user ON mail_tokens (user_id) WHERE purpose = 'VERIFY_EMAIL';
CREATE INDEX mail_tokens_by_owner ON mail_tokens (user_id);
