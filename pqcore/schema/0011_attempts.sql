-- needs 5
--- Attempts that failed, crashed or were snoozed. An attempt replaces the attempt of 20 leases before, so a job has at
--- most 20 rows, and no statement has to delete rows to make room. Ids can repeat, so `put_at` also identifies the job.
CREATE TABLE IF NOT EXISTS {attempts} (
  job_id     bigint      NOT NULL,
  place      integer     NOT NULL,
  q_name     text        NOT NULL,
  put_at     timestamptz NOT NULL,
  token      integer     NOT NULL,
  attempt    integer     NOT NULL,
  outcome    text        NOT NULL,
  ended_at   timestamptz NOT NULL,
  worker     text,
  error_type text,
  message    text,
  traceback  text,
  PRIMARY KEY (job_id, place)
)
--- `running` has the jobs that a worker ran when it wrote the row: the id, the token and the seconds since the start of
--- each. `quiet` is true if an operator wants the worker to take no more jobs. Rows that older code wrote have NULL.
ALTER TABLE {workers}
  ADD COLUMN IF NOT EXISTS running json,
  ADD COLUMN IF NOT EXISTS quiet   boolean
--- Existing roles keep working: a role that may store how an attempt ends may keep attempts. Such a role may insert dead
--- letters, or update the failures of a job.
DO $do$ DECLARE missing record; BEGIN
  FOR missing IN
    SELECT CASE granted.grantee WHEN 0 THEN 'PUBLIC' ELSE granted.grantee::regrole::text END AS role
    FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS granted
    WHERE granted.grantee <> c.relowner AND (
      (c.oid = to_regclass($name${dead}$name$) AND granted.privilege_type = 'INSERT')
      OR (c.oid = to_regclass($name${table}$name$) AND granted.privilege_type = 'UPDATE'))
    UNION
    SELECT CASE granted.grantee WHEN 0 THEN 'PUBLIC' ELSE granted.grantee::regrole::text END
    FROM pg_attribute AS a CROSS JOIN LATERAL aclexplode(a.attacl) AS granted
    WHERE a.attrelid = to_regclass($name${table}$name$) AND a.attname = 'failures'
      AND granted.privilege_type = 'UPDATE'
  LOOP
    EXECUTE 'GRANT SELECT, INSERT, UPDATE, DELETE ON ' || $name${attempts}$name$ || ' TO ' || missing.role;
  END LOOP;
END $do$
