-- Which keys of the ring API keys are found by is counted over all of them, now and then: no index is read for that.
DROP INDEX api_key_digests_by_key_version;
