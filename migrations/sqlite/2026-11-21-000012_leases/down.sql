DROP INDEX api_key_digests_by_end;
DROP INDEX invitations_by_end;
DROP INDEX sessions_by_end;
DROP TABLE leases;
