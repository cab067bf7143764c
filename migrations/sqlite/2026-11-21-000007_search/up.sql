-- Search finds text anywhere in search_text: an index of its trigrams tells which rows can have it, and LIKE which of them do.
-- It keeps neither the text nor places in it, and names a row by its rowid: VACUUM leaves those as they are in a table that
-- has another index. The text is folded already, so the index need not look past case.

CREATE VIRTUAL TABLE claude_accounts_search USING fts5 (
  search_text, content = '', contentless_delete = 1, detail = none, columnsize = 1, tokenize = 'trigram case_sensitive 1'
);
INSERT INTO claude_accounts_search (rowid, search_text) SELECT rowid, search_text FROM claude_accounts;
CREATE TRIGGER claude_accounts_search_insert AFTER INSERT ON claude_accounts BEGIN
  INSERT INTO claude_accounts_search (rowid, search_text) VALUES (NEW.rowid, NEW.search_text);
END;
CREATE TRIGGER claude_accounts_search_update AFTER UPDATE OF search_text ON claude_accounts WHEN OLD.search_text <> NEW.search_text BEGIN
  DELETE FROM claude_accounts_search WHERE rowid = OLD.rowid;
  INSERT INTO claude_accounts_search (rowid, search_text) VALUES (NEW.rowid, NEW.search_text);
END;
CREATE TRIGGER claude_accounts_search_delete AFTER DELETE ON claude_accounts BEGIN
  DELETE FROM claude_accounts_search WHERE rowid = OLD.rowid;
END;

CREATE VIRTUAL TABLE clients_search USING fts5 (
  search_text, content = '', contentless_delete = 1, detail = none, columnsize = 1, tokenize = 'trigram case_sensitive 1'
);
INSERT INTO clients_search (rowid, search_text) SELECT rowid, search_text FROM clients;
CREATE TRIGGER clients_search_insert AFTER INSERT ON clients BEGIN
  INSERT INTO clients_search (rowid, search_text) VALUES (NEW.rowid, NEW.search_text);
END;
CREATE TRIGGER clients_search_update AFTER UPDATE OF search_text ON clients WHEN OLD.search_text <> NEW.search_text BEGIN
  DELETE FROM clients_search WHERE rowid = OLD.rowid;
  INSERT INTO clients_search (rowid, search_text) VALUES (NEW.rowid, NEW.search_text);
END;
CREATE TRIGGER clients_search_delete AFTER DELETE ON clients BEGIN
  DELETE FROM clients_search WHERE rowid = OLD.rowid;
END;

CREATE VIRTUAL TABLE tasks_search USING fts5 (
  search_text, content = '', contentless_delete = 1, detail = none, columnsize = 1, tokenize = 'trigram case_sensitive 1'
);
INSERT INTO tasks_search (rowid, search_text) SELECT rowid, search_text FROM tasks;
CREATE TRIGGER tasks_search_insert AFTER INSERT ON tasks BEGIN
  INSERT INTO tasks_search (rowid, search_text) VALUES (NEW.rowid, NEW.search_text);
END;
CREATE TRIGGER tasks_search_update AFTER UPDATE OF search_text ON tasks WHEN OLD.search_text <> NEW.search_text BEGIN
  DELETE FROM tasks_search WHERE rowid = OLD.rowid;
  INSERT INTO tasks_search (rowid, search_text) VALUES (NEW.rowid, NEW.search_text);
END;
CREATE TRIGGER tasks_search_delete AFTER DELETE ON tasks BEGIN
  DELETE FROM tasks_search WHERE rowid = OLD.rowid;
END;

CREATE VIRTUAL TABLE users_search USING fts5 (
  search_text, content = '', contentless_delete = 1, detail = none, columnsize = 1, tokenize = 'trigram case_sensitive 1'
);
INSERT INTO users_search (rowid, search_text) SELECT rowid, search_text FROM users;
CREATE TRIGGER users_search_insert AFTER INSERT ON users BEGIN
  INSERT INTO users_search (rowid, search_text) VALUES (NEW.rowid, NEW.search_text);
