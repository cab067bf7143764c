-- Conversations with Claude. Each is its owner's alone. The title is found by searches and is not sealed; what was said is.
-- message_count: how many messages there are, by which two answers at once are told apart.
CREATE TABLE conversations (
  id                  text COLLATE "C" PRIMARY KEY,
  organization_id     text COLLATE "C" NOT NULL REFERENCES organizations (id),
  owner_id            text COLLATE "C" NOT NULL REFERENCES users (id) ON DELETE CASCADE,
  client_id           text COLLATE "C" REFERENCES clients (id) ON DELETE SET NULL,
  title               text COLLATE "C" NOT NULL,
  title_folded        text COLLATE "C" NOT NULL,
  search_text         text COLLATE "C" NOT NULL,
  model               text COLLATE "C",
  system_prompt       bytea,
  key_version         text COLLATE "C",
  metadata            text COLLATE "C",
  message_count       integer          NOT NULL,
  created_at          timestamptz      NOT NULL,
  updated_at          timestamptz      NOT NULL,
  version             integer          NOT NULL
);
CREATE INDEX conversations_by_created_at ON conversations (organization_id, owner_id, created_at, id);
CREATE INDEX conversations_by_updated_at ON conversations (organization_id, owner_id, updated_at, id);
CREATE INDEX conversations_by_title ON conversations (organization_id, owner_id, title_folded, id);
CREATE INDEX conversations_by_client ON conversations (client_id);
CREATE INDEX conversations_by_owner ON conversations (owner_id);
-- For the change of keys.
CREATE INDEX conversations_by_key_version ON conversations (key_version, organization_id, id);
CREATE INDEX conversations_by_search ON conversations USING gin (search_text gin_trgm_ops);

-- What was said: the blocks of the API as JSON, sealed. ordinal: its place in the conversation, from 1.
CREATE TABLE messages (
  id                  text COLLATE "C" PRIMARY KEY,
  organization_id     text COLLATE "C" NOT NULL REFERENCES organizations (id),
  owner_id            text COLLATE "C" NOT NULL,
  conversation_id     text COLLATE "C" NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
  ordinal             integer          NOT NULL,
  role                text COLLATE "C" NOT NULL,
  sealed              bytea            NOT NULL,
  key_version         text COLLATE "C" NOT NULL,
  usage               text COLLATE "C",
  created_at          timestamptz      NOT NULL
);
CREATE UNIQUE INDEX messages_by_ordinal ON messages (conversation_id, ordinal);
CREATE INDEX messages_by_key_version ON messages (key_version, organization_id, id);
