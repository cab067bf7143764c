CREATE TABLE clients (
  id                  text COLLATE "C" PRIMARY KEY,
  organization_id     text COLLATE "C" NOT NULL REFERENCES organizations (id),
  name                text COLLATE "C" NOT NULL,
  name_folded         text COLLATE "C" NOT NULL,
  company             text COLLATE "C",
  -- Empty where there is none: a list is sorted by it.
  company_folded      text COLLATE "C" NOT NULL,
  search_text         text COLLATE "C" NOT NULL,
  email               text COLLATE "C",
  phone               text COLLATE "C",
  notes               text COLLATE "C",
  -- What it was before it was archived, and is again when it is restored.
  status              text COLLATE "C" NOT NULL,
  owner_id            text COLLATE "C" REFERENCES users (id) ON DELETE SET NULL,
  metadata            text COLLATE "C",
  archived_at         timestamptz,
  created_at          timestamptz NOT NULL,
  updated_at          timestamptz NOT NULL,
  version             integer NOT NULL
);
CREATE INDEX clients_by_created_at ON clients (organization_id, created_at, id);
CREATE INDEX clients_by_updated_at ON clients (organization_id, updated_at, id);
CREATE INDEX clients_by_name ON clients (organization_id, name_folded, id);
CREATE INDEX clients_by_company ON clients (organization_id, company_folded, id);
CREATE INDEX clients_by_owner ON clients (organization_id, owner_id, created_at, id);

CREATE TABLE tasks (
  id                  text COLLATE "C" PRIMARY KEY,
  organization_id     text COLLATE "C" NOT NULL REFERENCES organizations (id),
  client_id           text COLLATE "C" NOT NULL REFERENCES clients (id) ON DELETE CASCADE,
  title               text COLLATE "C" NOT NULL,
  title_folded        text COLLATE "C" NOT NULL,
  search_text         text COLLATE "C" NOT NULL,
  description         text COLLATE "C",
  status              text COLLATE "C" NOT NULL,
  priority            text COLLATE "C" NOT NULL,
  -- From 1, the least urgent.
  priority_rank       integer NOT NULL,
  assignee_id         text COLLATE "C" REFERENCES users (id) ON DELETE SET NULL,
  due_at              timestamptz,
  -- The end of time where none is set: a list is sorted by it.
  due_sort            timestamptz NOT NULL,
  completed_at        timestamptz,
  created_by          text COLLATE "C" REFERENCES users (id) ON DELETE SET NULL,
  created_at          timestamptz NOT NULL,
  updated_at          timestamptz NOT NULL,
  version             integer NOT NULL
);
CREATE INDEX tasks_by_created_at ON tasks (organization_id, created_at, id);
CREATE INDEX tasks_by_updated_at ON tasks (organization_id, updated_at, id);
CREATE INDEX tasks_by_due_at ON tasks (organization_id, due_sort, id);
CREATE INDEX tasks_by_priority ON tasks (organization_id, priority_rank, id);
CREATE INDEX tasks_by_title ON tasks (organization_id, title_folded, id);
CREATE INDEX tasks_by_assignee ON tasks (organization_id, assignee_id, created_at, id);
CREATE INDEX tasks_by_client ON tasks (client_id, created_at, id);