END;
CREATE TRIGGER users_search_update AFTER UPDATE OF search_text ON users WHEN OLD.search_text <> NEW.search_text BEGIN
  DELETE FROM users_search WHERE rowid = OLD.rowid;
  INSERT INTO users_search (rowid, search_text) VALUES (NEW.rowid, NEW.search_text);
END;
CREATE TRIGGER users_search_delete AFTER DELETE ON users BEGIN
  DELETE FROM users_search WHERE rowid = OLD.rowid;
END;

CREATE VIRTUAL TABLE credentials_search USING fts5 (
  search_text, content = '', contentless_delete = 1, detail = none, columnsize = 1, tokenize = 'trigram case_sensitive 1'
);
INSERT INTO credentials_search (rowid, search_text) SELECT rowid, search_text FROM credentials;
CREATE TRIGGER credentials_search_insert AFTER INSERT ON credentials BEGIN
  INSERT INTO credentials_search (rowid, search_text) VALUES (NEW.rowid, NEW.search_text);
END;
CREATE TRIGGER credentials_search_update AFTER UPDATE OF search_text ON credentials WHEN OLD.search_text <> NEW.search_text BEGIN
  DELETE FROM credentials_search WHERE rowid = OLD.rowid;
  INSERT INTO credentials_search (rowid, search_text) VALUES (NEW.rowid, NEW.search_text);
END;
CREATE TRIGGER credentials_search_delete AFTER DELETE ON credentials BEGIN
  DELETE FROM credentials_search WHERE rowid = OLD.rowid;
END;

CREATE VIRTUAL TABLE api_keys_search USING fts5 (
  search_text, content = '', contentless_delete = 1, detail = none, columnsize = 1, tokenize = 'trigram case_sensitive 1'
);
INSERT INTO api_keys_search (rowid, search_text) SELECT rowid, search_text FROM api_keys;
CREATE TRIGGER api_keys_search_insert AFTER INSERT ON api_keys BEGIN
  INSERT INTO api_keys_search (rowid, search_text) VALUES (NEW.rowid, NEW.search_text);
END;
CREATE TRIGGER api_keys_search_update AFTER UPDATE OF search_text ON api_keys WHEN OLD.search_text <> NEW.search_text BEGIN
  DELETE FROM api_keys_search WHERE rowid = OLD.rowid;
  INSERT INTO api_keys_search (rowid, search_text) VALUES (NEW.rowid, NEW.search_text);
END;
CREATE TRIGGER api_keys_search_delete AFTER DELETE ON api_keys BEGIN
  DELETE FROM api_keys_search WHERE rowid = OLD.rowid;
END;

-- What is counted most, as narrow as can be.
CREATE INDEX clients_not_archived ON clients (organization_id) WHERE archived_at IS NULL;
CREATE INDEX tasks_by_organization ON tasks (organization_id);

-- Without statistics SQLite plans as though ten rows were of one organization, and reads all of an organization's rows to find
-- those of a client or those that a search names. These say what is true of whoever has enough rows for it to matter. The audit
-- log does without: by them a span of time long past would be looked for from the newest entry on.
ANALYZE sqlite_schema;
DELETE FROM sqlite_stat1;
INSERT INTO sqlite_stat1 (tbl, idx, stat)
  SELECT tbl_name, name, CASE (SELECT count(*) FROM pragma_index_info(name))
    WHEN 1 THEN '1000000 100000'
    WHEN 2 THEN '1000000 100000 1' WHEN 3 THEN '1000000 100000 10 1' ELSE '1000000 100000 100 10 1' END
  FROM sqlite_schema WHERE type = 'index' AND sql LIKE '%(organization_id%' AND tbl_name <> 'audit_logs';
