CREATE INDEX api_key_digests_by_key_version ON api_key_digests (key_version, api_key_id);
