-- The triggers' functions find what they name where the tables are, whatever the session's search_path says: a temporary table
-- audit_seals would otherwise be asked in the place of the true one. What is not named comes first, so pg_temp is named last.
DO $$
DECLARE
  place regnamespace := (SELECT relnamespace FROM pg_class WHERE oid = 'audit_logs'::regclass);
  named text;
BEGIN
  FOREACH named IN ARRAY ARRAY['refuse_audit_change', 'refuse_audit_removal', 'refuse_audit_seal_change'] LOOP
    EXECUTE format('ALTER FUNCTION %s.%I() SET search_path = pg_catalog, %s, pg_temp', place, named, place);
  END LOOP;
END
$$;
