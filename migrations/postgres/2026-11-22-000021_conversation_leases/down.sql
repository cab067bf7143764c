-- System prompts that were replaced are sealed with their number: with that gone they do not open any more.
ALTER TABLE conversations DROP COLUMN prompt_version;
ALTER TABLE conversations DROP COLUMN answering_until;
ALTER TABLE conversations DROP COLUMN answering_by;
