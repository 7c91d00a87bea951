-- The statements of the dialect cockroachdb. python -m tests.statement_snapshots writes them.

-- migration 0
CREATE TABLE IF NOT EXISTS "pqcore_migrations" (table_name text, version integer, applied_at timestamptz NOT NULL DEFAULT now(), needs integer, PRIMARY KEY (table_name, version));

-- migration 1
SET serial_normalization = 'sql_sequence';

-- migration 1
CREATE TABLE IF NOT EXISTS "queue" (
  id          bigserial    PRIMARY KEY,
  enqueued_at timestamptz  NOT NULL DEFAULT current_timestamp,
  dequeued_at timestamptz,
  expected_at timestamptz,
  schedule_at timestamptz,
  q_name      text         NOT NULL CHECK (length(q_name) > 0),
  data        json
);

-- migration 1
ALTER TABLE "queue"
  ADD COLUMN IF NOT EXISTS attempts     integer NOT NULL DEFAULT 0,
  ADD COLUMN IF NOT EXISTS leased_until timestamptz,
  ADD COLUMN IF NOT EXISTS serializer   text,
  ADD COLUMN IF NOT EXISTS payload      bytea,
  ADD COLUMN IF NOT EXISTS headers      json,
  ADD COLUMN IF NOT EXISTS failures     integer,
  ADD COLUMN IF NOT EXISTS excused      integer,
  ADD COLUMN IF NOT EXISTS error        json,
  ADD COLUMN IF NOT EXISTS dedup_key    text,
  ADD COLUMN IF NOT EXISTS group_key    text,
  ADD COLUMN IF NOT EXISTS parked_on    text,
  ADD COLUMN IF NOT EXISTS cancelling   boolean,
  ALTER COLUMN data DROP NOT NULL;

-- migration 1
ALTER TABLE "queue" ADD CONSTRAINT "queue_has_data" CHECK (data IS NOT NULL OR payload IS NOT NULL);

-- migration 1
CREATE TABLE IF NOT EXISTS "queue_archive" (
  id          bigint       PRIMARY KEY,
  q_name      text         NOT NULL,
  enqueued_at timestamptz  NOT NULL,
  dequeued_at timestamptz  NOT NULL,
  expected_at timestamptz,
  schedule_at timestamptz,
  data        json,
  attempts    integer      NOT NULL,
  serializer  text,
  payload     bytea,
  headers     json,
  failures    integer,
  excused     integer,
  error       json
);

-- migration 1
CREATE INDEX IF NOT EXISTS "queue_archive_age" ON "queue_archive" (q_name, dequeued_at);

-- migration 2
CREATE INDEX  IF NOT EXISTS "queue_ready" ON "queue"
  (q_name, coalesce(schedule_at, enqueued_at), id)
  WHERE dequeued_at IS NULL AND leased_until IS NULL AND expected_at IS NULL;

-- migration 2
CREATE INDEX  IF NOT EXISTS "queue_urgent" ON "queue"
  (q_name, expected_at, enqueued_at, id)
  WHERE dequeued_at IS NULL AND leased_until IS NULL AND schedule_at IS NULL AND expected_at IS NOT NULL;

-- migration 2
CREATE INDEX  IF NOT EXISTS "queue_hidden" ON "queue"
  (q_name, coalesce(leased_until, schedule_at), id)
  WHERE dequeued_at IS NULL
    AND (leased_until IS NOT NULL OR (schedule_at IS NOT NULL AND expected_at IS NOT NULL));

-- migration 2
CREATE UNIQUE INDEX  IF NOT EXISTS "queue_unfinished" ON "queue"
  (q_name, dedup_key)
  WHERE dedup_key IS NOT NULL AND dequeued_at IS NULL;

-- migration 2
CREATE INDEX  IF NOT EXISTS "queue_groups" ON "queue"
  (q_name, group_key, id)
  WHERE group_key IS NOT NULL AND dequeued_at IS NULL;

-- migration 2
CREATE INDEX  IF NOT EXISTS "queue_parked" ON "queue"
  (q_name, parked_on, expected_at, coalesce(schedule_at, enqueued_at), id)
  WHERE parked_on IS NOT NULL;

-- migration 4
CREATE TABLE IF NOT EXISTS "queue_slots" (
  q_name text   NOT NULL,
  key    text   NOT NULL,
  job_id bigint NOT NULL,
  PRIMARY KEY (q_name, key, job_id)
);

-- migration 4
CREATE INDEX IF NOT EXISTS "queue_slots_job" ON "queue_slots" (job_id);

-- migration 4
CREATE TABLE IF NOT EXISTS "queue_dead" (
  id          bigint      PRIMARY KEY,
  q_name      text        NOT NULL,
  enqueued_at timestamptz NOT NULL,
  expected_at timestamptz,
  schedule_at timestamptz,
  data        json,
  attempts    integer     NOT NULL,
  serializer  text,
  payload     bytea,
  headers     json,
  failures    integer,
  excused     integer,
  error       json,
  reason      text        NOT NULL,
  died_at     timestamptz NOT NULL DEFAULT statement_timestamp()
);

-- migration 4
CREATE INDEX IF NOT EXISTS "queue_dead_age" ON "queue_dead" (q_name, died_at, id);

-- migration 4
CREATE TABLE IF NOT EXISTS "queue_results" (
  job_id     bigint      PRIMARY KEY,
  q_name     text        NOT NULL,
  state      text        NOT NULL,
  progress   json,
  data       json,
  payload    bytea,
  serializer text,
  error      json,
  updated_at timestamptz NOT NULL DEFAULT statement_timestamp(),
  expires_at timestamptz
);

-- migration 4
CREATE INDEX IF NOT EXISTS "queue_results_age" ON "queue_results" (expires_at) WHERE expires_at IS NOT NULL;

-- migration 4
SET serial_normalization = 'sql_sequence';

-- migration 4
CREATE TABLE IF NOT EXISTS "queue_batches" (
  id         bigserial   PRIMARY KEY,
  q_name     text        NOT NULL,
  total      integer     NOT NULL,
  pending    integer     NOT NULL,
  failed     integer     NOT NULL DEFAULT 0,
  callback   json,
  created_at timestamptz NOT NULL DEFAULT statement_timestamp()
);

-- migration 4
CREATE TABLE IF NOT EXISTS "queue_ticks" (
  q_name text        NOT NULL,
  name   text        NOT NULL,
  tick   timestamptz NOT NULL,
  PRIMARY KEY (q_name, name)
);

-- migration 4
CREATE TABLE IF NOT EXISTS "queue_rates" (
  q_name      text             PRIMARY KEY,
  tokens      double precision NOT NULL,
  refilled_at timestamptz      NOT NULL
);

-- migration 4
CREATE TABLE IF NOT EXISTS "queue_dedup" (
  q_name    text        NOT NULL,
  dedup_key text        NOT NULL,
  job_id    bigint      NOT NULL,
  until     timestamptz NOT NULL,
  PRIMARY KEY (q_name, dedup_key)
);

-- migration 6
ALTER TABLE "pqcore_migrations" ADD COLUMN IF NOT EXISTS needs integer;

-- migration 7
ALTER TABLE "queue_batches"
  ADD COLUMN IF NOT EXISTS token      text,
  ADD COLUMN IF NOT EXISTS held_until timestamptz;

-- migration 7
ALTER TABLE "queue_ticks"
  ADD COLUMN IF NOT EXISTS cron text,
  ADD COLUMN IF NOT EXISTS tz   text;

-- migration 7
ALTER TABLE "queue_results"
  ADD COLUMN IF NOT EXISTS put_at timestamptz;

-- migration 8
ALTER TABLE "queue" ADD COLUMN IF NOT EXISTS priority integer NOT NULL DEFAULT 0;

-- migration 8
CREATE TABLE IF NOT EXISTS "queue_keys" (
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
);

-- migration 8
CREATE TABLE IF NOT EXISTS "queue_rules" (
  q_name     text             NOT NULL,
  kind       text             NOT NULL,
  name       text             NOT NULL,
  number     double precision,
  period     double precision,
  until      timestamptz,
  changed_at timestamptz      NOT NULL DEFAULT statement_timestamp(),
  PRIMARY KEY (q_name, kind, name)
);

-- migration 8
CREATE TABLE IF NOT EXISTS "queue_workers" (
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
);

-- migration 9
CREATE INDEX  IF NOT EXISTS "queue_waiting" ON "queue"
  (q_name, priority DESC, expected_at, coalesce(schedule_at, enqueued_at), id)
  WHERE parked_on IS NOT NULL;

-- migration 11
CREATE TABLE IF NOT EXISTS "queue_attempts" (
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
);

-- migration 11
ALTER TABLE "queue_workers"
  ADD COLUMN IF NOT EXISTS running json,
  ADD COLUMN IF NOT EXISTS quiet   boolean;

-- migration 12
CREATE TABLE IF NOT EXISTS "queue_samples" (
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
);

-- migration 13
CREATE TABLE IF NOT EXISTS "queue_schedules" (
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
);

-- migration 15
ALTER TABLE "queue" ADD COLUMN IF NOT EXISTS awaited boolean;

-- migration 15
CREATE TABLE IF NOT EXISTS "queue_blocked" (
  job_id      bigint      PRIMARY KEY,
  q_name      text        NOT NULL,
  put_at      timestamptz NOT NULL,
  schedule_at timestamptz
);

-- migration 15
CREATE TABLE IF NOT EXISTS "queue_dependencies" (
  job_id        bigint      NOT NULL,
  parent_id     bigint      NOT NULL,
  q_name        text        NOT NULL,
  parent_put_at timestamptz,
  on_failure    text        NOT NULL,
  polled        boolean     NOT NULL,
  gone          text        NOT NULL,
  outcome       text,
  PRIMARY KEY (job_id, parent_id)
);

-- migration 15
CREATE INDEX IF NOT EXISTS "queue_dependencies_parent" ON "queue_dependencies" (parent_id);

-- migration 15
CREATE INDEX IF NOT EXISTS "queue_dependencies_open" ON "queue_dependencies" (job_id, parent_id) WHERE outcome IS NULL;

-- migration 15
CREATE INDEX IF NOT EXISTS "queue_dependencies_ended" ON "queue_dependencies" (q_name, job_id)
  WHERE outcome IS NOT NULL OR polled;

-- ack_and_tell_archive [hot] $1 ids, $2 tokens, $3 q_name
PREPARE "ack_and_tell_archive" AS WITH gone AS (DELETE FROM "queue"
    WHERE id = ANY ($1::text::bigint[])
    AND leased_until IS NOT NULL
    AND num_nulls(dequeued_at, parked_on) = 2
    AND ((id, attempts) IN (SELECT job, token
        FROM unnest($1::text::bigint[], $2::text::int[]) AS held (job, token))) IS TRUE
    AND q_name = $3::text
    RETURNING *), kept AS (INSERT INTO "queue_archive" (id, q_name, enqueued_at, dequeued_at, expected_at, schedule_at, data, attempts, serializer, payload, headers, failures, excused, error)
    SELECT id, q_name, enqueued_at, statement_timestamp(), expected_at, schedule_at, data, attempts, serializer, payload, headers, failures, excused, error
    FROM gone)
  SELECT id, attempts
  FROM gone;

-- ack_and_tell_delete [hot] $1 ids, $2 tokens, $3 q_name
PREPARE "ack_and_tell_delete" AS
  DELETE FROM "queue"
  WHERE id = ANY ($1::text::bigint[])
  AND leased_until IS NOT NULL
  AND num_nulls(dequeued_at, parked_on) = 2
  AND ((id, attempts) IN (SELECT job, token
      FROM unnest($1::text::bigint[], $2::text::int[]) AS held (job, token))) IS TRUE
  AND q_name = $3::text
  RETURNING id, attempts;

-- ack_and_tell_keep [hot] $1 ids, $2 tokens, $3 q_name
PREPARE "ack_and_tell_keep" AS
  UPDATE "queue"
  SET dequeued_at = statement_timestamp(), leased_until = NULL
  WHERE id = ANY ($1::text::bigint[])
  AND leased_until IS NOT NULL
  AND num_nulls(dequeued_at, parked_on) = 2
  AND ((id, attempts) IN (SELECT job, token
      FROM unnest($1::text::bigint[], $2::text::int[]) AS held (job, token))) IS TRUE
  AND q_name = $3::text
  RETURNING id, attempts;

-- ack_archive [hot] $1 ids, $2 tokens, $3 q_name
PREPARE "ack_archive" AS WITH gone AS (DELETE FROM "queue"
    WHERE id = ANY ($1::text::bigint[])
    AND leased_until IS NOT NULL
    AND num_nulls(dequeued_at, parked_on) = 2
    AND ((id, attempts) IN (SELECT job, token
        FROM unnest($1::text::bigint[], $2::text::int[]) AS held (job, token))) IS TRUE
    AND q_name = $3::text
    RETURNING *), kept AS (INSERT INTO "queue_archive" (id, q_name, enqueued_at, dequeued_at, expected_at, schedule_at, data, attempts, serializer, payload, headers, failures, excused, error)
    SELECT id, q_name, enqueued_at, statement_timestamp(), expected_at, schedule_at, data, attempts, serializer, payload, headers, failures, excused, error
    FROM gone)
  SELECT id, attempts
  FROM gone;

-- ack_delete [hot] $1 ids, $2 tokens, $3 q_name
PREPARE "ack_delete" AS
  DELETE FROM "queue"
  WHERE id = ANY ($1::text::bigint[])
  AND leased_until IS NOT NULL
  AND num_nulls(dequeued_at, parked_on) = 2
  AND ((id, attempts) IN (SELECT job, token
      FROM unnest($1::text::bigint[], $2::text::int[]) AS held (job, token))) IS TRUE
  AND q_name = $3::text
  RETURNING id, attempts;

-- ack_group_and_tell_archive [hot] $1 ids, $2 tokens, $3 q_name
PREPARE "ack_group_and_tell_archive" AS WITH gone AS (DELETE FROM "queue"
    WHERE id = ANY (ARRAY(SELECT id
        FROM "queue"
        WHERE id = ANY ($1::text::bigint[])
        AND leased_until IS NOT NULL
        AND num_nulls(dequeued_at, parked_on) = 2
        AND ((id, attempts) IN (SELECT job, token
            FROM unnest($1::text::bigint[], $2::text::int[]) AS held (job, token))) IS TRUE
        AND q_name = $3::text
        FOR UPDATE SKIP LOCKED))
    AND q_name = $3::text
    RETURNING *), kept AS (INSERT INTO "queue_archive" (id, q_name, enqueued_at, dequeued_at, expected_at, schedule_at, data, attempts, serializer, payload, headers, failures, excused, error)
    SELECT id, q_name, enqueued_at, statement_timestamp(), expected_at, schedule_at, data, attempts, serializer, payload, headers, failures, excused, error
    FROM gone)
  SELECT id, attempts
  FROM gone;

-- ack_group_and_tell_delete [hot] $1 ids, $2 tokens, $3 q_name
PREPARE "ack_group_and_tell_delete" AS
  DELETE FROM "queue"
  WHERE id = ANY (ARRAY(SELECT id
      FROM "queue"
      WHERE id = ANY ($1::text::bigint[])
      AND leased_until IS NOT NULL
      AND num_nulls(dequeued_at, parked_on) = 2
      AND ((id, attempts) IN (SELECT job, token
          FROM unnest($1::text::bigint[], $2::text::int[]) AS held (job, token))) IS TRUE
      AND q_name = $3::text
      FOR UPDATE SKIP LOCKED))
  AND q_name = $3::text
  RETURNING id, attempts;

-- ack_group_and_tell_keep [hot] $1 ids, $2 tokens, $3 q_name
PREPARE "ack_group_and_tell_keep" AS
  UPDATE "queue"
  SET dequeued_at = statement_timestamp(), leased_until = NULL
  WHERE id = ANY (ARRAY(SELECT id
      FROM "queue"
      WHERE id = ANY ($1::text::bigint[])
      AND leased_until IS NOT NULL
      AND num_nulls(dequeued_at, parked_on) = 2
      AND ((id, attempts) IN (SELECT job, token
          FROM unnest($1::text::bigint[], $2::text::int[]) AS held (job, token))) IS TRUE
      AND q_name = $3::text
      FOR UPDATE SKIP LOCKED))
  AND q_name = $3::text
  RETURNING id, attempts;

-- ack_group_archive [hot] $1 ids, $2 tokens, $3 q_name
PREPARE "ack_group_archive" AS WITH gone AS (DELETE FROM "queue"
    WHERE id = ANY (ARRAY(SELECT id
        FROM "queue"
        WHERE id = ANY ($1::text::bigint[])
        AND leased_until IS NOT NULL
        AND num_nulls(dequeued_at, parked_on) = 2
        AND ((id, attempts) IN (SELECT job, token
            FROM unnest($1::text::bigint[], $2::text::int[]) AS held (job, token))) IS TRUE
        AND q_name = $3::text
        FOR UPDATE SKIP LOCKED))
    AND q_name = $3::text
    RETURNING *), kept AS (INSERT INTO "queue_archive" (id, q_name, enqueued_at, dequeued_at, expected_at, schedule_at, data, attempts, serializer, payload, headers, failures, excused, error)
    SELECT id, q_name, enqueued_at, statement_timestamp(), expected_at, schedule_at, data, attempts, serializer, payload, headers, failures, excused, error
    FROM gone)
  SELECT id, attempts
  FROM gone;

-- ack_group_delete [hot] $1 ids, $2 tokens, $3 q_name
PREPARE "ack_group_delete" AS
  DELETE FROM "queue"
  WHERE id = ANY (ARRAY(SELECT id
      FROM "queue"
      WHERE id = ANY ($1::text::bigint[])
      AND leased_until IS NOT NULL
      AND num_nulls(dequeued_at, parked_on) = 2
      AND ((id, attempts) IN (SELECT job, token
          FROM unnest($1::text::bigint[], $2::text::int[]) AS held (job, token))) IS TRUE
      AND q_name = $3::text
      FOR UPDATE SKIP LOCKED))
  AND q_name = $3::text
  RETURNING id, attempts;

-- ack_group_keep [hot] $1 ids, $2 tokens, $3 q_name
PREPARE "ack_group_keep" AS
  UPDATE "queue"
  SET dequeued_at = statement_timestamp(), leased_until = NULL
  WHERE id = ANY (ARRAY(SELECT id
      FROM "queue"
      WHERE id = ANY ($1::text::bigint[])
      AND leased_until IS NOT NULL
      AND num_nulls(dequeued_at, parked_on) = 2
      AND ((id, attempts) IN (SELECT job, token
          FROM unnest($1::text::bigint[], $2::text::int[]) AS held (job, token))) IS TRUE
      AND q_name = $3::text
      FOR UPDATE SKIP LOCKED))
  AND q_name = $3::text
  RETURNING id, attempts;

-- ack_keep [hot] $1 ids, $2 tokens, $3 q_name
PREPARE "ack_keep" AS
  UPDATE "queue"
  SET dequeued_at = statement_timestamp(), leased_until = NULL
  WHERE id = ANY ($1::text::bigint[])
  AND leased_until IS NOT NULL
  AND num_nulls(dequeued_at, parked_on) = 2
  AND ((id, attempts) IN (SELECT job, token
      FROM unnest($1::text::bigint[], $2::text::int[]) AS held (job, token))) IS TRUE
  AND q_name = $3::text
  RETURNING id, attempts;

-- ack_one_archive [hot] $1 id, $2 token, $3 q_name
PREPARE "ack_one_archive" AS WITH gone AS (DELETE FROM "queue"
    WHERE id = $1::bigint
    AND attempts = $2::int
    AND leased_until IS NOT NULL
    AND num_nulls(dequeued_at, parked_on) = 2
    AND q_name = $3::text
    RETURNING *), kept AS (INSERT INTO "queue_archive" (id, q_name, enqueued_at, dequeued_at, expected_at, schedule_at, data, attempts, serializer, payload, headers, failures, excused, error)
    SELECT id, q_name, enqueued_at, statement_timestamp(), expected_at, schedule_at, data, attempts, serializer, payload, headers, failures, excused, error
    FROM gone)
  SELECT id, attempts
  FROM gone;

-- ack_one_delete [hot] $1 id, $2 token, $3 q_name
PREPARE "ack_one_delete" AS
  DELETE FROM "queue"
  WHERE id = $1::bigint
  AND attempts = $2::int
  AND leased_until IS NOT NULL
  AND num_nulls(dequeued_at, parked_on) = 2
  AND q_name = $3::text
  RETURNING id, attempts;

-- ack_one_keep [hot] $1 id, $2 token, $3 q_name
PREPARE "ack_one_keep" AS
  UPDATE "queue"
  SET dequeued_at = statement_timestamp(), leased_until = NULL
  WHERE id = $1::bigint
  AND attempts = $2::int
  AND leased_until IS NOT NULL
  AND num_nulls(dequeued_at, parked_on) = 2
  AND q_name = $3::text
  RETURNING id, attempts;

-- add_running [no rows] $1 needs, $2 q_name
PREPARE "add_running" AS
  UPDATE "queue_keys" AS kept
  SET version = kept.version + 1, running = kept.running || missing.ids
  FROM (SELECT mine.key, mine.version, wanted.ids
    FROM json_to_recordset($1::text::json) AS given (key text, ids bigint[])
    CROSS JOIN LATERAL (SELECT version, running
      FROM "queue_keys"
      WHERE q_name = $2::text
      AND key = given.key
      ORDER BY version DESC
      LIMIT 1) AS newest
    CROSS JOIN LATERAL (SELECT array_agg(job) AS ids
      FROM unnest(given.ids) AS job
      WHERE job <> ALL (newest.running)) AS wanted
    CROSS JOIN LATERAL (SELECT key, version
      FROM "queue_keys"
      WHERE q_name = $2::text
      AND key = given.key
      AND version = newest.version
      FOR UPDATE SKIP LOCKED) AS mine
    WHERE wanted.ids IS NOT NULL) AS missing
  WHERE kept.q_name = $2::text
  AND kept.key = missing.key
  AND kept.version = missing.version;

-- admitted_headers $1 q_name
/*NO LOAD BALANCE*/ PREPARE "admitted_headers" AS WITH out AS MATERIALIZED (SELECT *
    FROM (SELECT id, group_key, headers, leased_until, parked_on
      FROM "queue"
      WHERE q_name = $1::text
      AND dequeued_at IS NULL
      AND (leased_until IS NOT NULL
        OR (schedule_at IS NOT NULL
          AND expected_at IS NOT NULL))
      AND coalesce(leased_until, schedule_at) > '-infinity'
      AND coalesce(leased_until, schedule_at) < 'infinity'
      ORDER BY coalesce(leased_until, schedule_at), id
      LIMIT 10000) AS head
    LIMIT (SELECT 10000))
  SELECT id, headers::text
  FROM out
  WHERE leased_until IS NOT NULL
  AND parked_on IS NULL
  AND strpos(headers::text, '"gate"') > 0;

-- age_of_sample
/*NO LOAD BALANCE*/ PREPARE "age_of_sample" AS
  SELECT extract(epoch FROM statement_timestamp() - at)::float8, took
  FROM "queue_samples"
  WHERE q_name = ''
  AND ready IS NOT NULL
  ORDER BY at DESC
  LIMIT 1;

-- announce_worker [no rows] $1 id, $2 host, $3 pid, $4 version, $5 concurrency, $6 age, $7 names, $8 tasks, $9 running
PREPARE "announce_worker" AS
  INSERT INTO "queue_workers" (q_name, id, host, pid, version, tasks, concurrency, started_at, seen_at, running)
  SELECT place.name, $1::text, $2::text, $3::int, $4::text, place.tasks::json, $5::int, statement_timestamp() - $6::float8 * interval '1 second', statement_timestamp(), place.running::json
  FROM unnest($7::text[], $8::text[], $9::text[]) AS place (name, tasks, running)
  ON CONFLICT (q_name, id) DO UPDATE
  SET tasks = excluded.tasks, seen_at = excluded.seen_at, running = excluded.running;

