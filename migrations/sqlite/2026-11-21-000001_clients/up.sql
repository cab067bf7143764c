CREATE TABLE clients (
  id                  TEXT PRIMARY KEY NOT NULL,
  organization_id     TEXT NOT NULL REFERENCES organizations (id),
  name                TEXT NOT NULL,
  name_folded         TEXT NOT NULL,
  company             TEXT,
  -- Empty where there is none: a list is sorted by it.
  company_folded      TEXT NOT NULL,
  search_text         TEXT NOT NULL,
  email               TEXT,
  phone               TEXT,
  notes               TEXT,
  -- What it was before it was archived, and is again when it is restored.
  status              TEXT NOT NULL,
  owner_id            TEXT REFERENCES users (id) ON DELETE SET NULL,
  metadata            TEXT,
  archived_at         TEXT,
  created_at          TEXT NOT NULL,
  updated_at          TEXT NOT NULL,
  version             INTEGER NOT NULL
) STRICT;
CREATE INDEX clients_by_created_at ON clients (organization_id, created_at, id);
CREATE INDEX clients_by_updated_at ON clients (organization_id, updated_at, id);
CREATE INDEX clients_by_name ON clients (organization_id, name_folded, id);
CREATE INDEX clients_by_company ON clients (organization_id, company_folded, id);
CREATE INDEX clients_by_owner ON clients (organization_id, owner_id, created_at, id);

CREATE TABLE tasks (
  id                  TEXT PRIMARY KEY NOT NULL,
  organization_id     TEXT NOT NULL REFERENCES organizations (id),
  client_id           TEXT NOT NULL REFERENCES clients (id) ON DELETE CASCADE,
  title               TEXT NOT NULL,
  title_folded        TEXT NOT NULL,
  search_text         TEXT NOT NULL,
  description         TEXT,
  status              TEXT NOT NULL,
  priority            TEXT NOT NULL,
  -- From 1, the least urgent.
  priority_rank       INTEGER NOT NULL,
  assignee_id         TEXT REFERENCES users (id) ON DELETE SET NULL,
  due_at              TEXT,
  -- The end of time where none is set: a list is sorted by it.
  due_sort            TEXT NOT NULL,
  completed_at        TEXT,
  created_by          TEXT REFERENCES users (id) ON DELETE SET NULL,
  created_at          TEXT NOT NULL,
  updated_at          TEXT NOT NULL,
  version             INTEGER NOT NULL
) STRICT;
CREATE INDEX tasks_by_created_at ON tasks (organization_id, created_at, id);
CREATE INDEX tasks_by_updated_at ON tasks (organization_id, updated_at, id);
CREATE INDEX tasks_by_due_at ON tasks (organization_id, due_sort, id);
CREATE INDEX tasks_by_priority ON tasks (organization_id, priority_rank, id);
CREATE INDEX tasks_by_title ON tasks (organization_id, title_folded, id);
CREATE INDEX tasks_by_assignee ON tasks (organization_id, assignee_id, created_at, id);
CREATE INDEX tasks_by_client ON tasks (client_id, created_at, id);
