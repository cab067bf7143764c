-- Search finds text anywhere in search_text: by its trigrams, which pg_trgm makes. Since PostgreSQL 13 whoever may create in the
-- database may add it; where that is not allowed, or it is not installed, the error says what to do.
DO $$
BEGIN
  CREATE EXTENSION IF NOT EXISTS pg_trgm;
EXCEPTION WHEN OTHERS THEN
  RAISE EXCEPTION 'the extension pg_trgm cannot be created (%): have an administrator run CREATE EXTENSION pg_trgm in the database % (on Debian it is part of the package postgresql, elsewhere of postgresql-contrib), then start again',
    SQLERRM, current_database();
END
$$;
CREATE INDEX claude_accounts_by_search ON claude_accounts USING gin (search_text gin_trgm_ops);
CREATE INDEX clients_by_search ON clients USING gin (search_text gin_trgm_ops);
CREATE INDEX tasks_by_search ON tasks USING gin (search_text gin_trgm_ops);
CREATE INDEX users_by_search ON users USING gin (search_text gin_trgm_ops);
CREATE INDEX credentials_by_search ON credentials USING gin (search_text gin_trgm_ops);
CREATE INDEX api_keys_by_search ON api_keys USING gin (search_text gin_trgm_ops);

-- What is counted most, as narrow as can be.
CREATE INDEX clients_not_archived ON clients (organization_id) WHERE archived_at IS NULL;
CREATE INDEX tasks_by_organization ON tasks (organization_id);
