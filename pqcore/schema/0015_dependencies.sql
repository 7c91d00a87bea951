-- needs 5
--- True if other jobs wait for the end of the job. Rows that older code wrote have NULL.
ALTER TABLE {table} ADD COLUMN IF NOT EXISTS awaited boolean
--- Jobs that wait for other jobs. The row of such a job is scheduled for infinity, so that no code takes it;
--- `schedule_at` is the earliest time that its put named.
CREATE TABLE IF NOT EXISTS {blocked} (
  job_id      bigint      PRIMARY KEY,
  q_name      text        NOT NULL,
  put_at      timestamptz NOT NULL,
  schedule_at timestamptz
)
--- The parents that a job waits for. `outcome` is how the parent ended; NULL while it waits or runs. `polled` is true if
--- the parent could not be marked as awaited, because it was running or locked. `gone` is the outcome if such a parent
--- has no row any more. `q_name` is the queue of the job that waits.
CREATE TABLE IF NOT EXISTS {dependencies} (
  job_id        bigint      NOT NULL,
  parent_id     bigint      NOT NULL,
  q_name        text        NOT NULL,
  parent_put_at timestamptz,
  on_failure    text        NOT NULL,
  polled        boolean     NOT NULL,
  gone          text        NOT NULL,
  outcome       text,
  PRIMARY KEY (job_id, parent_id)
)
--- Each parent leaves an old version: VACUUM runs early and in one pass, as for the queue's table.
ALTER TABLE {dependencies} SET (
  vacuum_index_cleanup = on,
  vacuum_truncate = off,
  autovacuum_vacuum_scale_factor = 0.01,
  autovacuum_vacuum_threshold = 1000,
  autovacuum_vacuum_cost_delay = 0,
  autovacuum_analyze_scale_factor = 0.05
)
--- The table has 32 pages from the start, so that it is not scanned sequentially; see the queue's table.
INSERT INTO {dependencies} (job_id, parent_id, q_name, on_failure, polled, gone)
SELECT -number, -number, '-', repeat('-', 1900), false, '-' FROM generate_series(1, 128) AS number
--- These rows only gave the table its size.
DELETE FROM {dependencies} WHERE q_name = '-' AND job_id < 0 AND gone = '-'
--- For the end of a parent.
CREATE INDEX IF NOT EXISTS {dependencies_parent_index} ON {dependencies} (parent_id)
--- For finding out whether a job still waits. The parents that were put last are looked at first, because usually they
--- end last: so the old versions of the others are not read.
CREATE INDEX IF NOT EXISTS {dependencies_open_index} ON {dependencies} (job_id, parent_id) WHERE outcome IS NULL
--- For finding the jobs of a queue of which a parent has ended.
CREATE INDEX IF NOT EXISTS {dependencies_ended_index} ON {dependencies} (q_name, job_id)
  WHERE outcome IS NOT NULL OR polled
--- The function that runs when an awaited job ends, or when a job that waits for others is deleted. It runs in the
--- transaction that ends the job, whatever ends it: this or older code, pq, or SQL. It changes only rows of this parent,
--- so ends of several parents never wait for each other. It does not decide whether the parent was the last: that is
--- decided after the commit (see pqcore.operations.dependencies). A deleted row counts as done if it was leased or due,
--- because then its end looks the same. Waiters are notified if few other parents are open; ends that are not committed
--- look open, so `few` is more than one. The function has its own search path, which ends with the function. A session
--- keeps the plans of the function while the tables grow, so these plans use indexes from the start.
CREATE OR REPLACE FUNCTION {ended}() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $function$
DECLARE
  how text := 'done';
  queue text;
