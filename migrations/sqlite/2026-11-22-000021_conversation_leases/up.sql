-- Who answers in a conversation, so that no other server does. Where that server is gone, it runs out.
ALTER TABLE conversations ADD COLUMN answering_by TEXT;
ALTER TABLE conversations ADD COLUMN answering_until TEXT;