-- archive_2_bounded [hot] $1 q_name, $2 bound
PREPARE "archive_2_bounded" AS WITH urgent AS (SELECT *
    FROM (SELECT id
      FROM "queue"
      WHERE q_name = $1::text
      AND dequeued_at IS NULL
      AND leased_until IS NULL
      AND schedule_at IS NULL
      AND expected_at IS NOT NULL
      AND (expected_at, enqueued_at, id) > ((string_to_array($2::text, ' '))[1]::timestamptz, (string_to_array($2::text, ' '))[2]::timestamptz, (string_to_array($2::text, ' '))[3]::bigint)
      ORDER BY expected_at, enqueued_at, id
      LIMIT 2
      FOR UPDATE SKIP LOCKED) AS head
    LIMIT (SELECT 2)), ready AS (SELECT *
    FROM (SELECT id
      FROM "queue"
      WHERE q_name = $1::text
      AND dequeued_at IS NULL
      AND leased_until IS NULL
      AND expected_at IS NULL
      AND coalesce(schedule_at, enqueued_at) <= statement_timestamp()
      AND (coalesce(schedule_at, enqueued_at), id) > ((string_to_array($2::text, ' '))[4]::timestamptz, (string_to_array($2::text, ' '))[5]::bigint)
      ORDER BY coalesce(schedule_at, enqueued_at), id
      LIMIT 2
      FOR UPDATE SKIP LOCKED) AS head
    LIMIT 2 - (SELECT count(*)
      FROM urgent)), picked AS (SELECT id
    FROM urgent
    UNION ALL
    SELECT id
    FROM ready), gone AS (DELETE FROM "queue"
    WHERE id = ANY (ARRAY(SELECT id
        FROM picked))
    AND q_name = $1::text
    RETURNING *), kept AS (INSERT INTO "queue_archive" (id, q_name, enqueued_at, dequeued_at, expected_at, schedule_at, data, attempts, serializer, payload, headers, failures, excused, error)
    SELECT id, q_name, enqueued_at, statement_timestamp(), expected_at, schedule_at, data, mod(attempts, 2147483647) + 1, serializer, payload, headers, failures, excused, error
    FROM gone)
  SELECT id, data::text, payload, serializer, mod(attempts, 2147483647) + 1, least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'),
  CASE WHEN schedule_at IS NOT NULL THEN least(greatest(schedule_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN expected_at IS NOT NULL THEN least(greatest(expected_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END, headers::text,
  CASE WHEN failures IS NOT NULL
  OR excused IS NOT NULL THEN coalesce(failures, 0)::bigint * 4294967296 + greatest(coalesce(excused, 0), 0) END
  FROM gone;

-- archive_2_merged [hot] $1 q_name
PREPARE "archive_2_merged" AS WITH picked AS (SELECT free.id
    FROM (SELECT id
      FROM ((SELECT *
          FROM (SELECT id, priority, expected_at, schedule_at, enqueued_at
            FROM "queue"
            WHERE q_name = $1::text
            AND dequeued_at IS NULL
            AND leased_until IS NULL
            AND schedule_at IS NULL
            AND expected_at IS NOT NULL
            ORDER BY expected_at, enqueued_at, id
            LIMIT 102) AS head
          LIMIT (SELECT 102))
        UNION ALL (SELECT *
          FROM (SELECT id, priority, expected_at, schedule_at, enqueued_at
            FROM "queue"
            WHERE q_name = $1::text
            AND dequeued_at IS NULL
            AND leased_until IS NULL
            AND expected_at IS NULL
            AND coalesce(schedule_at, enqueued_at) <= statement_timestamp()
            ORDER BY coalesce(schedule_at, enqueued_at), id
            LIMIT 102) AS head
          LIMIT (SELECT 102))
        UNION ALL (SELECT *
          FROM (SELECT id, priority, expected_at, schedule_at, enqueued_at
            FROM "queue"
            WHERE q_name = $1::text
            AND dequeued_at IS NULL
            AND (leased_until IS NOT NULL
              OR (schedule_at IS NOT NULL
                AND expected_at IS NOT NULL))
            AND coalesce(leased_until, schedule_at) <= statement_timestamp()
            AND coalesce(leased_until, schedule_at) >= '-infinity'
            AND parked_on IS NULL
            ORDER BY coalesce(leased_until, schedule_at), id
            LIMIT 1000) AS head
          LIMIT (SELECT 1000))
        UNION ALL (SELECT *
          FROM (SELECT id, priority, expected_at, schedule_at, enqueued_at
            FROM "queue"
            WHERE q_name = $1::text
            AND parked_on IS NOT NULL
            AND num_nulls(dequeued_at) <> 0
            ORDER BY priority DESC, expected_at, coalesce(schedule_at, enqueued_at), id
            LIMIT 102) AS head
          LIMIT (SELECT 102))) AS candidates
      ORDER BY priority DESC, expected_at, coalesce(schedule_at, enqueued_at), id) AS candidate
    CROSS JOIN LATERAL (SELECT id
      FROM "queue"
      WHERE id = candidate.id
      AND q_name = $1::text
      AND dequeued_at IS NULL
      AND coalesce(schedule_at, enqueued_at) <= statement_timestamp()
      AND (leased_until IS NULL
        OR leased_until <= statement_timestamp()
        OR (parked_on IS NOT NULL
          AND leased_until = 'infinity'))
      FOR UPDATE SKIP LOCKED) AS free
    LIMIT 2), gone AS (DELETE FROM "queue"
    WHERE id = ANY (ARRAY(SELECT id
        FROM picked))
    AND q_name = $1::text
    RETURNING *), kept AS (INSERT INTO "queue_archive" (id, q_name, enqueued_at, dequeued_at, expected_at, schedule_at, data, attempts, serializer, payload, headers, failures, excused, error)
    SELECT id, q_name, enqueued_at, statement_timestamp(), expected_at, schedule_at, data, mod(attempts, 2147483647) + 1, serializer, payload, headers, failures, excused, error
    FROM gone)
  SELECT id, data::text, payload, serializer, mod(attempts, 2147483647) + 1, least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'),
  CASE WHEN schedule_at IS NOT NULL THEN least(greatest(schedule_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN expected_at IS NOT NULL THEN least(greatest(expected_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END, headers::text,
  CASE WHEN failures IS NOT NULL
  OR excused IS NOT NULL THEN coalesce(failures, 0)::bigint * 4294967296 + greatest(coalesce(excused, 0), 0) END
  FROM gone;

-- archive_2_ordered [hot] $1 q_name
PREPARE "archive_2_ordered" AS WITH hidden AS (SELECT coalesce(leased_until, schedule_at) AS out_at
    FROM "queue"
    WHERE q_name = $1::text
    AND dequeued_at IS NULL
    AND (leased_until IS NOT NULL
      OR (schedule_at IS NOT NULL
        AND expected_at IS NOT NULL))
    ORDER BY coalesce(leased_until, schedule_at), id
    LIMIT 1), waiting AS (SELECT id
    FROM "queue"
    WHERE q_name = $1::text
    AND parked_on IS NOT NULL
    AND num_nulls(dequeued_at) <> 0
    ORDER BY priority DESC, expected_at, coalesce(schedule_at, enqueued_at), id
    LIMIT 1), urgent AS (SELECT *
    FROM (SELECT id
      FROM "queue"
      WHERE q_name = $1::text
      AND dequeued_at IS NULL
      AND leased_until IS NULL
      AND schedule_at IS NULL
      AND expected_at IS NOT NULL
      AND NOT EXISTS (SELECT
        FROM hidden
        WHERE out_at <= statement_timestamp())
      AND NOT EXISTS (SELECT
        FROM waiting)
      ORDER BY expected_at, enqueued_at, id
      LIMIT 2
      FOR UPDATE SKIP LOCKED) AS head
    LIMIT (SELECT 2)), ready AS (SELECT *
    FROM (SELECT id
      FROM "queue"
      WHERE q_name = $1::text
      AND dequeued_at IS NULL
      AND leased_until IS NULL
      AND expected_at IS NULL
      AND coalesce(schedule_at, enqueued_at) <= statement_timestamp()
      AND NOT EXISTS (SELECT
        FROM hidden
        WHERE out_at <= statement_timestamp())
      AND NOT EXISTS (SELECT
        FROM waiting)
      ORDER BY coalesce(schedule_at, enqueued_at), id
      LIMIT 2
      FOR UPDATE SKIP LOCKED) AS head
    LIMIT 2 - (SELECT count(*)
      FROM urgent)), picked AS (SELECT id
    FROM urgent
    UNION ALL
    SELECT id
    FROM ready), gone AS (DELETE FROM "queue"
    WHERE id = ANY (ARRAY(SELECT id
        FROM picked))
    AND q_name = $1::text
    RETURNING *), kept AS (INSERT INTO "queue_archive" (id, q_name, enqueued_at, dequeued_at, expected_at, schedule_at, data, attempts, serializer, payload, headers, failures, excused, error)
    SELECT id, q_name, enqueued_at, statement_timestamp(), expected_at, schedule_at, data, mod(attempts, 2147483647) + 1, serializer, payload, headers, failures, excused, error
    FROM gone)
  SELECT id, data::text, payload, serializer, mod(attempts, 2147483647) + 1, least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'),
  CASE WHEN schedule_at IS NOT NULL THEN least(greatest(schedule_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN expected_at IS NOT NULL THEN least(greatest(expected_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END, headers::text,
  CASE WHEN failures IS NOT NULL
  OR excused IS NOT NULL THEN coalesce(failures, 0)::bigint * 4294967296 + greatest(coalesce(excused, 0), 0) END
  FROM gone;

-- archive_2_unguarded [hot] $1 q_name
PREPARE "archive_2_unguarded" AS WITH urgent AS (SELECT *
    FROM (SELECT id
      FROM "queue"
      WHERE q_name = $1::text
      AND dequeued_at IS NULL
      AND leased_until IS NULL
      AND schedule_at IS NULL
      AND expected_at IS NOT NULL
      ORDER BY expected_at, enqueued_at, id
      LIMIT 2
      FOR UPDATE SKIP LOCKED) AS head
    LIMIT (SELECT 2)), ready AS (SELECT *
    FROM (SELECT id
      FROM "queue"
      WHERE q_name = $1::text
      AND dequeued_at IS NULL
      AND leased_until IS NULL
      AND expected_at IS NULL
      AND coalesce(schedule_at, enqueued_at) <= statement_timestamp()
      ORDER BY coalesce(schedule_at, enqueued_at), id
      LIMIT 2
      FOR UPDATE SKIP LOCKED) AS head
    LIMIT 2 - (SELECT count(*)
      FROM urgent)), picked AS (SELECT id
    FROM urgent
    UNION ALL
    SELECT id
    FROM ready), gone AS (DELETE FROM "queue"
    WHERE id = ANY (ARRAY(SELECT id
        FROM picked))
    AND q_name = $1::text
    RETURNING *), kept AS (INSERT INTO "queue_archive" (id, q_name, enqueued_at, dequeued_at, expected_at, schedule_at, data, attempts, serializer, payload, headers, failures, excused, error)
    SELECT id, q_name, enqueued_at, statement_timestamp(), expected_at, schedule_at, data, mod(attempts, 2147483647) + 1, serializer, payload, headers, failures, excused, error
    FROM gone)
  SELECT id, data::text, payload, serializer, mod(attempts, 2147483647) + 1, least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'),
  CASE WHEN schedule_at IS NOT NULL THEN least(greatest(schedule_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN expected_at IS NOT NULL THEN least(greatest(expected_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END, headers::text,
  CASE WHEN failures IS NOT NULL
  OR excused IS NOT NULL THEN coalesce(failures, 0)::bigint * 4294967296 + greatest(coalesce(excused, 0), 0) END
  FROM gone;

-- archive_kept $1 after, $2 q_name, $3 age
PREPARE "archive_kept" AS WITH slice AS (SELECT id
    FROM "queue"
    WHERE id > $1::bigint
    ORDER BY id
    LIMIT 10000), gone AS (DELETE FROM "queue"
    WHERE id = ANY (ARRAY(SELECT id
        FROM slice))
    AND q_name = $2::text
    AND dequeued_at <= statement_timestamp() - $3::float8 * interval '1 second'
    RETURNING *), kept AS (INSERT INTO "queue_archive" (id, q_name, enqueued_at, dequeued_at, expected_at, schedule_at, data, attempts, serializer, payload, headers, failures, excused, error)
    SELECT id, q_name, enqueued_at, dequeued_at, expected_at, schedule_at, data, attempts, serializer, payload, headers, failures, excused, error
    FROM gone)
  SELECT max(id), (SELECT count(*)
    FROM gone)
  FROM slice;

-- await_parents $1 ids
PREPARE "await_parents" AS WITH free AS (SELECT job.id
    FROM unnest($1::text::bigint[]) AS wanted (id)
    CROSS JOIN LATERAL (SELECT id
      FROM "queue"
      WHERE id = wanted.id
      AND num_nulls(dequeued_at) = 1
      AND (leased_until IS NULL
        OR parked_on IS NOT NULL)
      FOR NO KEY
      UPDATE SKIP LOCKED) AS job)
  UPDATE "queue"
  SET awaited = true
  WHERE id = ANY (ARRAY(SELECT id
      FROM free))
  RETURNING id, date_part('epoch', least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'));

-- batch_progress $1 done, $2 failed, $3 id, $4 token
PREPARE "batch_progress" AS
  UPDATE "queue_batches"
  SET pending = pending - $1::int, failed = failed + $2::int
  WHERE id = $3::bigint
  AND token IS NOT DISTINCT FROM $4::text
  RETURNING pending, total, failed, callback::text;

-- block $1 items, $2 q_name
PREPARE "block" AS WITH given AS (SELECT item.id, job.enqueued_at AS put_at, coalesce(item.schedule_at::timestamptz, statement_timestamp() + item.schedule_in::float8 * interval '1 second') AS schedule_at, item.gone, item.parents
    FROM json_to_recordset($1::text::json) AS item (id bigint, schedule_at timestamptz, schedule_in float8, gone text, parents text)
    CROSS JOIN LATERAL (SELECT enqueued_at
      FROM "queue"
      WHERE id = item.id
      AND q_name = $2::text
      LIMIT 1) AS job), waits AS (INSERT INTO "queue_blocked" (job_id, q_name, put_at, schedule_at)
    SELECT id, $2::text, put_at, schedule_at
    FROM given), needs AS (INSERT INTO "queue_dependencies" (job_id, parent_id, q_name, parent_put_at, on_failure, polled, gone, outcome)
    SELECT given.id, item.id, $2::text, (SELECT max(enqueued_at)
      FROM "queue"
      WHERE id = item.id), item.on_failure, item.polled, given.gone, item.outcome
    FROM given
    CROSS JOIN LATERAL json_to_recordset(given.parents::json) AS item (id bigint, on_failure text, polled boolean, outcome text))
  SELECT id
  FROM given;

-- bury $1 id, $2 token, $3 q_name, $4 headers, $5 failed, $6 error, $7 reason, $8 attempt, $9 outcome, $10 worker, $11 error_type, $12 message, $13 traceback
PREPARE "bury" AS WITH gone AS (DELETE FROM "queue"
    WHERE id = $1::bigint
    AND attempts = $2::int
    AND leased_until IS NOT NULL
    AND num_nulls(dequeued_at, parked_on) = 2
    AND q_name = $3::text
    RETURNING *), buried AS (INSERT INTO "queue_dead" (id, q_name, enqueued_at, expected_at, schedule_at, data, attempts, serializer, payload, headers, failures, excused, error, reason)
    SELECT id, q_name, enqueued_at, expected_at, schedule_at, data, attempts, serializer, payload, coalesce($4::text::json, headers), least(coalesce(failures, 0), 2147483646) + $5::int, least(coalesce(excused, 0), 2147483646) + 1 - $5::int, $6::text::json, $7::text
    FROM gone), noted AS (INSERT INTO "queue_attempts" (job_id, place, q_name, put_at, token, attempt, outcome, ended_at, worker, error_type, message, traceback)
    SELECT id, mod($2::int, 20), $3::text, enqueued_at, $2::int, $8::int, $9::text, statement_timestamp(), $10::text, $11::text, $12::text, $13::text
    FROM gone
    WHERE $9::text IS NOT NULL
    ON CONFLICT (job_id, place) DO UPDATE
    SET q_name = excluded.q_name, put_at = excluded.put_at, token = excluded.token, attempt = excluded.attempt, outcome = excluded.outcome, ended_at = excluded.ended_at, worker = excluded.worker, error_type = excluded.error_type, message = excluded.message, traceback = excluded.traceback)
  SELECT id
  FROM gone;

-- bury_blocked $1 id, $2 q_name, $3 headers, $4 failed, $5 error, $6 reason, $7 token, $8 attempt, $9 outcome, $10 worker, $11 error_type, $12 message, $13 traceback
PREPARE "bury_blocked" AS WITH gone AS (DELETE FROM "queue"
    WHERE id = $1::bigint
    AND q_name = $2::text
    AND num_nulls(dequeued_at, leased_until) = 2
    AND schedule_at = 'infinity'
    RETURNING *), buried AS (INSERT INTO "queue_dead" (id, q_name, enqueued_at, expected_at, schedule_at, data, attempts, serializer, payload, headers, failures, excused, error, reason)
    SELECT id, q_name, enqueued_at, expected_at, schedule_at, data, attempts, serializer, payload, coalesce($3::text::json, headers), least(coalesce(failures, 0), 2147483646) + $4::int, least(coalesce(excused, 0), 2147483646) + 1 - $4::int, $5::text::json, $6::text
    FROM gone), noted AS (INSERT INTO "queue_attempts" (job_id, place, q_name, put_at, token, attempt, outcome, ended_at, worker, error_type, message, traceback)
    SELECT id, mod($7::int, 20), $2::text, enqueued_at, $7::int, $8::int, $9::text, statement_timestamp(), $10::text, $11::text, $12::text, $13::text
    FROM gone
    WHERE $9::text IS NOT NULL
    ON CONFLICT (job_id, place) DO UPDATE
    SET q_name = excluded.q_name, put_at = excluded.put_at, token = excluded.token, attempt = excluded.attempt, outcome = excluded.outcome, ended_at = excluded.ended_at, worker = excluded.worker, error_type = excluded.error_type, message = excluded.message, traceback = excluded.traceback)
  SELECT id
  FROM gone;

-- bury_taken_archive $1 id, $2 token, $3 q_name, $4 headers, $5 failed, $6 error, $7 reason, $8 attempt, $9 outcome, $10 worker, $11 error_type, $12 message, $13 traceback
PREPARE "bury_taken_archive" AS WITH gone AS (DELETE FROM "queue_archive"
    WHERE id = $1::bigint
    AND attempts = $2::int
    AND q_name = $3::text
    RETURNING *), buried AS (INSERT INTO "queue_dead" (id, q_name, enqueued_at, expected_at, schedule_at, data, attempts, serializer, payload, headers, failures, excused, error, reason)
    SELECT id, q_name, enqueued_at, expected_at, schedule_at, data, attempts, serializer, payload, coalesce($4::text::json, headers), least(coalesce(failures, 0), 2147483646) + $5::int, least(coalesce(excused, 0), 2147483646) + 1 - $5::int, $6::text::json, $7::text
    FROM gone), noted AS (INSERT INTO "queue_attempts" (job_id, place, q_name, put_at, token, attempt, outcome, ended_at, worker, error_type, message, traceback)
    SELECT id, mod($2::int, 20), $3::text, enqueued_at, $2::int, $8::int, $9::text, statement_timestamp(), $10::text, $11::text, $12::text, $13::text
    FROM gone
    WHERE $9::text IS NOT NULL
    ON CONFLICT (job_id, place) DO UPDATE
    SET q_name = excluded.q_name, put_at = excluded.put_at, token = excluded.token, attempt = excluded.attempt, outcome = excluded.outcome, ended_at = excluded.ended_at, worker = excluded.worker, error_type = excluded.error_type, message = excluded.message, traceback = excluded.traceback)
  SELECT id
  FROM gone;

-- bury_taken_delete $1 id, $2 q_name, $3 enqueued_at, $4 expected_at, $5 schedule_at, $6 data, $7 token, $8 serializer, $9 payload, $10 stored_headers, $11 failures, $12 excused, $13 headers, $14 failed, $15 error, $16 reason, $17 attempt, $18 outcome, $19 worker, $20 error_type, $21 message, $22 traceback
PREPARE "bury_taken_delete" AS WITH gone AS (SELECT $1::bigint AS id, $2::text AS q_name, $3::timestamptz AS enqueued_at, $4::timestamptz AS expected_at, $5::timestamptz AS schedule_at, $6::text::json AS data, $7::int AS attempts, $8::text AS serializer, $9::bytea AS payload, $10::text::json AS headers, $11::int AS failures, $12::int AS excused
    WHERE NOT EXISTS (SELECT
      FROM "queue"
      WHERE id = $1::bigint
      AND q_name = $2::text)
    AND NOT EXISTS (SELECT
      FROM "queue_dead"
      WHERE id = $1::bigint
      AND q_name = $2::text
      AND enqueued_at = $3::timestamptz)), buried AS (INSERT INTO "queue_dead" (id, q_name, enqueued_at, expected_at, schedule_at, data, attempts, serializer, payload, headers, failures, excused, error, reason)
    SELECT id, q_name, enqueued_at, expected_at, schedule_at, data, attempts, serializer, payload, coalesce($13::text::json, headers), least(coalesce(failures, 0), 2147483646) + $14::int, least(coalesce(excused, 0), 2147483646) + 1 - $14::int, $15::text::json, $16::text
    FROM gone), noted AS (INSERT INTO "queue_attempts" (job_id, place, q_name, put_at, token, attempt, outcome, ended_at, worker, error_type, message, traceback)
    SELECT id, mod($7::int, 20), $2::text, enqueued_at, $7::int, $17::int, $18::text, statement_timestamp(), $19::text, $20::text, $21::text, $22::text
    FROM gone
    WHERE $18::text IS NOT NULL
    ON CONFLICT (job_id, place) DO UPDATE
    SET q_name = excluded.q_name, put_at = excluded.put_at, token = excluded.token, attempt = excluded.attempt, outcome = excluded.outcome, ended_at = excluded.ended_at, worker = excluded.worker, error_type = excluded.error_type, message = excluded.message, traceback = excluded.traceback)
  SELECT id
  FROM gone;

-- bury_taken_keep $1 id, $2 token, $3 q_name, $4 headers, $5 failed, $6 error, $7 reason, $8 attempt, $9 outcome, $10 worker, $11 error_type, $12 message, $13 traceback
PREPARE "bury_taken_keep" AS WITH gone AS (DELETE FROM "queue"
    WHERE id = $1::bigint
    AND attempts = $2::int
    AND q_name = $3::text
    AND num_nulls(dequeued_at) = 0
    RETURNING *), buried AS (INSERT INTO "queue_dead" (id, q_name, enqueued_at, expected_at, schedule_at, data, attempts, serializer, payload, headers, failures, excused, error, reason)
    SELECT id, q_name, enqueued_at, expected_at, schedule_at, data, attempts, serializer, payload, coalesce($4::text::json, headers), least(coalesce(failures, 0), 2147483646) + $5::int, least(coalesce(excused, 0), 2147483646) + 1 - $5::int, $6::text::json, $7::text
    FROM gone), noted AS (INSERT INTO "queue_attempts" (job_id, place, q_name, put_at, token, attempt, outcome, ended_at, worker, error_type, message, traceback)
    SELECT id, mod($2::int, 20), $3::text, enqueued_at, $2::int, $8::int, $9::text, statement_timestamp(), $10::text, $11::text, $12::text, $13::text
    FROM gone
    WHERE $9::text IS NOT NULL
    ON CONFLICT (job_id, place) DO UPDATE
    SET q_name = excluded.q_name, put_at = excluded.put_at, token = excluded.token, attempt = excluded.attempt, outcome = excluded.outcome, ended_at = excluded.ended_at, worker = excluded.worker, error_type = excluded.error_type, message = excluded.message, traceback = excluded.traceback)
  SELECT id
  FROM gone;

-- callbacks $1 after
/*NO LOAD BALANCE*/ PREPARE "callbacks" AS
  SELECT id, q_name, callback::text
  FROM "queue_batches"
  WHERE id > $1::bigint
  ORDER BY id
  LIMIT 10000;

-- cancel $1 q_name, $2 id
PREPARE "cancel" AS
  DELETE FROM "queue"
  WHERE q_name = $1::text
  AND id = (SELECT id
    FROM "queue"
    WHERE id = $2::bigint
    AND q_name = $1::text
    AND dequeued_at IS NULL
    AND (leased_until IS NULL
      OR leased_until <= statement_timestamp()
      OR parked_on IS NOT NULL)
    FOR UPDATE SKIP LOCKED)
  RETURNING id, headers::text, least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'), awaited;

-- claim_key $1 q_name, $2 dedup_key, $3 period
PREPARE "claim_key" AS
  INSERT INTO "queue_dedup" AS held (q_name, dedup_key, job_id, until)
  VALUES ($1::text, $2::text, 0, clock_timestamp() + $3::float8 * interval '1 second')
  ON CONFLICT (q_name, dedup_key) DO UPDATE
  SET job_id = excluded.job_id, until = excluded.until
  WHERE held.until <= clock_timestamp()
  RETURNING job_id;

-- claim_keys $1 q_name, $2 items
PREPARE "claim_keys" AS
  INSERT INTO "queue_dedup" AS held (q_name, dedup_key, job_id, until)
  SELECT $1::text, item.dedup_key, 0, clock_timestamp() + item.period * interval '1 second'
  FROM json_to_recordset($2::text::json) AS item (dedup_key text, period float8)
  ORDER BY item.dedup_key
  ON CONFLICT (q_name, dedup_key) DO UPDATE
  SET job_id = excluded.job_id, until = excluded.until
  WHERE held.until <= clock_timestamp()
  RETURNING dedup_key;

-- claim_sample $1 at
PREPARE "claim_sample" AS
  INSERT INTO "queue_samples" (at, q_name)
  VALUES (to_timestamp($1::float8), '')
  ON CONFLICT (at, q_name) DO NOTHING
  RETURNING q_name;

-- clear $1 q_name
PREPARE "clear" AS WITH gone AS (DELETE FROM "queue"
    WHERE q_name = $1::text
    RETURNING id, headers, dequeued_at, awaited AS awaited), told AS (UPDATE "queue_dependencies"
    SET outcome = 'deleted'
    WHERE outcome IS NULL
    AND parent_id = ANY (ARRAY(SELECT id
        FROM gone
        WHERE awaited
        AND dequeued_at IS NULL)))
  SELECT headers::text
  FROM gone
  WHERE dequeued_at IS NULL
  AND headers::text LIKE '%"batch"%';

-- close_batch [no rows] $1 id
PREPARE "close_batch" AS
  DELETE FROM "queue_batches"
  WHERE id = $1::bigint;

-- count $1 q_name
/*NO LOAD BALANCE*/ PREPARE "count" AS
  SELECT (SELECT count(*)
    FROM "queue"
    WHERE q_name = $1::text
    AND dequeued_at IS NULL
    AND leased_until IS NULL
    AND schedule_at IS NULL
    AND expected_at IS NOT NULL) + (SELECT count(*)
    FROM "queue"
    WHERE q_name = $1::text
    AND dequeued_at IS NULL
    AND leased_until IS NULL
    AND expected_at IS NULL
    AND coalesce(schedule_at, enqueued_at) <= statement_timestamp()) + (SELECT count(*)
    FROM "queue"
    WHERE q_name = $1::text
    AND dequeued_at IS NULL
    AND (leased_until IS NOT NULL
      OR (schedule_at IS NOT NULL
        AND expected_at IS NOT NULL))
    AND coalesce(leased_until, schedule_at) <= statement_timestamp()
    AND coalesce(schedule_at, enqueued_at) <= statement_timestamp()
    AND parked_on IS NULL) + (SELECT count(*)
    FROM "queue"
    WHERE q_name = $1::text
    AND parked_on IS NOT NULL
    AND num_nulls(dequeued_at) <> 0
    AND coalesce(leased_until > statement_timestamp()
      AND leased_until < 'infinity', false)::int <> 1);

-- count_blocked $1 q_name
/*NO LOAD BALANCE*/ PREPARE "count_blocked" AS
  SELECT q_name, count(*)
  FROM "queue_blocked"
  WHERE $1::text IS NULL
  OR q_name = $1::text
  GROUP BY q_name
  ORDER BY q_name;

-- count_by_task $1 q_name, $2 n
/*NO LOAD BALANCE*/ PREPARE "count_by_task" AS
  SELECT task, count(*) FILTER (WHERE state = 'waiting'), count(*) FILTER (WHERE state = 'leased'), count(*) FILTER (WHERE state = 'done'), count(*) FILTER (WHERE state = 'dead'), count(*) FILTER (WHERE failed
    AND state IN ('waiting', 'leased'))
  FROM (SELECT substring(left(data::text, 2000)
      FROM '^\s*\{\s*"function"\s*:\s*"([^"\\]*)"\s*[,}]') AS task, state, failed
    FROM ((SELECT 'waiting' AS state, data, coalesce(failures, 0) > 0 AS failed
        FROM "queue"
        WHERE q_name = $1::text
        AND dequeued_at IS NULL
        AND leased_until IS NULL
        AND expected_at IS NULL
        LIMIT 10000)
      UNION ALL (SELECT 'waiting' AS state, data, coalesce(failures, 0) > 0 AS failed
        FROM "queue"
        WHERE q_name = $1::text
        AND dequeued_at IS NULL
        AND leased_until IS NULL
        AND schedule_at IS NULL
        AND expected_at IS NOT NULL
        LIMIT 10000)
      UNION ALL (SELECT
        CASE WHEN leased_until > statement_timestamp()
        AND parked_on IS NULL THEN 'leased' ELSE 'waiting' END AS state, data, coalesce(failures, 0) > 0 AS failed
        FROM "queue"
        WHERE q_name = $1::text
        AND dequeued_at IS NULL
        AND (leased_until IS NOT NULL
          OR (schedule_at IS NOT NULL
            AND expected_at IS NOT NULL))
        LIMIT 10000)
      UNION ALL
      SELECT 'done', data, coalesce(failures, 0) > 0
      FROM ((SELECT q_name, data, dequeued_at, failures
          FROM "queue"
          ORDER BY id DESC
          LIMIT 10000)
        UNION ALL (SELECT q_name, data, dequeued_at, failures
          FROM "queue_archive"
          ORDER BY id DESC
          LIMIT 10000)) AS lately
      WHERE q_name = $1::text
      AND dequeued_at > statement_timestamp() - interval '1 hour'
      UNION ALL (SELECT 'dead', data, true
        FROM "queue_dead"
        WHERE q_name = $1::text
        LIMIT 10000)) AS job) AS calls
  WHERE task IS NOT NULL
  GROUP BY task
  ORDER BY count(*) DESC, task
  LIMIT $2::bigint;

-- count_dead $1 q_name, $2 reason
/*NO LOAD BALANCE*/ PREPARE "count_dead" AS
  SELECT count(*)
  FROM "queue_dead"
  WHERE q_name = $1::text
  AND ($2::text IS NULL
    OR reason = $2::text);

-- count_encoded_archive $1 after
/*NO LOAD BALANCE*/ PREPARE "count_encoded_archive" AS
  SELECT max(id), q_name, 'archive' AS state, serializer, coalesce(CASE WHEN substr(payload, 1, 4) = decode('6b65793a', 'hex') THEN encode(substr(payload, 1, 13), 'escape') END || coalesce(CASE WHEN substr(payload, 14, 4) = decode('6b65793a', 'hex') THEN encode(substr(payload, 14, 13), 'escape') END || coalesce(CASE WHEN substr(payload, 27, 4) = decode('6b65793a', 'hex') THEN encode(substr(payload, 27, 13), 'escape') END, ''), ''), '') AS marks, coalesce(headers::text ~ '"(then|previous)"', false) AS linked, count(*) FILTER (WHERE (data IS NOT NULL
      OR payload IS NOT NULL)), count(*)
  FROM (SELECT *
    FROM "queue_archive"
    WHERE id > $1::bigint
    ORDER BY id
    LIMIT 10000) AS row
  GROUP BY q_name, state, serializer, marks, linked;

-- count_encoded_dead $1 after
/*NO LOAD BALANCE*/ PREPARE "count_encoded_dead" AS
  SELECT max(id), q_name, 'dead' AS state, serializer, coalesce(CASE WHEN substr(payload, 1, 4) = decode('6b65793a', 'hex') THEN encode(substr(payload, 1, 13), 'escape') END || coalesce(CASE WHEN substr(payload, 14, 4) = decode('6b65793a', 'hex') THEN encode(substr(payload, 14, 13), 'escape') END || coalesce(CASE WHEN substr(payload, 27, 4) = decode('6b65793a', 'hex') THEN encode(substr(payload, 27, 13), 'escape') END, ''), ''), '') AS marks, coalesce(headers::text ~ '"(then|previous)"', false) AS linked, count(*) FILTER (WHERE (data IS NOT NULL
      OR payload IS NOT NULL)), count(*)
  FROM (SELECT *
    FROM "queue_dead"
    WHERE id > $1::bigint
    ORDER BY id
    LIMIT 10000) AS row
  GROUP BY q_name, state, serializer, marks, linked;

-- count_encoded_results $1 after
/*NO LOAD BALANCE*/ PREPARE "count_encoded_results" AS
  SELECT max(job_id), q_name, 'results' AS state, serializer, coalesce(CASE WHEN substr(payload, 1, 4) = decode('6b65793a', 'hex') THEN encode(substr(payload, 1, 13), 'escape') END || coalesce(CASE WHEN substr(payload, 14, 4) = decode('6b65793a', 'hex') THEN encode(substr(payload, 14, 13), 'escape') END || coalesce(CASE WHEN substr(payload, 27, 4) = decode('6b65793a', 'hex') THEN encode(substr(payload, 27, 13), 'escape') END, ''), ''), '') AS marks, false AS linked, count(*) FILTER (WHERE (data IS NOT NULL
      OR payload IS NOT NULL)), count(*)
  FROM (SELECT *
    FROM "queue_results"
    WHERE job_id > $1::bigint
    ORDER BY job_id
    LIMIT 10000) AS row
  GROUP BY q_name, state, serializer, marks, linked;

-- count_encoded_table $1 after
/*NO LOAD BALANCE*/ PREPARE "count_encoded_table" AS
  SELECT max(id), q_name,
  CASE WHEN dequeued_at IS NOT NULL THEN 'done' WHEN parked_on IS NOT NULL THEN 'parked' WHEN leased_until > statement_timestamp() THEN 'leased' WHEN coalesce(schedule_at, enqueued_at) > statement_timestamp() THEN 'scheduled' ELSE 'ready' END AS state, serializer, coalesce(CASE WHEN substr(payload, 1, 4) = decode('6b65793a', 'hex') THEN encode(substr(payload, 1, 13), 'escape') END || coalesce(CASE WHEN substr(payload, 14, 4) = decode('6b65793a', 'hex') THEN encode(substr(payload, 14, 13), 'escape') END || coalesce(CASE WHEN substr(payload, 27, 4) = decode('6b65793a', 'hex') THEN encode(substr(payload, 27, 13), 'escape') END, ''), ''), '') AS marks, coalesce(headers::text ~ '"(then|previous)"', false) AS linked, count(*) FILTER (WHERE (data IS NOT NULL
      OR payload IS NOT NULL)), count(*)
  FROM (SELECT *
    FROM "queue"
    WHERE id > $1::bigint
    ORDER BY id
    LIMIT 10000) AS row
  GROUP BY q_name, state, serializer, marks, linked;

-- count_expired $1 number, $2 q_name, $3 name
PREPARE "count_expired" AS
  UPDATE "queue_rules"
  SET number = coalesce(number, 0) + $1::bigint
  WHERE q_name = $2::text
  AND kind = 'expiry'
  AND name = $3::text
  RETURNING name;

-- count_old_archived $1 q_name, $2 age
/*NO LOAD BALANCE*/ PREPARE "count_old_archived" AS
  SELECT count(*)
  FROM "queue_archive"
  WHERE q_name = $1::text
  AND dequeued_at <= statement_timestamp() - $2::float8 * interval '1 second';

-- count_old_dead $1 q_name, $2 age
/*NO LOAD BALANCE*/ PREPARE "count_old_dead" AS
  SELECT count(*)
  FROM "queue_dead"
  WHERE q_name = $1::text
  AND died_at <= statement_timestamp() - $2::float8 * interval '1 second';

-- count_old_kept $1 after, $2 q_name, $3 age
/*NO LOAD BALANCE*/ PREPARE "count_old_kept" AS WITH slice AS (SELECT id
    FROM "queue"
    WHERE id > $1::bigint
    ORDER BY id
    LIMIT 10000)
  SELECT max(id), (SELECT count(*)
    FROM "queue"
    WHERE id = ANY (ARRAY(SELECT id
        FROM slice))
    AND q_name = $2::text
    AND dequeued_at <= statement_timestamp() - $3::float8 * interval '1 second')
  FROM slice;

-- crash $1 delay, $2 id, $3 token, $4 q_name, $5 attempt, $6 outcome, $7 worker, $8 error_type, $9 message, $10 traceback
PREPARE "crash" AS WITH ended AS (UPDATE "queue"
    SET leased_until = NULL, schedule_at = coalesce(statement_timestamp() + $1::float8 * interval '1 second', schedule_at)
    WHERE id = $2::bigint
    AND attempts = $3::int
    AND leased_until IS NOT NULL
    AND num_nulls(dequeued_at, parked_on) = 2
    AND q_name = $4::text
    RETURNING id, enqueued_at), noted AS (INSERT INTO "queue_attempts" (job_id, place, q_name, put_at, token, attempt, outcome, ended_at, worker, error_type, message, traceback)
    SELECT id, mod($3::int, 20), $4::text, enqueued_at, $3::int, $5::int, $6::text, statement_timestamp(), $7::text, $8::text, $9::text, $10::text
    FROM ended
    WHERE $6::text IS NOT NULL
    ON CONFLICT (job_id, place) DO UPDATE
    SET q_name = excluded.q_name, put_at = excluded.put_at, token = excluded.token, attempt = excluded.attempt, outcome = excluded.outcome, ended_at = excluded.ended_at, worker = excluded.worker, error_type = excluded.error_type, message = excluded.message, traceback = excluded.traceback)
  SELECT id
  FROM ended;

-- create_bucket [no rows] $1 q_name, $2 capacity
PREPARE "create_bucket" AS
  INSERT INTO "queue_rates" (q_name, tokens, refilled_at)
  VALUES ($1::text, $2::float8, clock_timestamp())
  ON CONFLICT DO NOTHING;

-- create_keys $1 q_name, $2 needs
PREPARE "create_keys" AS WITH out AS MATERIALIZED (SELECT id, group_key, headers, leased_until, parked_on
    FROM "queue"
    WHERE q_name = $1::text
    AND dequeued_at IS NULL
    AND (leased_until IS NOT NULL
      OR (schedule_at IS NOT NULL
        AND expected_at IS NOT NULL))
    AND coalesce(leased_until, schedule_at) > '-infinity'
    AND coalesce(leased_until, schedule_at) < 'infinity'
    ORDER BY coalesce(leased_until, schedule_at), id
    LIMIT 10000), admitted AS MATERIALIZED (SELECT id, group_key,
    CASE WHEN strpos(lower(headers::text), chr(92) || 'u0000') + strpos(lower(headers::text), chr(92) || 'ud') = 0 THEN headers #> '{gate,limits}' END AS limits
    FROM out
    WHERE leased_until IS NOT NULL
    AND parked_on IS NULL
    AND strpos(headers::text, '"gate"') > 0), known AS (SELECT key, array_agg(id) AS ids
    FROM (SELECT 'group:' || group_key AS key, id
      FROM admitted
      WHERE group_key IS NOT NULL
      UNION ALL
      SELECT 'limit:' || name, id
      FROM admitted
      CROSS JOIN LATERAL json_object_keys(CASE json_typeof(limits) WHEN 'object' THEN limits ELSE '{}' END) AS limited (name)) AS held
    GROUP BY key)
  INSERT INTO "queue_keys" (q_name, key, version, places, newest, running)
  SELECT $1::text, wanted.key, 0, wanted.number, wanted.newest, coalesce(known.ids, '{}')
  FROM json_to_recordset($2::text::json) AS wanted (key text, number int, newest bigint)
  LEFT JOIN known
  ON known.key = wanted.key
  WHERE NOT EXISTS (SELECT
    FROM "queue_keys"
    WHERE q_name = $1::text
    AND key = wanted.key)
  ON CONFLICT DO NOTHING
  RETURNING key;

-- current_rules $1 q_name
/*NO LOAD BALANCE*/ PREPARE "current_rules" AS
  SELECT 'age' AS kind, '' AS name,
  CASE WHEN current_setting('transaction_isolation') = 'read committed' THEN 0 ELSE extract(epoch FROM statement_timestamp() - transaction_timestamp()) END::float8 AS number, NULL::float8 AS remaining
  UNION ALL
  SELECT kind, name, number, extract(epoch FROM until - statement_timestamp())::float8
  FROM "queue_rules"
  WHERE q_name = $1::text
  AND kind = 'weight'
  UNION ALL
  SELECT kind, name, number, extract(epoch FROM until - statement_timestamp())::float8
  FROM "queue_rules"
  WHERE q_name = $1::text
  AND kind = 'pause'
  AND (name = 'queue'
    OR left(name, 5) = 'task:')
  AND coalesce(until > statement_timestamp(), true);

-- dead_by_queue
/*NO LOAD BALANCE*/ PREPARE "dead_by_queue" AS
  SELECT q_name, count(*)
  FROM "queue_dead"
  GROUP BY q_name
  ORDER BY q_name;

-- dead_groups $1 q_name, $2 n
/*NO LOAD BALANCE*/ PREPARE "dead_groups" AS
  SELECT q_name, task, kind, reason, count(*), min(died), max(died), max(id), max(message)
  FROM (SELECT q_name, substring(left(data::text, 2000)
      FROM '^\s*\{\s*"function"\s*:\s*"([^"\\]*)"\s*[,}]') AS task, substring(error::text
      FROM '^\s*\{\s*"type"\s*:\s*"([^"\\]*)"') AS kind, reason, id, least(greatest(died_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') AS died, substring(error::text
      FROM '"message"\s*:\s*"((?:[^"\\]|\\.){0,200})') AS message
    FROM "queue_dead"
    WHERE $1::text IS NULL
    OR q_name = $1::text) AS letter
  GROUP BY q_name, task, kind, reason
  ORDER BY count(*) DESC, q_name, task, kind, reason
  LIMIT $2::bigint;

-- dead_letter $1 q_name, $2 id
/*NO LOAD BALANCE*/ PREPARE "dead_letter" AS
  SELECT id, data::text, payload, serializer, attempts, least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'),
  CASE WHEN schedule_at IS NOT NULL THEN least(greatest(schedule_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN expected_at IS NOT NULL THEN least(greatest(expected_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END, headers::text,
  CASE WHEN failures IS NOT NULL
  OR excused IS NOT NULL THEN coalesce(failures, 0)::bigint * 4294967296 + greatest(coalesce(excused, 0), 0) END, error::text, reason, died_at AT TIME ZONE 'UTC'
  FROM "queue_dead"
  WHERE q_name = $1::text
  AND id = $2::bigint;

-- dead_letters $1 q_name, $2 n
/*NO LOAD BALANCE*/ PREPARE "dead_letters" AS
  SELECT id, data::text, payload, serializer, attempts, least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'),
  CASE WHEN schedule_at IS NOT NULL THEN least(greatest(schedule_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN expected_at IS NOT NULL THEN least(greatest(expected_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END, headers::text,
  CASE WHEN failures IS NOT NULL
  OR excused IS NOT NULL THEN coalesce(failures, 0)::bigint * 4294967296 + greatest(coalesce(excused, 0), 0) END, error::text, reason, died_at AT TIME ZONE 'UTC'
  FROM "queue_dead"
  WHERE q_name = $1::text
  ORDER BY died_at DESC, id DESC
  LIMIT $2::bigint;

-- dead_of_group $1 q_name, $2 reason, $3 task, $4 kind
/*NO LOAD BALANCE*/ PREPARE "dead_of_group" AS
  SELECT id
  FROM "queue_dead"
  WHERE q_name = $1::text
  AND reason = $2::text
  AND coalesce(substring(left(data::text, 2000)
      FROM '^\s*\{\s*"function"\s*:\s*"([^"\\]*)"\s*[,}]'), '') = $3::text
  AND coalesce(substring(error::text
      FROM '^\s*\{\s*"type"\s*:\s*"([^"\\]*)"'), '') = $4::text
  ORDER BY died_at, id;

-- delete_2_bounded [hot] $1 q_name, $2 bound
PREPARE "delete_2_bounded" AS WITH urgent AS (SELECT *
    FROM (SELECT id
      FROM "queue"
      WHERE q_name = $1::text
      AND dequeued_at IS NULL
      AND leased_until IS NULL
      AND schedule_at IS NULL
      AND expected_at IS NOT NULL
      AND (expected_at, enqueued_at, id) > ((string_to_array($2::text, ' '))[1]::timestamptz, (string_to_array($2::text, ' '))[2]::timestamptz, (string_to_array($2::text, ' '))[3]::bigint)
      ORDER BY expected_at, enqueued_at, id
      LIMIT 2
      FOR UPDATE SKIP LOCKED) AS head
    LIMIT (SELECT 2)), ready AS (SELECT *
    FROM (SELECT id
      FROM "queue"
      WHERE q_name = $1::text
      AND dequeued_at IS NULL
      AND leased_until IS NULL
      AND expected_at IS NULL
      AND coalesce(schedule_at, enqueued_at) <= statement_timestamp()
      AND (coalesce(schedule_at, enqueued_at), id) > ((string_to_array($2::text, ' '))[4]::timestamptz, (string_to_array($2::text, ' '))[5]::bigint)
      ORDER BY coalesce(schedule_at, enqueued_at), id
      LIMIT 2
      FOR UPDATE SKIP LOCKED) AS head
    LIMIT 2 - (SELECT count(*)
      FROM urgent)), picked AS (SELECT id
    FROM urgent
    UNION ALL
    SELECT id
    FROM ready)
  DELETE FROM "queue"
  WHERE id = ANY (ARRAY(SELECT id
      FROM picked))
  AND q_name = $1::text
  RETURNING id, data::text, payload, serializer, mod(attempts, 2147483647) + 1, least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'),
  CASE WHEN schedule_at IS NOT NULL THEN least(greatest(schedule_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN expected_at IS NOT NULL THEN least(greatest(expected_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END, headers::text,
  CASE WHEN failures IS NOT NULL
  OR excused IS NOT NULL THEN coalesce(failures, 0)::bigint * 4294967296 + greatest(coalesce(excused, 0), 0) END;

-- delete_2_merged [hot] $1 q_name
PREPARE "delete_2_merged" AS WITH picked AS (SELECT free.id
    FROM (SELECT id
      FROM ((SELECT *
          FROM (SELECT id, priority, expected_at, schedule_at, enqueued_at
            FROM "queue"
            WHERE q_name = $1::text
            AND dequeued_at IS NULL
            AND leased_until IS NULL
            AND schedule_at IS NULL
            AND expected_at IS NOT NULL
            ORDER BY expected_at, enqueued_at, id
            LIMIT 102) AS head
          LIMIT (SELECT 102))
        UNION ALL (SELECT *
          FROM (SELECT id, priority, expected_at, schedule_at, enqueued_at
            FROM "queue"
            WHERE q_name = $1::text
            AND dequeued_at IS NULL
            AND leased_until IS NULL
            AND expected_at IS NULL
            AND coalesce(schedule_at, enqueued_at) <= statement_timestamp()
            ORDER BY coalesce(schedule_at, enqueued_at), id
            LIMIT 102) AS head
          LIMIT (SELECT 102))
        UNION ALL (SELECT *
          FROM (SELECT id, priority, expected_at, schedule_at, enqueued_at
            FROM "queue"
            WHERE q_name = $1::text
            AND dequeued_at IS NULL
            AND (leased_until IS NOT NULL
              OR (schedule_at IS NOT NULL
                AND expected_at IS NOT NULL))
            AND coalesce(leased_until, schedule_at) <= statement_timestamp()
            AND coalesce(leased_until, schedule_at) >= '-infinity'
            AND parked_on IS NULL
            ORDER BY coalesce(leased_until, schedule_at), id
            LIMIT 1000) AS head
          LIMIT (SELECT 1000))
        UNION ALL (SELECT *
          FROM (SELECT id, priority, expected_at, schedule_at, enqueued_at
            FROM "queue"
            WHERE q_name = $1::text
            AND parked_on IS NOT NULL
            AND num_nulls(dequeued_at) <> 0
            ORDER BY priority DESC, expected_at, coalesce(schedule_at, enqueued_at), id
            LIMIT 102) AS head
          LIMIT (SELECT 102))) AS candidates
      ORDER BY priority DESC, expected_at, coalesce(schedule_at, enqueued_at), id) AS candidate
    CROSS JOIN LATERAL (SELECT id
      FROM "queue"
      WHERE id = candidate.id
      AND q_name = $1::text
      AND dequeued_at IS NULL
      AND coalesce(schedule_at, enqueued_at) <= statement_timestamp()
      AND (leased_until IS NULL
        OR leased_until <= statement_timestamp()
        OR (parked_on IS NOT NULL
          AND leased_until = 'infinity'))
      FOR UPDATE SKIP LOCKED) AS free
    LIMIT 2)
  DELETE FROM "queue"
  WHERE id = ANY (ARRAY(SELECT id
      FROM picked))
  AND q_name = $1::text
  RETURNING id, data::text, payload, serializer, mod(attempts, 2147483647) + 1, least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'),
  CASE WHEN schedule_at IS NOT NULL THEN least(greatest(schedule_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN expected_at IS NOT NULL THEN least(greatest(expected_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END, headers::text,
  CASE WHEN failures IS NOT NULL
  OR excused IS NOT NULL THEN coalesce(failures, 0)::bigint * 4294967296 + greatest(coalesce(excused, 0), 0) END;

-- delete_2_ordered [hot] $1 q_name
PREPARE "delete_2_ordered" AS WITH hidden AS (SELECT coalesce(leased_until, schedule_at) AS out_at
    FROM "queue"
    WHERE q_name = $1::text
    AND dequeued_at IS NULL
    AND (leased_until IS NOT NULL
      OR (schedule_at IS NOT NULL
        AND expected_at IS NOT NULL))
    ORDER BY coalesce(leased_until, schedule_at), id
    LIMIT 1), waiting AS (SELECT id
    FROM "queue"
    WHERE q_name = $1::text
    AND parked_on IS NOT NULL
    AND num_nulls(dequeued_at) <> 0
    ORDER BY priority DESC, expected_at, coalesce(schedule_at, enqueued_at), id
    LIMIT 1), urgent AS (SELECT *
    FROM (SELECT id
      FROM "queue"
      WHERE q_name = $1::text
      AND dequeued_at IS NULL
      AND leased_until IS NULL
      AND schedule_at IS NULL
      AND expected_at IS NOT NULL
      AND NOT EXISTS (SELECT
        FROM hidden
        WHERE out_at <= statement_timestamp())
      AND NOT EXISTS (SELECT
        FROM waiting)
      ORDER BY expected_at, enqueued_at, id
      LIMIT 2
      FOR UPDATE SKIP LOCKED) AS head
    LIMIT (SELECT 2)), ready AS (SELECT *
    FROM (SELECT id
      FROM "queue"
      WHERE q_name = $1::text
      AND dequeued_at IS NULL
      AND leased_until IS NULL
      AND expected_at IS NULL
      AND coalesce(schedule_at, enqueued_at) <= statement_timestamp()
      AND NOT EXISTS (SELECT
        FROM hidden
        WHERE out_at <= statement_timestamp())
      AND NOT EXISTS (SELECT
        FROM waiting)
      ORDER BY coalesce(schedule_at, enqueued_at), id
      LIMIT 2
      FOR UPDATE SKIP LOCKED) AS head
    LIMIT 2 - (SELECT count(*)
      FROM urgent)), picked AS (SELECT id
    FROM urgent
    UNION ALL
    SELECT id
    FROM ready)
  DELETE FROM "queue"
  WHERE id = ANY (ARRAY(SELECT id
      FROM picked))
  AND q_name = $1::text
  RETURNING id, data::text, payload, serializer, mod(attempts, 2147483647) + 1, least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'),
  CASE WHEN schedule_at IS NOT NULL THEN least(greatest(schedule_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN expected_at IS NOT NULL THEN least(greatest(expected_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END, headers::text,
  CASE WHEN failures IS NOT NULL
  OR excused IS NOT NULL THEN coalesce(failures, 0)::bigint * 4294967296 + greatest(coalesce(excused, 0), 0) END;

-- delete_2_unguarded [hot] $1 q_name
PREPARE "delete_2_unguarded" AS WITH urgent AS (SELECT *
    FROM (SELECT id
      FROM "queue"
      WHERE q_name = $1::text
      AND dequeued_at IS NULL
      AND leased_until IS NULL
      AND schedule_at IS NULL
      AND expected_at IS NOT NULL
      ORDER BY expected_at, enqueued_at, id
      LIMIT 2
      FOR UPDATE SKIP LOCKED) AS head
    LIMIT (SELECT 2)), ready AS (SELECT *
    FROM (SELECT id
      FROM "queue"
      WHERE q_name = $1::text
      AND dequeued_at IS NULL
      AND leased_until IS NULL
      AND expected_at IS NULL
      AND coalesce(schedule_at, enqueued_at) <= statement_timestamp()
      ORDER BY coalesce(schedule_at, enqueued_at), id
      LIMIT 2
      FOR UPDATE SKIP LOCKED) AS head
    LIMIT 2 - (SELECT count(*)
      FROM urgent)), picked AS (SELECT id
    FROM urgent
    UNION ALL
    SELECT id
    FROM ready)
  DELETE FROM "queue"
  WHERE id = ANY (ARRAY(SELECT id
      FROM picked))
  AND q_name = $1::text
  RETURNING id, data::text, payload, serializer, mod(attempts, 2147483647) + 1, least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'),
  CASE WHEN schedule_at IS NOT NULL THEN least(greatest(schedule_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN expected_at IS NOT NULL THEN least(greatest(expected_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END, headers::text,
  CASE WHEN failures IS NOT NULL
  OR excused IS NOT NULL THEN coalesce(failures, 0)::bigint * 4294967296 + greatest(coalesce(excused, 0), 0) END;

-- discard_plans [no rows]
SELECT 1;

-- drop $1 id, $2 token, $3 q_name
PREPARE "drop" AS
  DELETE FROM "queue"
  WHERE id = $1::bigint
  AND attempts = $2::int
  AND leased_until IS NOT NULL
  AND num_nulls(dequeued_at, parked_on) = 2
  AND q_name = $3::text
  RETURNING id, awaited;

-- empty_get_probe [hot] $1 q_name
/*NO LOAD BALANCE*/ PREPARE "empty_get_probe" AS
  SELECT coalesce((SELECT coalesce(leased_until, schedule_at) AS out_at
      FROM "queue"
      WHERE q_name = $1::text
      AND dequeued_at IS NULL
      AND (leased_until IS NOT NULL
        OR (schedule_at IS NOT NULL
          AND expected_at IS NOT NULL))
      ORDER BY coalesce(leased_until, schedule_at), id
      LIMIT 1) <= statement_timestamp(), false), (extract(epoch FROM least((SELECT coalesce(schedule_at, enqueued_at)
          FROM "queue"
          WHERE q_name = $1::text
          AND dequeued_at IS NULL
          AND leased_until IS NULL
          AND expected_at IS NULL
          AND coalesce(schedule_at, enqueued_at) > statement_timestamp()
          AND coalesce(schedule_at, enqueued_at) < 'infinity'
          ORDER BY coalesce(schedule_at, enqueued_at), id
          LIMIT 1), (SELECT coalesce(leased_until, schedule_at)
          FROM "queue"
          WHERE q_name = $1::text
          AND dequeued_at IS NULL
          AND (leased_until IS NOT NULL
            OR (schedule_at IS NOT NULL
              AND expected_at IS NOT NULL))
          AND coalesce(leased_until, schedule_at) > statement_timestamp()
          AND coalesce(leased_until, schedule_at) < 'infinity'
          ORDER BY coalesce(leased_until, schedule_at), id
          LIMIT 1))) - extract(epoch FROM statement_timestamp()))::float8, coalesce((SELECT true
      FROM "queue_dependencies"
      WHERE q_name = $1::text
      AND (outcome IS NOT NULL
        OR polled)
      ORDER BY q_name
      LIMIT 1), false), (SELECT id
    FROM "queue"
    WHERE q_name = $1::text
    AND parked_on IS NOT NULL
    AND num_nulls(dequeued_at) <> 0
    ORDER BY priority DESC, expected_at, coalesce(schedule_at, enqueued_at), id
    LIMIT 1) IS NOT NULL;

-- end_lost_batch $1 id, $2 q_name, $3 pending
PREPARE "end_lost_batch" AS
  UPDATE "queue_batches"
  SET pending = 0, failed = failed + pending
  WHERE id = $1::bigint
  AND q_name = $2::text
  AND pending = $3::int
  RETURNING pending, total, failed, callback::text;

-- expire_archive $1 q_name, $2 age
PREPARE "expire_archive" AS WITH old AS (SELECT job.id
    FROM "queue_archive" AS job
    WHERE job.q_name = $1::text
    AND job.dequeued_at <= statement_timestamp() - $2::float8 * interval '1 second'
    AND NOT EXISTS (SELECT
      FROM "queue_results" AS kept
      WHERE kept.job_id = job.id
      AND kept.expires_at > statement_timestamp())
    AND NOT (strpos(coalesce(job.headers::text, ''), '"batch"') > 0
      AND EXISTS (SELECT
        FROM "queue_batches" AS batch
        WHERE batch.pending > 0
        AND batch.id::text = job.headers ->> 'batch'))
    ORDER BY job.dequeued_at
    LIMIT 1000
    FOR UPDATE OF job SKIP LOCKED), gone AS (DELETE FROM "queue_archive"
    WHERE id = ANY (ARRAY(SELECT id
        FROM old))
    AND q_name = $1::text
    RETURNING id)
  SELECT count(*)
  FROM gone;

-- expire_dead $1 q_name, $2 age
PREPARE "expire_dead" AS WITH old AS (SELECT job.id
    FROM "queue_dead" AS job
    WHERE job.q_name = $1::text
    AND job.died_at <= statement_timestamp() - $2::float8 * interval '1 second'
    AND NOT EXISTS (SELECT
      FROM "queue_results" AS kept
      WHERE kept.job_id = job.id
      AND kept.expires_at > statement_timestamp())
    AND NOT (strpos(coalesce(job.headers::text, ''), '"batch"') > 0
      AND EXISTS (SELECT
        FROM "queue_batches" AS batch
        WHERE batch.pending > 0
        AND batch.id::text = job.headers ->> 'batch'))
    ORDER BY job.died_at
    LIMIT 1000
    FOR UPDATE OF job SKIP LOCKED), gone AS (DELETE FROM "queue_dead"
    WHERE id = ANY (ARRAY(SELECT id
        FROM old))
    AND q_name = $1::text
    RETURNING id)
  SELECT count(*)
  FROM gone;

-- expire_finished $1 after, $2 q_name, $3 age
PREPARE "expire_finished" AS WITH slice AS (SELECT id
    FROM "queue"
    WHERE id > $1::bigint
    ORDER BY id
    LIMIT 2000), old AS (SELECT job.id
    FROM "queue" AS job
    WHERE job.id = ANY (ARRAY(SELECT id
        FROM slice))
    AND job.q_name = $2::text
    AND job.dequeued_at <= statement_timestamp() - $3::float8 * interval '1 second'
    AND NOT EXISTS (SELECT
      FROM "queue_results" AS kept
      WHERE kept.job_id = job.id
      AND kept.expires_at > statement_timestamp())
    AND NOT (strpos(coalesce(job.headers::text, ''), '"batch"') > 0
      AND EXISTS (SELECT
        FROM "queue_batches" AS batch
        WHERE batch.pending > 0
        AND batch.id::text = job.headers ->> 'batch'))
    FOR UPDATE OF job SKIP LOCKED), gone AS (DELETE FROM "queue"
    WHERE id = ANY (ARRAY(SELECT id
        FROM old))
    AND q_name = $2::text
    RETURNING id)
  SELECT max(id), (SELECT count(*)
    FROM gone), EXISTS (SELECT
    FROM "queue"
    WHERE id = ANY (ARRAY(SELECT id
        FROM slice))
    AND q_name = $2::text
    AND dequeued_at > statement_timestamp() - $3::float8 * interval '1 second')
  FROM slice;

-- explain_before $1 id, $2 q_name
/*NO LOAD BALANCE*/ PREPARE "explain_before" AS WITH me AS (SELECT id, coalesce(expected_at, 'infinity') AS expected, coalesce(schedule_at, enqueued_at) AS due
    FROM "queue"
    WHERE id = $1::bigint
    AND q_name = $2::text), visible AS (SELECT id, expected_at, schedule_at, enqueued_at
    FROM "queue"
    WHERE q_name = $2::text
    AND dequeued_at IS NULL
    AND (leased_until IS NOT NULL
      OR (schedule_at IS NOT NULL
        AND expected_at IS NOT NULL))
    AND coalesce(leased_until, schedule_at) > '-infinity'
    AND coalesce(leased_until, schedule_at) <= statement_timestamp()
    ORDER BY coalesce(leased_until, schedule_at), id
    LIMIT 10000), before AS ((SELECT id, coalesce(expected_at, 'infinity') AS expected, coalesce(schedule_at, enqueued_at) AS due
      FROM "queue"
      WHERE q_name = $2::text
      AND dequeued_at IS NULL
      AND leased_until IS NULL
      AND schedule_at IS NULL
      AND expected_at IS NOT NULL
      AND (expected_at, enqueued_at, id) < (SELECT expected, due, id
        FROM me)
      ORDER BY expected_at, enqueued_at, id
      LIMIT 1000)
    UNION ALL (SELECT id, coalesce(expected_at, 'infinity') AS expected, coalesce(schedule_at, enqueued_at) AS due
      FROM "queue"
      WHERE q_name = $2::text
      AND dequeued_at IS NULL
      AND leased_until IS NULL
      AND expected_at IS NULL
      AND coalesce(schedule_at, enqueued_at) <= statement_timestamp()
      AND (coalesce(schedule_at, enqueued_at), id) < (SELECT due, id
        FROM me)
      AND (SELECT expected
        FROM me) = 'infinity'
      ORDER BY coalesce(schedule_at, enqueued_at), id
      LIMIT 1000)
    UNION ALL (SELECT id, coalesce(expected_at, 'infinity') AS expected, coalesce(schedule_at, enqueued_at) AS due
      FROM visible
      WHERE coalesce(schedule_at, enqueued_at) <= statement_timestamp()
      AND (coalesce(expected_at, 'infinity'), coalesce(schedule_at, enqueued_at), id) < (SELECT expected, due, id
        FROM me)
      LIMIT 1000))
  SELECT id
  FROM before
  ORDER BY expected, due, id
  LIMIT 1000;

-- explain_before_in_lane $1 id, $2 q_name, $3 lane
/*NO LOAD BALANCE*/ PREPARE "explain_before_in_lane" AS WITH me AS (SELECT id, coalesce(expected_at, 'infinity') AS expected, coalesce(schedule_at, enqueued_at) AS due
    FROM "queue"
    WHERE id = $1::bigint
    AND q_name = $2::text)
  SELECT id
  FROM ((SELECT id, expected_at, coalesce(schedule_at, enqueued_at) AS due
      FROM "queue"
      WHERE q_name = $2::text
      AND parked_on = $3::text
      AND (expected_at, coalesce(schedule_at, enqueued_at), id) < (SELECT expected, due, id
        FROM me)
      ORDER BY expected_at, coalesce(schedule_at, enqueued_at), id
      LIMIT 1000)
    UNION ALL (SELECT id, expected_at, coalesce(schedule_at, enqueued_at) AS due
      FROM "queue"
      WHERE q_name = $2::text
      AND parked_on = $3::text
      AND expected_at IS NULL
      AND (coalesce(schedule_at, enqueued_at), id) < (SELECT due, id
        FROM me)
      AND (SELECT expected
        FROM me) = 'infinity'
      ORDER BY expected_at, coalesce(schedule_at, enqueued_at), id
      LIMIT 1000)) AS before
  ORDER BY expected_at, due, id
  LIMIT 1000;

-- explain_bucket $1 q_name
/*NO LOAD BALANCE*/ PREPARE "explain_bucket" AS
  SELECT tokens, greatest(extract(epoch FROM clock_timestamp() - refilled_at), 0)::float8
  FROM "queue_rates"
  WHERE q_name = $1::text;

-- explain_group $1 q_name, $2 group, $3 id
/*NO LOAD BALANCE*/ PREPARE "explain_group" AS
  SELECT id
  FROM "queue"
  WHERE q_name = $1::text
  AND group_key = $2::text
  AND dequeued_at IS NULL
  AND id < $3::bigint
  ORDER BY id
  LIMIT 1000;

-- explain_job $1 id, $2 put_at
/*NO LOAD BALANCE*/ PREPARE "explain_job" AS
  SELECT 'table', q_name,
  CASE WHEN dequeued_at IS NOT NULL THEN 'done' WHEN parked_on IS NOT NULL THEN 'parked' WHEN leased_until > statement_timestamp() THEN 'leased' WHEN coalesce(schedule_at, enqueued_at) > statement_timestamp() THEN 'scheduled' ELSE 'ready' END, serializer, greatest(attempts - coalesce(excused, 0), 0), coalesce(failures, 0), error::text, headers::text, left(data::text, 2000), least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'), least(greatest(statement_timestamp() AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'),
  CASE WHEN schedule_at IS NOT NULL THEN least(greatest(schedule_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END, parked_on,
  CASE WHEN leased_until < 'infinity' THEN least(greatest(leased_until AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END, group_key, NULL::text, coalesce(cancelling, false), NULL::text, priority
  FROM "queue"
  WHERE id = $1::bigint
  AND ($2::timestamptz IS NULL
    OR least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') = $2::timestamptz AT TIME ZONE 'UTC')
  UNION ALL
  SELECT 'dead', q_name, 'dead', serializer, greatest(attempts - coalesce(excused, 0), 0), coalesce(failures, 0), error::text, headers::text, left(data::text, 2000), least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'), least(greatest(statement_timestamp() AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'),
  CASE WHEN schedule_at IS NOT NULL THEN least(greatest(schedule_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END, NULL::text, NULL::timestamp, NULL::text, reason, false, NULL::text, 0
  FROM "queue_dead"
  WHERE id = $1::bigint
  AND ($2::timestamptz IS NULL
    OR least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') = $2::timestamptz AT TIME ZONE 'UTC')
  UNION ALL
  SELECT 'archive', q_name, 'done', serializer, greatest(attempts - coalesce(excused, 0), 0), coalesce(failures, 0), error::text, headers::text, left(data::text, 2000), least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'), least(greatest(statement_timestamp() AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'),
  CASE WHEN schedule_at IS NOT NULL THEN least(greatest(schedule_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END, NULL::text, NULL::timestamp, NULL::text, NULL::text, false, NULL::text, 0
  FROM "queue_archive"
  WHERE id = $1::bigint
  AND ($2::timestamptz IS NULL
    OR least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') = $2::timestamptz AT TIME ZONE 'UTC')
  LIMIT 1;

-- explain_key_locks $1 keys
/*NO LOAD BALANCE*/ PREPARE "explain_key_locks" AS
  SELECT NULL::text, NULL::int, false, NULL::float8, NULL::text
  WHERE false
  AND $1::text[] IS NULL;

-- explain_keys $1 needs, $2 q_name
/*NO LOAD BALANCE*/ PREPARE "explain_keys" AS WITH needs AS MATERIALIZED (SELECT *
    FROM json_to_recordset($1::text::json) AS needs (place int, key text, number int, newest bigint)), state AS MATERIALIZED (SELECT wanted.key, row.version, row.running, row.reserved,
    CASE WHEN wanted.newest > row.newest
    OR row.places IS NULL THEN wanted.number ELSE row.places END AS put_places, greatest(wanted.newest, row.newest) AS newest, (SELECT number::int
      FROM "queue_rules"
      WHERE q_name = $2::text
      AND kind = 'limit'
      AND name = wanted.key) AS ruled, (SELECT true
      FROM "queue_rules"
      WHERE q_name = $2::text
      AND kind = 'pause'
      AND name = wanted.key
      AND (until IS NULL
        OR until > statement_timestamp())) AS paused, rated.rate, least(rated.number, coalesce(row.tokens + rated.rate * extract(epoch FROM statement_timestamp() - row.refilled_at)::float8, rated.number)) AS tokens
    FROM (SELECT DISTINCT ON (key) key, number, newest
      FROM needs
      ORDER BY key, newest DESC) AS wanted
    LEFT JOIN LATERAL (SELECT *
      FROM "queue_keys"
      WHERE q_name = $2::text
      AND key = wanted.key
      ORDER BY version DESC
      LIMIT 1) AS row
    ON true
    LEFT JOIN LATERAL (SELECT number, number / period AS rate
      FROM "queue_rules"
      WHERE q_name = $2::text
      AND kind = 'rate'
      AND name = wanted.key
      LIMIT 1) AS rated
    ON true), room AS MATERIALIZED (SELECT state.*, coalesce(alive.ids, '{}') AS alive_ids, holder.lane AS reserved_for,
    CASE WHEN state.paused THEN 0 ELSE least(coalesce(state.ruled, state.put_places, 2147483647) - coalesce(cardinality(alive.ids), 0), floor(state.tokens)) END AS free
    FROM state
    CROSS JOIN LATERAL (SELECT array_agg(job.id) AS ids
      FROM unnest(state.running) AS admitted (id)
      CROSS JOIN LATERAL (SELECT id
        FROM "queue"
        WHERE id = admitted.id
        AND q_name = $2::text
        AND num_nulls(dequeued_at) = 1
        AND num_nulls(parked_on) = 1
        AND num_nulls(leased_until) = 0
        LIMIT 1) AS job) AS alive
    LEFT JOIN LATERAL (SELECT parked_on AS lane
      FROM "queue"
      WHERE id = state.reserved
      AND q_name = $2::text
      AND num_nulls(dequeued_at) = 1
      AND num_nulls(parked_on) = 0
      LIMIT 1) AS holder
    ON true)
  SELECT key, ruled, put_places, alive_ids, rate, tokens,
  CASE WHEN reserved_for IS NOT NULL THEN reserved END, reserved_for
  FROM room
  ORDER BY key;

-- explain_leased $1 names, $2 n
/*NO LOAD BALANCE*/ PREPARE "explain_leased" AS
  SELECT job.id
  FROM unnest($1::text[]) AS place (name)
  CROSS JOIN LATERAL (SELECT id, leased_until
    FROM (SELECT id, leased_until
      FROM "queue"
      WHERE q_name = place.name
      AND dequeued_at IS NULL
      AND (leased_until IS NOT NULL
        OR (schedule_at IS NOT NULL
          AND expected_at IS NOT NULL))
      AND coalesce(leased_until, schedule_at) > statement_timestamp()
      AND coalesce(leased_until, schedule_at) < 'infinity'
      ORDER BY coalesce(leased_until, schedule_at), id
      LIMIT 10000) AS hidden
    WHERE leased_until IS NOT NULL
    LIMIT $2::bigint) AS job
  ORDER BY job.leased_until, job.id
  LIMIT $2::bigint;

-- explain_lock $1 xmax
/*NO LOAD BALANCE*/ PREPARE "explain_lock" AS
  SELECT NULL::int, false, NULL::float8, NULL::text
  WHERE false
  AND $1::text IS NULL;

-- explain_pauses $1 q_name, $2 names
/*NO LOAD BALANCE*/ PREPARE "explain_pauses" AS
  SELECT name,
  CASE WHEN until < 'infinity' THEN until AT TIME ZONE 'UTC' END
  FROM "queue_rules"
  WHERE q_name = $1::text
  AND kind = 'pause'
  AND name = ANY ($2::text[])
  AND coalesce(until > statement_timestamp(), true)
  ORDER BY name;

-- explain_snapshot
/*NO LOAD BALANCE*/ PREPARE "explain_snapshot" AS
  SELECT NULL::float8;

-- extend [hot] $1 lease, $2 id, $3 token, $4 q_name
PREPARE "extend" AS
  UPDATE "queue"
  SET leased_until = statement_timestamp() + $1::float8 * interval '1 second'
  WHERE id = $2::bigint
  AND attempts = $3::int
  AND leased_until IS NOT NULL
  AND num_nulls(dequeued_at, parked_on) = 2
  AND q_name = $4::text
  RETURNING id;

-- extend_group [hot] $1 lease, $2 ids, $3 tokens, $4 q_name
PREPARE "extend_group" AS
  UPDATE "queue"
  SET leased_until = statement_timestamp() + $1::float8 * interval '1 second'
  WHERE id = ANY (ARRAY(SELECT id
      FROM "queue"
      WHERE id = ANY ($2::text::bigint[])
      AND leased_until IS NOT NULL
      AND num_nulls(dequeued_at, parked_on) = 2
      AND ((id, attempts) IN (SELECT job, token
          FROM unnest($2::text::bigint[], $3::text::int[]) AS held (job, token))) IS TRUE
      AND q_name = $4::text
      FOR UPDATE SKIP LOCKED))
  AND q_name = $4::text
  RETURNING id, attempts;

-- find_all_held $1 q_name, $2 dedup_keys
/*NO LOAD BALANCE*/ PREPARE "find_all_held" AS
  SELECT dedup_key, job_id, (SELECT date_part('epoch', least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'))
    FROM "queue"
    WHERE id = held.job_id
    AND q_name = $1::text)
  FROM "queue_dedup" AS held
  WHERE q_name = $1::text
  AND dedup_key = ANY ($2::text[]);

-- find_attempts $1 id, $2 q_name, $3 put_at
/*NO LOAD BALANCE*/ PREPARE "find_attempts" AS
  SELECT attempt, outcome, ended_at AT TIME ZONE 'UTC', worker, error_type, message, traceback
  FROM "queue_attempts" AS kept
  WHERE job_id = $1::bigint
  AND q_name = $2::text
  AND ($3::timestamptz IS NULL
    OR least(greatest(put_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') = $3::timestamptz AT TIME ZONE 'UTC')
  AND coalesce((SELECT true
      FROM "queue" AS job
      WHERE job.id = kept.job_id
      AND job.q_name = kept.q_name
      AND job.enqueued_at = kept.put_at
      LIMIT 1), (SELECT true
      FROM "queue_dead" AS job
      WHERE job.id = kept.job_id
      AND job.q_name = kept.q_name
      AND job.enqueued_at = kept.put_at
      LIMIT 1), (SELECT true
      FROM "queue_archive" AS job
      WHERE job.id = kept.job_id
      AND job.q_name = kept.q_name
      AND job.enqueued_at = kept.put_at
      LIMIT 1), false)
  ORDER BY ended_at, token;

-- find_blocked $1 id, $2 q_name
/*NO LOAD BALANCE*/ PREPARE "find_blocked" AS
  SELECT id, data::text, payload, serializer, attempts, least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'),
  CASE WHEN schedule_at IS NOT NULL THEN least(greatest(schedule_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN expected_at IS NOT NULL THEN least(greatest(expected_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END, headers::text,
  CASE WHEN failures IS NOT NULL
  OR excused IS NOT NULL THEN coalesce(failures, 0)::bigint * 4294967296 + greatest(coalesce(excused, 0), 0) END
  FROM "queue"
  WHERE id = $1::bigint
  AND q_name = $2::text
  AND num_nulls(dequeued_at, leased_until) = 2
  AND schedule_at = 'infinity';

-- find_candidates $1 q_name
/*NO LOAD BALANCE*/ PREPARE "find_candidates" AS
  SELECT DISTINCT job_id
  FROM (SELECT job_id
    FROM "queue_dependencies"
    WHERE q_name = $1::text
    AND outcome IS NOT NULL
    ORDER BY q_name, job_id
    LIMIT 10000) AS ended
  ORDER BY job_id
  LIMIT 500;

-- find_duplicate $1 q_name, $2 dedup_key
/*NO LOAD BALANCE*/ PREPARE "find_duplicate" AS
  SELECT id, date_part('epoch', least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'))
  FROM "queue"
  WHERE q_name = $1::text
  AND dedup_key = $2::text
  AND dequeued_at IS NULL;

-- find_duplicates $1 q_name, $2 dedup_keys
/*NO LOAD BALANCE*/ PREPARE "find_duplicates" AS
  SELECT dedup_key, id, date_part('epoch', least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'))
  FROM "queue"
  WHERE q_name = $1::text
  AND dedup_key = ANY ($2::text[])
  AND dedup_key IS NOT NULL
  AND dequeued_at IS NULL;

-- find_failed_parents $1 q_name, $2 ids
/*NO LOAD BALANCE*/ PREPARE "find_failed_parents" AS
  SELECT DISTINCT ON (job_id) job_id, parent_id, outcome, on_failure
  FROM "queue_dependencies"
  WHERE q_name = $1::text
  AND job_id = ANY ($2::text::bigint[])
  AND outcome IS NOT NULL
  AND NOT (outcome = 'done'
    OR on_failure = 'run')
  ORDER BY job_id, on_failure DESC, parent_id;

-- find_headers $1 id, $2 q_name, $3 put_at
/*NO LOAD BALANCE*/ PREPARE "find_headers" AS
  SELECT headers::text, awaited
  FROM "queue"
  WHERE id = $1::bigint
  AND q_name = $2::text
  AND num_nulls(dequeued_at) = 1
  AND ($3::timestamptz IS NULL
    OR least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') = $3::timestamptz AT TIME ZONE 'UTC');

-- find_held $1 q_name, $2 dedup_key
/*NO LOAD BALANCE*/ PREPARE "find_held" AS
  SELECT job_id, (SELECT date_part('epoch', least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'))
    FROM "queue"
    WHERE id = held.job_id
    AND q_name = $1::text)
  FROM "queue_dedup" AS held
  WHERE q_name = $1::text
  AND dedup_key = $2::text;

-- find_held_leases $1 ids, $2 tokens
/*NO LOAD BALANCE*/ PREPARE "find_held_leases" AS
  SELECT id, attempts
  FROM "queue"
  WHERE id = ANY ($1::text::bigint[])
  AND leased_until IS NOT NULL
  AND num_nulls(dequeued_at, parked_on) = 2
  AND ((id, attempts) IN (SELECT job, token
      FROM unnest($1::text::bigint[], $2::text::int[]) AS held (job, token))) IS TRUE;

-- find_job $1 q_name, $2 id, $3 put_at
/*NO LOAD BALANCE*/ PREPARE "find_job" AS
  SELECT
  CASE WHEN dequeued_at IS NULL
  AND parked_on IS NOT NULL
  AND
  CASE WHEN job.group_key IS NULL THEN job.id IN (SELECT id
    FROM "queue" AS waiting
    WHERE waiting.q_name = $1::text
    AND waiting.parked_on = job.parked_on
    AND num_nulls(waiting.dequeued_at) <> 0
    ORDER BY expected_at, coalesce(schedule_at, enqueued_at), id
    LIMIT least((SELECT coalesce(min(CASE WHEN EXISTS (SELECT
              FROM "queue_rules" AS paused
              WHERE paused.q_name = $1::text
              AND paused.kind = 'pause'
              AND paused.name = regexp_replace(need.name, '=[0-9]+$', '')
              AND (until IS NULL
                OR until > statement_timestamp())) THEN 0 ELSE greatest(coalesce((SELECT number::int
                  FROM "queue_rules" AS allowed
                  WHERE allowed.q_name = $1::text
                  AND allowed.kind = 'limit'
                  AND allowed.name = regexp_replace(need.name, '=[0-9]+$', '')), row.places, substring(need.name
                  FROM '=([0-9]+)$')::int) - (SELECT count(*)
                FROM unnest(row.running) AS admitted (id)
                CROSS JOIN LATERAL (SELECT
                  FROM "queue" AS other
                  WHERE other.id = admitted.id
                  AND other.q_name = $1::text
                  AND num_nulls(other.dequeued_at) = 1
                  AND num_nulls(other.parked_on) = 1
                  AND num_nulls(other.leased_until) = 0
                  LIMIT 1) AS alive), 0) END), 2147483647)
        FROM unnest(ARRAY(SELECT json_array_elements_text(CASE WHEN job.parked_on LIKE '[%' THEN job.parked_on ELSE '[]' END::json) OFFSET 2)) AS need (name)
        LEFT JOIN LATERAL (SELECT places, running
          FROM "queue_keys" AS key
          WHERE key.q_name = $1::text
          AND key.key = regexp_replace(need.name, '=[0-9]+$', '')
          ORDER BY version DESC
          LIMIT 1) AS row
        ON true), 10000)) ELSE job.id = (SELECT id
    FROM "queue" AS first
    WHERE first.q_name = $1::text
    AND first.group_key = job.group_key
    AND first.dequeued_at IS NULL
    ORDER BY id
    LIMIT 1)
  AND (SELECT coalesce(min(CASE WHEN EXISTS (SELECT
          FROM "queue_rules" AS paused
          WHERE paused.q_name = $1::text
          AND paused.kind = 'pause'
          AND paused.name = regexp_replace(need.name, '=[0-9]+$', '')
          AND (until IS NULL
            OR until > statement_timestamp())) THEN 0 ELSE greatest(coalesce((SELECT number::int
              FROM "queue_rules" AS allowed
              WHERE allowed.q_name = $1::text
              AND allowed.kind = 'limit'
              AND allowed.name = regexp_replace(need.name, '=[0-9]+$', '')), row.places, substring(need.name
              FROM '=([0-9]+)$')::int) - (SELECT count(*)
            FROM unnest(row.running) AS admitted (id)
            CROSS JOIN LATERAL (SELECT
              FROM "queue" AS other
              WHERE other.id = admitted.id
              AND other.q_name = $1::text
              AND num_nulls(other.dequeued_at) = 1
              AND num_nulls(other.parked_on) = 1
              AND num_nulls(other.leased_until) = 0
              LIMIT 1) AS alive), 0) END), 2147483647)
    FROM unnest(ARRAY(SELECT json_array_elements_text(CASE WHEN job.parked_on LIKE '[%' THEN job.parked_on ELSE '[]' END::json) OFFSET 2)) AS need (name)
    LEFT JOIN LATERAL (SELECT places, running
      FROM "queue_keys" AS key
      WHERE key.q_name = $1::text
      AND key.key = regexp_replace(need.name, '=[0-9]+$', '')
      ORDER BY version DESC
      LIMIT 1) AS row
    ON true) > 0 END THEN 'ready' ELSE
  CASE WHEN dequeued_at IS NOT NULL THEN 'done' WHEN parked_on IS NOT NULL THEN 'parked' WHEN leased_until > statement_timestamp() THEN 'leased' WHEN coalesce(schedule_at, enqueued_at) > statement_timestamp() THEN 'scheduled' ELSE 'ready' END END, error::text, greatest(attempts - coalesce(excused, 0), 0), headers::text, coalesce(failures, 0),
  CASE WHEN enqueued_at IS NOT NULL THEN least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN schedule_at IS NOT NULL THEN least(greatest(schedule_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN expected_at IS NOT NULL THEN least(greatest(expected_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END
  FROM "queue" AS job
  WHERE id = $2::bigint
  AND q_name = $1::text
  AND ($3::timestamptz IS NULL
    OR least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') = $3::timestamptz AT TIME ZONE 'UTC')
  UNION ALL
  SELECT 'dead', error::text, greatest(attempts - coalesce(excused, 0), 0), headers::text, coalesce(failures, 0),
  CASE WHEN enqueued_at IS NOT NULL THEN least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN schedule_at IS NOT NULL THEN least(greatest(schedule_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN expected_at IS NOT NULL THEN least(greatest(expected_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END
  FROM "queue_dead"
  WHERE id = $2::bigint
  AND q_name = $1::text
  AND ($3::timestamptz IS NULL
    OR least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') = $3::timestamptz AT TIME ZONE 'UTC')
  UNION ALL
  SELECT 'done', error::text, greatest(attempts - coalesce(excused, 0), 0), headers::text, coalesce(failures, 0),
  CASE WHEN enqueued_at IS NOT NULL THEN least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN schedule_at IS NOT NULL THEN least(greatest(schedule_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN expected_at IS NOT NULL THEN least(greatest(expected_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END
  FROM "queue_archive"
  WHERE id = $2::bigint
  AND q_name = $1::text
  AND ($3::timestamptz IS NULL
    OR least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') = $3::timestamptz AT TIME ZONE 'UTC')
  LIMIT 1;

-- find_lanes $1 q_name, $2 after, $3 newest, $4 since
/*NO LOAD BALANCE*/ PREPARE "find_lanes" AS WITH RECURSIVE found (lane, number) AS ((SELECT (SELECT parked_on
        FROM "queue"
        WHERE q_name = $1::text
        AND parked_on > $2::text
        ORDER BY parked_on
        LIMIT 1), 1
      WHERE $2::text IS NOT NULL)
    UNION ALL
    SELECT (SELECT parked_on
      FROM "queue"
      WHERE q_name = $1::text
      AND parked_on > found.lane
      ORDER BY parked_on
      LIMIT 1), number + 1
    FROM found
    WHERE lane IS NOT NULL
    AND number < 100), arrived AS (SELECT parked_on AS lane, id
    FROM "queue"
    WHERE q_name = $1::text
    AND dequeued_at IS NULL
    AND (leased_until IS NOT NULL
      OR (schedule_at IS NOT NULL
        AND expected_at IS NOT NULL))
    AND coalesce(leased_until, schedule_at) = 'infinity'
    AND id > $3::bigint
    ORDER BY id DESC
    LIMIT 100)
  SELECT lane, max(id), count(*)
  FROM arrived
  WHERE lane IS NOT NULL
  GROUP BY lane
  UNION ALL
  SELECT lane, NULL, number
  FROM found
  WHERE lane IS NOT NULL
  UNION ALL
  SELECT '?', NULL, -1
  WHERE EXISTS (SELECT
    FROM (SELECT *
      FROM (SELECT id, schedule_at, headers
        FROM "queue"
        WHERE q_name = $1::text
        AND dequeued_at IS NULL
        AND leased_until IS NULL
        AND expected_at IS NULL
        AND coalesce(schedule_at, enqueued_at) <= statement_timestamp()
        AND coalesce(schedule_at, enqueued_at) > statement_timestamp() - $4::float8 * interval '1 second'
        ORDER BY coalesce(schedule_at, enqueued_at) DESC, id DESC
        LIMIT 1000) AS last
      LIMIT (SELECT 1000)) AS lately
    WHERE schedule_at IS NOT NULL
    AND strpos(headers::text, '"gate"') > 0);

-- find_leases $1 ids, $2 q_name
/*NO LOAD BALANCE*/ PREPARE "find_leases" AS
  SELECT id, attempts, leased_until IS NULL
  FROM "queue"
  WHERE id = ANY ($1::text::bigint[])
  AND q_name = $2::text
  UNION ALL
  SELECT id, attempts, true
  FROM "queue_archive"
  WHERE id = ANY ($1::text::bigint[])
  AND q_name = $2::text
  UNION ALL
  SELECT id, attempts, true
  FROM "queue_dead"
  WHERE id = ANY ($1::text::bigint[])
  AND q_name = $2::text;

-- find_parents $1 ids
/*NO LOAD BALANCE*/ PREPARE "find_parents" AS
  SELECT wanted.id, coalesce((SELECT max(CASE WHEN num_nulls(dequeued_at) = 0 THEN 'done' ELSE 'open' END)
      FROM "queue" AS job
      WHERE job.id = wanted.id
      AND true), (SELECT 'dead'
      FROM "queue_dead" AS job
      WHERE job.id = wanted.id
      AND true), (SELECT 'done'
      FROM "queue_archive" AS job
      WHERE job.id = wanted.id
      AND true), (SELECT state
      FROM "queue_results" AS job
      WHERE job.job_id = wanted.id
      AND true
      AND state <> 'running')), coalesce((SELECT max(date_part('epoch', least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999')))
      FROM "queue"
      WHERE id = wanted.id), (SELECT date_part('epoch', least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'))
      FROM "queue_dead"
      WHERE id = wanted.id), (SELECT date_part('epoch', least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'))
      FROM "queue_archive"
      WHERE id = wanted.id), (SELECT date_part('epoch', least(greatest(put_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'))
      FROM "queue_results"
      WHERE job_id = wanted.id))
  FROM unnest($1::text::bigint[]) AS wanted (id);

-- find_progress $1 ids, $2 q_name
/*NO LOAD BALANCE*/ PREPARE "find_progress" AS
  SELECT job.id, kept.progress::text
  FROM "queue" AS job
  JOIN "queue_results" AS kept
  ON kept.job_id = job.id
  AND kept.q_name = job.q_name
  WHERE job.id = ANY ($1::text::bigint[])
  AND job.q_name = $2::text
  AND kept.progress IS NOT NULL
  AND coalesce(kept.put_at = job.enqueued_at, kept.updated_at >= job.enqueued_at);

-- find_quiet $1 names, $2 id
/*NO LOAD BALANCE*/ PREPARE "find_quiet" AS
  SELECT q_name
  FROM "queue_workers"
  WHERE q_name = ANY ($1::text[])
  AND id = $2::text
  AND quiet;

-- find_result $1 id, $2 q_name, $3 put_at
/*NO LOAD BALANCE*/ PREPARE "find_result" AS
  SELECT state, progress::text, data::text, payload, serializer, error::text
  FROM "queue_results" AS kept
  WHERE job_id = $1::bigint
  AND q_name = $2::text
  AND coalesce(kept.put_at = $3::timestamptz, ($3::timestamptz IS NULL
      OR kept.updated_at >= $3::timestamptz)
    AND NOT EXISTS (SELECT
      FROM "queue"
      WHERE id = $1::bigint
      AND q_name = $2::text
      AND enqueued_at > kept.updated_at)
    AND NOT EXISTS (SELECT
      FROM "queue_dead"
      WHERE id = $1::bigint
      AND q_name = $2::text
      AND enqueued_at > kept.updated_at)
    AND NOT EXISTS (SELECT
      FROM "queue_archive"
      WHERE id = $1::bigint
      AND q_name = $2::text
      AND enqueued_at > kept.updated_at));

-- find_results $1 ids, $2 put_at
/*NO LOAD BALANCE*/ PREPARE "find_results" AS
  SELECT job_id, data::text, payload, serializer
  FROM "queue_results"
  WHERE job_id = ANY ($1::text::bigint[])
  AND state = 'done'
  AND error IS NULL
  AND (put_at IS NULL
    OR put_at <= $2::timestamptz)
  ORDER BY job_id;

-- find_row $1 most, $2 id, $3 q_name, $4 put_at
/*NO LOAD BALANCE*/ PREPARE "find_row" AS
  SELECT id, q_name,
  CASE WHEN dequeued_at IS NULL
  AND parked_on IS NOT NULL
  AND
  CASE WHEN job.group_key IS NULL THEN job.id IN (SELECT id
    FROM "queue" AS waiting
    WHERE waiting.q_name = job.q_name
    AND waiting.parked_on = job.parked_on
    AND num_nulls(waiting.dequeued_at) <> 0
    ORDER BY expected_at, coalesce(schedule_at, enqueued_at), id
    LIMIT least((SELECT coalesce(min(CASE WHEN EXISTS (SELECT
              FROM "queue_rules" AS paused
              WHERE paused.q_name = job.q_name
              AND paused.kind = 'pause'
              AND paused.name = regexp_replace(need.name, '=[0-9]+$', '')
              AND (until IS NULL
                OR until > statement_timestamp())) THEN 0 ELSE greatest(coalesce((SELECT number::int
                  FROM "queue_rules" AS allowed
                  WHERE allowed.q_name = job.q_name
                  AND allowed.kind = 'limit'
                  AND allowed.name = regexp_replace(need.name, '=[0-9]+$', '')), row.places, substring(need.name
                  FROM '=([0-9]+)$')::int) - (SELECT count(*)
                FROM unnest(row.running) AS admitted (id)
                CROSS JOIN LATERAL (SELECT
                  FROM "queue" AS other
                  WHERE other.id = admitted.id
                  AND other.q_name = job.q_name
                  AND num_nulls(other.dequeued_at) = 1
                  AND num_nulls(other.parked_on) = 1
                  AND num_nulls(other.leased_until) = 0
                  LIMIT 1) AS alive), 0) END), 2147483647)
        FROM unnest(ARRAY(SELECT json_array_elements_text(CASE WHEN job.parked_on LIKE '[%' THEN job.parked_on ELSE '[]' END::json) OFFSET 2)) AS need (name)
        LEFT JOIN LATERAL (SELECT places, running
          FROM "queue_keys" AS key
          WHERE key.q_name = job.q_name
          AND key.key = regexp_replace(need.name, '=[0-9]+$', '')
          ORDER BY version DESC
          LIMIT 1) AS row
        ON true), 10000)) ELSE job.id = (SELECT id
    FROM "queue" AS first
    WHERE first.q_name = job.q_name
    AND first.group_key = job.group_key
    AND first.dequeued_at IS NULL
    ORDER BY id
    LIMIT 1)
  AND (SELECT coalesce(min(CASE WHEN EXISTS (SELECT
          FROM "queue_rules" AS paused
          WHERE paused.q_name = job.q_name
          AND paused.kind = 'pause'
          AND paused.name = regexp_replace(need.name, '=[0-9]+$', '')
          AND (until IS NULL
            OR until > statement_timestamp())) THEN 0 ELSE greatest(coalesce((SELECT number::int
              FROM "queue_rules" AS allowed
              WHERE allowed.q_name = job.q_name
              AND allowed.kind = 'limit'
              AND allowed.name = regexp_replace(need.name, '=[0-9]+$', '')), row.places, substring(need.name
              FROM '=([0-9]+)$')::int) - (SELECT count(*)
            FROM unnest(row.running) AS admitted (id)
            CROSS JOIN LATERAL (SELECT
              FROM "queue" AS other
              WHERE other.id = admitted.id
              AND other.q_name = job.q_name
              AND num_nulls(other.dequeued_at) = 1
              AND num_nulls(other.parked_on) = 1
              AND num_nulls(other.leased_until) = 0
              LIMIT 1) AS alive), 0) END), 2147483647)
    FROM unnest(ARRAY(SELECT json_array_elements_text(CASE WHEN job.parked_on LIKE '[%' THEN job.parked_on ELSE '[]' END::json) OFFSET 2)) AS need (name)
    LEFT JOIN LATERAL (SELECT places, running
      FROM "queue_keys" AS key
      WHERE key.q_name = job.q_name
      AND key.key = regexp_replace(need.name, '=[0-9]+$', '')
      ORDER BY version DESC
      LIMIT 1) AS row
    ON true) > 0 END THEN 'ready' ELSE
  CASE WHEN dequeued_at IS NOT NULL THEN 'done' WHEN parked_on IS NOT NULL THEN 'parked' WHEN leased_until > statement_timestamp() THEN 'leased' WHEN coalesce(schedule_at, enqueued_at) > statement_timestamp() THEN 'scheduled' ELSE 'ready' END END, serializer, greatest(attempts - coalesce(excused, 0), 0), coalesce(failures, 0), error::text, NULL::text,
  CASE WHEN enqueued_at IS NOT NULL THEN least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN schedule_at IS NOT NULL THEN least(greatest(schedule_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN expected_at IS NOT NULL THEN least(greatest(expected_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN dequeued_at IS NOT NULL THEN least(greatest(dequeued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN parked_on IS NULL THEN
  CASE WHEN leased_until IS NOT NULL THEN least(greatest(leased_until AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END END, parked_on, left(data::text, 2000), left(data::text, coalesce($1::int, 2147483647)), substr(payload, 1, coalesce($1::int, 2147483647)), headers::text, group_key, dedup_key, coalesce(octet_length(payload), octet_length(data::text)), 'table'
  FROM "queue" AS job
  WHERE id = $2::bigint
  AND ($3::text IS NULL
    OR q_name = $3::text)
  AND ($4::timestamptz IS NULL
    OR least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') = $4::timestamptz AT TIME ZONE 'UTC')
  UNION ALL
  SELECT id, q_name, 'dead', serializer, greatest(attempts - coalesce(excused, 0), 0), coalesce(failures, 0), error::text, reason,
  CASE WHEN enqueued_at IS NOT NULL THEN least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN schedule_at IS NOT NULL THEN least(greatest(schedule_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN expected_at IS NOT NULL THEN least(greatest(expected_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN died_at IS NOT NULL THEN least(greatest(died_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN NULL::text IS NULL THEN NULL::timestamp END, NULL::text, left(data::text, 2000), left(data::text, coalesce($1::int, 2147483647)), substr(payload, 1, coalesce($1::int, 2147483647)), headers::text, headers #>> '{gate,group}', NULL::text, coalesce(octet_length(payload), octet_length(data::text)), 'dead'
  FROM "queue_dead"
  WHERE id = $2::bigint
  AND ($3::text IS NULL
    OR q_name = $3::text)
  AND ($4::timestamptz IS NULL
    OR least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') = $4::timestamptz AT TIME ZONE 'UTC')
  UNION ALL
  SELECT id, q_name, 'done', serializer, greatest(attempts - coalesce(excused, 0), 0), coalesce(failures, 0), error::text, NULL::text,
  CASE WHEN enqueued_at IS NOT NULL THEN least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN schedule_at IS NOT NULL THEN least(greatest(schedule_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN expected_at IS NOT NULL THEN least(greatest(expected_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN dequeued_at IS NOT NULL THEN least(greatest(dequeued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN NULL::text IS NULL THEN NULL::timestamp END, NULL::text, left(data::text, 2000), left(data::text, coalesce($1::int, 2147483647)), substr(payload, 1, coalesce($1::int, 2147483647)), headers::text, headers #>> '{gate,group}', NULL::text, coalesce(octet_length(payload), octet_length(data::text)), 'archive'
  FROM "queue_archive"
  WHERE id = $2::bigint
  AND ($3::text IS NULL
    OR q_name = $3::text)
  AND ($4::timestamptz IS NULL
    OR least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') = $4::timestamptz AT TIME ZONE 'UTC')
  LIMIT 1;

-- find_samples $1 seconds, $2 q_name
/*NO LOAD BALANCE*/ PREPARE "find_samples" AS
  SELECT extract(epoch FROM statement_timestamp() - at)::float8, q_name, ready, scheduled, leased, parked, dead, finished, oldest, median, slow, queues
  FROM "queue_samples"
  WHERE at > statement_timestamp() - $1::float8 * interval '1 second'
  AND ready IS NOT NULL
  AND ($2::text IS NULL
    OR q_name IN ('', $2::text))
  ORDER BY at, q_name;

-- find_schedule $1 q_name, $2 name
/*NO LOAD BALANCE*/ PREPARE "find_schedule" AS
  SELECT call::text, deadline_in
  FROM "queue_schedules"
  WHERE q_name = $1::text
  AND name = $2::text;

-- find_scheduled_calls $1 q_name, $2 names
/*NO LOAD BALANCE*/ PREPARE "find_scheduled_calls" AS
  SELECT name, task, call::text, deadline_in, updated_at AT TIME ZONE 'UTC'
  FROM "queue_schedules"
  WHERE q_name = $1::text
  AND name = ANY ($2::text[]);

-- find_stop_requests $1 ids
/*NO LOAD BALANCE*/ PREPARE "find_stop_requests" AS
  SELECT id
  FROM "queue"
  WHERE id = ANY ($1::text::bigint[])
  AND cancelling;

-- find_tick_jobs
/*NO LOAD BALANCE*/ PREPARE "find_tick_jobs" AS WITH recent AS ((SELECT id, q_name, enqueued_at, schedule_at, left(data::text, 2000) AS head, attempts, coalesce(failures, 0) AS failures,
      CASE WHEN dequeued_at IS NOT NULL THEN 'done' WHEN parked_on IS NULL
      AND leased_until > statement_timestamp() THEN 'leased' ELSE 'waiting' END AS state, dequeued_at AS ended_at
      FROM "queue"
      ORDER BY id DESC
      LIMIT 10000)
    UNION ALL (SELECT id, q_name, enqueued_at, schedule_at, left(data::text, 2000) AS head, attempts, coalesce(failures, 0) AS failures, 'done', dequeued_at
      FROM "queue_archive"
      ORDER BY id DESC
      LIMIT 10000)
    UNION ALL (SELECT id, q_name, enqueued_at, schedule_at, left(data::text, 2000) AS head, attempts, coalesce(failures, 0) AS failures, 'dead', died_at
      FROM "queue_dead"
      ORDER BY id DESC
      LIMIT 10000)), found AS (SELECT last.q_name, last.name, recent.id, state, failures, ended_at, row_number() OVER (PARTITION BY last.q_name, last.name
      ORDER BY schedule_at = last.tick DESC, enqueued_at, recent.id) AS place
    FROM "queue_ticks" AS last
    JOIN recent
    ON recent.q_name = last.q_name
    WHERE recent.enqueued_at >= last.tick - interval '5 seconds'
    AND (recent.schedule_at = last.tick
      OR recent.schedule_at > last.tick
      AND recent.attempts > 0)
    AND strpos(recent.head, '"' || last.name || '"') > 0)
  SELECT q_name, name, id, state, failures,
  CASE WHEN ended_at IS NOT NULL THEN least(greatest(ended_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END
  FROM found
  WHERE place = 1;

-- find_timetables $1 q_name
/*NO LOAD BALANCE*/ PREPARE "find_timetables" AS
  SELECT schedule.name, schedule.cron, schedule.tz, schedule.missed, schedule.updated_at AT TIME ZONE 'UTC', last.tick AT TIME ZONE 'UTC', last.cron, last.tz, clock_timestamp() AT TIME ZONE 'UTC'
  FROM "queue_schedules" AS schedule
  LEFT JOIN "queue_ticks" AS last
  ON last.q_name = schedule.q_name
  AND last.name = schedule.name
  WHERE schedule.q_name = $1::text
  AND schedule.paused_at IS NULL;

-- find_unadopted $1 q_name
PREPARE "find_unadopted" AS
  SELECT id, headers::text
  FROM "queue"
  WHERE id = ANY (ARRAY((SELECT id
        FROM (SELECT *
          FROM (SELECT id, headers
            FROM "queue"
            WHERE q_name = $1::text
            AND dequeued_at IS NULL
            AND leased_until IS NULL
            AND expected_at IS NULL
            AND coalesce(schedule_at, enqueued_at) <= statement_timestamp()
            ORDER BY coalesce(schedule_at, enqueued_at), id
            LIMIT 1000) AS first
          LIMIT (SELECT 1000)) AS head
        WHERE strpos(headers::text, '"gate"') > 0)
      UNION ALL (SELECT id
        FROM (SELECT *
          FROM (SELECT id, headers
            FROM "queue"
            WHERE q_name = $1::text
            AND dequeued_at IS NULL
            AND leased_until IS NULL
            AND schedule_at IS NULL
            AND expected_at IS NOT NULL
            ORDER BY expected_at, enqueued_at, id
            LIMIT 1000) AS first
          LIMIT (SELECT 1000)) AS head
        WHERE strpos(headers::text, '"gate"') > 0)
      UNION ALL (SELECT id
        FROM (SELECT *
          FROM (SELECT id, schedule_at, headers
            FROM "queue"
            WHERE q_name = $1::text
            AND dequeued_at IS NULL
            AND leased_until IS NULL
            AND expected_at IS NULL
            AND coalesce(schedule_at, enqueued_at) <= statement_timestamp()
            AND true
            ORDER BY coalesce(schedule_at, enqueued_at) DESC, id DESC
            LIMIT 1000) AS last
          LIMIT (SELECT 1000)) AS lately
        WHERE strpos(headers::text, '"gate"') > 0)))
  AND q_name = $1::text
  AND num_nulls(dequeued_at, leased_until) = 2
  FOR UPDATE SKIP LOCKED;

-- find_unnamed $1 q_name, $2 lane
PREPARE "find_unnamed" AS
  SELECT id, headers::text
  FROM "queue"
  WHERE q_name = $1::text
  AND parked_on = $2::text
  AND num_nulls(dequeued_at) <> 0
  ORDER BY expected_at, coalesce(schedule_at, enqueued_at), id
  LIMIT 1000
  FOR UPDATE SKIP LOCKED;

-- forget_orphans $1 q_name, $2 ids
PREPARE "forget_orphans" AS WITH gone AS (DELETE FROM "queue_dependencies"
    WHERE q_name = $1::text
    AND job_id = ANY ($2::text::bigint[])
    AND (job_id, parent_id) IN (SELECT job_id, parent_id
      FROM "queue_dependencies" AS edge
      WHERE q_name = $1::text
      AND job_id = ANY ($2::text::bigint[])
      AND NOT EXISTS (SELECT
        FROM "queue" AS job
        WHERE job.id = edge.job_id
        AND job.q_name = $1::text
        AND num_nulls(dequeued_at, leased_until) = 2
        AND schedule_at = 'infinity')
      FOR UPDATE SKIP LOCKED)
    RETURNING job_id), freed AS (DELETE FROM "queue_blocked"
    WHERE q_name = $1::text
    AND job_id = ANY ($2::text::bigint[])
    AND job_id IN (SELECT job_id
      FROM "queue_blocked" AS waits
      WHERE q_name = $1::text
      AND job_id = ANY ($2::text::bigint[])
      AND NOT EXISTS (SELECT
        FROM "queue" AS job
        WHERE job.id = waits.job_id
        AND job.q_name = $1::text
        AND num_nulls(dequeued_at, leased_until) = 2
        AND schedule_at = 'infinity')
      FOR UPDATE SKIP LOCKED)
    RETURNING job_id)
  SELECT (SELECT count(*)
    FROM gone) + (SELECT count(*)
    FROM freed);

-- headers_of_archive $1 after, $2 last
/*NO LOAD BALANCE*/ PREPARE "headers_of_archive" AS
  SELECT q_name, headers::text
  FROM "queue_archive"
  WHERE id > $1::bigint
  AND id <= $2::bigint
  AND coalesce(headers::text ~ '"(then|previous)"', false)
  ORDER BY id;

-- headers_of_dead $1 after, $2 last
/*NO LOAD BALANCE*/ PREPARE "headers_of_dead" AS
  SELECT q_name, headers::text
  FROM "queue_dead"
  WHERE id > $1::bigint
  AND id <= $2::bigint
  AND coalesce(headers::text ~ '"(then|previous)"', false)
  ORDER BY id;

-- headers_of_table $1 after, $2 last
/*NO LOAD BALANCE*/ PREPARE "headers_of_table" AS
  SELECT q_name, headers::text
  FROM "queue"
  WHERE id > $1::bigint
  AND id <= $2::bigint
  AND coalesce(headers::text ~ '"(then|previous)"', false)
  ORDER BY id;

-- heartbeat [hot] $1 lease, $2 ids, $3 tokens
PREPARE "heartbeat" AS
  UPDATE "queue"
  SET leased_until = statement_timestamp() + $1::float8 * interval '1 second'
  WHERE id = ANY (ARRAY(SELECT id
      FROM "queue"
      WHERE id = ANY ($2::text::bigint[])
      AND leased_until IS NOT NULL
      AND num_nulls(dequeued_at, parked_on) = 2
      AND ((id, attempts) IN (SELECT job, token
          FROM unnest($2::text::bigint[], $3::text::int[]) AS held (job, token))) IS TRUE
      FOR UPDATE SKIP LOCKED))
  RETURNING id, attempts, coalesce(cancelling, false);

-- held_batches $1 ids
/*NO LOAD BALANCE*/ PREPARE "held_batches" AS
  SELECT id
  FROM "queue_batches"
  WHERE id = ANY ($1::text::bigint[])
  AND held_until > statement_timestamp();

-- hold_batch [no rows] $1 hold, $2 id, $3 token
PREPARE "hold_batch" AS
  UPDATE "queue_batches"
  SET held_until = greatest(held_until, statement_timestamp() + $1::float8 * interval '1 second')
  WHERE id = $2::bigint
  AND token IS NOT DISTINCT FROM $3::text;

-- identify
/*NO LOAD BALANCE*/ PREPARE "identify" AS
  SELECT current_database()::text, NULL::text, NULL::int, current_setting('server_version');

-- keep_2_bounded [hot] $1 q_name, $2 bound
PREPARE "keep_2_bounded" AS WITH urgent AS (SELECT *
    FROM (SELECT id
      FROM "queue"
      WHERE q_name = $1::text
      AND dequeued_at IS NULL
      AND leased_until IS NULL
      AND schedule_at IS NULL
      AND expected_at IS NOT NULL
      AND (expected_at, enqueued_at, id) > ((string_to_array($2::text, ' '))[1]::timestamptz, (string_to_array($2::text, ' '))[2]::timestamptz, (string_to_array($2::text, ' '))[3]::bigint)
      ORDER BY expected_at, enqueued_at, id
      LIMIT 2
      FOR UPDATE SKIP LOCKED) AS head
    LIMIT (SELECT 2)), ready AS (SELECT *
    FROM (SELECT id
      FROM "queue"
      WHERE q_name = $1::text
      AND dequeued_at IS NULL
      AND leased_until IS NULL
      AND expected_at IS NULL
      AND coalesce(schedule_at, enqueued_at) <= statement_timestamp()
      AND (coalesce(schedule_at, enqueued_at), id) > ((string_to_array($2::text, ' '))[4]::timestamptz, (string_to_array($2::text, ' '))[5]::bigint)
      ORDER BY coalesce(schedule_at, enqueued_at), id
      LIMIT 2
      FOR UPDATE SKIP LOCKED) AS head
    LIMIT 2 - (SELECT count(*)
      FROM urgent)), picked AS (SELECT id
    FROM urgent
    UNION ALL
    SELECT id
    FROM ready)
  UPDATE "queue"
  SET dequeued_at = statement_timestamp(), attempts = mod(attempts, 2147483647) + 1, leased_until = NULL, parked_on = NULL
  WHERE id = ANY (ARRAY(SELECT id
      FROM picked))
  AND q_name = $1::text
  RETURNING id, data::text, payload, serializer, attempts, least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'),
  CASE WHEN schedule_at IS NOT NULL THEN least(greatest(schedule_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN expected_at IS NOT NULL THEN least(greatest(expected_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END, headers::text,
  CASE WHEN failures IS NOT NULL
  OR excused IS NOT NULL THEN coalesce(failures, 0)::bigint * 4294967296 + greatest(coalesce(excused, 0), 0) END;

-- keep_2_merged [hot] $1 q_name
PREPARE "keep_2_merged" AS WITH picked AS (SELECT free.id
    FROM (SELECT id
      FROM ((SELECT *
          FROM (SELECT id, priority, expected_at, schedule_at, enqueued_at
            FROM "queue"
            WHERE q_name = $1::text
            AND dequeued_at IS NULL
            AND leased_until IS NULL
            AND schedule_at IS NULL
            AND expected_at IS NOT NULL
            ORDER BY expected_at, enqueued_at, id
            LIMIT 102) AS head
          LIMIT (SELECT 102))
        UNION ALL (SELECT *
          FROM (SELECT id, priority, expected_at, schedule_at, enqueued_at
            FROM "queue"
            WHERE q_name = $1::text
            AND dequeued_at IS NULL
            AND leased_until IS NULL
            AND expected_at IS NULL
            AND coalesce(schedule_at, enqueued_at) <= statement_timestamp()
            ORDER BY coalesce(schedule_at, enqueued_at), id
            LIMIT 102) AS head
          LIMIT (SELECT 102))
        UNION ALL (SELECT *
          FROM (SELECT id, priority, expected_at, schedule_at, enqueued_at
            FROM "queue"
            WHERE q_name = $1::text
            AND dequeued_at IS NULL
            AND (leased_until IS NOT NULL
              OR (schedule_at IS NOT NULL
                AND expected_at IS NOT NULL))
            AND coalesce(leased_until, schedule_at) <= statement_timestamp()
            AND coalesce(leased_until, schedule_at) >= '-infinity'
            AND parked_on IS NULL
            ORDER BY coalesce(leased_until, schedule_at), id
            LIMIT 1000) AS head
          LIMIT (SELECT 1000))
        UNION ALL (SELECT *
          FROM (SELECT id, priority, expected_at, schedule_at, enqueued_at
            FROM "queue"
            WHERE q_name = $1::text
            AND parked_on IS NOT NULL
            AND num_nulls(dequeued_at) <> 0
            ORDER BY priority DESC, expected_at, coalesce(schedule_at, enqueued_at), id
            LIMIT 102) AS head
          LIMIT (SELECT 102))) AS candidates
      ORDER BY priority DESC, expected_at, coalesce(schedule_at, enqueued_at), id) AS candidate
    CROSS JOIN LATERAL (SELECT id
      FROM "queue"
      WHERE id = candidate.id
      AND q_name = $1::text
      AND dequeued_at IS NULL
      AND coalesce(schedule_at, enqueued_at) <= statement_timestamp()
      AND (leased_until IS NULL
        OR leased_until <= statement_timestamp()
        OR (parked_on IS NOT NULL
          AND leased_until = 'infinity'))
      FOR UPDATE SKIP LOCKED) AS free
    LIMIT 2)
  UPDATE "queue"
  SET dequeued_at = statement_timestamp(), attempts = mod(attempts, 2147483647) + 1, leased_until = NULL, parked_on = NULL
  WHERE id = ANY (ARRAY(SELECT id
      FROM picked))
  AND q_name = $1::text
  RETURNING id, data::text, payload, serializer, attempts, least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'),
  CASE WHEN schedule_at IS NOT NULL THEN least(greatest(schedule_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN expected_at IS NOT NULL THEN least(greatest(expected_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END, headers::text,
  CASE WHEN failures IS NOT NULL
  OR excused IS NOT NULL THEN coalesce(failures, 0)::bigint * 4294967296 + greatest(coalesce(excused, 0), 0) END;

-- keep_2_ordered [hot] $1 q_name
PREPARE "keep_2_ordered" AS WITH hidden AS (SELECT coalesce(leased_until, schedule_at) AS out_at
    FROM "queue"
    WHERE q_name = $1::text
    AND dequeued_at IS NULL
    AND (leased_until IS NOT NULL
      OR (schedule_at IS NOT NULL
        AND expected_at IS NOT NULL))
    ORDER BY coalesce(leased_until, schedule_at), id
    LIMIT 1), waiting AS (SELECT id
    FROM "queue"
    WHERE q_name = $1::text
    AND parked_on IS NOT NULL
    AND num_nulls(dequeued_at) <> 0
    ORDER BY priority DESC, expected_at, coalesce(schedule_at, enqueued_at), id
    LIMIT 1), urgent AS (SELECT *
    FROM (SELECT id
      FROM "queue"
      WHERE q_name = $1::text
      AND dequeued_at IS NULL
      AND leased_until IS NULL
      AND schedule_at IS NULL
      AND expected_at IS NOT NULL
      AND NOT EXISTS (SELECT
        FROM hidden
        WHERE out_at <= statement_timestamp())
      AND NOT EXISTS (SELECT
        FROM waiting)
      ORDER BY expected_at, enqueued_at, id
      LIMIT 2
      FOR UPDATE SKIP LOCKED) AS head
    LIMIT (SELECT 2)), ready AS (SELECT *
    FROM (SELECT id
      FROM "queue"
      WHERE q_name = $1::text
      AND dequeued_at IS NULL
      AND leased_until IS NULL
      AND expected_at IS NULL
      AND coalesce(schedule_at, enqueued_at) <= statement_timestamp()
      AND NOT EXISTS (SELECT
        FROM hidden
        WHERE out_at <= statement_timestamp())
      AND NOT EXISTS (SELECT
        FROM waiting)
      ORDER BY coalesce(schedule_at, enqueued_at), id
      LIMIT 2
      FOR UPDATE SKIP LOCKED) AS head
    LIMIT 2 - (SELECT count(*)
      FROM urgent)), picked AS (SELECT id
    FROM urgent
    UNION ALL
    SELECT id
    FROM ready)
  UPDATE "queue"
  SET dequeued_at = statement_timestamp(), attempts = mod(attempts, 2147483647) + 1, leased_until = NULL, parked_on = NULL
  WHERE id = ANY (ARRAY(SELECT id
      FROM picked))
  AND q_name = $1::text
  RETURNING id, data::text, payload, serializer, attempts, least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'),
  CASE WHEN schedule_at IS NOT NULL THEN least(greatest(schedule_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN expected_at IS NOT NULL THEN least(greatest(expected_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END, headers::text,
  CASE WHEN failures IS NOT NULL
  OR excused IS NOT NULL THEN coalesce(failures, 0)::bigint * 4294967296 + greatest(coalesce(excused, 0), 0) END;

-- keep_2_unguarded [hot] $1 q_name
PREPARE "keep_2_unguarded" AS WITH urgent AS (SELECT *
    FROM (SELECT id
      FROM "queue"
      WHERE q_name = $1::text
      AND dequeued_at IS NULL
      AND leased_until IS NULL
      AND schedule_at IS NULL
      AND expected_at IS NOT NULL
      ORDER BY expected_at, enqueued_at, id
      LIMIT 2
      FOR UPDATE SKIP LOCKED) AS head
    LIMIT (SELECT 2)), ready AS (SELECT *
    FROM (SELECT id
      FROM "queue"
      WHERE q_name = $1::text
      AND dequeued_at IS NULL
      AND leased_until IS NULL
      AND expected_at IS NULL
      AND coalesce(schedule_at, enqueued_at) <= statement_timestamp()
      ORDER BY coalesce(schedule_at, enqueued_at), id
      LIMIT 2
      FOR UPDATE SKIP LOCKED) AS head
    LIMIT 2 - (SELECT count(*)
      FROM urgent)), picked AS (SELECT id
    FROM urgent
    UNION ALL
    SELECT id
    FROM ready)
  UPDATE "queue"
  SET dequeued_at = statement_timestamp(), attempts = mod(attempts, 2147483647) + 1, leased_until = NULL, parked_on = NULL
  WHERE id = ANY (ARRAY(SELECT id
      FROM picked))
  AND q_name = $1::text
  RETURNING id, data::text, payload, serializer, attempts, least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'),
  CASE WHEN schedule_at IS NOT NULL THEN least(greatest(schedule_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN expected_at IS NOT NULL THEN least(greatest(expected_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END, headers::text,
  CASE WHEN failures IS NOT NULL
  OR excused IS NOT NULL THEN coalesce(failures, 0)::bigint * 4294967296 + greatest(coalesce(excused, 0), 0) END;

-- keep_crash [no rows] $1 id, $2 q_name, $3 token, $4 attempt, $5 error_type, $6 message, $7 crashes
PREPARE "keep_crash" AS WITH job AS MATERIALIZED (SELECT id, q_name, enqueued_at
    FROM "queue"
    WHERE id = $1::bigint
    AND q_name = $2::text
    AND num_nulls(dequeued_at) = 1)
  INSERT INTO "queue_attempts" AS kept (job_id, place, q_name, put_at, token, attempt, outcome, ended_at, worker, error_type, message, traceback)
  SELECT id, mod($3::int, 20), q_name, enqueued_at, $3::int, $4::int, 'crashed', statement_timestamp(), (SELECT listed.host || ':' || listed.pid::text
    FROM "queue_workers" AS listed
    WHERE listed.q_name = job.q_name
    AND listed.running::text LIKE '%[' || job.id::text || ', ' || $3::int::text || ', %'
    ORDER BY listed.seen_at DESC
    LIMIT 1), $5::text, $6::text, NULL
  FROM job
  WHERE $7::int > (SELECT count(*)
    FROM "queue_attempts" AS known
    WHERE known.job_id = job.id
    AND known.q_name = job.q_name
    AND known.put_at = job.enqueued_at
    AND known.outcome = 'crashed'
    AND known.attempt <= $4::int
    AND NOT EXISTS (SELECT
      FROM "queue_attempts" AS later
      WHERE later.job_id = job.id
      AND later.q_name = job.q_name
      AND later.put_at = job.enqueued_at
      AND later.token > known.token
      AND (later.attempt <= known.attempt
        OR later.attempt > $4::int + 1)))
  ON CONFLICT (job_id, place) DO UPDATE
  SET q_name = excluded.q_name, put_at = excluded.put_at, token = excluded.token, attempt = excluded.attempt, outcome = excluded.outcome, ended_at = excluded.ended_at, worker = excluded.worker, error_type = excluded.error_type, message = excluded.message, traceback = excluded.traceback
  WHERE kept.token <> excluded.token
  OR kept.put_at <> excluded.put_at;

-- keep_result $1 id, $2 q_name, $3 state, $4 data, $5 payload, $6 serializer, $7 error, $8 put_at, $9 keep
PREPARE "keep_result" AS
  INSERT INTO "queue_results" AS kept (job_id, q_name, state, data, payload, serializer, error, put_at, updated_at, expires_at)
  VALUES ($1::bigint, $2::text, $3::text, $4::text::json, $5::bytea, $6::text, $7::text::json, $8::timestamptz, greatest(statement_timestamp(), $8::timestamptz), statement_timestamp() + $9::float8 * interval '1 second')
  ON CONFLICT (job_id) DO UPDATE
  SET q_name = excluded.q_name, state = excluded.state, data = excluded.data, progress =
  CASE WHEN coalesce(kept.put_at <> excluded.put_at, kept.updated_at < excluded.put_at) THEN NULL ELSE kept.progress END, payload = excluded.payload, serializer = excluded.serializer, error = excluded.error, put_at = excluded.put_at, updated_at = excluded.updated_at, expires_at = excluded.expires_at
  RETURNING 1;

-- keep_sample [no rows] $1 at, $2 items
PREPARE "keep_sample" AS
  INSERT INTO "queue_samples" (at, q_name, ready, scheduled, leased, parked, dead, finished, oldest, median, slow, took, queues)
  SELECT to_timestamp($1::float8), item.q_name, item.ready, item.scheduled, item.leased, item.parked, item.dead, item.finished, item.oldest, item.median, item.slow, item.took, item.queues
  FROM json_to_recordset($2::text::json) AS item (q_name text, ready bigint, scheduled bigint, leased bigint, parked bigint, dead bigint, finished bigint, oldest float8, median float8, slow float8, took float8, queues int)
  ON CONFLICT (at, q_name) DO UPDATE
  SET ready = excluded.ready, scheduled = excluded.scheduled, leased = excluded.leased, parked = excluded.parked, dead = excluded.dead, finished = excluded.finished, oldest = excluded.oldest, median = excluded.median, slow = excluded.slow, took = excluded.took, queues = excluded.queues;

-- key_states $1 q_name
/*NO LOAD BALANCE*/ PREPARE "key_states" AS
  SELECT newest.key, newest.places, (SELECT coalesce(json_agg(job.id
        ORDER BY job.id), '[]')::text
    FROM "queue" AS job
    WHERE job.id = ANY (newest.running)
    AND job.q_name = $1::text
    AND num_nulls(job.dequeued_at, job.parked_on) = 2
    AND num_nulls(job.leased_until) = 0)
  FROM (SELECT DISTINCT ON (key) key, places, running
    FROM "queue_keys"
    WHERE q_name = $1::text
    ORDER BY key, version DESC) AS newest;

-- last_id
/*NO LOAD BALANCE*/ PREPARE "last_id" AS
  SELECT max(id)
  FROM "queue";

-- last_sample
/*NO LOAD BALANCE*/ PREPARE "last_sample" AS
  SELECT (floor(extract(epoch FROM statement_timestamp()) / 60) * 60)::float8, last.age, last.took
  FROM (SELECT 1) AS one
  LEFT JOIN (SELECT extract(epoch FROM statement_timestamp() - at)::float8 AS age, took
    FROM "queue_samples"
    WHERE q_name = ''
    ORDER BY at DESC
    LIMIT 1) AS last
  ON true;

-- last_tick $1 q_name, $2 name
/*NO LOAD BALANCE*/ PREPARE "last_tick" AS
  SELECT max(tick) AT TIME ZONE 'UTC', max(cron), max(tz), clock_timestamp() AT TIME ZONE 'UTC'
  FROM "queue_ticks"
  WHERE q_name = $1::text
  AND name = $2::text;

-- lease_2_bounded [hot] $1 q_name, $2 bound, $3 lease
PREPARE "lease_2_bounded" AS WITH urgent AS (SELECT *
    FROM (SELECT id
      FROM "queue"
      WHERE q_name = $1::text
      AND dequeued_at IS NULL
      AND leased_until IS NULL
      AND schedule_at IS NULL
      AND expected_at IS NOT NULL
      AND (expected_at, enqueued_at, id) > ((string_to_array($2::text, ' '))[1]::timestamptz, (string_to_array($2::text, ' '))[2]::timestamptz, (string_to_array($2::text, ' '))[3]::bigint)
      ORDER BY expected_at, enqueued_at, id
      LIMIT 2
      FOR UPDATE SKIP LOCKED) AS head
    LIMIT (SELECT 2)), ready AS (SELECT *
    FROM (SELECT id
      FROM "queue"
      WHERE q_name = $1::text
      AND dequeued_at IS NULL
      AND leased_until IS NULL
      AND expected_at IS NULL
      AND coalesce(schedule_at, enqueued_at) <= statement_timestamp()
      AND (coalesce(schedule_at, enqueued_at), id) > ((string_to_array($2::text, ' '))[4]::timestamptz, (string_to_array($2::text, ' '))[5]::bigint)
      ORDER BY coalesce(schedule_at, enqueued_at), id
      LIMIT 2
      FOR UPDATE SKIP LOCKED) AS head
    LIMIT 2 - (SELECT count(*)
      FROM urgent)), picked AS (SELECT id
    FROM urgent
    UNION ALL
    SELECT id
    FROM ready)
  UPDATE "queue"
  SET attempts =
  CASE WHEN parked_on IS NULL
  AND strpos(headers::text, '"gate"') > 0 THEN attempts ELSE mod(attempts, 2147483647) + 1 END, leased_until =
  CASE WHEN parked_on IS NULL
  AND strpos(headers::text, '"gate"') > 0 THEN 'infinity' ELSE statement_timestamp() + $3::float8 * interval '1 second' END, parked_on =
  CASE WHEN parked_on IS NULL
  AND strpos(headers::text, '"gate"') > 0 THEN '?' END
  WHERE id = ANY (ARRAY(SELECT id
      FROM picked))
  AND q_name = $1::text
  RETURNING id, data::text, payload, serializer, attempts, least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'),
  CASE WHEN schedule_at IS NOT NULL THEN least(greatest(schedule_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN expected_at IS NOT NULL THEN least(greatest(expected_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END, headers::text,
  CASE WHEN failures IS NOT NULL
  OR excused IS NOT NULL THEN coalesce(failures, 0)::bigint * 4294967296 + greatest(coalesce(excused, 0), 0) END;

-- lease_2_merged [hot] $1 q_name, $2 lease
PREPARE "lease_2_merged" AS WITH picked AS (SELECT free.id
    FROM (SELECT id
      FROM ((SELECT *
          FROM (SELECT id, priority, expected_at, schedule_at, enqueued_at
            FROM "queue"
            WHERE q_name = $1::text
            AND dequeued_at IS NULL
            AND leased_until IS NULL
            AND schedule_at IS NULL
            AND expected_at IS NOT NULL
            ORDER BY expected_at, enqueued_at, id
            LIMIT 102) AS head
          LIMIT (SELECT 102))
        UNION ALL (SELECT *
          FROM (SELECT id, priority, expected_at, schedule_at, enqueued_at
            FROM "queue"
            WHERE q_name = $1::text
            AND dequeued_at IS NULL
            AND leased_until IS NULL
            AND expected_at IS NULL
            AND coalesce(schedule_at, enqueued_at) <= statement_timestamp()
            ORDER BY coalesce(schedule_at, enqueued_at), id
            LIMIT 102) AS head
          LIMIT (SELECT 102))
        UNION ALL (SELECT *
          FROM (SELECT id, priority, expected_at, schedule_at, enqueued_at
            FROM "queue"
            WHERE q_name = $1::text
            AND dequeued_at IS NULL
            AND (leased_until IS NOT NULL
              OR (schedule_at IS NOT NULL
                AND expected_at IS NOT NULL))
            AND coalesce(leased_until, schedule_at) <= statement_timestamp()
            AND coalesce(leased_until, schedule_at) >= '-infinity'
            AND parked_on IS NULL
            ORDER BY coalesce(leased_until, schedule_at), id
            LIMIT 1000) AS head
          LIMIT (SELECT 1000))) AS candidates
      ORDER BY priority DESC, expected_at, coalesce(schedule_at, enqueued_at), id) AS candidate
    CROSS JOIN LATERAL (SELECT id
      FROM "queue"
      WHERE id = candidate.id
      AND q_name = $1::text
      AND dequeued_at IS NULL
      AND coalesce(schedule_at, enqueued_at) <= statement_timestamp()
      AND (leased_until IS NULL
        OR leased_until <= statement_timestamp()
        OR (parked_on IS NOT NULL
          AND leased_until = 'infinity'))
      AND parked_on IS NULL
      FOR UPDATE SKIP LOCKED) AS free
    LIMIT 2)
  UPDATE "queue"
  SET attempts =
  CASE WHEN parked_on IS NULL
  AND strpos(headers::text, '"gate"') > 0 THEN attempts ELSE mod(attempts, 2147483647) + 1 END, leased_until =
  CASE WHEN parked_on IS NULL
  AND strpos(headers::text, '"gate"') > 0 THEN 'infinity' ELSE statement_timestamp() + $2::float8 * interval '1 second' END, parked_on =
  CASE WHEN parked_on IS NULL
  AND strpos(headers::text, '"gate"') > 0 THEN '?' END
  WHERE id = ANY (ARRAY(SELECT id
      FROM picked))
  AND q_name = $1::text
  RETURNING id, data::text, payload, serializer, attempts, least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'),
  CASE WHEN schedule_at IS NOT NULL THEN least(greatest(schedule_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN expected_at IS NOT NULL THEN least(greatest(expected_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END, headers::text,
  CASE WHEN failures IS NOT NULL
  OR excused IS NOT NULL THEN coalesce(failures, 0)::bigint * 4294967296 + greatest(coalesce(excused, 0), 0) END;

-- lease_2_ordered [hot] $1 q_name, $2 lease
PREPARE "lease_2_ordered" AS WITH hidden AS (SELECT coalesce(leased_until, schedule_at) AS out_at
    FROM "queue"
    WHERE q_name = $1::text
    AND dequeued_at IS NULL
    AND (leased_until IS NOT NULL
      OR (schedule_at IS NOT NULL
        AND expected_at IS NOT NULL))
    ORDER BY coalesce(leased_until, schedule_at), id
    LIMIT 1), urgent AS (SELECT *
    FROM (SELECT id
      FROM "queue"
      WHERE q_name = $1::text
      AND dequeued_at IS NULL
      AND leased_until IS NULL
      AND schedule_at IS NULL
      AND expected_at IS NOT NULL
      AND NOT EXISTS (SELECT
        FROM hidden
        WHERE out_at <= statement_timestamp())
      ORDER BY expected_at, enqueued_at, id
      LIMIT 2
      FOR UPDATE SKIP LOCKED) AS head
    LIMIT (SELECT 2)), ready AS (SELECT *
    FROM (SELECT id
      FROM "queue"
      WHERE q_name = $1::text
      AND dequeued_at IS NULL
      AND leased_until IS NULL
      AND expected_at IS NULL
      AND coalesce(schedule_at, enqueued_at) <= statement_timestamp()
      AND NOT EXISTS (SELECT
        FROM hidden
        WHERE out_at <= statement_timestamp())
      ORDER BY coalesce(schedule_at, enqueued_at), id
      LIMIT 2
      FOR UPDATE SKIP LOCKED) AS head
    LIMIT 2 - (SELECT count(*)
      FROM urgent)), picked AS (SELECT id
    FROM urgent
    UNION ALL
    SELECT id
    FROM ready)
  UPDATE "queue"
  SET attempts =
  CASE WHEN parked_on IS NULL
  AND strpos(headers::text, '"gate"') > 0 THEN attempts ELSE mod(attempts, 2147483647) + 1 END, leased_until =
  CASE WHEN parked_on IS NULL
  AND strpos(headers::text, '"gate"') > 0 THEN 'infinity' ELSE statement_timestamp() + $2::float8 * interval '1 second' END, parked_on =
  CASE WHEN parked_on IS NULL
  AND strpos(headers::text, '"gate"') > 0 THEN '?' END
  WHERE id = ANY (ARRAY(SELECT id
      FROM picked))
  AND q_name = $1::text
  RETURNING id, data::text, payload, serializer, attempts, least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'),
  CASE WHEN schedule_at IS NOT NULL THEN least(greatest(schedule_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN expected_at IS NOT NULL THEN least(greatest(expected_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END, headers::text,
  CASE WHEN failures IS NOT NULL
  OR excused IS NOT NULL THEN coalesce(failures, 0)::bigint * 4294967296 + greatest(coalesce(excused, 0), 0) END;

-- lease_2_unguarded [hot] $1 q_name, $2 lease
PREPARE "lease_2_unguarded" AS WITH urgent AS (SELECT *
    FROM (SELECT id
      FROM "queue"
      WHERE q_name = $1::text
      AND dequeued_at IS NULL
      AND leased_until IS NULL
      AND schedule_at IS NULL
      AND expected_at IS NOT NULL
      ORDER BY expected_at, enqueued_at, id
      LIMIT 2
      FOR UPDATE SKIP LOCKED) AS head
    LIMIT (SELECT 2)), ready AS (SELECT *
    FROM (SELECT id
      FROM "queue"
      WHERE q_name = $1::text
      AND dequeued_at IS NULL
      AND leased_until IS NULL
      AND expected_at IS NULL
      AND coalesce(schedule_at, enqueued_at) <= statement_timestamp()
      ORDER BY coalesce(schedule_at, enqueued_at), id
      LIMIT 2
      FOR UPDATE SKIP LOCKED) AS head
    LIMIT 2 - (SELECT count(*)
      FROM urgent)), picked AS (SELECT id
    FROM urgent
    UNION ALL
    SELECT id
    FROM ready)
  UPDATE "queue"
  SET attempts =
  CASE WHEN parked_on IS NULL
  AND strpos(headers::text, '"gate"') > 0 THEN attempts ELSE mod(attempts, 2147483647) + 1 END, leased_until =
  CASE WHEN parked_on IS NULL
  AND strpos(headers::text, '"gate"') > 0 THEN 'infinity' ELSE statement_timestamp() + $2::float8 * interval '1 second' END, parked_on =
  CASE WHEN parked_on IS NULL
  AND strpos(headers::text, '"gate"') > 0 THEN '?' END
  WHERE id = ANY (ARRAY(SELECT id
      FROM picked))
  AND q_name = $1::text
  RETURNING id, data::text, payload, serializer, attempts, least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'),
  CASE WHEN schedule_at IS NOT NULL THEN least(greatest(schedule_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN expected_at IS NOT NULL THEN least(greatest(expected_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END, headers::text,
  CASE WHEN failures IS NOT NULL
  OR excused IS NOT NULL THEN coalesce(failures, 0)::bigint * 4294967296 + greatest(coalesce(excused, 0), 0) END;

-- leave_lanes [no rows] $1 q_name
PREPARE "leave_lanes" AS
  UPDATE "queue"
  SET parked_on = NULL, leased_until =
  CASE WHEN dequeued_at IS NULL THEN leased_until END
  WHERE q_name = $1::text
  AND id = ANY (ARRAY(SELECT mine.id
      FROM (SELECT id, dequeued_at, leased_until
        FROM "queue"
        WHERE q_name = $1::text
        AND parked_on IS NOT NULL
        ORDER BY priority DESC, expected_at, coalesce(schedule_at, enqueued_at), id
        LIMIT 10000) AS first
      CROSS JOIN LATERAL (SELECT id
        FROM "queue"
        WHERE id = first.id
        AND q_name = $1::text
        AND parked_on IS NOT NULL
        AND (dequeued_at IS NOT NULL
          OR leased_until > statement_timestamp()
          AND leased_until < 'infinity')
        FOR UPDATE SKIP LOCKED) AS mine
      WHERE first.dequeued_at IS NOT NULL
      OR first.leased_until > statement_timestamp()
      AND first.leased_until < 'infinity'));

-- list_archived $1 q_name, $2 task, $3 age, $4 failed, $5 search, $6 written, $7 n
/*NO LOAD BALANCE*/ PREPARE "list_archived" AS
  SELECT id, q_name, 'done', serializer, greatest(attempts - coalesce(excused, 0), 0), coalesce(failures, 0), error::text, NULL::text,
  CASE WHEN enqueued_at IS NOT NULL THEN least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN schedule_at IS NOT NULL THEN least(greatest(schedule_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN expected_at IS NOT NULL THEN least(greatest(expected_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN dequeued_at IS NOT NULL THEN least(greatest(dequeued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN NULL::text IS NULL THEN NULL::timestamp END, NULL::text, left(data::text, 2000)
  FROM "queue_archive"
  WHERE q_name = $1::text
  AND ($2::text IS NULL
    OR left(data::text, 2000) ~ $2::text)
  AND ($3::float8 IS NULL
    OR enqueued_at <= statement_timestamp() - $3::float8 * interval '1 second')
  AND ($4::int = 0
    OR coalesce(failures, 0) > 0)
  AND ($5::text IS NULL
    OR strpos(data::text, $5::text) > 0
    OR strpos(data::text, $6::text) > 0
    OR strpos(headers::text, $5::text) > 0
    OR strpos(headers::text, $6::text) > 0)
  ORDER BY dequeued_at DESC
  LIMIT $7::bigint;

-- list_batches $1 q_name, $2 id, $3 n
/*NO LOAD BALANCE*/ PREPARE "list_batches" AS
  SELECT id, q_name, total, pending, failed,
  CASE WHEN created_at IS NOT NULL THEN least(greatest(created_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END, callback::text
  FROM "queue_batches"
  WHERE ($1::text IS NULL
    OR q_name = $1::text)
  AND ($2::bigint IS NULL
    OR id = $2::bigint)
  AND pending > 0
  ORDER BY id DESC
  LIMIT $3::bigint;

-- list_dead $1 q_name, $2 task, $3 age, $4 failed, $5 search, $6 written, $7 n, $8 skip
/*NO LOAD BALANCE*/ PREPARE "list_dead" AS
  SELECT id, q_name, 'dead', serializer, greatest(attempts - coalesce(excused, 0), 0), coalesce(failures, 0), error::text, reason,
  CASE WHEN enqueued_at IS NOT NULL THEN least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN schedule_at IS NOT NULL THEN least(greatest(schedule_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN expected_at IS NOT NULL THEN least(greatest(expected_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN died_at IS NOT NULL THEN least(greatest(died_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN NULL::text IS NULL THEN NULL::timestamp END, NULL::text, left(data::text, 2000)
  FROM "queue_dead"
  WHERE q_name = $1::text
  AND ($2::text IS NULL
    OR left(data::text, 2000) ~ $2::text)
  AND ($3::float8 IS NULL
    OR enqueued_at <= statement_timestamp() - $3::float8 * interval '1 second')
  AND ($4::int = 0
    OR coalesce(failures, 0) > 0)
  AND ($5::text IS NULL
    OR strpos(data::text, $5::text) > 0
    OR strpos(data::text, $6::text) > 0
    OR strpos(headers::text, $5::text) > 0
    OR strpos(headers::text, $6::text) > 0)
  ORDER BY died_at DESC, id DESC
  LIMIT $7::bigint OFFSET $8::bigint;

-- list_encoded_archive $1 after, $2 last, $3 names
/*NO LOAD BALANCE*/ PREPARE "list_encoded_archive" AS
  SELECT id, q_name, serializer, coalesce(CASE WHEN substr(payload, 1, 4) = decode('6b65793a', 'hex') THEN encode(substr(payload, 1, 13), 'escape') END || coalesce(CASE WHEN substr(payload, 14, 4) = decode('6b65793a', 'hex') THEN encode(substr(payload, 14, 13), 'escape') END || coalesce(CASE WHEN substr(payload, 27, 4) = decode('6b65793a', 'hex') THEN encode(substr(payload, 27, 13), 'escape') END, ''), ''), ''), coalesce(headers::text ~ '"(then|previous)"', false), (coalesce(pg_column_size(data), 0) + coalesce(pg_column_size(payload), 0))::bigint
  FROM "queue_archive"
  WHERE id > $1::bigint
  AND id <= $2::bigint
  AND ((q_name = ANY ($3::text[])
      AND (data IS NOT NULL
        OR payload IS NOT NULL))
    OR coalesce(headers::text ~ '"(then|previous)"', false))
  ORDER BY id;

-- list_encoded_dead $1 after, $2 last, $3 names
/*NO LOAD BALANCE*/ PREPARE "list_encoded_dead" AS
  SELECT id, q_name, serializer, coalesce(CASE WHEN substr(payload, 1, 4) = decode('6b65793a', 'hex') THEN encode(substr(payload, 1, 13), 'escape') END || coalesce(CASE WHEN substr(payload, 14, 4) = decode('6b65793a', 'hex') THEN encode(substr(payload, 14, 13), 'escape') END || coalesce(CASE WHEN substr(payload, 27, 4) = decode('6b65793a', 'hex') THEN encode(substr(payload, 27, 13), 'escape') END, ''), ''), ''), coalesce(headers::text ~ '"(then|previous)"', false), (coalesce(pg_column_size(data), 0) + coalesce(pg_column_size(payload), 0))::bigint
  FROM "queue_dead"
  WHERE id > $1::bigint
  AND id <= $2::bigint
  AND ((q_name = ANY ($3::text[])
      AND (data IS NOT NULL
        OR payload IS NOT NULL))
    OR coalesce(headers::text ~ '"(then|previous)"', false))
  ORDER BY id;

-- list_encoded_results $1 after, $2 last, $3 names
/*NO LOAD BALANCE*/ PREPARE "list_encoded_results" AS
  SELECT job_id, q_name, serializer, coalesce(CASE WHEN substr(payload, 1, 4) = decode('6b65793a', 'hex') THEN encode(substr(payload, 1, 13), 'escape') END || coalesce(CASE WHEN substr(payload, 14, 4) = decode('6b65793a', 'hex') THEN encode(substr(payload, 14, 13), 'escape') END || coalesce(CASE WHEN substr(payload, 27, 4) = decode('6b65793a', 'hex') THEN encode(substr(payload, 27, 13), 'escape') END, ''), ''), ''), false, (coalesce(pg_column_size(data), 0) + coalesce(pg_column_size(payload), 0))::bigint
  FROM "queue_results"
  WHERE job_id > $1::bigint
  AND job_id <= $2::bigint
  AND ((q_name = ANY ($3::text[])
      AND (data IS NOT NULL
        OR payload IS NOT NULL))
    OR false)
  ORDER BY job_id;

-- list_encoded_table $1 after, $2 last, $3 names
/*NO LOAD BALANCE*/ PREPARE "list_encoded_table" AS
  SELECT id, q_name, serializer, coalesce(CASE WHEN substr(payload, 1, 4) = decode('6b65793a', 'hex') THEN encode(substr(payload, 1, 13), 'escape') END || coalesce(CASE WHEN substr(payload, 14, 4) = decode('6b65793a', 'hex') THEN encode(substr(payload, 14, 13), 'escape') END || coalesce(CASE WHEN substr(payload, 27, 4) = decode('6b65793a', 'hex') THEN encode(substr(payload, 27, 13), 'escape') END, ''), ''), ''), coalesce(headers::text ~ '"(then|previous)"', false), (coalesce(pg_column_size(data), 0) + coalesce(pg_column_size(payload), 0))::bigint
  FROM "queue"
  WHERE id > $1::bigint
  AND id <= $2::bigint
  AND ((q_name = ANY ($3::text[])
      AND (data IS NOT NULL
        OR payload IS NOT NULL))
    OR coalesce(headers::text ~ '"(then|previous)"', false))
  ORDER BY id;

-- list_expiry
/*NO LOAD BALANCE*/ PREPARE "list_expiry" AS
  SELECT q_name, name, period, number
  FROM "queue_rules"
  WHERE kind = 'expiry'
  ORDER BY q_name, name DESC;

-- list_finished $1 before, $2 q_name, $3 task, $4 age, $5 failed, $6 search, $7 written, $8 n
/*NO LOAD BALANCE*/ PREPARE "list_finished" AS WITH slice AS (SELECT id
    FROM "queue"
    WHERE id < $1::bigint
    ORDER BY id DESC
    LIMIT 10000), found AS (SELECT id, q_name, 'done', serializer, greatest(attempts - coalesce(excused, 0), 0), coalesce(failures, 0), error::text, NULL::text,
    CASE WHEN enqueued_at IS NOT NULL THEN least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
    CASE WHEN schedule_at IS NOT NULL THEN least(greatest(schedule_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
    CASE WHEN expected_at IS NOT NULL THEN least(greatest(expected_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
    CASE WHEN dequeued_at IS NOT NULL THEN least(greatest(dequeued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
    CASE WHEN parked_on IS NULL THEN
    CASE WHEN leased_until IS NOT NULL THEN least(greatest(leased_until AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END END, parked_on, left(data::text, 2000)
    FROM "queue"
    WHERE id = ANY (ARRAY(SELECT id
        FROM slice))
    AND q_name = $2::text
    AND num_nulls(dequeued_at) = 0
    AND ($3::text IS NULL
      OR left(data::text, 2000) ~ $3::text)
    AND ($4::float8 IS NULL
      OR enqueued_at <= statement_timestamp() - $4::float8 * interval '1 second')
    AND ($5::int = 0
      OR coalesce(failures, 0) > 0)
    AND ($6::text IS NULL
      OR strpos(data::text, $6::text) > 0
      OR strpos(data::text, $7::text) > 0
      OR strpos(headers::text, $6::text) > 0
      OR strpos(headers::text, $7::text) > 0
      OR strpos(dedup_key, $6::text) > 0
      OR strpos(group_key, $6::text) > 0)
    ORDER BY id DESC
    LIMIT $8::bigint)
  SELECT edge.id, found.*
  FROM (SELECT min(id) AS id
    FROM slice) AS edge
  LEFT JOIN found
  ON true
  ORDER BY found.id DESC;

-- list_leased $1 q_name, $2 task, $3 age, $4 failed, $5 search, $6 written, $7 n, $8 skip
/*NO LOAD BALANCE*/ PREPARE "list_leased" AS
  SELECT id, q_name, 'leased', serializer, greatest(attempts - coalesce(excused, 0), 0), coalesce(failures, 0), error::text, NULL::text,
  CASE WHEN enqueued_at IS NOT NULL THEN least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN schedule_at IS NOT NULL THEN least(greatest(schedule_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN expected_at IS NOT NULL THEN least(greatest(expected_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN dequeued_at IS NOT NULL THEN least(greatest(dequeued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN parked_on IS NULL THEN
  CASE WHEN leased_until IS NOT NULL THEN least(greatest(leased_until AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END END, parked_on, left(data::text, 2000)
  FROM ((SELECT *
      FROM "queue" AS job
      WHERE q_name = $1::text
      AND dequeued_at IS NULL
      AND (leased_until IS NOT NULL
        OR (schedule_at IS NOT NULL
          AND expected_at IS NOT NULL))
      AND coalesce(leased_until, schedule_at) < 'infinity'
      AND coalesce(leased_until, schedule_at) > statement_timestamp()
      AND leased_until > statement_timestamp()
      AND ($2::text IS NULL
        OR left(data::text, 2000) ~ $2::text)
      AND ($3::float8 IS NULL
        OR enqueued_at <= statement_timestamp() - $3::float8 * interval '1 second')
      AND ($4::int = 0
        OR coalesce(failures, 0) > 0)
      AND ($5::text IS NULL
        OR strpos(data::text, $5::text) > 0
        OR strpos(data::text, $6::text) > 0
        OR strpos(headers::text, $5::text) > 0
        OR strpos(headers::text, $6::text) > 0
        OR strpos(dedup_key, $5::text) > 0
        OR strpos(group_key, $5::text) > 0)
      ORDER BY coalesce(leased_until, schedule_at), id
      LIMIT ($7::bigint + $8::bigint))) AS job
  ORDER BY leased_until, id
  LIMIT $7::bigint OFFSET $8::bigint;

-- list_parked $1 q_name, $2 task, $3 age, $4 failed, $5 search, $6 written, $7 n, $8 skip
/*NO LOAD BALANCE*/ PREPARE "list_parked" AS
  SELECT id, q_name, 'parked', serializer, greatest(attempts - coalesce(excused, 0), 0), coalesce(failures, 0), error::text, NULL::text,
  CASE WHEN enqueued_at IS NOT NULL THEN least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN schedule_at IS NOT NULL THEN least(greatest(schedule_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN expected_at IS NOT NULL THEN least(greatest(expected_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN dequeued_at IS NOT NULL THEN least(greatest(dequeued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN parked_on IS NULL THEN
  CASE WHEN leased_until IS NOT NULL THEN least(greatest(leased_until AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END END, parked_on, left(data::text, 2000)
  FROM ((WITH RECURSIVE lanes (lane, place) AS (SELECT (SELECT min(parked_on)
          FROM "queue"
          WHERE q_name = $1::text
          AND parked_on IS NOT NULL), 1
        UNION ALL
        SELECT (SELECT min(parked_on)
          FROM "queue"
          WHERE q_name = $1::text
          AND parked_on > lanes.lane), place + 1
        FROM lanes
        WHERE lane IS NOT NULL
        AND place < 1000), known AS (SELECT lane, (SELECT coalesce(min(CASE WHEN EXISTS (SELECT
                FROM "queue_rules" AS paused
                WHERE paused.q_name = $1::text
                AND paused.kind = 'pause'
                AND paused.name = regexp_replace(need.name, '=[0-9]+$', '')
                AND (until IS NULL
                  OR until > statement_timestamp())) THEN 0 ELSE greatest(coalesce((SELECT number::int
                    FROM "queue_rules" AS allowed
                    WHERE allowed.q_name = $1::text
                    AND allowed.kind = 'limit'
                    AND allowed.name = regexp_replace(need.name, '=[0-9]+$', '')), row.places, substring(need.name
                    FROM '=([0-9]+)$')::int) - (SELECT count(*)
                  FROM unnest(row.running) AS admitted (id)
                  CROSS JOIN LATERAL (SELECT
                    FROM "queue" AS other
                    WHERE other.id = admitted.id
                    AND other.q_name = $1::text
                    AND num_nulls(other.dequeued_at) = 1
                    AND num_nulls(other.parked_on) = 1
                    AND num_nulls(other.leased_until) = 0
                    LIMIT 1) AS alive), 0) END), 2147483647)
          FROM unnest(ARRAY(SELECT json_array_elements_text(CASE WHEN lane LIKE '[%' THEN lane ELSE '[]' END::json) OFFSET 2)) AS need (name)
          LEFT JOIN LATERAL (SELECT places, running
            FROM "queue_keys" AS key
            WHERE key.q_name = $1::text
            AND key.key = regexp_replace(need.name, '=[0-9]+$', '')
            ORDER BY version DESC
            LIMIT 1) AS row
          ON true) AS number, (SELECT group_key
          FROM "queue"
          WHERE q_name = $1::text
          AND parked_on = lane
          ORDER BY expected_at, coalesce(schedule_at, enqueued_at), id
          LIMIT 1) AS group_key
        FROM lanes
        WHERE lane IS NOT NULL), of_lane AS (SELECT known.*, (SELECT id
          FROM "queue"
          WHERE q_name = $1::text
          AND group_key = known.group_key
          AND dequeued_at IS NULL
          ORDER BY id
          LIMIT 1) AS head
        FROM known)
      SELECT job.*
      FROM of_lane
      CROSS JOIN LATERAL (SELECT *
        FROM (SELECT *
          FROM "queue"
          WHERE q_name = $1::text
          AND parked_on = of_lane.lane
          AND num_nulls(dequeued_at) <> 0
          AND of_lane.number < 2147483647
          ORDER BY expected_at, coalesce(schedule_at, enqueued_at), id
          LIMIT (SELECT 2147483647) OFFSET
          CASE WHEN of_lane.group_key IS NULL THEN of_lane.number ELSE 0 END) AS job
        WHERE (of_lane.number = 0
          OR id IS DISTINCT FROM of_lane.head)
        AND ($2::text IS NULL
          OR left(data::text, 2000) ~ $2::text)
        AND ($3::float8 IS NULL
          OR enqueued_at <= statement_timestamp() - $3::float8 * interval '1 second')
        AND ($4::int = 0
          OR coalesce(failures, 0) > 0)
        AND ($5::text IS NULL
          OR strpos(data::text, $5::text) > 0
          OR strpos(data::text, $6::text) > 0
          OR strpos(headers::text, $5::text) > 0
          OR strpos(headers::text, $6::text) > 0
          OR strpos(dedup_key, $5::text) > 0
          OR strpos(group_key, $5::text) > 0)
        LIMIT ($7::bigint + $8::bigint)) AS job
      LIMIT ($7::bigint + $8::bigint))) AS job
  ORDER BY parked_on, expected_at, coalesce(schedule_at, enqueued_at), id
  LIMIT $7::bigint OFFSET $8::bigint;

-- list_ready $1 q_name, $2 task, $3 age, $4 failed, $5 search, $6 written, $7 n, $8 skip
/*NO LOAD BALANCE*/ PREPARE "list_ready" AS
  SELECT id, q_name, 'ready', serializer, greatest(attempts - coalesce(excused, 0), 0), coalesce(failures, 0), error::text, NULL::text,
  CASE WHEN enqueued_at IS NOT NULL THEN least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN schedule_at IS NOT NULL THEN least(greatest(schedule_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN expected_at IS NOT NULL THEN least(greatest(expected_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN dequeued_at IS NOT NULL THEN least(greatest(dequeued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN parked_on IS NULL THEN
  CASE WHEN leased_until IS NOT NULL THEN least(greatest(leased_until AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END END, parked_on, left(data::text, 2000)
  FROM ((SELECT *
      FROM "queue" AS job
      WHERE q_name = $1::text
      AND dequeued_at IS NULL
      AND leased_until IS NULL
      AND schedule_at IS NULL
      AND expected_at IS NOT NULL
      AND ($2::text IS NULL
        OR left(data::text, 2000) ~ $2::text)
      AND ($3::float8 IS NULL
        OR enqueued_at <= statement_timestamp() - $3::float8 * interval '1 second')
      AND ($4::int = 0
        OR coalesce(failures, 0) > 0)
      AND ($5::text IS NULL
        OR strpos(data::text, $5::text) > 0
        OR strpos(data::text, $6::text) > 0
        OR strpos(headers::text, $5::text) > 0
        OR strpos(headers::text, $6::text) > 0
        OR strpos(dedup_key, $5::text) > 0
        OR strpos(group_key, $5::text) > 0)
      ORDER BY expected_at, enqueued_at, id
      LIMIT ($7::bigint + $8::bigint))
    UNION ALL (SELECT *
      FROM "queue" AS job
      WHERE q_name = $1::text
      AND dequeued_at IS NULL
      AND leased_until IS NULL
      AND expected_at IS NULL
      AND coalesce(schedule_at, enqueued_at) <= statement_timestamp()
      AND ($2::text IS NULL
        OR left(data::text, 2000) ~ $2::text)
      AND ($3::float8 IS NULL
        OR enqueued_at <= statement_timestamp() - $3::float8 * interval '1 second')
      AND ($4::int = 0
        OR coalesce(failures, 0) > 0)
      AND ($5::text IS NULL
        OR strpos(data::text, $5::text) > 0
        OR strpos(data::text, $6::text) > 0
        OR strpos(headers::text, $5::text) > 0
        OR strpos(headers::text, $6::text) > 0
        OR strpos(dedup_key, $5::text) > 0
        OR strpos(group_key, $5::text) > 0)
      ORDER BY coalesce(schedule_at, enqueued_at), id
      LIMIT ($7::bigint + $8::bigint))
    UNION ALL (SELECT *
      FROM "queue" AS job
      WHERE q_name = $1::text
      AND dequeued_at IS NULL
      AND (leased_until IS NOT NULL
        OR (schedule_at IS NOT NULL
          AND expected_at IS NOT NULL))
      AND coalesce(leased_until, schedule_at) < 'infinity'
      AND coalesce(leased_until, schedule_at) <= statement_timestamp()
      AND coalesce(schedule_at, enqueued_at) <= statement_timestamp()
      AND ($2::text IS NULL
        OR left(data::text, 2000) ~ $2::text)
      AND ($3::float8 IS NULL
        OR enqueued_at <= statement_timestamp() - $3::float8 * interval '1 second')
      AND ($4::int = 0
        OR coalesce(failures, 0) > 0)
      AND ($5::text IS NULL
        OR strpos(data::text, $5::text) > 0
        OR strpos(data::text, $6::text) > 0
        OR strpos(headers::text, $5::text) > 0
        OR strpos(headers::text, $6::text) > 0
        OR strpos(dedup_key, $5::text) > 0
        OR strpos(group_key, $5::text) > 0)
      ORDER BY coalesce(leased_until, schedule_at), id
      LIMIT ($7::bigint + $8::bigint))
    UNION ALL (WITH RECURSIVE lanes (lane, place) AS (SELECT (SELECT min(parked_on)
          FROM "queue"
          WHERE q_name = $1::text
          AND parked_on IS NOT NULL), 1
        UNION ALL
        SELECT (SELECT min(parked_on)
          FROM "queue"
          WHERE q_name = $1::text
          AND parked_on > lanes.lane), place + 1
        FROM lanes
        WHERE lane IS NOT NULL
        AND place < 1000), known AS (SELECT lane, (SELECT coalesce(min(CASE WHEN EXISTS (SELECT
                FROM "queue_rules" AS paused
                WHERE paused.q_name = $1::text
                AND paused.kind = 'pause'
                AND paused.name = regexp_replace(need.name, '=[0-9]+$', '')
                AND (until IS NULL
                  OR until > statement_timestamp())) THEN 0 ELSE greatest(coalesce((SELECT number::int
                    FROM "queue_rules" AS allowed
                    WHERE allowed.q_name = $1::text
                    AND allowed.kind = 'limit'
                    AND allowed.name = regexp_replace(need.name, '=[0-9]+$', '')), row.places, substring(need.name
                    FROM '=([0-9]+)$')::int) - (SELECT count(*)
                  FROM unnest(row.running) AS admitted (id)
                  CROSS JOIN LATERAL (SELECT
                    FROM "queue" AS other
                    WHERE other.id = admitted.id
                    AND other.q_name = $1::text
                    AND num_nulls(other.dequeued_at) = 1
                    AND num_nulls(other.parked_on) = 1
                    AND num_nulls(other.leased_until) = 0
                    LIMIT 1) AS alive), 0) END), 2147483647)
          FROM unnest(ARRAY(SELECT json_array_elements_text(CASE WHEN lane LIKE '[%' THEN lane ELSE '[]' END::json) OFFSET 2)) AS need (name)
          LEFT JOIN LATERAL (SELECT places, running
            FROM "queue_keys" AS key
            WHERE key.q_name = $1::text
            AND key.key = regexp_replace(need.name, '=[0-9]+$', '')
            ORDER BY version DESC
            LIMIT 1) AS row
          ON true) AS number, (SELECT group_key
          FROM "queue"
          WHERE q_name = $1::text
          AND parked_on = lane
          ORDER BY expected_at, coalesce(schedule_at, enqueued_at), id
          LIMIT 1) AS group_key
        FROM lanes
        WHERE lane IS NOT NULL), of_lane AS (SELECT known.*, (SELECT id
          FROM "queue"
          WHERE q_name = $1::text
          AND group_key = known.group_key
          AND dequeued_at IS NULL
          ORDER BY id
          LIMIT 1) AS head
        FROM known)
      SELECT job.*
      FROM of_lane
      CROSS JOIN LATERAL ((SELECT *
          FROM (SELECT *
            FROM "queue"
            WHERE q_name = $1::text
            AND parked_on = of_lane.lane
            AND num_nulls(dequeued_at) <> 0
            AND of_lane.group_key IS NULL
            ORDER BY expected_at, coalesce(schedule_at, enqueued_at), id
            LIMIT of_lane.number) AS job
          WHERE true
          AND ($2::text IS NULL
            OR left(data::text, 2000) ~ $2::text)
          AND ($3::float8 IS NULL
            OR enqueued_at <= statement_timestamp() - $3::float8 * interval '1 second')
          AND ($4::int = 0
            OR coalesce(failures, 0) > 0)
          AND ($5::text IS NULL
            OR strpos(data::text, $5::text) > 0
            OR strpos(data::text, $6::text) > 0
            OR strpos(headers::text, $5::text) > 0
            OR strpos(headers::text, $6::text) > 0
            OR strpos(dedup_key, $5::text) > 0
            OR strpos(group_key, $5::text) > 0)
          LIMIT ($7::bigint + $8::bigint))
        UNION ALL (SELECT *
          FROM "queue"
          WHERE q_name = $1::text
          AND parked_on = of_lane.lane
          AND num_nulls(dequeued_at) <> 0
          AND id = of_lane.head
          AND of_lane.number > 0
          AND ($2::text IS NULL
            OR left(data::text, 2000) ~ $2::text)
          AND ($3::float8 IS NULL
            OR enqueued_at <= statement_timestamp() - $3::float8 * interval '1 second')
          AND ($4::int = 0
            OR coalesce(failures, 0) > 0)
          AND ($5::text IS NULL
            OR strpos(data::text, $5::text) > 0
            OR strpos(data::text, $6::text) > 0
            OR strpos(headers::text, $5::text) > 0
            OR strpos(headers::text, $6::text) > 0
            OR strpos(dedup_key, $5::text) > 0
            OR strpos(group_key, $5::text) > 0))) AS job
      LIMIT ALL)) AS job
  ORDER BY expected_at, coalesce(schedule_at, enqueued_at), id
  LIMIT $7::bigint OFFSET $8::bigint;

-- list_rules $1 q_name
/*NO LOAD BALANCE*/ PREPARE "list_rules" AS
  SELECT kind, name, number, period,
  CASE WHEN until IS NOT NULL THEN least(until AT TIME ZONE 'UTC', timestamp '9999-12-31 23:59:59.999999') END, changed_at AT TIME ZONE 'UTC'
  FROM "queue_rules"
  WHERE q_name = $1::text
  AND kind <> 'expiry'
  AND coalesce(until > statement_timestamp(), true)
  ORDER BY kind, name;

-- list_scheduled $1 q_name, $2 task, $3 age, $4 failed, $5 search, $6 written, $7 n, $8 skip
/*NO LOAD BALANCE*/ PREPARE "list_scheduled" AS
  SELECT id, q_name, 'scheduled', serializer, greatest(attempts - coalesce(excused, 0), 0), coalesce(failures, 0), error::text, NULL::text,
  CASE WHEN enqueued_at IS NOT NULL THEN least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN schedule_at IS NOT NULL THEN least(greatest(schedule_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN expected_at IS NOT NULL THEN least(greatest(expected_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN dequeued_at IS NOT NULL THEN least(greatest(dequeued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN parked_on IS NULL THEN
  CASE WHEN leased_until IS NOT NULL THEN least(greatest(leased_until AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END END, parked_on, left(data::text, 2000)
  FROM ((SELECT *
      FROM "queue" AS job
      WHERE q_name = $1::text
      AND dequeued_at IS NULL
      AND leased_until IS NULL
      AND expected_at IS NULL
      AND coalesce(schedule_at, enqueued_at) > statement_timestamp()
      AND ($2::text IS NULL
        OR left(data::text, 2000) ~ $2::text)
      AND ($3::float8 IS NULL
        OR enqueued_at <= statement_timestamp() - $3::float8 * interval '1 second')
      AND ($4::int = 0
        OR coalesce(failures, 0) > 0)
      AND ($5::text IS NULL
        OR strpos(data::text, $5::text) > 0
        OR strpos(data::text, $6::text) > 0
        OR strpos(headers::text, $5::text) > 0
        OR strpos(headers::text, $6::text) > 0
        OR strpos(dedup_key, $5::text) > 0
        OR strpos(group_key, $5::text) > 0)
      ORDER BY coalesce(schedule_at, enqueued_at), id
      LIMIT ($7::bigint + $8::bigint))
    UNION ALL (SELECT *
      FROM "queue" AS job
      WHERE q_name = $1::text
      AND dequeued_at IS NULL
      AND (leased_until IS NOT NULL
        OR (schedule_at IS NOT NULL
          AND expected_at IS NOT NULL))
      AND coalesce(leased_until, schedule_at) < 'infinity'
      AND (leased_until IS NULL
        OR leased_until <= statement_timestamp())
      AND coalesce(schedule_at, enqueued_at) > statement_timestamp()
      AND ($2::text IS NULL
        OR left(data::text, 2000) ~ $2::text)
      AND ($3::float8 IS NULL
        OR enqueued_at <= statement_timestamp() - $3::float8 * interval '1 second')
      AND ($4::int = 0
        OR coalesce(failures, 0) > 0)
      AND ($5::text IS NULL
        OR strpos(data::text, $5::text) > 0
        OR strpos(data::text, $6::text) > 0
        OR strpos(headers::text, $5::text) > 0
        OR strpos(headers::text, $6::text) > 0
        OR strpos(dedup_key, $5::text) > 0
        OR strpos(group_key, $5::text) > 0)
      ORDER BY coalesce(leased_until, schedule_at), id
      LIMIT ($7::bigint + $8::bigint))) AS job
  ORDER BY coalesce(schedule_at, enqueued_at), id
  LIMIT $7::bigint OFFSET $8::bigint;

-- list_schedules $1 q_name, $2 n
/*NO LOAD BALANCE*/ PREPARE "list_schedules" AS
  SELECT q_name, name, task, cron, tz, missed, call::text, deadline_in, paused_at AT TIME ZONE 'UTC', created_at AT TIME ZONE 'UTC', updated_at AT TIME ZONE 'UTC'
  FROM "queue_schedules"
  WHERE $1::text IS NULL
  OR q_name = $1::text
  ORDER BY q_name, name
  LIMIT $2::bigint;

-- list_ticks $1 n
/*NO LOAD BALANCE*/ PREPARE "list_ticks" AS
  SELECT last.q_name, last.name,
  CASE WHEN tick IS NOT NULL THEN least(greatest(tick AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END, last.cron, last.tz, made.name IS NOT NULL, paused_at IS NOT NULL,
  CASE WHEN statement_timestamp() IS NOT NULL THEN least(greatest(statement_timestamp() AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END
  FROM "queue_ticks" AS last
  LEFT JOIN "queue_schedules" AS made
  ON made.q_name = last.q_name
  AND made.name = last.name
  ORDER BY last.q_name, last.name
  LIMIT $1::bigint;

-- list_workers $1 alive, $2 q_name
/*NO LOAD BALANCE*/ PREPARE "list_workers" AS
  SELECT q_name, id, host, pid, version, tasks::text, concurrency, started_at AT TIME ZONE 'UTC', seen_at AT TIME ZONE 'UTC', seen_at > statement_timestamp() - $1::float8 * interval '1 second', running::text, coalesce(quiet, false)
  FROM "queue_workers"
  WHERE $2::text IS NULL
  OR q_name = $2::text
  ORDER BY started_at, id, q_name
  LIMIT 10000;

-- listening
/*NO LOAD BALANCE*/ PREPARE "listening" AS
  SELECT NULL::text
  WHERE false;

-- live_batches $1 ids
/*NO LOAD BALANCE*/ PREPARE "live_batches" AS
  SELECT DISTINCT found.number
  FROM (SELECT substring(headers, '"batch": *([0-9]{1,18})')::bigint AS number
    FROM (SELECT headers::text AS headers
      FROM "queue"
      WHERE dequeued_at IS NULL
      AND leased_until IS NULL
      AND expected_at IS NULL
      AND headers::text LIKE '%"batch"%'
      UNION ALL
      SELECT headers::text AS headers
      FROM "queue"
      WHERE dequeued_at IS NULL
      AND leased_until IS NULL
      AND schedule_at IS NULL
      AND expected_at IS NOT NULL
      AND headers::text LIKE '%"batch"%'
      UNION ALL
      SELECT headers::text AS headers
      FROM "queue"
      WHERE dequeued_at IS NULL
      AND (leased_until IS NOT NULL
        OR (schedule_at IS NOT NULL
          AND expected_at IS NOT NULL))
      AND headers::text LIKE '%"batch"%') AS unfinished) AS found
  WHERE found.number = ANY ($1::text::bigint[]);

-- lock_blocked $1 ids, $2 q_name
PREPARE "lock_blocked" AS
  SELECT id
  FROM "queue"
  WHERE id = ANY ($1::text::bigint[])
  AND q_name = $2::text
  AND num_nulls(dequeued_at, leased_until) = 2
  AND schedule_at = 'infinity'
  ORDER BY id
  FOR UPDATE SKIP LOCKED;

-- lock_held $1 ids, $2 tokens, $3 q_name
PREPARE "lock_held" AS
  SELECT id, attempts
  FROM "queue"
  WHERE id = ANY ($1::text::bigint[])
  AND leased_until IS NOT NULL
  AND num_nulls(dequeued_at, parked_on) = 2
  AND ((id, attempts) IN (SELECT job, token
      FROM unnest($1::text::bigint[], $2::text::int[]) AS held (job, token))) IS TRUE
  AND q_name = $3::text
  FOR UPDATE SKIP LOCKED;

-- lock_migrations
/*NO LOAD BALANCE*/ PREPARE "lock_migrations" AS
  SELECT true;

-- lock_schema
/*NO LOAD BALANCE*/ PREPARE "lock_schema" AS
  SELECT true;

-- lost_parents $1 n
/*NO LOAD BALANCE*/ PREPARE "lost_parents" AS
  SELECT job_id, parent_id
  FROM (SELECT job_id, parent_id, parent_put_at
    FROM "queue_dependencies"
    WHERE outcome IS NULL
    AND NOT polled
    LIMIT 10000) AS edge
  WHERE coalesce((SELECT max(CASE WHEN num_nulls(dequeued_at) = 0 THEN 'done' ELSE 'open' END)
      FROM "queue" AS job
      WHERE job.id = edge.parent_id
      AND (edge.parent_put_at IS NULL
        OR job.enqueued_at = edge.parent_put_at)), (SELECT 'dead'
      FROM "queue_dead" AS job
      WHERE job.id = edge.parent_id
      AND (edge.parent_put_at IS NULL
        OR job.enqueued_at = edge.parent_put_at)), (SELECT 'done'
      FROM "queue_archive" AS job
      WHERE job.id = edge.parent_id
      AND (edge.parent_put_at IS NULL
        OR job.enqueued_at = edge.parent_put_at)), (SELECT state
      FROM "queue_results" AS job
      WHERE job.job_id = edge.parent_id
      AND (edge.parent_put_at IS NULL
        OR job.put_at = edge.parent_put_at)
      AND state <> 'running')) IS DISTINCT FROM 'open'
  LIMIT $1::bigint;

-- mark_deleted $1 outcome, $2 id
PREPARE "mark_deleted" AS
  UPDATE "queue_dependencies"
  SET outcome = $1::text
  WHERE parent_id = $2::bigint
  AND outcome = 'done'
  RETURNING job_id;

-- mark_polled $1 q_name
PREPARE "mark_polled" AS WITH looked AS (SELECT job_id, parent_id
    FROM "queue_dependencies"
    WHERE q_name = $1::text
    AND polled
    AND outcome IS NULL
    LIMIT 10000
    FOR UPDATE SKIP LOCKED), found AS (SELECT edge.job_id, edge.parent_id, coalesce(coalesce((SELECT max(CASE WHEN num_nulls(dequeued_at) = 0 THEN 'done' ELSE 'open' END)
          FROM "queue" AS job
          WHERE job.id = edge.parent_id
          AND (edge.parent_put_at IS NULL
            OR job.enqueued_at = edge.parent_put_at)), (SELECT 'dead'
          FROM "queue_dead" AS job
          WHERE job.id = edge.parent_id
          AND (edge.parent_put_at IS NULL
            OR job.enqueued_at = edge.parent_put_at)), (SELECT 'done'
          FROM "queue_archive" AS job
          WHERE job.id = edge.parent_id
          AND (edge.parent_put_at IS NULL
            OR job.enqueued_at = edge.parent_put_at)), (SELECT state
          FROM "queue_results" AS job
          WHERE job.job_id = edge.parent_id
          AND (edge.parent_put_at IS NULL
            OR job.put_at = edge.parent_put_at)
          AND state <> 'running')), edge.gone) AS outcome
    FROM looked
    JOIN "queue_dependencies" AS edge USING (job_id, parent_id))
  UPDATE "queue_dependencies" AS edge
  SET outcome = found.outcome
  FROM found
  WHERE edge.job_id = found.job_id
  AND edge.parent_id = found.parent_id
  AND edge.q_name = $1::text
  AND found.outcome <> 'open'
  RETURNING edge.job_id;

-- move_hidden $1 q_name, $2 last, $3 target, $4 n
PREPARE "move_hidden" AS WITH picked AS (SELECT id
    FROM "queue" AS job
    WHERE q_name = $1::text
    AND dequeued_at IS NULL
    AND (leased_until IS NOT NULL
      OR (schedule_at IS NOT NULL
        AND expected_at IS NOT NULL))
    AND coalesce(leased_until, schedule_at) < 'infinity'
    AND (leased_until IS NULL
      OR leased_until <= statement_timestamp())
    AND id <= $2::bigint
    AND NOT EXISTS (SELECT
      FROM "queue" AS other
      WHERE other.q_name = $3::text
      AND other.dedup_key = job.dedup_key
      AND other.dequeued_at IS NULL)
    AND num_nulls(job.awaited) <> 0
    AND job.schedule_at IS DISTINCT FROM 'infinity'
    ORDER BY coalesce(leased_until, schedule_at), id
    LIMIT $4::bigint
    FOR UPDATE SKIP LOCKED), moved AS (UPDATE "queue"
    SET q_name = $3::text, parked_on = NULL, leased_until =
    CASE WHEN parked_on IS NULL THEN leased_until END
    WHERE id = ANY (ARRAY(SELECT id
        FROM picked))
    AND q_name = $1::text
    RETURNING id), told AS (UPDATE "queue_results"
    SET q_name = $3::text
    WHERE job_id = ANY (ARRAY(SELECT id
        FROM moved))
    AND q_name = $1::text), noted AS (UPDATE "queue_attempts"
    SET q_name = $3::text
    WHERE job_id = ANY (ARRAY(SELECT id
        FROM moved))
    AND q_name = $1::text)
  SELECT id
  FROM moved;

-- move_ids $1 q_name, $2 ids, $3 target, $4 n
PREPARE "move_ids" AS WITH picked AS (SELECT id
    FROM "queue" AS job
    WHERE q_name = $1::text
    AND id = ANY ($2::text::bigint[])
    AND num_nulls(dequeued_at) = 1
    AND ((leased_until IS NULL
        OR leased_until <= statement_timestamp())
      OR parked_on IS NOT NULL
      AND num_nulls(dequeued_at) <> 0)
    AND NOT EXISTS (SELECT
      FROM "queue" AS other
      WHERE other.q_name = $3::text
      AND other.dedup_key = job.dedup_key
      AND other.dequeued_at IS NULL)
    AND num_nulls(job.awaited) <> 0
    AND job.schedule_at IS DISTINCT FROM 'infinity'
    ORDER BY id
    LIMIT $4::bigint
    FOR UPDATE SKIP LOCKED), moved AS (UPDATE "queue"
    SET q_name = $3::text, parked_on = NULL, leased_until =
    CASE WHEN parked_on IS NULL THEN leased_until END
    WHERE id = ANY (ARRAY(SELECT id
        FROM picked))
    AND q_name = $1::text
    RETURNING id), told AS (UPDATE "queue_results"
    SET q_name = $3::text
    WHERE job_id = ANY (ARRAY(SELECT id
        FROM moved))
    AND q_name = $1::text), noted AS (UPDATE "queue_attempts"
    SET q_name = $3::text
    WHERE job_id = ANY (ARRAY(SELECT id
        FROM moved))
    AND q_name = $1::text)
  SELECT id
  FROM moved;

-- move_parked $1 q_name, $2 last, $3 target, $4 n
PREPARE "move_parked" AS WITH picked AS (SELECT id
    FROM "queue" AS job
    WHERE q_name = $1::text
    AND parked_on IS NOT NULL
    AND num_nulls(dequeued_at) <> 0
    AND id <= $2::bigint
    AND NOT EXISTS (SELECT
      FROM "queue" AS other
      WHERE other.q_name = $3::text
      AND other.dedup_key = job.dedup_key
      AND other.dequeued_at IS NULL)
    AND num_nulls(job.awaited) <> 0
    AND job.schedule_at IS DISTINCT FROM 'infinity'
    ORDER BY parked_on, expected_at, coalesce(schedule_at, enqueued_at), id
    LIMIT $4::bigint
    FOR UPDATE SKIP LOCKED), moved AS (UPDATE "queue"
    SET q_name = $3::text, parked_on = NULL, leased_until =
    CASE WHEN parked_on IS NULL THEN leased_until END
    WHERE id = ANY (ARRAY(SELECT id
        FROM picked))
    AND q_name = $1::text
    RETURNING id), told AS (UPDATE "queue_results"
    SET q_name = $3::text
    WHERE job_id = ANY (ARRAY(SELECT id
        FROM moved))
    AND q_name = $1::text), noted AS (UPDATE "queue_attempts"
    SET q_name = $3::text
    WHERE job_id = ANY (ARRAY(SELECT id
        FROM moved))
    AND q_name = $1::text)
  SELECT id
  FROM moved;

-- move_ready $1 q_name, $2 last, $3 target, $4 n
PREPARE "move_ready" AS WITH picked AS (SELECT id
    FROM "queue" AS job
    WHERE q_name = $1::text
    AND dequeued_at IS NULL
    AND leased_until IS NULL
    AND expected_at IS NULL
    AND id <= $2::bigint
    AND NOT EXISTS (SELECT
      FROM "queue" AS other
      WHERE other.q_name = $3::text
      AND other.dedup_key = job.dedup_key
      AND other.dequeued_at IS NULL)
    AND num_nulls(job.awaited) <> 0
    AND job.schedule_at IS DISTINCT FROM 'infinity'
    ORDER BY coalesce(schedule_at, enqueued_at), id
    LIMIT $4::bigint
    FOR UPDATE SKIP LOCKED), moved AS (UPDATE "queue"
    SET q_name = $3::text, parked_on = NULL, leased_until =
    CASE WHEN parked_on IS NULL THEN leased_until END
    WHERE id = ANY (ARRAY(SELECT id
        FROM picked))
    AND q_name = $1::text
    RETURNING id), told AS (UPDATE "queue_results"
    SET q_name = $3::text
    WHERE job_id = ANY (ARRAY(SELECT id
        FROM moved))
    AND q_name = $1::text), noted AS (UPDATE "queue_attempts"
    SET q_name = $3::text
    WHERE job_id = ANY (ARRAY(SELECT id
        FROM moved))
    AND q_name = $1::text)
  SELECT id
  FROM moved;

-- move_urgent $1 q_name, $2 last, $3 target, $4 n
PREPARE "move_urgent" AS WITH picked AS (SELECT id
    FROM "queue" AS job
    WHERE q_name = $1::text
    AND dequeued_at IS NULL
    AND leased_until IS NULL
    AND schedule_at IS NULL
    AND expected_at IS NOT NULL
    AND id <= $2::bigint
    AND NOT EXISTS (SELECT
      FROM "queue" AS other
      WHERE other.q_name = $3::text
      AND other.dedup_key = job.dedup_key
      AND other.dequeued_at IS NULL)
    AND num_nulls(job.awaited) <> 0
    AND job.schedule_at IS DISTINCT FROM 'infinity'
    ORDER BY expected_at, enqueued_at, id
    LIMIT $4::bigint
    FOR UPDATE SKIP LOCKED), moved AS (UPDATE "queue"
    SET q_name = $3::text, parked_on = NULL, leased_until =
    CASE WHEN parked_on IS NULL THEN leased_until END
    WHERE id = ANY (ARRAY(SELECT id
        FROM picked))
    AND q_name = $1::text
    RETURNING id), told AS (UPDATE "queue_results"
    SET q_name = $3::text
    WHERE job_id = ANY (ARRAY(SELECT id
        FROM moved))
    AND q_name = $1::text), noted AS (UPDATE "queue_attempts"
    SET q_name = $3::text
    WHERE job_id = ANY (ARRAY(SELECT id
        FROM moved))
    AND q_name = $1::text)
  SELECT id
  FROM moved;

-- nack $1 delay, $2 id, $3 token, $4 q_name
PREPARE "nack" AS
  UPDATE "queue"
  SET leased_until = NULL, schedule_at = coalesce(statement_timestamp() + $1::float8 * interval '1 second', schedule_at)
  WHERE id = $2::bigint
  AND attempts = $3::int
  AND leased_until IS NOT NULL
  AND num_nulls(dequeued_at, parked_on) = 2
  AND q_name = $4::text
  RETURNING id;

-- nack_group $1 delay, $2 ids, $3 tokens, $4 q_name
PREPARE "nack_group" AS
  UPDATE "queue"
  SET leased_until = NULL, schedule_at = coalesce(statement_timestamp() + $1::float8 * interval '1 second', schedule_at)
  WHERE id = ANY (ARRAY(SELECT id
      FROM "queue"
      WHERE id = ANY ($2::text::bigint[])
      AND leased_until IS NOT NULL
      AND num_nulls(dequeued_at, parked_on) = 2
      AND ((id, attempts) IN (SELECT job, token
          FROM unnest($2::text::bigint[], $3::text::int[]) AS held (job, token))) IS TRUE
      AND q_name = $4::text
      FOR UPDATE SKIP LOCKED))
  AND q_name = $4::text
  RETURNING id, attempts;

-- next_due_probe [hot] $1 q_name
/*NO LOAD BALANCE*/ PREPARE "next_due_probe" AS
  SELECT coalesce((SELECT coalesce(leased_until, schedule_at) AS out_at
      FROM "queue"
      WHERE q_name = $1::text
      AND dequeued_at IS NULL
      AND (leased_until IS NOT NULL
        OR (schedule_at IS NOT NULL
          AND expected_at IS NOT NULL))
      ORDER BY coalesce(leased_until, schedule_at), id
      LIMIT 1) <= statement_timestamp(), false), (extract(epoch FROM least((SELECT coalesce(schedule_at, enqueued_at)
          FROM "queue"
          WHERE q_name = $1::text
          AND dequeued_at IS NULL
          AND leased_until IS NULL
          AND expected_at IS NULL
          AND coalesce(schedule_at, enqueued_at) > statement_timestamp()
          AND coalesce(schedule_at, enqueued_at) < 'infinity'
          ORDER BY coalesce(schedule_at, enqueued_at), id
          LIMIT 1), (SELECT coalesce(leased_until, schedule_at)
          FROM "queue"
          WHERE q_name = $1::text
          AND dequeued_at IS NULL
          AND (leased_until IS NOT NULL
            OR (schedule_at IS NOT NULL
              AND expected_at IS NOT NULL))
          AND coalesce(leased_until, schedule_at) > statement_timestamp()
          AND coalesce(leased_until, schedule_at) < 'infinity'
          ORDER BY coalesce(leased_until, schedule_at), id
          LIMIT 1))) - extract(epoch FROM statement_timestamp()))::float8, coalesce((SELECT true
      FROM "queue_dependencies"
      WHERE q_name = $1::text
      AND (outcome IS NOT NULL
        OR polled)
      ORDER BY q_name
      LIMIT 1), false);

-- notification_usage
/*NO LOAD BALANCE*/ PREPARE "notification_usage" AS
  SELECT 0;

-- notify_always
/*NO LOAD BALANCE*/ PREPARE "notify_always" AS
  SELECT NULL::text
  WHERE false;

-- notify_waiters
/*NO LOAD BALANCE*/ PREPARE "notify_waiters" AS
  SELECT NULL::text
  WHERE false;

-- open_batch $1 q_name, $2 total, $3 callback, $4 token
PREPARE "open_batch" AS
  INSERT INTO "queue_batches" (q_name, total, pending, callback, token)
  VALUES ($1::text, $2::int, $2::int, $3::text::json, $4::text)
  RETURNING id;

-- open_batches $1 q_name
/*NO LOAD BALANCE*/ PREPARE "open_batches" AS
  SELECT id, pending
  FROM "queue_batches"
  WHERE q_name = $1::text
  AND pending > 0
  ORDER BY id
  LIMIT 1000;

-- open_parents $1 id, $2 n
/*NO LOAD BALANCE*/ PREPARE "open_parents" AS
  SELECT parent_id, count(*) OVER ()
  FROM "queue_dependencies"
  WHERE job_id = $1::bigint
  AND outcome IS NULL
  ORDER BY parent_id
  LIMIT $2::bigint;

-- partitions
/*NO LOAD BALANCE*/ PREPARE "partitions" AS
  SELECT NULL::text
  WHERE false;

-- pause_schedule $1 q_name, $2 name
PREPARE "pause_schedule" AS WITH kept AS (UPDATE "queue_schedules" AS schedule
    SET paused_at = coalesce(schedule.paused_at, clock.now), updated_at = clock.now
    FROM (SELECT clock_timestamp() AS now) AS clock
    WHERE schedule.q_name = $1::text
    AND schedule.name = $2::text
    RETURNING schedule.name)
  SELECT name
  FROM kept;

-- paused_queues
/*NO LOAD BALANCE*/ PREPARE "paused_queues" AS
  SELECT q_name
  FROM "queue_rules"
  WHERE kind = 'pause'
  AND name = 'queue'
  AND coalesce(until > statement_timestamp(), true)
  ORDER BY q_name;

-- peek_2 $1 q_name
/*NO LOAD BALANCE*/ PREPARE "peek_2" AS
  SELECT id, data::text, payload, serializer, attempts, least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'),
  CASE WHEN schedule_at IS NOT NULL THEN least(greatest(schedule_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
  CASE WHEN expected_at IS NOT NULL THEN least(greatest(expected_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END, headers::text,
  CASE WHEN failures IS NOT NULL
  OR excused IS NOT NULL THEN coalesce(failures, 0)::bigint * 4294967296 + greatest(coalesce(excused, 0), 0) END
  FROM ((SELECT *
      FROM (SELECT *
        FROM "queue"
        WHERE q_name = $1::text
        AND dequeued_at IS NULL
        AND leased_until IS NULL
        AND schedule_at IS NULL
        AND expected_at IS NOT NULL
        ORDER BY expected_at, enqueued_at, id
        LIMIT 2) AS head
      LIMIT (SELECT 2))
    UNION ALL (SELECT *
      FROM (SELECT *
        FROM "queue"
        WHERE q_name = $1::text
        AND dequeued_at IS NULL
        AND leased_until IS NULL
        AND expected_at IS NULL
        AND coalesce(schedule_at, enqueued_at) <= statement_timestamp()
        ORDER BY coalesce(schedule_at, enqueued_at), id
        LIMIT 2) AS head
      LIMIT (SELECT 2))
    UNION ALL (SELECT *
      FROM (SELECT *
        FROM "queue"
        WHERE q_name = $1::text
        AND dequeued_at IS NULL
        AND (leased_until IS NOT NULL
          OR (schedule_at IS NOT NULL
            AND expected_at IS NOT NULL))
        AND coalesce(leased_until, schedule_at) <= statement_timestamp()
        AND coalesce(leased_until, schedule_at) >= '-infinity'
        AND parked_on IS NULL
        ORDER BY coalesce(leased_until, schedule_at), id
        LIMIT 1000) AS head
      LIMIT (SELECT 1000))
    UNION ALL (SELECT *
      FROM (SELECT *
        FROM "queue"
        WHERE q_name = $1::text
        AND parked_on IS NOT NULL
        AND num_nulls(dequeued_at) <> 0
        ORDER BY priority DESC, expected_at, coalesce(schedule_at, enqueued_at), id
        LIMIT 2) AS head
      LIMIT (SELECT 2))) AS candidates
  WHERE coalesce(schedule_at, enqueued_at) <= statement_timestamp()
  ORDER BY priority DESC, expected_at, coalesce(schedule_at, enqueued_at), id
  LIMIT 2;

-- ping
/*NO LOAD BALANCE*/ PREPARE "ping" AS
  SELECT 1;

-- prune_samples [no rows]
PREPARE "prune_samples" AS
  DELETE FROM "queue_samples"
  WHERE at < statement_timestamp() - interval '1 day'
  OR at > statement_timestamp() + interval '1 minute';

-- purge_archive $1 q_name, $2 age
PREPARE "purge_archive" AS WITH slice AS (SELECT id
    FROM (SELECT id
      FROM "queue_archive"
      WHERE q_name = $1::text
      AND dequeued_at <= statement_timestamp() - $2::float8 * interval '1 second'
      ORDER BY dequeued_at
      LIMIT 10000
      FOR UPDATE SKIP LOCKED) AS head
    LIMIT (SELECT 10000)), gone AS (DELETE FROM "queue_archive"
    WHERE id = ANY (ARRAY(SELECT id
        FROM slice))
    AND q_name = $1::text
    RETURNING id)
  SELECT max(id), count(*)
  FROM gone;

-- purge_dead $1 q_name, $2 ids, $3 age
PREPARE "purge_dead" AS WITH picked AS (SELECT id
    FROM "queue_dead"
    WHERE q_name = $1::text
    AND ($2::text::bigint[] IS NULL
      OR id = ANY ($2::text::bigint[]))
    AND died_at <= statement_timestamp() - $3::float8 * interval '1 second'
    ORDER BY died_at
    LIMIT 10000
    FOR UPDATE SKIP LOCKED)
  DELETE FROM "queue_dead"
  WHERE id = ANY (ARRAY(SELECT id
      FROM picked))
  AND q_name = $1::text
  RETURNING id;

-- purge_kept $1 after, $2 q_name, $3 age
PREPARE "purge_kept" AS WITH slice AS (SELECT id
    FROM "queue"
    WHERE id > $1::bigint
    ORDER BY id
    LIMIT 10000), gone AS (DELETE FROM "queue"
    WHERE id = ANY (ARRAY(SELECT id
        FROM slice))
    AND q_name = $2::text
    AND dequeued_at <= statement_timestamp() - $3::float8 * interval '1 second'
    RETURNING id)
  SELECT max(id), (SELECT count(*)
    FROM gone)
  FROM slice;

-- put [hot] $1 q_name, $2 data, $3 payload, $4 serializer
PREPARE "put" AS
  INSERT INTO "queue" (q_name, data, payload, serializer, enqueued_at)
  VALUES ($1::text, $2::text::json, $3::bytea, $4::text, statement_timestamp())
  RETURNING id;

-- put_blocked $1 q_name, $2 data, $3 payload, $4 serializer, $5 expected_at, $6 expected_in, $7 headers, $8 group_key, $9 dedup_key, $10 priority, $11 schedule_at, $12 schedule_in, $13 gone, $14 parents
PREPARE "put_blocked" AS WITH put AS (INSERT INTO "queue" (q_name, data, payload, serializer, enqueued_at, schedule_at, expected_at, headers, group_key, dedup_key, parked_on, leased_until, priority)
    VALUES ($1::text, $2::text::json, $3::bytea, $4::text, statement_timestamp(), 'infinity'::timestamptz, coalesce($5::timestamptz, statement_timestamp() + $6::float8 * interval '1 second'), $7::text::json, $8::text, $9::text, NULL, NULL, $10::int)
    ON CONFLICT (q_name, dedup_key)
    WHERE dedup_key IS NOT NULL
    AND dequeued_at IS NULL DO NOTHING
    RETURNING id, enqueued_at), given AS (SELECT id, enqueued_at AS put_at, coalesce($11::timestamptz, statement_timestamp() + $12::float8 * interval '1 second') AS schedule_at, $13::text AS gone, $14::text AS parents
    FROM put), waits AS (INSERT INTO "queue_blocked" (job_id, q_name, put_at, schedule_at)
    SELECT id, $1::text, put_at, schedule_at
    FROM given), needs AS (INSERT INTO "queue_dependencies" (job_id, parent_id, q_name, parent_put_at, on_failure, polled, gone, outcome)
    SELECT given.id, item.id, $1::text, (SELECT max(enqueued_at)
      FROM "queue"
      WHERE id = item.id), item.on_failure, item.polled, given.gone, item.outcome
    FROM given
    CROSS JOIN LATERAL json_to_recordset(given.parents::json) AS item (id bigint, on_failure text, polled boolean, outcome text))
  SELECT id, date_part('epoch', least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'))
  FROM put;

-- put_call [hot] $1 q_name, $2 data, $3 payload, $4 serializer
PREPARE "put_call" AS
  INSERT INTO "queue" (q_name, data, payload, serializer, enqueued_at)
  VALUES ($1::text, $2::text::json, $3::bytea, $4::text, statement_timestamp())
  RETURNING id, date_part('epoch', least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'));

-- put_call_json [hot] $1 q_name, $2 data
PREPARE "put_call_json" AS
  INSERT INTO "queue" (q_name, data, serializer, enqueued_at)
  VALUES ($1::text, $2::text::json, 'json', statement_timestamp())
  RETURNING id, date_part('epoch', least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'));

-- put_call_timed [hot] $1 q_name, $2 data, $3 payload, $4 serializer, $5 schedule_at, $6 schedule_in, $7 expected_at, $8 expected_in
PREPARE "put_call_timed" AS
  INSERT INTO "queue" (q_name, data, payload, serializer, enqueued_at, schedule_at, expected_at)
  VALUES ($1::text, $2::text::json, $3::bytea, $4::text, statement_timestamp(), coalesce($5::timestamptz, statement_timestamp() + $6::float8 * interval '1 second'), coalesce($7::timestamptz, statement_timestamp() + $8::float8 * interval '1 second'))
  RETURNING id, date_part('epoch', least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'));

-- put_each $1 items, $2 number, $3 fails, $4 unkeyed
PREPARE "put_each" AS WITH put AS (INSERT INTO "queue" (q_name, data, payload, serializer, enqueued_at, schedule_at, expected_at, headers, group_key, dedup_key, parked_on, leased_until, priority)
    SELECT item.q_name::text, item.data::text::json, decode(item.payload, 'base64'), item.serializer::text, statement_timestamp() + item.place * interval '1 microsecond', coalesce(item.schedule_at::timestamptz, (statement_timestamp() + item.place * interval '1 microsecond') + item.schedule_in::float8 * interval '1 second'), coalesce(item.expected_at::timestamptz, (statement_timestamp() + item.place * interval '1 microsecond') + item.expected_in::float8 * interval '1 second'), item.headers::text::json, item.group_key::text, item.dedup_key::text,
    CASE WHEN coalesce(item.schedule_at::timestamptz, statement_timestamp() + item.schedule_in::float8 * interval '1 second') > statement_timestamp() THEN NULL ELSE item.lane::text END,
    CASE WHEN
    CASE WHEN coalesce(item.schedule_at::timestamptz, statement_timestamp() + item.schedule_in::float8 * interval '1 second') > statement_timestamp() THEN NULL ELSE item.lane::text END IS NOT NULL THEN 'infinity'::timestamptz END, item.priority::int
    FROM (SELECT *, ordinality AS place
      FROM ROWS
      FROM (json_to_recordset($1::text::json) AS (q_name text, data text, payload text, serializer text, schedule_at timestamptz, schedule_in float8, expected_at timestamptz, expected_in float8, headers text, group_key text, dedup_key text, lane text, priority int)) WITH ORDINALITY) AS item
    ON CONFLICT (q_name, dedup_key)
    WHERE dedup_key IS NOT NULL
    AND dequeued_at IS NULL DO NOTHING
    RETURNING id, dedup_key, enqueued_at)
  SELECT min(id),
  CASE WHEN count(*) = $2::int
  AND min(id - place) = max(id - place) THEN NULL ELSE string_agg(place || ' ' || id, ' ') END, min(place), date_part('epoch', least(greatest(min(enqueued_at) AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999')), count(*) FILTER (WHERE dedup_key IS NULL) / (NOT $3::boolean
    OR count(*) FILTER (WHERE dedup_key IS NULL) = $4::int)::int, sqrt(CASE WHEN count(DISTINCT place) = count(*)
    AND
    CASE WHEN count(*) = $2::int THEN max(place) - min(place) < count(*) ELSE coalesce(min(place) >= 0
      AND max(place) < $2::int, true) END THEN 0 ELSE -1 END)
  FROM (SELECT id, dedup_key, enqueued_at, round(date_part('epoch', enqueued_at - statement_timestamp()) * 1000000)::bigint - 1 AS place
    FROM put) AS put;

-- put_group [hot] $1 q_name, $2 serializer, $3 items, $4 number
PREPARE "put_group" AS WITH put AS (INSERT INTO "queue" (q_name, data, payload, serializer, enqueued_at)
    SELECT $1::text, item.value, NULL, $2::text, statement_timestamp() + (place - 1) * interval '1 microsecond'
    FROM json_array_elements($3::text::json) WITH ORDINALITY AS item (value, place)
    RETURNING id, round(date_part('epoch', enqueued_at - statement_timestamp()) * 1000000)::int AS place)
  SELECT min(id),
  CASE WHEN min(id - place) = max(id - place)
  AND count(*) = $4::int THEN NULL ELSE (SELECT string_agg(place || ' ' || id, ' ')
    FROM put) END, date_part('epoch', statement_timestamp()), 1 / (coalesce(min(place) >= 0
      AND max(place) < $4::int, true)
    AND count(DISTINCT place) = count(*))::int
  FROM put;

-- put_group_encoded [hot] $1 q_name, $2 binary, $3 serializer, $4 items, $5 number
PREPARE "put_group_encoded" AS WITH put AS (INSERT INTO "queue" (q_name, data, payload, serializer, enqueued_at)
    SELECT $1::text,
    CASE WHEN NOT $2::boolean THEN item.value::json END,
    CASE WHEN $2::boolean THEN decode(item.value, 'base64') END, $3::text, statement_timestamp() + (place - 1) * interval '1 microsecond'
    FROM json_array_elements_text($4::text::json) WITH ORDINALITY AS item (value, place)
    RETURNING id, round(date_part('epoch', enqueued_at - statement_timestamp()) * 1000000)::int AS place)
  SELECT min(id),
  CASE WHEN min(id - place) = max(id - place)
  AND count(*) = $5::int THEN NULL ELSE (SELECT string_agg(place || ' ' || id, ' ')
    FROM put) END, date_part('epoch', statement_timestamp()), 1 / (coalesce(min(place) >= 0
      AND max(place) < $5::int, true)
    AND count(DISTINCT place) = count(*))::int
  FROM put;

-- put_group_encoded_headed [hot] $1 q_name, $2 binary, $3 serializer, $4 items, $5 number
PREPARE "put_group_encoded_headed" AS WITH put AS (INSERT INTO "queue" (q_name, data, payload, serializer, enqueued_at, headers)
    SELECT $1::text,
    CASE WHEN NOT $2::boolean THEN (item.value ->> 0)::json END,
    CASE WHEN $2::boolean THEN decode((item.value ->> 0), 'base64') END, $3::text, statement_timestamp() + (place - 1) * interval '1 microsecond', item.value -> 1
    FROM json_array_elements($4::text::json) WITH ORDINALITY AS item (value, place)
    RETURNING id, round(date_part('epoch', enqueued_at - statement_timestamp()) * 1000000)::int AS place)
  SELECT min(id),
  CASE WHEN min(id - place) = max(id - place)
  AND count(*) = $5::int THEN NULL ELSE (SELECT string_agg(place || ' ' || id, ' ')
    FROM put) END, date_part('epoch', statement_timestamp()), 1 / (coalesce(min(place) >= 0
      AND max(place) < $5::int, true)
    AND count(DISTINCT place) = count(*))::int
  FROM put;

-- put_group_headed [hot] $1 q_name, $2 serializer, $3 items, $4 number
PREPARE "put_group_headed" AS WITH put AS (INSERT INTO "queue" (q_name, data, payload, serializer, enqueued_at, headers)
    SELECT $1::text, item.value -> 0, NULL, $2::text, statement_timestamp() + (place - 1) * interval '1 microsecond', item.value -> 1
    FROM json_array_elements($3::text::json) WITH ORDINALITY AS item (value, place)
    RETURNING id, round(date_part('epoch', enqueued_at - statement_timestamp()) * 1000000)::int AS place)
  SELECT min(id),
  CASE WHEN min(id - place) = max(id - place)
  AND count(*) = $4::int THEN NULL ELSE (SELECT string_agg(place || ' ' || id, ' ')
    FROM put) END, date_part('epoch', statement_timestamp()), 1 / (coalesce(min(place) >= 0
      AND max(place) < $4::int, true)
    AND count(DISTINCT place) = count(*))::int
  FROM put;

-- put_json [hot] $1 q_name, $2 data
PREPARE "put_json" AS
  INSERT INTO "queue" (q_name, data, serializer, enqueued_at)
  VALUES ($1::text, $2::text::json, 'json', statement_timestamp())
  RETURNING id;

-- put_keyed [hot] $1 q_name, $2 data, $3 payload, $4 serializer, $5 schedule_at, $6 schedule_in, $7 expected_at, $8 expected_in, $9 headers, $10 group_key, $11 dedup_key, $12 lane, $13 priority
PREPARE "put_keyed" AS
  INSERT INTO "queue" (q_name, data, payload, serializer, enqueued_at, schedule_at, expected_at, headers, group_key, dedup_key, parked_on, leased_until, priority)
  VALUES ($1::text, $2::text::json, $3::bytea, $4::text, statement_timestamp(), coalesce($5::timestamptz, statement_timestamp() + $6::float8 * interval '1 second'), coalesce($7::timestamptz, statement_timestamp() + $8::float8 * interval '1 second'), $9::text::json, $10::text, $11::text,
    CASE WHEN coalesce($5::timestamptz, statement_timestamp() + $6::float8 * interval '1 second') > statement_timestamp() THEN NULL ELSE $12::text END,
    CASE WHEN
    CASE WHEN coalesce($5::timestamptz, statement_timestamp() + $6::float8 * interval '1 second') > statement_timestamp() THEN NULL ELSE $12::text END IS NOT NULL THEN 'infinity'::timestamptz END, $13::int)
  ON CONFLICT (q_name, dedup_key)
  WHERE dedup_key IS NOT NULL
  AND dequeued_at IS NULL DO NOTHING
  RETURNING id, date_part('epoch', least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'));

-- put_many [hot] $1 q_name, $2 serializer, $3 schedule_at, $4 schedule_in, $5 expected_at, $6 expected_in, $7 headers, $8 group_key, $9 lane, $10 priority, $11 items, $12 fails, $13 number
PREPARE "put_many" AS WITH put AS (INSERT INTO "queue" (q_name, data, payload, serializer, enqueued_at, schedule_at, expected_at, headers, group_key, parked_on, leased_until, priority)
    SELECT $1::text, item.value, NULL, $2::text, statement_timestamp() + item.place * interval '1 microsecond', coalesce($3::timestamptz, (statement_timestamp() + item.place * interval '1 microsecond') + $4::float8 * interval '1 second'), coalesce($5::timestamptz, (statement_timestamp() + item.place * interval '1 microsecond') + $6::float8 * interval '1 second'), $7::text::json, $8::text,
    CASE WHEN coalesce($3::timestamptz, statement_timestamp() + $4::float8 * interval '1 second') > statement_timestamp() THEN NULL ELSE $9::text END,
    CASE WHEN
    CASE WHEN coalesce($3::timestamptz, statement_timestamp() + $4::float8 * interval '1 second') > statement_timestamp() THEN NULL ELSE $9::text END IS NOT NULL THEN 'infinity'::timestamptz END, $10::int
    FROM json_array_elements($11::text::json) WITH ORDINALITY AS item (value, place)
    RETURNING id, enqueued_at)
  SELECT min(id), count(*) / (NOT $12::boolean
    OR count(*) = $13::int)::int,
  CASE WHEN max(id)::numeric - min(id) < count(*)
  AND min(enqueued_at - (id % 1000000000) * interval '1 microsecond') = max(enqueued_at - (id % 1000000000) * interval '1 microsecond') THEN NULL ELSE (SELECT array_agg(id::text
      ORDER BY enqueued_at)
    FROM put HAVING sqrt(CASE WHEN count(*) <> $13::int
      OR (count(DISTINCT enqueued_at) = count(*)
        AND max(enqueued_at) - min(enqueued_at) < count(*) * interval '1 microsecond') THEN 0 ELSE -1 END) = 0) END, date_part('epoch', least(greatest(min(enqueued_at) AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'))
  FROM put;

-- put_many_encoded [hot] $1 q_name, $2 binary, $3 serializer, $4 schedule_at, $5 schedule_in, $6 expected_at, $7 expected_in, $8 headers, $9 group_key, $10 lane, $11 priority, $12 items, $13 fails, $14 number
PREPARE "put_many_encoded" AS WITH put AS (INSERT INTO "queue" (q_name, data, payload, serializer, enqueued_at, schedule_at, expected_at, headers, group_key, parked_on, leased_until, priority)
    SELECT $1::text,
    CASE WHEN NOT $2::boolean THEN item.value::json END,
    CASE WHEN $2::boolean THEN decode(item.value, 'base64') END, $3::text, statement_timestamp() + item.place * interval '1 microsecond', coalesce($4::timestamptz, (statement_timestamp() + item.place * interval '1 microsecond') + $5::float8 * interval '1 second'), coalesce($6::timestamptz, (statement_timestamp() + item.place * interval '1 microsecond') + $7::float8 * interval '1 second'), $8::text::json, $9::text,
    CASE WHEN coalesce($4::timestamptz, statement_timestamp() + $5::float8 * interval '1 second') > statement_timestamp() THEN NULL ELSE $10::text END,
    CASE WHEN
    CASE WHEN coalesce($4::timestamptz, statement_timestamp() + $5::float8 * interval '1 second') > statement_timestamp() THEN NULL ELSE $10::text END IS NOT NULL THEN 'infinity'::timestamptz END, $11::int
    FROM json_array_elements_text($12::text::json) WITH ORDINALITY AS item (value, place)
    RETURNING id, enqueued_at)
  SELECT min(id), count(*) / (NOT $13::boolean
    OR count(*) = $14::int)::int,
  CASE WHEN max(id)::numeric - min(id) < count(*)
  AND min(enqueued_at - (id % 1000000000) * interval '1 microsecond') = max(enqueued_at - (id % 1000000000) * interval '1 microsecond') THEN NULL ELSE (SELECT array_agg(id::text
      ORDER BY enqueued_at)
    FROM put HAVING sqrt(CASE WHEN count(*) <> $14::int
      OR (count(DISTINCT enqueued_at) = count(*)
        AND max(enqueued_at) - min(enqueued_at) < count(*) * interval '1 microsecond') THEN 0 ELSE -1 END) = 0) END, date_part('epoch', least(greatest(min(enqueued_at) AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'))
  FROM put;

-- put_off $1 delay, $2 error, $3 id, $4 token, $5 q_name, $6 patience
PREPARE "put_off" AS
  UPDATE "queue"
  SET leased_until = NULL, excused = least(coalesce(excused, 0), 2147483646) + 1, schedule_at = statement_timestamp() + $1::float8 * interval '1 second', error = ($2::text::jsonb || jsonb_build_object('since', coalesce(CASE WHEN error->>'type' = $2::text::json->>'type' THEN (error->>'since')::float8 END, extract(epoch FROM statement_timestamp()))))::json
  WHERE id = $3::bigint
  AND attempts = $4::int
  AND leased_until IS NOT NULL
  AND num_nulls(dequeued_at, parked_on) = 2
  AND q_name = $5::text
  AND ($6::float8 IS NULL
    OR coalesce(CASE WHEN error->>'type' = $2::text::json->>'type' THEN (error->>'since')::float8 END, extract(epoch FROM statement_timestamp())) > extract(epoch FROM statement_timestamp()) - $6::float8)
  RETURNING id;

-- put_replacing $1 data, $2 payload, $3 serializer, $4 schedule_at, $5 schedule_in, $6 expected_at, $7 expected_in, $8 headers, $9 group_key, $10 lane, $11 priority, $12 q_name, $13 dedup_key
PREPARE "put_replacing" AS WITH replaced AS (UPDATE "queue" AS held
    SET data = $1::text::json, payload = $2::bytea, serializer = $3::text, schedule_at = coalesce($4::timestamptz, statement_timestamp() + $5::float8 * interval '1 second'), expected_at = coalesce($6::timestamptz, statement_timestamp() + $7::float8 * interval '1 second'), headers = $8::text::json, group_key = $9::text, (parked_on, leased_until, priority) = ROW (CASE WHEN coalesce($4::timestamptz, statement_timestamp() + $5::float8 * interval '1 second') > statement_timestamp() THEN NULL ELSE $10::text END,
      CASE WHEN
      CASE WHEN coalesce($4::timestamptz, statement_timestamp() + $5::float8 * interval '1 second') > statement_timestamp() THEN NULL ELSE $10::text END IS NOT NULL THEN 'infinity'::timestamptz END, $11::int), failures = NULL, excused = held.attempts, error = NULL, cancelling = NULL
    WHERE q_name = $12::text
    AND dedup_key = $13::text
    AND dequeued_at IS NULL
    AND dequeued_at IS NULL
    AND (leased_until IS NULL
      OR parked_on IS NOT NULL)
    RETURNING id, date_part('epoch', least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'))), added AS (INSERT INTO "queue" (q_name, data, payload, serializer, enqueued_at, schedule_at, expected_at, headers, group_key, dedup_key, parked_on, leased_until, priority)
    SELECT $12::text, $1::text::json, $2::bytea, $3::text, statement_timestamp(), coalesce($4::timestamptz, statement_timestamp() + $5::float8 * interval '1 second'), coalesce($6::timestamptz, statement_timestamp() + $7::float8 * interval '1 second'), $8::text::json, $9::text, $13::text,
    CASE WHEN coalesce($4::timestamptz, statement_timestamp() + $5::float8 * interval '1 second') > statement_timestamp() THEN NULL ELSE $10::text END,
    CASE WHEN
    CASE WHEN coalesce($4::timestamptz, statement_timestamp() + $5::float8 * interval '1 second') > statement_timestamp() THEN NULL ELSE $10::text END IS NOT NULL THEN 'infinity'::timestamptz END, $11::int
    WHERE NOT EXISTS (SELECT
      FROM replaced)
    ON CONFLICT (q_name, dedup_key)
    WHERE dedup_key IS NOT NULL
    AND dequeued_at IS NULL DO NOTHING
    RETURNING id, date_part('epoch', least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'))), put (id, put_at) AS (SELECT *
    FROM replaced
    UNION ALL
    SELECT *
    FROM added)
  SELECT id, put_at
  FROM put;

-- put_timed [hot] $1 q_name, $2 data, $3 payload, $4 serializer, $5 schedule_at, $6 schedule_in, $7 expected_at, $8 expected_in
PREPARE "put_timed" AS
  INSERT INTO "queue" (q_name, data, payload, serializer, enqueued_at, schedule_at, expected_at)
  VALUES ($1::text, $2::text::json, $3::bytea, $4::text, statement_timestamp(), coalesce($5::timestamptz, statement_timestamp() + $6::float8 * interval '1 second'), coalesce($7::timestamptz, statement_timestamp() + $8::float8 * interval '1 second'))
  RETURNING id;

-- queues_with_ended_parents $1 names
/*NO LOAD BALANCE*/ PREPARE "queues_with_ended_parents" AS
  SELECT name
  FROM unnest($1::text[]) AS listed (name)
  WHERE coalesce((SELECT true
      FROM "queue_dependencies"
      WHERE q_name = listed.name
      AND (outcome IS NOT NULL
        OR polled)
      ORDER BY q_name
      LIMIT 1), false);

-- read_encoded_archive $1 ids, $2 q_name
/*NO LOAD BALANCE*/ PREPARE "read_encoded_archive" AS
  SELECT id, serializer, data::text, payload, headers::text, false
  FROM "queue_archive"
  WHERE id = ANY ($1::text::bigint[])
  AND q_name = $2::text
  ORDER BY id;

-- read_encoded_dead $1 ids, $2 q_name
/*NO LOAD BALANCE*/ PREPARE "read_encoded_dead" AS
  SELECT id, serializer, data::text, payload, headers::text, false
  FROM "queue_dead"
  WHERE id = ANY ($1::text::bigint[])
  AND q_name = $2::text
  ORDER BY id;

-- read_encoded_results $1 ids, $2 q_name
/*NO LOAD BALANCE*/ PREPARE "read_encoded_results" AS
  SELECT job_id, serializer, data::text, payload, NULL::text, false
  FROM "queue_results"
  WHERE job_id = ANY ($1::text::bigint[])
  AND q_name = $2::text
  ORDER BY job_id;

-- read_encoded_table $1 ids, $2 q_name
/*NO LOAD BALANCE*/ PREPARE "read_encoded_table" AS
  SELECT id, serializer, data::text, payload, headers::text, coalesce(leased_until > statement_timestamp()
    AND parked_on IS NULL
    AND dequeued_at IS NULL, false)
  FROM "queue"
  WHERE id = ANY ($1::text::bigint[])
  AND q_name = $2::text
  ORDER BY id;

-- read_only
/*NO LOAD BALANCE*/ PREPARE "read_only" AS
  SELECT current_setting('transaction_read_only') = 'on';

-- ready_queues $1 names
/*NO LOAD BALANCE*/ PREPARE "ready_queues" AS
  SELECT name
  FROM unnest($1::text[]) AS waited (name)
  WHERE coalesce((SELECT true
      FROM "queue"
      WHERE q_name = waited.name
      AND dequeued_at IS NULL
      AND leased_until IS NULL
      AND schedule_at IS NULL
      AND expected_at IS NOT NULL
      ORDER BY expected_at, enqueued_at, id
      LIMIT 1), (SELECT true
      FROM "queue"
      WHERE q_name = waited.name
      AND dequeued_at IS NULL
      AND leased_until IS NULL
      AND expected_at IS NULL
      AND coalesce(schedule_at, enqueued_at) <= statement_timestamp()
      ORDER BY coalesce(schedule_at, enqueued_at), id
      LIMIT 1), (SELECT true
      FROM "queue"
      WHERE q_name = waited.name
      AND dequeued_at IS NULL
      AND (leased_until IS NOT NULL
        OR (schedule_at IS NOT NULL
          AND expected_at IS NOT NULL))
      AND coalesce(leased_until, schedule_at) <= statement_timestamp()
      ORDER BY coalesce(leased_until, schedule_at), id
      LIMIT 1), (SELECT true
      FROM "queue"
      WHERE q_name = waited.name
      AND parked_on IS NOT NULL
      AND num_nulls(dequeued_at) <> 0
      ORDER BY priority DESC, expected_at, coalesce(schedule_at, enqueued_at), id
      LIMIT 1), coalesce((SELECT true
        FROM "queue_dependencies"
        WHERE q_name = waited.name
        AND (outcome IS NOT NULL
          OR polled)
        ORDER BY q_name
        LIMIT 1), false), false);

-- recent_completions
/*NO LOAD BALANCE*/ PREPARE "recent_completions" AS WITH slice AS ((SELECT q_name, dequeued_at, schedule_at, enqueued_at
      FROM "queue"
      ORDER BY id DESC
      LIMIT 10000)
    UNION ALL (SELECT q_name, dequeued_at, schedule_at, enqueued_at
      FROM "queue_archive"
      ORDER BY id DESC
      LIMIT 10000)), finished AS (SELECT q_name, dequeued_at, (extract(epoch FROM dequeued_at) - extract(epoch FROM coalesce(schedule_at, enqueued_at)))::float8 AS took, dequeued_at > statement_timestamp() - interval '1 minute' AS just
    FROM slice
    WHERE dequeued_at > statement_timestamp() - interval '1 hour')
  SELECT q_name, count(*) FILTER (WHERE dequeued_at > statement_timestamp() - interval '1 minute'), count(*) FILTER (WHERE dequeued_at > statement_timestamp() - interval '1 hour'), percentile_disc(0.5) WITHIN
  GROUP (ORDER BY took) FILTER (WHERE just), percentile_disc(0.95) WITHIN
  GROUP (ORDER BY took) FILTER (WHERE just)
  FROM finished
  GROUP BY q_name;

-- register $1 channels
/*NO LOAD BALANCE*/ PREPARE "register" AS
  SELECT NULL::text
  WHERE false
  AND $1::text[] IS NULL;

-- register_periodic $1 q_name, $2 name, $3 tick, $4 cron, $5 tz
PREPARE "register_periodic" AS
  INSERT INTO "queue_ticks" AS last (q_name, name, tick, cron, tz)
  VALUES ($1::text, $2::text, $3::timestamptz, $4::text, $5::text)
  ON CONFLICT (q_name, name) DO UPDATE
  SET cron = excluded.cron, tz = excluded.tz, tick =
  CASE WHEN last.cron IS NULL THEN last.tick ELSE greatest(last.tick, excluded.tick) END
  WHERE last.cron IS DISTINCT FROM excluded.cron
  OR last.tz IS DISTINCT FROM excluded.tz
  RETURNING name;

-- register_schedule $1 tick, $2 q_name, $3 name, $4 version
PREPARE "register_schedule" AS
  INSERT INTO "queue_ticks" AS last (q_name, name, tick, cron, tz)
  SELECT free.q_name, free.name, $1::timestamptz, free.cron, free.tz
  FROM (SELECT q_name, name, cron, tz
    FROM "queue_schedules"
    WHERE q_name = $2::text
    AND name = $3::text
    AND updated_at = $4::timestamptz
    AND paused_at IS NULL
    FOR SHARE SKIP LOCKED) AS free
  ON CONFLICT (q_name, name) DO UPDATE
  SET cron = excluded.cron, tz = excluded.tz, tick =
  CASE WHEN last.cron IS NULL THEN last.tick ELSE greatest(last.tick, excluded.tick) END
  WHERE last.cron IS DISTINCT FROM excluded.cron
  OR last.tz IS DISTINCT FROM excluded.tz
  RETURNING name;

-- release $1 ids, $2 tokens, $3 q_name
PREPARE "release" AS
  UPDATE "queue"
  SET leased_until = NULL, excused = least(coalesce(excused, 0), 2147483646) + 1
  WHERE id = ANY ($1::text::bigint[])
  AND leased_until IS NOT NULL
  AND num_nulls(dequeued_at, parked_on) = 2
  AND ((id, attempts) IN (SELECT job, token
      FROM unnest($1::text::bigint[], $2::text::int[]) AS held (job, token))) IS TRUE
  AND q_name = $3::text
  RETURNING id;

-- release_blocked $1 q_name, $2 ids
PREPARE "release_blocked" AS WITH passed AS (DELETE FROM "queue_dependencies"
    WHERE q_name = $1::text
    AND job_id = ANY ($2::text::bigint[])
    AND outcome IS NOT NULL
    AND (outcome = 'done'
      OR on_failure = 'run')), free AS (DELETE FROM "queue_blocked" AS waits
    WHERE q_name = $1::text
    AND job_id = ANY ($2::text::bigint[])
    AND NOT EXISTS (SELECT
      FROM "queue_dependencies" AS left_over
      WHERE left_over.job_id = waits.job_id
      AND (left_over.outcome IS NULL
        OR NOT (outcome = 'done'
          OR on_failure = 'run')))
    RETURNING job_id, schedule_at), released AS (UPDATE "queue" AS job
    SET schedule_at = greatest(free.schedule_at, statement_timestamp())
    FROM free
    WHERE job.id = ANY (ARRAY(SELECT job_id
        FROM free))
    AND job.id = free.job_id
    AND job.q_name = $1::text
    AND num_nulls(job.dequeued_at, job.leased_until) = 2
    AND job.schedule_at = 'infinity'
    RETURNING job.id)
  SELECT id
  FROM released;

-- remove_rule $1 q_name, $2 kind, $3 name
PREPARE "remove_rule" AS WITH gone AS (DELETE FROM "queue_rules"
    WHERE q_name = $1::text
    AND kind = $2::text
    AND name = $3::text
    RETURNING coalesce(until > statement_timestamp(), true) AS held)
  SELECT held
  FROM gone;

-- remove_schedule $1 q_name, $2 name
PREPARE "remove_schedule" AS WITH gone AS (DELETE FROM "queue_schedules"
    WHERE q_name = $1::text
    AND name = $2::text
    RETURNING name), forgotten AS (DELETE FROM "queue_ticks"
    WHERE q_name = $1::text
    AND name = $2::text
    AND (SELECT count(*)
      FROM gone) >= 0
    RETURNING name)
  SELECT name
  FROM (SELECT name
    FROM gone
    UNION
    SELECT name
    FROM forgotten) AS removed;

-- replace $1 data, $2 payload, $3 serializer, $4 schedule_at, $5 schedule_in, $6 expected_at, $7 expected_in, $8 headers, $9 group_key, $10 lane, $11 priority, $12 id, $13 q_name
PREPARE "replace" AS WITH put (id, put_at) AS (UPDATE "queue" AS held
    SET data = $1::text::json, payload = $2::bytea, serializer = $3::text, schedule_at = coalesce($4::timestamptz, statement_timestamp() + $5::float8 * interval '1 second'), expected_at = coalesce($6::timestamptz, statement_timestamp() + $7::float8 * interval '1 second'), headers = $8::text::json, group_key = $9::text, (parked_on, leased_until, priority) = ROW (CASE WHEN coalesce($4::timestamptz, statement_timestamp() + $5::float8 * interval '1 second') > statement_timestamp() THEN NULL ELSE $10::text END,
      CASE WHEN
      CASE WHEN coalesce($4::timestamptz, statement_timestamp() + $5::float8 * interval '1 second') > statement_timestamp() THEN NULL ELSE $10::text END IS NOT NULL THEN 'infinity'::timestamptz END, $11::int), failures = NULL, excused = held.attempts, error = NULL, cancelling = NULL
    WHERE id = $12::bigint
    AND q_name = $13::text
    AND dequeued_at IS NULL
    AND (leased_until IS NULL
      OR parked_on IS NOT NULL)
    RETURNING id, date_part('epoch', least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999')))
  SELECT id, put_at
  FROM put;

-- replace_each $1 items, $2 ids, $3 q_name
PREPARE "replace_each" AS WITH given (id, data, payload, serializer, schedule_at, expected_at, headers, group_key, parked_on, leased_until, priority) AS (SELECT item.id, item.data::text::json, decode(item.payload, 'base64'), item.serializer::text, coalesce(item.schedule_at::timestamptz, statement_timestamp() + item.schedule_in::float8 * interval '1 second'), coalesce(item.expected_at::timestamptz, statement_timestamp() + item.expected_in::float8 * interval '1 second'), item.headers::text::json, item.group_key::text,
    CASE WHEN coalesce(item.schedule_at::timestamptz, statement_timestamp() + item.schedule_in::float8 * interval '1 second') > statement_timestamp() THEN NULL ELSE item.lane::text END,
    CASE WHEN
    CASE WHEN coalesce(item.schedule_at::timestamptz, statement_timestamp() + item.schedule_in::float8 * interval '1 second') > statement_timestamp() THEN NULL ELSE item.lane::text END IS NOT NULL THEN 'infinity'::timestamptz END, item.priority::int
    FROM json_to_recordset($1::text::json) AS item (id bigint, q_name text, data text, payload text, serializer text, schedule_at timestamptz, schedule_in float8, expected_at timestamptz, expected_in float8, headers text, group_key text, dedup_key text, lane text, priority int)), waiting AS (SELECT id
    FROM "queue"
    WHERE id = ANY ($2::text::bigint[])
    AND q_name = $3::text
    AND dequeued_at IS NULL
    AND (leased_until IS NULL
      OR parked_on IS NOT NULL)
    ORDER BY id
    FOR UPDATE), put AS (UPDATE "queue" AS held
    SET data = given.data, payload = given.payload, serializer = given.serializer, schedule_at = given.schedule_at, expected_at = given.expected_at, headers = given.headers, group_key = given.group_key, parked_on = given.parked_on, leased_until = given.leased_until, priority = given.priority, failures = NULL, excused = held.attempts, error = NULL, cancelling = NULL
    FROM given
    WHERE held.id = given.id
    AND held.id = ANY (ARRAY(SELECT id
        FROM waiting))
    AND held.q_name = $3::text
    RETURNING held.id)
  SELECT 1
  WHERE EXISTS (SELECT
    FROM put);

-- replan [no rows]
SELECT 1;

-- report_progress $1 id, $2 q_name, $3 progress, $4 put_at, $5 keep
PREPARE "report_progress" AS
  INSERT INTO "queue_results" AS kept (job_id, q_name, state, progress, put_at, updated_at, expires_at)
  VALUES ($1::bigint, $2::text, 'running', $3::text::json, $4::timestamptz, greatest(statement_timestamp(), $4::timestamptz), statement_timestamp() + $5::float8 * interval '1 second')
  ON CONFLICT (job_id) DO UPDATE
  SET q_name = excluded.q_name, progress = excluded.progress, state =
  CASE WHEN coalesce(kept.put_at <> excluded.put_at, kept.updated_at < excluded.put_at) THEN excluded.state ELSE kept.state END, data =
  CASE WHEN coalesce(kept.put_at <> excluded.put_at, kept.updated_at < excluded.put_at) THEN NULL ELSE kept.data END, payload =
  CASE WHEN coalesce(kept.put_at <> excluded.put_at, kept.updated_at < excluded.put_at) THEN NULL ELSE kept.payload END, serializer =
  CASE WHEN coalesce(kept.put_at <> excluded.put_at, kept.updated_at < excluded.put_at) THEN NULL ELSE kept.serializer END, error =
  CASE WHEN coalesce(kept.put_at <> excluded.put_at, kept.updated_at < excluded.put_at) THEN NULL ELSE kept.error END, put_at = excluded.put_at, updated_at = excluded.updated_at, expires_at = greatest(CASE WHEN NOT coalesce(kept.put_at <> excluded.put_at, kept.updated_at < excluded.put_at) THEN kept.expires_at END, excluded.expires_at)
  RETURNING 1;

-- request_stop $1 id, $2 q_name
PREPARE "request_stop" AS
  UPDATE "queue"
  SET cancelling = true
  WHERE id = $1::bigint
  AND q_name = $2::text
  AND num_nulls(dequeued_at, parked_on) = 2
  AND leased_until > statement_timestamp()
  RETURNING id;

-- rerun_archived $1 id, $2 q_name, $3 headers
PREPARE "rerun_archived" AS WITH gone AS (DELETE FROM "queue_archive"
    WHERE id = $1::bigint
    AND q_name = $2::text
    RETURNING *), risen AS (SELECT id, q_name, enqueued_at, dequeued_at, expected_at, schedule_at, data, attempts, serializer, payload, coalesce($3::text::json, headers) AS headers, failures, excused, error
    FROM gone), same AS (INSERT INTO "queue" (id, q_name, enqueued_at, dequeued_at, expected_at, schedule_at, data, attempts, serializer, payload, headers, failures, excused, error, group_key, priority)
    SELECT id, q_name, enqueued_at, NULL::timestamptz, expected_at, statement_timestamp(), data, attempts, serializer, payload, headers, NULL::int, attempts, NULL::json, headers #>> '{gate,group}',
    CASE WHEN headers #>> '{gate,priority}' ~ '^-?[0-9]{1,9}$' THEN (headers #>> '{gate,priority}')::int ELSE 0 END
    FROM risen
    RETURNING id), forgotten AS (DELETE FROM "queue_results"
    WHERE job_id = ANY (ARRAY(SELECT id
        FROM same))
    AND q_name = $2::text)
  SELECT id
  FROM same;

-- rerun_finished $1 headers, $2 id, $3 q_name
PREPARE "rerun_finished" AS WITH again AS (UPDATE "queue"
    SET dequeued_at = NULL, leased_until = NULL, parked_on = NULL, schedule_at = statement_timestamp(), failures = NULL, excused = attempts, error = NULL, cancelling = NULL, dedup_key = NULL, headers = coalesce($1::text::json, headers)
    WHERE id = $2::bigint
    AND q_name = $3::text
    AND num_nulls(dequeued_at) = 0
    RETURNING id), forgotten AS (DELETE FROM "queue_results"
    WHERE job_id = ANY (ARRAY(SELECT id
        FROM again))
    AND q_name = $3::text)
  SELECT id
  FROM again;

-- reserve $1 needs, $2 q_name, $3 lane
PREPARE "reserve" AS WITH needs AS MATERIALIZED (SELECT *
    FROM json_to_recordset($1::text::json) AS needs (place int, key text, number int, newest bigint)), state AS MATERIALIZED (SELECT wanted.key, row.version, row.running, row.reserved,
    CASE WHEN wanted.newest > row.newest
    OR row.places IS NULL THEN wanted.number ELSE row.places END AS put_places, greatest(wanted.newest, row.newest) AS newest, (SELECT number::int
      FROM "queue_rules"
      WHERE q_name = $2::text
      AND kind = 'limit'
      AND name = wanted.key) AS ruled, (SELECT true
      FROM "queue_rules"
      WHERE q_name = $2::text
      AND kind = 'pause'
      AND name = wanted.key
      AND (until IS NULL
        OR until > statement_timestamp())) AS paused, rated.rate, least(rated.number, coalesce(row.tokens + rated.rate * extract(epoch FROM statement_timestamp() - row.refilled_at)::float8, rated.number)) AS tokens
    FROM (SELECT DISTINCT ON (key) key, number, newest
      FROM needs
      ORDER BY key, newest DESC) AS wanted
    LEFT JOIN LATERAL (SELECT *
      FROM "queue_keys"
      WHERE q_name = $2::text
      AND key = wanted.key
      ORDER BY version DESC
      LIMIT 1) AS row
    ON true
    LEFT JOIN LATERAL (SELECT number, number / period AS rate
      FROM "queue_rules"
      WHERE q_name = $2::text
      AND kind = 'rate'
      AND name = wanted.key
      LIMIT 1) AS rated
    ON true), room AS MATERIALIZED (SELECT state.*, coalesce(alive.ids, '{}') AS alive_ids, holder.lane AS reserved_for,
    CASE WHEN state.paused THEN 0 ELSE least(coalesce(state.ruled, state.put_places, 2147483647) - coalesce(cardinality(alive.ids), 0), floor(state.tokens)) END AS free
    FROM state
    CROSS JOIN LATERAL (SELECT array_agg(job.id) AS ids
      FROM unnest(state.running) AS admitted (id)
      CROSS JOIN LATERAL (SELECT id
        FROM "queue"
        WHERE id = admitted.id
        AND q_name = $2::text
        AND num_nulls(dequeued_at) = 1
        AND num_nulls(parked_on) = 1
        AND num_nulls(leased_until) = 0
        LIMIT 1) AS job) AS alive
    LEFT JOIN LATERAL (SELECT parked_on AS lane
      FROM "queue"
      WHERE id = state.reserved
      AND q_name = $2::text
      AND num_nulls(dequeued_at) = 1
      AND num_nulls(parked_on) = 0
      LIMIT 1) AS holder
    ON true), first AS MATERIALIZED (SELECT id
    FROM "queue"
    WHERE q_name = $2::text
    AND parked_on = $3::text
    AND num_nulls(dequeued_at) <> 0
    AND coalesce(leased_until > statement_timestamp()
      AND leased_until < 'infinity', false)::int <> 1
    ORDER BY expected_at, coalesce(schedule_at, enqueued_at), id
    LIMIT 1), locked AS MATERIALIZED (SELECT mine.version, mine.key
    FROM room
    CROSS JOIN LATERAL (SELECT version, key
      FROM "queue_keys"
      WHERE q_name = $2::text
      AND key = room.key
      AND version = room.version
      FOR UPDATE SKIP LOCKED) AS mine
    WHERE room.reserved_for IS NULL
    OR room.reserved > (SELECT id
      FROM first))
  UPDATE "queue_keys" AS kept
  SET version = version + 1, reserved = (SELECT id
    FROM first)
  WHERE (kept.key, kept.version) IN (SELECT locked.key, locked.version
    FROM locked)
  AND EXISTS (SELECT
    FROM first)
  RETURNING key;

-- restore_archive $1 id, $2 q_name, $3 enqueued_at, $4 expected_at, $5 schedule_at, $6 data, $7 attempts, $8 serializer, $9 payload, $10 headers, $11 failures, $12 excused
PREPARE "restore_archive" AS WITH taken AS (DELETE FROM "queue_archive"
    WHERE id = $1::bigint
    AND q_name = $2::text)
  INSERT INTO "queue" (id, q_name, enqueued_at, dequeued_at, expected_at, schedule_at, data, attempts, serializer, payload, headers, failures, excused, error, group_key, priority)
  VALUES ($1::bigint, $2::text, $3::timestamptz, NULL, $4::timestamptz, $5::timestamptz, $6::text::json, $7::int, $8::text, $9::bytea, $10::text::json, $11::int, $12::int, NULL, $10::text::json #>> '{gate,group}',
    CASE WHEN $10::text::json #>> '{gate,priority}' ~ '^-?[0-9]{1,9}$' THEN ($10::text::json #>> '{gate,priority}')::int ELSE 0 END)
  ON CONFLICT DO NOTHING
  RETURNING id;

-- restore_delete $1 id, $2 q_name, $3 enqueued_at, $4 expected_at, $5 schedule_at, $6 data, $7 attempts, $8 serializer, $9 payload, $10 headers, $11 failures, $12 excused
PREPARE "restore_delete" AS
  INSERT INTO "queue" (id, q_name, enqueued_at, dequeued_at, expected_at, schedule_at, data, attempts, serializer, payload, headers, failures, excused, error, group_key, priority)
  VALUES ($1::bigint, $2::text, $3::timestamptz, NULL, $4::timestamptz, $5::timestamptz, $6::text::json, $7::int, $8::text, $9::bytea, $10::text::json, $11::int, $12::int, NULL, $10::text::json #>> '{gate,group}',
    CASE WHEN $10::text::json #>> '{gate,priority}' ~ '^-?[0-9]{1,9}$' THEN ($10::text::json #>> '{gate,priority}')::int ELSE 0 END)
  ON CONFLICT DO NOTHING
  RETURNING id;

-- restore_keep $1 attempts, $2 id, $3 q_name
PREPARE "restore_keep" AS
  UPDATE "queue"
  SET dequeued_at = NULL, attempts = $1::int, dedup_key = NULL
  WHERE id = $2::bigint
  AND q_name = $3::text
  RETURNING id;

-- resume_schedule $1 q_name, $2 name
PREPARE "resume_schedule" AS WITH kept AS (UPDATE "queue_schedules" AS schedule
    SET paused_at = NULL, updated_at = clock.now
    FROM (SELECT clock_timestamp() AS now) AS clock
    WHERE schedule.q_name = $1::text
    AND schedule.name = $2::text
    AND schedule.paused_at IS NOT NULL
    RETURNING schedule.q_name, schedule.name, clock.now), counted AS (UPDATE "queue_ticks" AS last
    SET tick = greatest(last.tick, kept.now)
    FROM kept
    WHERE last.q_name = kept.q_name
    AND last.name = kept.name
    AND last.q_name = $1::text)
  SELECT name
  FROM "queue_schedules"
  WHERE q_name = $1::text
  AND name = $2::text;

-- retry $1 error, $2 delay, $3 id, $4 token, $5 q_name, $6 attempt, $7 outcome, $8 worker, $9 error_type, $10 message, $11 traceback
PREPARE "retry" AS WITH ended AS (UPDATE "queue"
    SET leased_until = NULL, failures = least(coalesce(failures, 0), 2147483646) + 1, error = $1::text::json, cancelling = NULL, schedule_at = coalesce(statement_timestamp() + $2::float8 * interval '1 second', schedule_at)
    WHERE id = $3::bigint
    AND attempts = $4::int
    AND leased_until IS NOT NULL
    AND num_nulls(dequeued_at, parked_on) = 2
    AND q_name = $5::text
    RETURNING id, enqueued_at), noted AS (INSERT INTO "queue_attempts" (job_id, place, q_name, put_at, token, attempt, outcome, ended_at, worker, error_type, message, traceback)
    SELECT id, mod($4::int, 20), $5::text, enqueued_at, $4::int, $6::int, $7::text, statement_timestamp(), $8::text, $9::text, $10::text, $11::text
    FROM ended
    WHERE $7::text IS NOT NULL
    ON CONFLICT (job_id, place) DO UPDATE
    SET q_name = excluded.q_name, put_at = excluded.put_at, token = excluded.token, attempt = excluded.attempt, outcome = excluded.outcome, ended_at = excluded.ended_at, worker = excluded.worker, error_type = excluded.error_type, message = excluded.message, traceback = excluded.traceback)
  SELECT id
  FROM ended;

-- return_tokens [no rows] $1 n, $2 q_name
PREPARE "return_tokens" AS
  UPDATE "queue_rates"
  SET tokens = tokens + $1::int
  WHERE q_name = $2::text;

-- revive $1 q_name, $2 ids, $3 reason
PREPARE "revive" AS WITH picked AS (SELECT id
    FROM "queue_dead"
    WHERE q_name = $1::text
    AND ($2::text::bigint[] IS NULL
      OR id = ANY ($2::text::bigint[]))
    AND ($3::text IS NULL
      OR reason = $3::text)
    ORDER BY died_at
    LIMIT 1000
    FOR UPDATE SKIP LOCKED), risen AS (DELETE FROM "queue_dead"
    WHERE id = ANY (ARRAY(SELECT id
        FROM picked))
    AND q_name = $1::text
    RETURNING *), same AS (INSERT INTO "queue" (id, q_name, enqueued_at, dequeued_at, expected_at, schedule_at, data, attempts, serializer, payload, headers, failures, excused, error, group_key, priority)
    SELECT id, q_name, enqueued_at, NULL::timestamptz, expected_at, statement_timestamp(), data, attempts, serializer, payload, headers, NULL::int, attempts, NULL::json, headers #>> '{gate,group}',
    CASE WHEN headers #>> '{gate,priority}' ~ '^-?[0-9]{1,9}$' THEN (headers #>> '{gate,priority}')::int ELSE 0 END
    FROM risen
    RETURNING id), forgotten AS (DELETE FROM "queue_results"
    WHERE job_id = ANY (ARRAY(SELECT id
        FROM same))
    AND q_name = $1::text)
  SELECT (SELECT count(*)
    FROM risen), (SELECT count(*)
    FROM same);

-- run_now $1 id, $2 q_name
PREPARE "run_now" AS WITH free AS (SELECT id
    FROM "queue"
    WHERE id = $1::bigint
    AND q_name = $2::text
    AND num_nulls(dequeued_at) = 1
    AND (leased_until IS NULL
      OR leased_until <= statement_timestamp())
    AND coalesce(schedule_at, enqueued_at) > statement_timestamp()
    FOR UPDATE SKIP LOCKED)
  UPDATE "queue"
  SET schedule_at = statement_timestamp()
  WHERE id = ANY (ARRAY(SELECT id
      FROM free))
  AND q_name = $2::text
  RETURNING id;

-- scheduled_calls $1 q_name, $2 after
/*NO LOAD BALANCE*/ PREPARE "scheduled_calls" AS
  SELECT name, q_name, call::text
  FROM "queue_schedules"
  WHERE (q_name, name) > ($1::text, $2::text)
  ORDER BY q_name, name
  LIMIT 10000;

-- session_settings $1 names, $2 values, $3 mild
/*NO LOAD BALANCE*/ PREPARE "session_settings" AS
  SELECT NULL::text
  WHERE false
  AND $1::text[] IS NULL
  AND $2::text[] IS NULL
  AND $3::text::bool[] IS NULL;

-- set_aside_due [no rows] $1 tasks, $2 q_name
PREPARE "set_aside_due" AS WITH wanted AS MATERIALIZED (SELECT *
    FROM json_to_recordset($1::text::json) AS wanted (pattern text, lane text)), met AS MATERIALIZED (SELECT head.id, min(wanted.lane) AS lane
    FROM ((SELECT id, data
        FROM "queue"
        WHERE q_name = $2::text
        AND dequeued_at IS NULL
        AND leased_until IS NULL
        AND schedule_at IS NULL
        AND expected_at IS NOT NULL
        ORDER BY expected_at, enqueued_at, id
        LIMIT 5000)
      UNION ALL (SELECT id, data
        FROM "queue"
        WHERE q_name = $2::text
        AND dequeued_at IS NULL
        AND leased_until IS NULL
        AND expected_at IS NULL
        AND coalesce(schedule_at, enqueued_at) <= statement_timestamp()
        ORDER BY coalesce(schedule_at, enqueued_at), id
        LIMIT 5000)) AS head
    JOIN wanted
    ON left(head.data::text, 2000) ~ wanted.pattern
    GROUP BY head.id), free AS MATERIALIZED (SELECT id
    FROM "queue"
    WHERE id = ANY (ARRAY(SELECT id
        FROM met))
    AND q_name = $2::text
    AND num_nulls(dequeued_at, leased_until, parked_on) = 3
    AND (strpos(headers::text, '"gate"') > 0) IS NOT TRUE
    FOR UPDATE SKIP LOCKED), lanes AS MATERIALIZED (SELECT jsonb_object_agg(id::text, lane) AS by_id
    FROM met)
  UPDATE "queue"
  SET parked_on = (SELECT by_id
    FROM lanes) ->> id::text, leased_until = 'infinity'
  WHERE id = ANY (ARRAY(SELECT id
      FROM free))
  AND q_name = $2::text;

-- set_aside_leased [no rows] $1 jobs, $2 q_name
PREPARE "set_aside_leased" AS
  UPDATE "queue" AS job
  SET parked_on = named.lane, excused = least(coalesce(job.excused, 0), 2147483646) + 1, leased_until =
  CASE WHEN named.lane IS NULL THEN NULL ELSE 'infinity'::timestamptz END, schedule_at =
  CASE WHEN named.lane IS NULL THEN clock.later ELSE job.schedule_at END
  FROM json_to_recordset($1::text::json) AS named (id bigint, token int, lane text), (SELECT statement_timestamp() + interval '60 seconds' AS later) AS clock
  WHERE job.id = named.id
  AND job.attempts = named.token
  AND job.q_name = $2::text
  AND job.leased_until IS NOT NULL
  AND num_nulls(job.dequeued_at, job.parked_on) = 2;

-- set_expiry $1 q_name, $2 name, $3 period, $4 replaces
PREPARE "set_expiry" AS
  INSERT INTO "queue_rules" AS rule (q_name, kind, name, period, changed_at)
  VALUES ($1::text, 'expiry', $2::text, $3::float8, statement_timestamp())
  ON CONFLICT (q_name, kind, name) DO UPDATE
  SET changed_at = excluded.changed_at, period =
  CASE WHEN $4::boolean THEN excluded.period ELSE rule.period END
  RETURNING name;

-- set_key_holder [no rows] $1 id, $2 q_name, $3 dedup_key
PREPARE "set_key_holder" AS
  UPDATE "queue_dedup"
  SET job_id = $1::bigint
  WHERE q_name = $2::text
  AND dedup_key = $3::text;

-- set_key_holders [no rows] $1 items, $2 q_name
PREPARE "set_key_holders" AS
  UPDATE "queue_dedup" AS held
  SET job_id = item.id
  FROM json_to_recordset($1::text::json) AS item (dedup_key text, id bigint)
  WHERE held.q_name = $2::text
  AND held.dedup_key = item.dedup_key;

-- set_lanes [no rows] $1 lanes, $2 q_name
PREPARE "set_lanes" AS WITH named AS MATERIALIZED (SELECT *
    FROM json_to_recordset($1::text::json) AS named (id bigint, lane text, priority int))
  UPDATE "queue" AS job
  SET parked_on = coalesce(named.lane, '[0,""]'), priority = named.priority, leased_until = 'infinity'
  FROM named
  WHERE job.id = ANY (ARRAY(SELECT id
      FROM named))
  AND job.id = named.id
  AND job.q_name = $2::text
  AND num_nulls(job.dequeued_at) = 1
  AND (job.parked_on IS NOT NULL
    OR job.leased_until IS NULL);

-- set_quiet $1 quiet, $2 id
PREPARE "set_quiet" AS
  UPDATE "queue_workers"
  SET quiet = $1::boolean
  WHERE id = $2::text
  RETURNING q_name;

-- set_rule $1 q_name, $2 kind, $3 name, $4 number, $5 period, $6 until_at, $7 until_in
PREPARE "set_rule" AS WITH kept AS (INSERT INTO "queue_rules" (q_name, kind, name, number, period, until, changed_at)
    SELECT $1::text, $2::text, $3::text, $4::float8, $5::float8, wanted.until, wanted.now
    FROM (SELECT statement_timestamp() AS now, coalesce($6::timestamptz, statement_timestamp() + $7::float8 * interval '1 second') AS until) AS wanted
    WHERE coalesce(wanted.until > wanted.now, true)
    ON CONFLICT (q_name, kind, name) DO UPDATE
    SET number = excluded.number, period = excluded.period, until = excluded.until, changed_at = excluded.changed_at
    RETURNING name)
  SELECT name
  FROM kept;

-- set_schedule $1 q_name, $2 name, $3 task, $4 cron, $5 tz, $6 missed, $7 call, $8 deadline_in
PREPARE "set_schedule" AS WITH kept AS (INSERT INTO "queue_schedules" (q_name, name, task, cron, tz, missed, call, deadline_in, created_at, updated_at)
    SELECT $1::text, $2::text, $3::text, $4::text, $5::text, $6::text, $7::text::json, $8::float8, clock.now, clock.now
    FROM (SELECT clock_timestamp() AS now) AS clock
    WHERE NOT EXISTS (SELECT
      FROM "queue_ticks"
      WHERE q_name = $1::text
      AND name = $2::text)
    OR EXISTS (SELECT
      FROM "queue_schedules"
      WHERE q_name = $1::text
      AND name = $2::text)
    ON CONFLICT (q_name, name) DO UPDATE
    SET task = excluded.task, cron = excluded.cron, tz = excluded.tz, missed = excluded.missed, call = excluded.call, deadline_in = excluded.deadline_in, updated_at = excluded.updated_at
    RETURNING q_name, name, cron, tz, paused_at, created_at, updated_at), counted AS (INSERT INTO "queue_ticks" AS last (q_name, name, tick, cron, tz)
    SELECT q_name, name, updated_at, cron, tz
    FROM kept
    ON CONFLICT (q_name, name) DO UPDATE
    SET cron = excluded.cron, tz = excluded.tz, tick =
    CASE WHEN last.cron IS NULL THEN last.tick ELSE greatest(last.tick, excluded.tick) END
    WHERE last.cron IS DISTINCT FROM excluded.cron
    OR last.tz IS DISTINCT FROM excluded.tz)
  SELECT paused_at AT TIME ZONE 'UTC', created_at AT TIME ZONE 'UTC', updated_at AT TIME ZONE 'UTC'
  FROM kept;

-- set_tick_back $1 now, $2 q_name, $3 name, $4 tick
PREPARE "set_tick_back" AS
  UPDATE "queue_ticks"
  SET tick = $1::timestamptz
  WHERE q_name = $2::text
  AND name = $3::text
  AND tick = $4::timestamptz
  RETURNING name;

-- size_of_results $1 ids, $2 put_at
/*NO LOAD BALANCE*/ PREPARE "size_of_results" AS
  SELECT coalesce(sum(coalesce(octet_length(data::text), 0) + coalesce(octet_length(payload), 0)), 0)::bigint
  FROM "queue_results"
  WHERE job_id = ANY ($1::text::bigint[])
  AND state = 'done'
  AND error IS NULL
  AND (put_at IS NULL
    OR put_at <= $2::timestamptz);

-- snooze $1 delay, $2 id, $3 token, $4 q_name, $5 attempt, $6 outcome, $7 worker, $8 error_type, $9 message, $10 traceback
PREPARE "snooze" AS WITH ended AS (UPDATE "queue"
    SET leased_until = NULL, excused = least(coalesce(excused, 0), 2147483646) + 1, schedule_at = coalesce(statement_timestamp() + $1::float8 * interval '1 second', schedule_at)
    WHERE id = $2::bigint
    AND attempts = $3::int
    AND leased_until IS NOT NULL
    AND num_nulls(dequeued_at, parked_on) = 2
    AND q_name = $4::text
    RETURNING id, enqueued_at), noted AS (INSERT INTO "queue_attempts" (job_id, place, q_name, put_at, token, attempt, outcome, ended_at, worker, error_type, message, traceback)
    SELECT id, mod($3::int, 20), $4::text, enqueued_at, $3::int, $5::int, $6::text, statement_timestamp(), $7::text, $8::text, $9::text, $10::text
    FROM ended
    WHERE $6::text IS NOT NULL
    ON CONFLICT (job_id, place) DO UPDATE
    SET q_name = excluded.q_name, put_at = excluded.put_at, token = excluded.token, attempt = excluded.attempt, outcome = excluded.outcome, ended_at = excluded.ended_at, worker = excluded.worker, error_type = excluded.error_type, message = excluded.message, traceback = excluded.traceback)
  SELECT id
  FROM ended;

-- stats $1 q_name
/*NO LOAD BALANCE*/ PREPARE "stats" AS
  SELECT q_name, sum(due)::bigint, sum(scheduled)::bigint, sum(held)::bigint, (extract(epoch FROM statement_timestamp()) - extract(epoch FROM min(due_at)))::float8, sum(parked)::bigint, sum(blocked)::bigint
  FROM (SELECT q_name, count(*) FILTER (WHERE due) AS due, count(*) FILTER (WHERE NOT due
      AND NOT held) AS scheduled, count(*) FILTER (WHERE held) AS held, min(due_at) FILTER (WHERE due) AS due_at, 0 AS parked, count(*) FILTER (WHERE due_at = 'infinity'
      AND NOT held) AS blocked
    FROM (SELECT q_name, coalesce(schedule_at, enqueued_at) AS due_at, coalesce(leased_until > statement_timestamp(), false) AS held, coalesce(schedule_at, enqueued_at) <= statement_timestamp()
      AND coalesce(leased_until <= statement_timestamp(), true) AS due
      FROM "queue"
      WHERE dequeued_at IS NULL
      AND leased_until IS NULL
      AND expected_at IS NULL
      AND q_name = $1::text
      UNION ALL
      SELECT q_name, coalesce(schedule_at, enqueued_at) AS due_at, coalesce(leased_until > statement_timestamp(), false) AS held, coalesce(schedule_at, enqueued_at) <= statement_timestamp()
      AND coalesce(leased_until <= statement_timestamp(), true) AS due
      FROM "queue"
      WHERE dequeued_at IS NULL
      AND leased_until IS NULL
      AND schedule_at IS NULL
      AND expected_at IS NOT NULL
      AND q_name = $1::text
      UNION ALL
      SELECT q_name, coalesce(schedule_at, enqueued_at) AS due_at, coalesce(leased_until > statement_timestamp(), false) AS held, coalesce(schedule_at, enqueued_at) <= statement_timestamp()
      AND coalesce(leased_until <= statement_timestamp(), true) AS due
      FROM "queue"
      WHERE dequeued_at IS NULL
      AND (leased_until IS NOT NULL
        OR (schedule_at IS NOT NULL
          AND expected_at IS NOT NULL))
      AND coalesce(leased_until, schedule_at) < 'infinity'
      AND q_name = $1::text) AS plain
    GROUP BY q_name
    UNION ALL
    SELECT q_name, next.number,
    CASE WHEN parked_on IS NULL THEN lane.number ELSE 0 END, 0,
    CASE WHEN next.number > 0 THEN due_at END,
    CASE WHEN parked_on IS NULL THEN 0 ELSE lane.number - next.number END,
    CASE WHEN parked_on IS NULL THEN lane.number ELSE 0 END
    FROM (SELECT q_name, parked_on, count(*) AS number, min(coalesce(schedule_at, enqueued_at)) AS due_at, min(group_key) AS group_key
      FROM "queue"
      WHERE dequeued_at IS NULL
      AND (leased_until IS NOT NULL
        OR (schedule_at IS NOT NULL
          AND expected_at IS NOT NULL))
      AND coalesce(leased_until, schedule_at) = 'infinity'
      AND q_name = $1::text
      GROUP BY q_name, parked_on) AS lane
    CROSS JOIN LATERAL (SELECT
      CASE WHEN parked_on IS NULL THEN 0 ELSE least(number,
        CASE WHEN lane.group_key IS NULL
        OR lane.parked_on = (SELECT parked_on
          FROM "queue" AS first
          WHERE first.q_name = $1::text
          AND first.group_key = lane.group_key
          AND first.dequeued_at IS NULL
          ORDER BY id
          LIMIT 1) THEN (SELECT coalesce(min(CASE WHEN EXISTS (SELECT
                FROM "queue_rules" AS paused
                WHERE paused.q_name = $1::text
                AND paused.kind = 'pause'
                AND paused.name = regexp_replace(need.name, '=[0-9]+$', '')
                AND (until IS NULL
                  OR until > statement_timestamp())) THEN 0 ELSE greatest(coalesce((SELECT number::int
                    FROM "queue_rules" AS allowed
                    WHERE allowed.q_name = $1::text
                    AND allowed.kind = 'limit'
                    AND allowed.name = regexp_replace(need.name, '=[0-9]+$', '')), row.places, substring(need.name
                    FROM '=([0-9]+)$')::int) - (SELECT count(*)
                  FROM unnest(row.running) AS admitted (id)
                  CROSS JOIN LATERAL (SELECT
                    FROM "queue" AS other
                    WHERE other.id = admitted.id
                    AND other.q_name = $1::text
                    AND num_nulls(other.dequeued_at) = 1
                    AND num_nulls(other.parked_on) = 1
                    AND num_nulls(other.leased_until) = 0
                    LIMIT 1) AS alive), 0) END), 2147483647)
          FROM unnest(ARRAY(SELECT json_array_elements_text(CASE WHEN lane.parked_on LIKE '[%' THEN lane.parked_on ELSE '[]' END::json) OFFSET 2)) AS need (name)
          LEFT JOIN LATERAL (SELECT places, running
            FROM "queue_keys" AS key
            WHERE key.q_name = $1::text
            AND key.key = regexp_replace(need.name, '=[0-9]+$', '')
            ORDER BY version DESC
            LIMIT 1) AS row
          ON true) ELSE 0 END) END AS number) AS next) AS classes
  GROUP BY q_name
  ORDER BY q_name;

-- stats_all
/*NO LOAD BALANCE*/ PREPARE "stats_all" AS
  SELECT q_name, sum(due)::bigint, sum(scheduled)::bigint, sum(held)::bigint, (extract(epoch FROM statement_timestamp()) - extract(epoch FROM min(due_at)))::float8, sum(parked)::bigint, sum(blocked)::bigint
  FROM (SELECT q_name, count(*) FILTER (WHERE due) AS due, count(*) FILTER (WHERE NOT due
      AND NOT held) AS scheduled, count(*) FILTER (WHERE held) AS held, min(due_at) FILTER (WHERE due) AS due_at, 0 AS parked, count(*) FILTER (WHERE due_at = 'infinity'
      AND NOT held) AS blocked
    FROM (SELECT q_name, coalesce(schedule_at, enqueued_at) AS due_at, coalesce(leased_until > statement_timestamp(), false) AS held, coalesce(schedule_at, enqueued_at) <= statement_timestamp()
      AND coalesce(leased_until <= statement_timestamp(), true) AS due
      FROM "queue"
      WHERE dequeued_at IS NULL
      AND leased_until IS NULL
      AND expected_at IS NULL
      UNION ALL
      SELECT q_name, coalesce(schedule_at, enqueued_at) AS due_at, coalesce(leased_until > statement_timestamp(), false) AS held, coalesce(schedule_at, enqueued_at) <= statement_timestamp()
      AND coalesce(leased_until <= statement_timestamp(), true) AS due
      FROM "queue"
      WHERE dequeued_at IS NULL
      AND leased_until IS NULL
      AND schedule_at IS NULL
      AND expected_at IS NOT NULL
      UNION ALL
      SELECT q_name, coalesce(schedule_at, enqueued_at) AS due_at, coalesce(leased_until > statement_timestamp(), false) AS held, coalesce(schedule_at, enqueued_at) <= statement_timestamp()
      AND coalesce(leased_until <= statement_timestamp(), true) AS due
      FROM "queue"
      WHERE dequeued_at IS NULL
      AND (leased_until IS NOT NULL
        OR (schedule_at IS NOT NULL
          AND expected_at IS NOT NULL))
      AND coalesce(leased_until, schedule_at) < 'infinity') AS plain
    GROUP BY q_name
    UNION ALL
    SELECT q_name, next.number,
    CASE WHEN parked_on IS NULL THEN lane.number ELSE 0 END, 0,
    CASE WHEN next.number > 0 THEN due_at END,
    CASE WHEN parked_on IS NULL THEN 0 ELSE lane.number - next.number END,
    CASE WHEN parked_on IS NULL THEN lane.number ELSE 0 END
    FROM (SELECT q_name, parked_on, count(*) AS number, min(coalesce(schedule_at, enqueued_at)) AS due_at, min(group_key) AS group_key
      FROM "queue"
      WHERE dequeued_at IS NULL
      AND (leased_until IS NOT NULL
        OR (schedule_at IS NOT NULL
          AND expected_at IS NOT NULL))
      AND coalesce(leased_until, schedule_at) = 'infinity'
      GROUP BY q_name, parked_on) AS lane
    CROSS JOIN LATERAL (SELECT
      CASE WHEN parked_on IS NULL THEN 0 ELSE least(number,
        CASE WHEN lane.group_key IS NULL
        OR lane.parked_on = (SELECT parked_on
          FROM "queue" AS first
          WHERE first.q_name = lane.q_name
          AND first.group_key = lane.group_key
          AND first.dequeued_at IS NULL
          ORDER BY id
          LIMIT 1) THEN (SELECT coalesce(min(CASE WHEN EXISTS (SELECT
                FROM "queue_rules" AS paused
                WHERE paused.q_name = lane.q_name
                AND paused.kind = 'pause'
                AND paused.name = regexp_replace(need.name, '=[0-9]+$', '')
                AND (until IS NULL
                  OR until > statement_timestamp())) THEN 0 ELSE greatest(coalesce((SELECT number::int
                    FROM "queue_rules" AS allowed
                    WHERE allowed.q_name = lane.q_name
                    AND allowed.kind = 'limit'
                    AND allowed.name = regexp_replace(need.name, '=[0-9]+$', '')), row.places, substring(need.name
                    FROM '=([0-9]+)$')::int) - (SELECT count(*)
                  FROM unnest(row.running) AS admitted (id)
                  CROSS JOIN LATERAL (SELECT
                    FROM "queue" AS other
                    WHERE other.id = admitted.id
                    AND other.q_name = lane.q_name
                    AND num_nulls(other.dequeued_at) = 1
                    AND num_nulls(other.parked_on) = 1
                    AND num_nulls(other.leased_until) = 0
                    LIMIT 1) AS alive), 0) END), 2147483647)
          FROM unnest(ARRAY(SELECT json_array_elements_text(CASE WHEN lane.parked_on LIKE '[%' THEN lane.parked_on ELSE '[]' END::json) OFFSET 2)) AS need (name)
          LEFT JOIN LATERAL (SELECT places, running
            FROM "queue_keys" AS key
            WHERE key.q_name = lane.q_name
            AND key.key = regexp_replace(need.name, '=[0-9]+$', '')
            ORDER BY version DESC
            LIMIT 1) AS row
          ON true) ELSE 0 END) END AS number) AS next) AS classes
  GROUP BY q_name
  ORDER BY q_name;

-- sweep_attempts $1 after
PREPARE "sweep_attempts" AS WITH slice AS (SELECT job_id
    FROM "queue_attempts"
    WHERE job_id > $1::bigint
    ORDER BY job_id
    LIMIT 1000), gone AS (DELETE FROM "queue_attempts"
    WHERE job_id = ANY (ARRAY(SELECT job_id
        FROM slice))
    AND (job_id, place) IN (SELECT job_id, place
      FROM "queue_attempts" AS kept
      WHERE job_id = ANY (ARRAY(SELECT job_id
          FROM slice))
      AND NOT coalesce((SELECT true
          FROM "queue" AS job
          WHERE job.id = kept.job_id
          AND job.q_name = kept.q_name
          AND job.enqueued_at = kept.put_at
          LIMIT 1), (SELECT true
          FROM "queue_dead" AS job
          WHERE job.id = kept.job_id
          AND job.q_name = kept.q_name
          AND job.enqueued_at = kept.put_at
          LIMIT 1), (SELECT true
          FROM "queue_archive" AS job
          WHERE job.id = kept.job_id
          AND job.q_name = kept.q_name
          AND job.enqueued_at = kept.put_at
          LIMIT 1), false)
      FOR UPDATE SKIP LOCKED)
    RETURNING job_id)
  SELECT max(job_id), count(*), (SELECT count(*)
    FROM gone)
  FROM slice;

-- sweep_dedup [no rows] $1 q_name
PREPARE "sweep_dedup" AS
  DELETE FROM "queue_dedup"
  WHERE q_name = $1::text
  AND until <= statement_timestamp();

-- sweep_keys [no rows] $1 q_name
PREPARE "sweep_keys" AS
  DELETE FROM "queue_keys"
  WHERE q_name = $1::text
  AND (key, version) IN (SELECT key, version
    FROM "queue_keys" AS old
    WHERE q_name = $1::text
    AND admitted_at < statement_timestamp() - interval '1 hour'
    AND NOT EXISTS (SELECT
      FROM "queue" AS job
      WHERE job.id = ANY (old.running)
      AND job.q_name = $1::text
      AND job.dequeued_at IS NULL
      AND job.parked_on IS NULL
      AND job.leased_until IS NOT NULL)
    LIMIT 1000
    FOR UPDATE SKIP LOCKED);

-- sweep_results [no rows]
PREPARE "sweep_results" AS
  DELETE FROM "queue_results"
  WHERE job_id = ANY (ARRAY(SELECT job_id
      FROM "queue_results"
      WHERE expires_at <= statement_timestamp()
      ORDER BY expires_at
      LIMIT 10000
      FOR UPDATE SKIP LOCKED));

-- sweep_workers [no rows] $1 silence
PREPARE "sweep_workers" AS
  DELETE FROM "queue_workers"
  WHERE (q_name, id) IN (SELECT q_name, id
    FROM "queue_workers"
    WHERE seen_at < statement_timestamp() - $1::float8 * interval '1 second'
    FOR UPDATE SKIP LOCKED)
  AND seen_at < statement_timestamp() - $1::float8 * interval '1 second';

-- take_lanes_2 [hot] $1 wanted, $2 shares, $3 needs, $4 q_name, $5 out_within, $6 spare, $7 lease
PREPARE "take_lanes_2" AS WITH wanted AS MATERIALIZED (SELECT *
    FROM json_to_recordset($1::text::json) AS wanted (place int, lane text, group_key text, share int, priority int, quota int, after text)), shares AS MATERIALIZED (SELECT *
    FROM json_to_recordset($2::text::json) AS shares (share int, start float8, weight float8)), needs AS MATERIALIZED (SELECT *
    FROM json_to_recordset($3::text::json) AS needs (place int, key text, number int, newest bigint)), state AS MATERIALIZED (SELECT wanted.key, row.version, row.running, row.reserved,
    CASE WHEN wanted.newest > row.newest
    OR row.places IS NULL THEN wanted.number ELSE row.places END AS put_places, greatest(wanted.newest, row.newest) AS newest, (SELECT number::int
      FROM "queue_rules"
      WHERE q_name = $4::text
      AND kind = 'limit'
      AND name = wanted.key) AS ruled, (SELECT true
      FROM "queue_rules"
      WHERE q_name = $4::text
      AND kind = 'pause'
      AND name = wanted.key
      AND (until IS NULL
        OR until > statement_timestamp())) AS paused, rated.rate, least(rated.number, coalesce(row.tokens + rated.rate * extract(epoch FROM statement_timestamp() - row.refilled_at)::float8, rated.number)) AS tokens
    FROM (SELECT DISTINCT ON (key) key, number, newest
      FROM needs
      ORDER BY key, newest DESC) AS wanted
    LEFT JOIN LATERAL (SELECT *
      FROM "queue_keys"
      WHERE q_name = $4::text
      AND key = wanted.key
      ORDER BY version DESC
      LIMIT 1) AS row
    ON true
    LEFT JOIN LATERAL (SELECT number, number / period AS rate
      FROM "queue_rules"
      WHERE q_name = $4::text
      AND kind = 'rate'
      AND name = wanted.key
      LIMIT 1) AS rated
    ON true), room AS MATERIALIZED (SELECT state.*, coalesce(alive.ids, '{}') AS alive_ids, holder.lane AS reserved_for,
    CASE WHEN state.paused THEN 0 ELSE least(coalesce(state.ruled, state.put_places, 2147483647) - coalesce(cardinality(alive.ids), 0), floor(state.tokens)) END AS free
    FROM state
    CROSS JOIN LATERAL (SELECT array_agg(job.id) AS ids
      FROM unnest(state.running) AS admitted (id)
      CROSS JOIN LATERAL (SELECT id
        FROM "queue"
        WHERE id = admitted.id
        AND q_name = $4::text
        AND num_nulls(dequeued_at) = 1
        AND num_nulls(parked_on) = 1
        AND num_nulls(leased_until) = 0
        LIMIT 1) AS job) AS alive
    LEFT JOIN LATERAL (SELECT parked_on AS lane
      FROM "queue"
      WHERE id = state.reserved
      AND q_name = $4::text
      AND num_nulls(dequeued_at) = 1
      AND num_nulls(parked_on) = 0
      LIMIT 1) AS holder
    ON true), has AS MATERIALIZED (SELECT place, min(CASE WHEN room.reserved_for <> wanted.lane THEN 0 ELSE coalesce(room.free, 2) END) AS free
    FROM wanted
    LEFT JOIN needs USING (place)
    LEFT JOIN room USING (key)
    GROUP BY place), heads AS MATERIALIZED (SELECT wanted.place, wanted.share, wanted.priority, head.*
    FROM wanted
    JOIN has USING (place)
    CROSS JOIN LATERAL ((SELECT *
        FROM (SELECT id, expected_at, schedule_at, enqueued_at
          FROM "queue"
          WHERE q_name = $4::text
          AND parked_on = wanted.lane
          AND num_nulls(dequeued_at) <> 0
          AND coalesce(leased_until > statement_timestamp()
            AND leased_until < 'infinity', false)::int <> 1
          ORDER BY expected_at, coalesce(schedule_at, enqueued_at), id
          LIMIT 2) AS first
        WHERE wanted.group_key IS NULL
        AND wanted.after IS NULL)
      UNION ALL (SELECT *
        FROM (SELECT id, expected_at, schedule_at, enqueued_at
          FROM "queue"
          WHERE q_name = $4::text
          AND parked_on = wanted.lane
          AND num_nulls(dequeued_at) <> 0
          AND coalesce(leased_until > statement_timestamp()
            AND leased_until < 'infinity', false)::int <> 1
          AND expected_at IS NOT NULL
          ORDER BY expected_at, coalesce(schedule_at, enqueued_at), id
          LIMIT 2) AS first
        WHERE wanted.group_key IS NULL
        AND wanted.after IS NOT NULL)
      UNION ALL (SELECT *
        FROM (SELECT id, expected_at, schedule_at, enqueued_at
          FROM "queue"
          WHERE q_name = $4::text
          AND parked_on = wanted.lane
          AND num_nulls(dequeued_at) <> 0
          AND coalesce(leased_until > statement_timestamp()
            AND leased_until < 'infinity', false)::int <> 1
          AND expected_at IS NULL
          AND (coalesce(schedule_at, enqueued_at), id) > ((string_to_array(wanted.after, ' '))[1]::timestamptz, (string_to_array(wanted.after, ' '))[2]::bigint)
          ORDER BY expected_at, coalesce(schedule_at, enqueued_at), id
          LIMIT 2) AS first
        WHERE wanted.group_key IS NULL
        AND wanted.after IS NOT NULL)
      UNION ALL (SELECT id, expected_at, schedule_at, enqueued_at
        FROM (SELECT id, expected_at, schedule_at, enqueued_at, parked_on, leased_until
          FROM "queue"
          WHERE q_name = $4::text
          AND group_key = wanted.group_key
          AND dequeued_at IS NULL
          AND id >= coalesce((string_to_array(wanted.after, ' '))[2]::bigint, 0)
          ORDER BY id
          LIMIT 1) AS head
        WHERE wanted.group_key IS NOT NULL
        AND parked_on = wanted.lane
        AND (leased_until IS NULL
          OR leased_until <= statement_timestamp()
          OR (parked_on IS NOT NULL
            AND leased_until = 'infinity')))) AS head
    WHERE has.free > 0), plain AS (SELECT 0 AS place, 1 AS share, 0 AS priority, due.*
    FROM (SELECT id, expected_at, schedule_at, enqueued_at
      FROM ((SELECT *
          FROM (SELECT id, expected_at, schedule_at, enqueued_at
            FROM "queue"
            WHERE q_name = $4::text
            AND dequeued_at IS NULL
            AND leased_until IS NULL
            AND schedule_at IS NULL
            AND expected_at IS NOT NULL
            ORDER BY expected_at, enqueued_at, id
            LIMIT 22) AS head
          LIMIT (SELECT 22))
        UNION ALL (SELECT *
          FROM (SELECT id, expected_at, schedule_at, enqueued_at
            FROM "queue"
            WHERE q_name = $4::text
            AND dequeued_at IS NULL
            AND leased_until IS NULL
            AND expected_at IS NULL
            AND coalesce(schedule_at, enqueued_at) <= statement_timestamp()
            ORDER BY coalesce(schedule_at, enqueued_at), id
            LIMIT 22) AS head
          LIMIT (SELECT 22))
        UNION ALL (SELECT *
          FROM (SELECT id, expected_at, schedule_at, enqueued_at
            FROM "queue"
            WHERE q_name = $4::text
            AND dequeued_at IS NULL
            AND (leased_until IS NOT NULL
              OR (schedule_at IS NOT NULL
                AND expected_at IS NOT NULL))
            AND coalesce(leased_until, schedule_at) <= statement_timestamp()
            AND coalesce(leased_until, schedule_at) >= coalesce(statement_timestamp() - $5::float8 * interval '1 second', '-infinity')
            AND parked_on IS NULL
            ORDER BY coalesce(leased_until, schedule_at), id
            LIMIT 1000) AS head
          LIMIT (SELECT 1000))) AS candidates
      WHERE coalesce(schedule_at, enqueued_at) <= statement_timestamp()
      ORDER BY expected_at, coalesce(schedule_at, enqueued_at), id
      LIMIT 22) AS due), turns AS MATERIALIZED (SELECT job.*, shares.start + (row_number() OVER (PARTITION BY share
        ORDER BY priority DESC, expected_at, coalesce(schedule_at, enqueued_at), id) - 1) / shares.weight AS turn
    FROM (SELECT *
      FROM heads
      UNION ALL
      SELECT *
      FROM plain) AS job
    JOIN shares USING (share)), numbered AS MATERIALIZED (SELECT turns.id, needs.key, count(*) OVER (PARTITION BY turns.id) AS keys, row_number() OVER (PARTITION BY needs.key
      ORDER BY turn, priority DESC, expected_at, coalesce(schedule_at, enqueued_at), id) AS number
    FROM turns
    JOIN needs USING (place)), judged AS MATERIALIZED (SELECT id, key, keys, number, free, bool_or(number > free + $6::int) OVER (PARTITION BY id) AS unfit
    FROM numbered
    JOIN room USING (key)), second AS (SELECT id
    FROM (SELECT id, keys, free, unfit, count(*) FILTER (WHERE NOT unfit) OVER (PARTITION BY key) AS fit, row_number() OVER (PARTITION BY key, unfit, keys
        ORDER BY number) AS further
      FROM judged) AS alone
    WHERE unfit
    AND keys = 1
    AND fit + further <= free), chosen AS MATERIALIZED (SELECT *, row_number() OVER (ORDER BY turn, priority DESC, expected_at, coalesce(schedule_at, enqueued_at), id) AS rank
    FROM turns
    WHERE id NOT IN (SELECT id
      FROM judged
      WHERE unfit)
    OR id IN (SELECT id
      FROM second)
    ORDER BY rank
    LIMIT 22), asked AS MATERIALIZED (SELECT DISTINCT needs.key
    FROM needs
    JOIN chosen USING (place)
    WHERE rank <= 2 + $6::int), missing AS MATERIALIZED (SELECT key
    FROM room
    WHERE version IS NULL
    AND key IN (SELECT key
      FROM asked)), locked AS MATERIALIZED (SELECT mine.version, mine.key
    FROM room
    CROSS JOIN LATERAL (SELECT version, key
      FROM "queue_keys"
      WHERE q_name = $4::text
      AND key = room.key
      AND version = room.version
      FOR UPDATE SKIP LOCKED) AS mine
    WHERE room.key IN (SELECT key
      FROM asked)
    AND NOT EXISTS (SELECT
      FROM missing)), allowed AS MATERIALIZED (SELECT *
    FROM chosen
    WHERE NOT EXISTS (SELECT
      FROM missing)
    AND place NOT IN (SELECT place
      FROM needs
      WHERE key NOT IN (SELECT key
        FROM locked))
    ORDER BY rank), held AS MATERIALIZED (SELECT allowed.*
    FROM allowed
    CROSS JOIN LATERAL (SELECT
      FROM "queue"
      WHERE id = allowed.id
      AND q_name = $4::text
      AND dequeued_at IS NULL
      AND (leased_until IS NULL
        OR leased_until <= statement_timestamp()
        OR (parked_on IS NOT NULL
          AND leased_until = 'infinity'))
      AND coalesce(schedule_at, enqueued_at) <= statement_timestamp()
      AND (allowed.place = 0) = (parked_on IS NULL)
      FOR UPDATE SKIP LOCKED) AS free
    LIMIT 2 + $6::int), picked AS MATERIALIZED (SELECT place, id
    FROM held
    WHERE id NOT IN (SELECT id
      FROM (SELECT held.id, needs.key, row_number() OVER (PARTITION BY needs.key
          ORDER BY rank) AS number
        FROM held
        JOIN needs USING (place)) AS each
      JOIN room USING (key)
      WHERE each.number > room.free)
    ORDER BY rank
    LIMIT 2), admitted AS MATERIALIZED (SELECT needs.key, array_agg(picked.id) AS ids
    FROM picked
    JOIN needs USING (place)
    GROUP BY needs.key), written AS (UPDATE "queue_keys" AS kept
    SET (version, places, newest, running, tokens, refilled_at, admitted_at, reserved) = (SELECT kept.version + 1, room.put_places, room.newest, room.alive_ids || admitted.ids, room.tokens - cardinality(admitted.ids), statement_timestamp(), statement_timestamp(),
      CASE WHEN room.reserved_for IS NOT NULL THEN room.reserved END
      FROM admitted
      JOIN room USING (key)
      WHERE admitted.key = kept.key)
    WHERE (kept.key, kept.version) IN (SELECT locked.key, locked.version
      FROM locked
      JOIN admitted USING (key))), leased AS (UPDATE "queue"
    SET attempts =
    CASE WHEN parked_on IS NULL
    AND strpos(headers::text, '"gate"') > 0 THEN attempts ELSE mod(attempts, 2147483647) + 1 END, leased_until =
    CASE WHEN parked_on IS NULL
    AND strpos(headers::text, '"gate"') > 0 THEN 'infinity' ELSE statement_timestamp() + $7::float8 * interval '1 second' END, parked_on =
    CASE WHEN parked_on IS NULL
    AND strpos(headers::text, '"gate"') > 0 THEN '?' END, dedup_key =
    CASE WHEN strpos(headers::text, '"started"') > 0
    AND
    CASE WHEN strpos(lower(headers::text), chr(92) || 'u0000') + strpos(lower(headers::text), chr(92) || 'ud') > 0 THEN strpos(headers::text, '"dedup":"started"') > 0 ELSE headers #>> '{gate,dedup}' = 'started' END THEN NULL ELSE dedup_key END
    WHERE id = ANY (ARRAY(SELECT id
        FROM picked))
    AND q_name = $4::text
    RETURNING id, data::text, payload, serializer, attempts, least(greatest(enqueued_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999'),
    CASE WHEN schedule_at IS NOT NULL THEN least(greatest(schedule_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END,
    CASE WHEN expected_at IS NOT NULL THEN least(greatest(expected_at AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999') END, headers::text,
    CASE WHEN failures IS NOT NULL
    OR excused IS NOT NULL THEN coalesce(failures, 0)::bigint * 4294967296 + greatest(coalesce(excused, 0), 0) END)
  SELECT leased.*, picked.place, NULL::float8, NULL::text
  FROM leased
  JOIN picked
  ON picked.id = leased.id
  UNION ALL
  SELECT NULL::bigint, NULL::text, NULL::bytea, NULL::text, NULL::int, NULL::timestamp, NULL::timestamp, NULL::timestamp, NULL::text, NULL::bigint,
  CASE WHEN EXISTS (SELECT
    FROM chosen)
  AND NOT EXISTS (SELECT
    FROM picked) THEN -2 ELSE -1 END -
  CASE WHEN EXISTS (SELECT
    FROM plain) THEN 2 ELSE 0 END, (SELECT min((1 - tokens) / rate)::float8
    FROM room
    WHERE tokens < 1), (SELECT json_agg(key)::text
    FROM missing);

-- take_tokens $1 q_name, $2 capacity, $3 rate, $4 n
PREPARE "take_tokens" AS WITH bucket AS (SELECT q_name, tokens, greatest(extract(epoch FROM clock_timestamp() - refilled_at), 0)::float8 AS elapsed
    FROM "queue_rates"
    WHERE q_name = $1::text
    FOR UPDATE), filled AS (SELECT q_name, least($2::float8, tokens + elapsed * $3::float8) AS available
    FROM bucket), granted AS (SELECT q_name, available, least($4::int, floor(available))::int AS number
    FROM filled)
  UPDATE "queue_rates" AS kept
  SET tokens = available - number, refilled_at = clock_timestamp()
  FROM granted
  WHERE kept.q_name = granted.q_name
  RETURNING number, (greatest(1 - (available - number), 0) / $3::float8)::float8;

-- tell
/*NO LOAD BALANCE*/ PREPARE "tell" AS
  SELECT 1;

-- tick $1 q_name, $2 name, $3 tick, $4 ahead, $5 data, $6 payload, $7 serializer, $8 expected_at, $9 expected_in, $10 headers, $11 group_key, $12 dedup_key, $13 lane, $14 priority
PREPARE "tick" AS WITH won AS (INSERT INTO "queue_ticks" AS last (q_name, name, tick)
    SELECT $1::text, $2::text, $3::timestamptz
    WHERE $3::timestamptz <= statement_timestamp() + $4::float8 * interval '1 second'
    ON CONFLICT (q_name, name) DO UPDATE
    SET tick = excluded.tick
    WHERE last.tick < excluded.tick
    RETURNING tick)
  INSERT INTO "queue" (q_name, data, payload, serializer, enqueued_at, schedule_at, expected_at, headers, group_key, dedup_key, parked_on, leased_until, priority)
  SELECT $1::text, $5::text::json, $6::bytea, $7::text, statement_timestamp(), tick, coalesce($8::timestamptz, statement_timestamp() + $9::float8 * interval '1 second'), $10::text::json, $11::text, $12::text, $13::text,
  CASE WHEN $13::text IS NOT NULL THEN 'infinity'::timestamptz END, $14::int
  FROM won
  ON CONFLICT (q_name, dedup_key)
  WHERE dedup_key IS NOT NULL
  AND dequeued_at IS NULL DO NOTHING
  RETURNING id;

-- tick_schedule $1 q_name, $2 name, $3 version, $4 tick, $5 ahead, $6 data, $7 payload, $8 serializer, $9 expected_at, $10 expected_in, $11 headers, $12 group_key, $13 dedup_key, $14 lane, $15 priority
PREPARE "tick_schedule" AS WITH free AS (SELECT q_name, name, cron, tz
    FROM "queue_schedules"
    WHERE q_name = $1::text
    AND name = $2::text
    AND updated_at = $3::timestamptz
    AND paused_at IS NULL
    FOR SHARE SKIP LOCKED), won AS (INSERT INTO "queue_ticks" AS last (q_name, name, tick)
    SELECT $1::text, $2::text, $4::timestamptz
    FROM free
    WHERE $4::timestamptz <= statement_timestamp() + $5::float8 * interval '1 second'
    ON CONFLICT (q_name, name) DO UPDATE
    SET tick = excluded.tick
    WHERE last.tick < excluded.tick
    RETURNING tick)
  INSERT INTO "queue" (q_name, data, payload, serializer, enqueued_at, schedule_at, expected_at, headers, group_key, dedup_key, parked_on, leased_until, priority)
  SELECT $1::text, $6::text::json, $7::bytea, $8::text, statement_timestamp(), tick, coalesce($9::timestamptz, statement_timestamp() + $10::float8 * interval '1 second'), $11::text::json, $12::text, $13::text, $14::text,
  CASE WHEN $14::text IS NOT NULL THEN 'infinity'::timestamptz END, $15::int
  FROM won
  ON CONFLICT (q_name, dedup_key)
  WHERE dedup_key IS NOT NULL
  AND dequeued_at IS NULL DO NOTHING
  RETURNING id;

-- transaction_isolation
/*NO LOAD BALANCE*/ PREPARE "transaction_isolation" AS
  SELECT current_setting('transaction_isolation');

-- unlock_migrations
/*NO LOAD BALANCE*/ PREPARE "unlock_migrations" AS
  SELECT true;

-- unregister $1 channels
/*NO LOAD BALANCE*/ PREPARE "unregister" AS
  SELECT NULL::text
  WHERE false
  AND $1::text[] IS NULL;

-- update $1 data, $2 payload, $3 serializer, $4 id, $5 q_name
PREPARE "update" AS
  UPDATE "queue"
  SET data = $1::text::json, payload = $2::bytea, serializer = $3::text
  WHERE id = $4::bigint
  AND q_name = $5::text
  RETURNING id;

-- waiting_lanes $1 q_name
/*NO LOAD BALANCE*/ PREPARE "waiting_lanes" AS
  SELECT lane.name, lane.number, (SELECT headers::text
    FROM "queue"
    WHERE q_name = $1::text
    AND parked_on = lane.name
    LIMIT 1)
  FROM (SELECT parked_on AS name, count(*) AS number
    FROM "queue"
    WHERE q_name = $1::text
    AND parked_on IS NOT NULL
    AND dequeued_at IS NULL
    GROUP BY parked_on) AS lane;

-- waiting_tasks
/*NO LOAD BALANCE*/ PREPARE "waiting_tasks" AS
  SELECT q_name, task, count(*)
  FROM (SELECT q_name, substring(left(data::text, 2000)
      FROM '^\s*\{\s*"function"\s*:\s*"([^"\\]*)"\s*[,}]') AS task
    FROM ((SELECT q_name, data
        FROM "queue"
        WHERE dequeued_at IS NULL
        AND leased_until IS NULL
        AND expected_at IS NULL
        LIMIT 10000)
      UNION ALL (SELECT q_name, data
        FROM "queue"
        WHERE dequeued_at IS NULL
        AND leased_until IS NULL
        AND schedule_at IS NULL
        AND expected_at IS NOT NULL
        LIMIT 10000)
      UNION ALL (SELECT q_name, data
        FROM "queue"
        WHERE dequeued_at IS NULL
        AND (leased_until IS NOT NULL
          OR (schedule_at IS NOT NULL
            AND expected_at IS NOT NULL))
        AND (leased_until IS NULL
          OR parked_on IS NOT NULL
          OR leased_until <= statement_timestamp())
        LIMIT 10000)) AS waiting) AS calls
  WHERE task IS NOT NULL
  GROUP BY q_name, task
  ORDER BY q_name, task;

-- withdraw_worker [no rows] $1 names, $2 id
PREPARE "withdraw_worker" AS
  DELETE FROM "queue_workers"
  WHERE q_name = ANY ($1::text[])
  AND id = $2::text;

-- write_call_batches $1 id, $2 q_name, $3 old_call, $4 call
PREPARE "write_call_batches" AS WITH free AS (SELECT id
    FROM "queue_batches"
    WHERE id = $1::bigint
    AND q_name = $2::text
    AND callback::text IS NOT DISTINCT FROM $3::text
    FOR UPDATE SKIP LOCKED)
  UPDATE "queue_batches"
  SET callback = $4::text::json
  WHERE id = ANY (ARRAY(SELECT id
      FROM free))
  AND q_name = $2::text
  RETURNING id;

-- write_call_schedules $1 id, $2 q_name, $3 old_call, $4 call
PREPARE "write_call_schedules" AS WITH free AS (SELECT name
    FROM "queue_schedules"
    WHERE name = $1::text
    AND q_name = $2::text
    AND call::text IS NOT DISTINCT FROM $3::text
    FOR UPDATE SKIP LOCKED)
  UPDATE "queue_schedules"
  SET call = $4::text::json, updated_at = clock_timestamp()
  WHERE name = ANY (ARRAY(SELECT name
      FROM free))
  AND q_name = $2::text
  RETURNING name;

-- write_encoded_archive $1 id, $2 q_name, $3 old_data, $4 old_payload, $5 old_serializer, $6 old_headers, $7 data, $8 payload, $9 serializer, $10 headers
PREPARE "write_encoded_archive" AS WITH free AS (SELECT id
    FROM "queue_archive"
    WHERE id = $1::bigint
    AND q_name = $2::text
    AND data::text IS NOT DISTINCT FROM $3::text
    AND payload IS NOT DISTINCT FROM $4::bytea
    AND serializer IS NOT DISTINCT FROM $5::text
    AND headers::text IS NOT DISTINCT FROM $6::text
    FOR UPDATE SKIP LOCKED)
  UPDATE "queue_archive"
  SET data = $7::text::json, payload = $8::bytea, serializer = $9::text, headers = $10::text::json
  WHERE id = ANY (ARRAY(SELECT id
      FROM free))
  AND q_name = $2::text
  RETURNING id;

-- write_encoded_dead $1 id, $2 q_name, $3 old_data, $4 old_payload, $5 old_serializer, $6 old_headers, $7 data, $8 payload, $9 serializer, $10 headers
PREPARE "write_encoded_dead" AS WITH free AS (SELECT id
    FROM "queue_dead"
    WHERE id = $1::bigint
    AND q_name = $2::text
    AND data::text IS NOT DISTINCT FROM $3::text
    AND payload IS NOT DISTINCT FROM $4::bytea
    AND serializer IS NOT DISTINCT FROM $5::text
    AND headers::text IS NOT DISTINCT FROM $6::text
    FOR UPDATE SKIP LOCKED)
  UPDATE "queue_dead"
  SET data = $7::text::json, payload = $8::bytea, serializer = $9::text, headers = $10::text::json
  WHERE id = ANY (ARRAY(SELECT id
      FROM free))
  AND q_name = $2::text
  RETURNING id;

-- write_encoded_results $1 id, $2 q_name, $3 old_data, $4 old_payload, $5 old_serializer, $6 data, $7 payload, $8 serializer
PREPARE "write_encoded_results" AS WITH free AS (SELECT job_id
    FROM "queue_results"
    WHERE job_id = $1::bigint
    AND q_name = $2::text
    AND data::text IS NOT DISTINCT FROM $3::text
    AND payload IS NOT DISTINCT FROM $4::bytea
    AND serializer IS NOT DISTINCT FROM $5::text
    FOR UPDATE SKIP LOCKED)
  UPDATE "queue_results"
  SET data = $6::text::json, payload = $7::bytea, serializer = $8::text
  WHERE job_id = ANY (ARRAY(SELECT job_id
      FROM free))
  AND q_name = $2::text
  RETURNING job_id;

-- write_encoded_table $1 id, $2 q_name, $3 old_data, $4 old_payload, $5 old_serializer, $6 old_headers, $7 linked, $8 data, $9 payload, $10 serializer, $11 headers
PREPARE "write_encoded_table" AS WITH free AS (SELECT id
    FROM "queue"
    WHERE id = $1::bigint
    AND q_name = $2::text
    AND data::text IS NOT DISTINCT FROM $3::text
    AND payload IS NOT DISTINCT FROM $4::bytea
    AND serializer IS NOT DISTINCT FROM $5::text
    AND headers::text IS NOT DISTINCT FROM $6::text
    AND NOT ($7::boolean
      AND coalesce(leased_until > statement_timestamp()
        AND parked_on IS NULL
        AND dequeued_at IS NULL, false))
    FOR UPDATE SKIP LOCKED)
  UPDATE "queue"
  SET data = $8::text::json, payload = $9::bytea, serializer = $10::text, headers = $11::text::json, leased_until =
  CASE WHEN $7::boolean
  AND parked_on IS NULL THEN NULL ELSE leased_until END
  WHERE id = ANY (ARRAY(SELECT id
      FROM free))
  AND q_name = $2::text
  RETURNING id;