BEGIN
  PERFORM set_config('search_path', 'pg_catalog, ' || quote_ident(TG_TABLE_SCHEMA) || ', pg_temp', true);
  IF TG_OP = 'UPDATE' AND NEW.dequeued_at IS NULL THEN
    RETURN NULL;
  END IF;
  IF OLD.awaited THEN
    IF TG_OP = 'DELETE' THEN
      how := CASE
        WHEN EXISTS (SELECT FROM {dead_name} WHERE id = OLD.id AND enqueued_at = OLD.enqueued_at) THEN 'dead'
        WHEN EXISTS (SELECT FROM {archive_name} WHERE id = OLD.id AND enqueued_at = OLD.enqueued_at) THEN 'done'
        WHEN OLD.leased_until IS NOT NULL AND OLD.parked_on IS NULL THEN 'done'
        WHEN coalesce(OLD.schedule_at, OLD.enqueued_at) <= statement_timestamp() THEN 'done'
        ELSE 'deleted' END;
    END IF;
    UPDATE {dependencies_name} SET outcome = how
    WHERE parent_id = OLD.id AND parent_put_at = OLD.enqueued_at AND outcome IS NULL;
    FOR queue IN
      SELECT DISTINCT q_name FROM {dependencies_name} AS mine
      WHERE parent_id = OLD.id AND (how <> 'done' OR (
        SELECT count(*) FROM (
          SELECT FROM {dependencies_name} AS other WHERE other.job_id = mine.job_id AND other.outcome IS NULL
          ORDER BY parent_id DESC LIMIT 20
        ) AS few) < 20)
    LOOP
      PERFORM pg_notify(CASE WHEN octet_length(convert_to(queue, 'UTF8')) > 63
        THEN 'pq_' || md5(convert_to(queue, 'UTF8')) ELSE queue END, '');
    END LOOP;
  END IF;
  IF OLD.schedule_at = 'infinity' THEN
    DELETE FROM {dependencies_name} WHERE job_id = OLD.id AND parent_id = ANY (ARRAY(
      SELECT parent_id FROM {dependencies_name} WHERE job_id = OLD.id FOR UPDATE SKIP LOCKED));
    DELETE FROM {blocked_name} WHERE job_id = OLD.id AND put_at = OLD.enqueued_at;
  END IF;
  RETURN NULL;
END $function$
--- OR REPLACE TRIGGER needs PostgreSQL 14, so the existing trigger is dropped first.
DROP TRIGGER IF EXISTS {ended_name} ON {table}
--- The condition keeps the trigger from being called for other jobs.
CREATE TRIGGER {ended_name} AFTER UPDATE OF dequeued_at OR DELETE ON {table} FOR EACH ROW
  WHEN (OLD.dequeued_at IS NULL AND (OLD.awaited OR OLD.schedule_at = 'infinity'))
  EXECUTE FUNCTION {ended}()
--- Existing roles keep working: a role that may finish jobs may mark how they ended, and release the jobs that wait.
DO $do$ DECLARE missing record; BEGIN
  FOR missing IN
    SELECT CASE granted.grantee WHEN 0 THEN 'PUBLIC' ELSE granted.grantee::regrole::text END AS role
    FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS granted
    WHERE c.oid = to_regclass($name${table}$name$) AND granted.grantee <> c.relowner
      AND granted.privilege_type IN ('UPDATE', 'DELETE')
    UNION
    SELECT CASE granted.grantee WHEN 0 THEN 'PUBLIC' ELSE granted.grantee::regrole::text END
    FROM pg_attribute AS a CROSS JOIN LATERAL aclexplode(a.attacl) AS granted
    WHERE a.attrelid = to_regclass($name${table}$name$) AND a.attname IN ('dequeued_at', 'leased_until')
      AND granted.privilege_type = 'UPDATE'
  LOOP
    EXECUTE 'GRANT SELECT, INSERT, UPDATE, DELETE ON ' || $name${dependencies}$name$ || ', ' || $name${blocked}$name$
      || ' TO ' || missing.role;
    EXECUTE 'GRANT UPDATE (awaited) ON ' || $name${table}$name$ || ' TO ' || missing.role;
    EXECUTE 'GRANT SELECT (id, enqueued_at) ON ' || $name${archive}$name$ || ', ' || $name${dead}$name$
      || ' TO ' || missing.role;
  END LOOP;
END $do$
