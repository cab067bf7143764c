ALTER TABLE conversations DROP COLUMN prompt_version;
ALTER TABLE conversations DROP COLUMN answering_until;
ALTER TABLE conversations DROP COLUMN answering_by;
