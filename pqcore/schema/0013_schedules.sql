-- needs 5
--- Schedules that programs and operators make at run time. `call` has the job that each tick puts, in the form of a
--- callback of a batch. `deadline_in` has the seconds from the put of a job until its deadline. The last tick is in the
--- table of ticks, as for a periodic task that is declared in code.
CREATE TABLE IF NOT EXISTS {schedules} (
  q_name      text             NOT NULL,
  name        text             NOT NULL,
  task        text             NOT NULL,
  cron        text             NOT NULL,
  tz          text             NOT NULL,
  missed      text             NOT NULL,
  call        json             NOT NULL,
  deadline_in double precision,
  paused_at   timestamptz,
  created_at  timestamptz      NOT NULL,
  updated_at  timestamptz      NOT NULL,
  PRIMARY KEY (q_name, name)
)
--- Existing roles keep working: a role that may put the jobs of ticks may read and lock schedules, and make them.
DO $do$ DECLARE missing record; BEGIN
  FOR missing IN
    SELECT CASE granted.grantee WHEN 0 THEN 'PUBLIC' ELSE granted.grantee::regrole::text END AS role
    FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS granted
    WHERE granted.grantee <> c.relowner AND c.oid = to_regclass($name${ticks}$name$)
      AND granted.privilege_type = 'INSERT'
  LOOP
    EXECUTE 'GRANT SELECT, INSERT, UPDATE, DELETE ON ' || $name${schedules}$name$ || ' TO ' || missing.role;
  END LOOP;
END $do$
