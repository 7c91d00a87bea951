--- Jobs that hold a place under a concurrency limit or in a FIFO group, and so may run.
CREATE TABLE IF NOT EXISTS {slots} (
  q_name text   NOT NULL,
  key    text   NOT NULL,
  job_id bigint NOT NULL,
  PRIMARY KEY (q_name, key, job_id)
)
--- For releasing all places of a job.
CREATE INDEX IF NOT EXISTS {slots_job_index} ON {slots} (job_id)
--- Dead letters: jobs that failed for good, unchanged, with the last error.
CREATE TABLE IF NOT EXISTS {dead} (
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
)
--- For listing the latest dead letters, and deleting the oldest first.
CREATE INDEX IF NOT EXISTS {dead_index} ON {dead} (q_name, died_at, id)
--- Outcomes of jobs whose results are kept, and the progress of running jobs.
CREATE TABLE IF NOT EXISTS {results} (
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
)
--- For the sweep of expired results.
CREATE INDEX IF NOT EXISTS {results_index} ON {results} (expires_at) WHERE expires_at IS NOT NULL
--- Batches: the number of jobs that are still pending, and the call that is put after them.
CREATE TABLE IF NOT EXISTS {batches} (
  id         bigserial   PRIMARY KEY,
  q_name     text        NOT NULL,
  total      integer     NOT NULL,
  pending    integer     NOT NULL,
  failed     integer     NOT NULL DEFAULT 0,
  callback   json,
  created_at timestamptz NOT NULL DEFAULT statement_timestamp()
)
--- The last tick of each periodic task: the worker that moves it forward puts the job.
CREATE TABLE IF NOT EXISTS {ticks} (
  q_name text        NOT NULL,
  name   text        NOT NULL,
  tick   timestamptz NOT NULL,
  PRIMARY KEY (q_name, name)
)
--- Token buckets of queues with a rate limit.
CREATE TABLE IF NOT EXISTS {rates} (
  q_name      text             PRIMARY KEY,
  tokens      double precision NOT NULL,
  refilled_at timestamptz      NOT NULL
)
--- Dedup keys that are held for a time, even if the job ends earlier.
CREATE TABLE IF NOT EXISTS {dedup} (
  q_name    text        NOT NULL,
  dedup_key text        NOT NULL,
  job_id    bigint      NOT NULL,
  until     timestamptz NOT NULL,
  PRIMARY KEY (q_name, dedup_key)
)
