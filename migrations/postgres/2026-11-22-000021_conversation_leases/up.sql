-- Who answers in a conversation, so that no other server does. Where that server is gone, it runs out.
ALTER TABLE conversations ADD COLUMN answering_by text COLLATE "C";
ALTER TABLE conversations ADD COLUMN answering_until timestamptz;

-- The how-manieth system prompt it is: the seal of an older one does not open in its place.
ALTER TABLE conversations ADD COLUMN prompt_version integer NOT NULL DEFAULT 0;
