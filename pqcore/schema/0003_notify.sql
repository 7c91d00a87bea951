--- This trigger wakes waiters once for each statement and queue, on the channel that pq uses (see
--- pqcore.sql.identifiers.channel). SET pqcore.notify = 'off' silences it for a session or transaction: NOTIFY takes a
--- database-wide lock at commit, which slows small parallel commits.
CREATE OR REPLACE FUNCTION {notify}() RETURNS trigger LANGUAGE plpgsql AS $function$
BEGIN
  IF current_setting('pqcore.notify', true) IS DISTINCT FROM 'off' THEN
    PERFORM pg_notify(
      CASE WHEN octet_length(convert_to(q_name, 'UTF8')) > 63
           THEN 'pq_' || md5(convert_to(q_name, 'UTF8')) ELSE q_name END, '')
    FROM (SELECT DISTINCT q_name FROM fresh) AS queues;
  END IF;
  RETURN NULL;
END $function$
--- pq's own trigger notifies for each row.
DROP TRIGGER IF EXISTS pq_insert ON {table}
--- OR REPLACE TRIGGER needs PostgreSQL 14, so the existing trigger is dropped first.
DROP TRIGGER IF EXISTS {notify_trigger} ON {table}
--- The trigger runs once for each statement, with the rows that it inserted.
CREATE TRIGGER {notify_trigger} AFTER INSERT ON {table}
  REFERENCING NEW TABLE AS fresh
  FOR EACH STATEMENT EXECUTE FUNCTION {notify}()
