DROP INDEX tasks_by_organization;
DROP INDEX clients_not_archived;
-- The extension stays: others may use it.
DROP INDEX api_keys_by_search;
DROP INDEX credentials_by_search;
DROP INDEX users_by_search;
DROP INDEX tasks_by_search;
DROP INDEX clients_by_search;
DROP INDEX claude_accounts_by_search;
