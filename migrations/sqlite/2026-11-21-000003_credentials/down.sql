DROP INDEX claude_accounts_by_key_version;
DROP TABLE credential_secrets;
DROP TABLE credentials;
