-- Conversations with Claude. Each is its owner's alone. The title is found by searches and is not sealed; what was said is.
-- message_count: how many messages there are, by which two answers at once are told apart.
CREATE TABLE conversations (
  id                  TEXT    PRIMARY KEY NOT NULL,
  organization_id     TEXT    NOT NULL REFERENCES organizations (id),
  owner_id            TEXT    NOT NULL REFERENCES users (id) ON DELETE CASCADE,
  client_id           TEXT    REFERENCES clients (id) ON DELETE SET NULL,
  title               TEXT    NOT NULL,
  title_folded        TEXT    NOT NULL,
  search_text         TEXT    NOT NULL,
  model               TEXT,
  system_prompt       BLOB,
  key_version         TEXT,
  metadata            TEXT,
  message_count       INTEGER NOT NULL,
  created_at          TEXT    NOT NULL,
  updated_at          TEXT    NOT NULL,
  version             INTEGER NOT NULL
) STRICT;
CREATE INDEX conversations_by_created_at ON conversations (organization_id, owner_id, created_at, id);
CREATE INDEX conversations_by_updated_at ON conversations (organization_id, owner_id, updated_at, id);
CREATE INDEX conversations_by_title ON conversations (organization_id, owner_id, title_folded, id);
CREATE INDEX conversations_by_client ON conversations (client_id);
CREATE INDEX conversations_by_owner ON conversations (owner_id);
-- For the change of keys.
CREATE INDEX conversations_by_key_version ON conversations (key_version, organization_id, id);

CREATE VIRTUAL TABLE conversations_search USING fts5 (
  search_text, content = '', contentless_delete = 1, detail = none, columnsize = 1, tokenize = 'trigram case_sensitive 1'
);
CREATE TRIGGER conversations_search_insert AFTER INSERT ON conversations BEGIN
  INSERT INTO conversations_search (rowid, search_text) VALUES (NEW.rowid, NEW.search_text);
END;
CREATE TRIGGER conversations_search_update AFTER UPDATE OF search_text ON conversations WHEN OLD.search_text <> NEW.search_text BEGIN
  DELETE FROM conversations_search WHERE rowid = OLD.rowid;
  INSERT INTO conversations_search (rowid, search_text) VALUES (NEW.rowid, NEW.search_text);
END;
CREATE TRIGGER conversations_search_delete AFTER DELETE ON conversations BEGIN
  DELETE FROM conversations_search WHERE rowid = OLD.rowid;
END;

-- What was said: the blocks of the API as JSON, sealed. ordinal: its place in the conversation, from 1.
CREATE TABLE messages (
  id                  TEXT    PRIMARY KEY NOT NULL,
  organization_id     TEXT    NOT NULL REFERENCES organizations (id),
  owner_id            TEXT    NOT NULL,
  conversation_id     TEXT    NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
  ordinal             INTEGER NOT NULL,
  role                TEXT    NOT NULL,
  sealed              BLOB    NOT NULL,
  key_version         TEXT    NOT NULL,
  usage               TEXT,
  created_at          TEXT    NOT NULL
) STRICT;
CREATE UNIQUE INDEX messages_by_ordinal ON messages (conversation_id, ordinal);
CREATE INDEX messages_by_key_version ON messages (key_version, organization_id, id);
