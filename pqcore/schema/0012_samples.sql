-- needs 5
--- Samples of the figures of each queue, about one a minute, of the last day. A row without a queue's name has the sum
--- of all queues. `took` is the number of seconds that reading the figures took, and `queues` the number of queues that
--- had jobs; the rows of single queues do not have them. A row without figures shows that a worker reads them.
CREATE TABLE IF NOT EXISTS {samples} (
  at        timestamptz NOT NULL,
  q_name    text        NOT NULL,
  ready     bigint,
  scheduled bigint,
  leased    bigint,
  parked    bigint,
  dead      bigint,
  finished  bigint,
  oldest    double precision,
  median    double precision,
  slow      double precision,
  took      double precision,
  queues    integer,
  PRIMARY KEY (at, q_name)
)
--- Existing roles keep working: a role has the rights to samples that it has to the list of workers.
DO $do$ DECLARE missing record; BEGIN
  FOR missing IN
    SELECT CASE granted.grantee WHEN 0 THEN 'PUBLIC' ELSE granted.grantee::regrole::text END AS role,
      string_agg(DISTINCT granted.privilege_type, ', ') AS rights
    FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS granted
    WHERE c.oid = to_regclass($name${workers}$name$) AND granted.grantee <> c.relowner
      AND granted.privilege_type IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
    GROUP BY granted.grantee
  LOOP
    EXECUTE 'GRANT ' || missing.rights || ' ON ' || $name${samples}$name$ || ' TO ' || missing.role;
  END LOOP;
END $do$
