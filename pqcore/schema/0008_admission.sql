-- needs 5
--- Higher priorities come first. A row of older code, or of pq, has priority 0, as most jobs do.
ALTER TABLE {table} ADD COLUMN IF NOT EXISTS priority integer NOT NULL DEFAULT 0
--- Keys: limits, groups and rates that jobs were put under. `running` has the jobs that were admitted last; those that
--- have ended since do not count. Each admission makes a new version, so that the newest is found first, however many
--- old ones a snapshot keeps.
CREATE TABLE IF NOT EXISTS {keys} (
  q_name      text        NOT NULL,
  key         text        NOT NULL,
  version     bigint      NOT NULL,
  places      integer,
  newest      bigint      NOT NULL DEFAULT -1,
  running     bigint[]    NOT NULL,
  reserved    bigint,
  tokens      double precision,
  refilled_at timestamptz,
  admitted_at timestamptz NOT NULL DEFAULT statement_timestamp(),
  PRIMARY KEY (q_name, key, version)
)
--- Each take of a job under a key leaves an old version: VACUUM runs early and in one pass, as for the queue's table.
ALTER TABLE {keys} SET (
  vacuum_index_cleanup = on,
  vacuum_truncate = off,
  autovacuum_vacuum_scale_factor = 0.01,
  autovacuum_vacuum_threshold = 1000,
  autovacuum_vacuum_cost_delay = 0,
  autovacuum_analyze_scale_factor = 0.05
)
--- The table has 64 pages from the start, so that it is not scanned sequentially; see the queue's table.
INSERT INTO {keys} (q_name, key, version, running)
SELECT '-', '-', -number, array_fill(0::bigint, ARRAY[235]) FROM generate_series(1, 256) AS number
--- These rows only gave the table its size.
DELETE FROM {keys} WHERE q_name = '-' AND key = '-' AND version < 0
--- Rules of operators: limits and rates of keys, weights of shares, pauses. A rule takes precedence over the values of
--- a put.
CREATE TABLE IF NOT EXISTS {rules} (
  q_name     text             NOT NULL,
  kind       text             NOT NULL,
  name       text             NOT NULL,
  number     double precision,
  period     double precision,
  until      timestamptz,
  changed_at timestamptz      NOT NULL DEFAULT statement_timestamp(),
  PRIMARY KEY (q_name, kind, name)
)
--- Workers that are alive, or were lately: one row for each queue of each worker.
CREATE TABLE IF NOT EXISTS {workers} (
  q_name      text        NOT NULL,
  id          text        NOT NULL,
  host        text        NOT NULL,
  pid         integer     NOT NULL,
  version     text        NOT NULL,
  tasks       json        NOT NULL,
  concurrency integer     NOT NULL,
  started_at  timestamptz NOT NULL,
  seen_at     timestamptz NOT NULL,
  PRIMARY KEY (q_name, id)
)
--- Existing roles keep working: a role that may put jobs may put them as waiting, and a role that may hold places may
--- hold keys. A role that may draw tokens may read the rules, and be listed as a worker. A role that may delete dead
--- letters may set rules.
DO $do$ DECLARE missing record; BEGIN
  FOR missing IN
    SELECT DISTINCT role.oid::regrole AS role
    FROM pg_attribute AS a CROSS JOIN LATERAL aclexplode(a.attacl) AS granted
    JOIN pg_roles AS role ON role.oid = granted.grantee
    WHERE a.attrelid = to_regclass($name${table}$name$) AND a.attname = 'group_key'
      AND granted.privilege_type = 'INSERT'
  LOOP
    EXECUTE 'GRANT INSERT (parked_on, leased_until, priority), SELECT (priority) ON '
      || $name${table}$name$ || ' TO ' || missing.role;
  END LOOP;
  FOR missing IN
    SELECT place.name, role.oid::regrole AS role, string_agg(DISTINCT granted.privilege_type, ', ') AS rights
    FROM (VALUES ($name${slots}$name$, $name${keys}$name$), ($name${rates}$name$, $name${workers}$name$),
      ($name${dead}$name$, $name${rules}$name$)) AS place (source, name)
    JOIN pg_class AS c ON c.oid = to_regclass(place.source) CROSS JOIN LATERAL aclexplode(c.relacl) AS granted
    JOIN pg_roles AS role ON role.oid = granted.grantee
    WHERE role.oid <> c.relowner AND granted.privilege_type IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
    GROUP BY place.source, place.name, role.oid
    HAVING place.source <> $name${dead}$name$ OR bool_or(granted.privilege_type = 'DELETE')
  LOOP
    EXECUTE 'GRANT ' || missing.rights || ' ON ' || missing.name || ' TO ' || missing.role;
  END LOOP;
  FOR missing IN
    SELECT role.oid::regrole AS role
    FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS granted
    JOIN pg_roles AS role ON role.oid = granted.grantee
    WHERE c.oid = to_regclass($name${rates}$name$) AND role.oid <> c.relowner AND granted.privilege_type = 'SELECT'
  LOOP
    EXECUTE 'GRANT SELECT ON ' || $name${rules}$name$ || ' TO ' || missing.role;
  END LOOP;
END $do$
