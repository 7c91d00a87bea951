-- Statements of the samples of figures that workers keep. A sample without a queue's name has the sum of all queues.

-- name: last_sample
-- This statement only reads two entries of an index. Return the present minute, and for the last sample its age and the
-- time that it took, both in seconds; they are NULL without a sample.
SELECT (floor(extract(epoch FROM statement_timestamp()) / 60) * 60)::float8, last.age, last.took
FROM (SELECT 1) AS one LEFT JOIN (
  SELECT extract(epoch FROM statement_timestamp() - at)::float8 AS age, took FROM {samples} WHERE q_name = ''
  ORDER BY at DESC LIMIT 1
) AS last ON true;

-- name: claim_sample
-- Claim the sample of a minute; return no row if another worker has claimed it. If two workers claim it concurrently,
-- ON CONFLICT makes one wait for the other's commit, which comes immediately, and then find the sample claimed. The
-- figures are read after this commit, so nobody waits for the reading.
INSERT INTO {samples} (at, q_name) VALUES (to_timestamp(:at::float8), '') ON CONFLICT (at, q_name) DO NOTHING
RETURNING q_name;

-- name: keep_sample
-- Keep the figures of a sample. Only the worker that has claimed the minute writes its rows.
INSERT INTO {samples} (at, q_name, ready, scheduled, leased, parked, dead, finished, oldest, median, slow, took, queues)
SELECT to_timestamp(:at::float8), item.q_name, item.ready, item.scheduled, item.leased, item.parked, item.dead,
  item.finished, item.oldest, item.median, item.slow, item.took, item.queues
FROM json_to_recordset(:items::text::json) AS item (
  q_name text, ready bigint, scheduled bigint, leased bigint, parked bigint, dead bigint, finished bigint,
  oldest float8, median float8, slow float8, took float8, queues int
)
ON CONFLICT (at, q_name) DO UPDATE SET ready = excluded.ready, scheduled = excluded.scheduled,
  leased = excluded.leased, parked = excluded.parked, dead = excluded.dead, finished = excluded.finished,
  oldest = excluded.oldest, median = excluded.median, slow = excluded.slow, took = excluded.took,
  queues = excluded.queues;

-- name: prune_samples
-- Delete samples that are older than a day, and samples from the future, which were kept when the server's clock was
-- ahead. The key begins with the time, so only these are read. If two workers delete concurrently, one waits for the
-- other, which takes some milliseconds, and finds the rows gone.
DELETE FROM {samples} WHERE at < statement_timestamp() - interval '1 day'
  OR at > statement_timestamp() + interval '1 minute';

-- name: find_samples
-- This statement only reads. Return the samples of one queue, or of all queues, with those of the sum of all queues.
SELECT extract(epoch FROM statement_timestamp() - at)::float8, q_name, ready, scheduled, leased, parked, dead, finished,
  oldest, median, slow, queues
FROM {samples}
WHERE at > statement_timestamp() - :seconds::float8 * interval '1 second' AND ready IS NOT NULL
  AND (:q_name::text IS NULL OR q_name IN ('', :q_name::text))
ORDER BY at, q_name;

-- name: age_of_sample
-- This statement only reads. Return the age in seconds of the last sample that has figures, and the time that it took.
SELECT extract(epoch FROM statement_timestamp() - at)::float8, took FROM {samples}
WHERE q_name = '' AND ready IS NOT NULL ORDER BY at DESC LIMIT 1;
