-- Statements of concurrency limits and FIFO groups that are run as they are written here.
-- pqcore.sql.limit_statements has those that are composed, and says how the locks of keys work.

-- name: lock_keys
-- Lock keys until the transaction ends. The answer also tells whether the next statements see what the last holder of
-- the lock did: they do not above READ COMMITTED.
SELECT current_setting('transaction_isolation'), count(pg_advisory_xact_lock(gate.lock)::text)
FROM unnest(:locks::bigint[]) AS gate (lock);

-- name: try_keys
-- Lock those keys that are free, in one order for all callers: a caller that only tries waits for nobody.
SELECT gate.lock, pg_try_advisory_xact_lock(gate.lock), current_setting('transaction_isolation')
FROM unnest(:locks::bigint[]) AS gate (lock);

-- name: slots_of
-- Reads only. Give the places that jobs hold.
SELECT key, job_id FROM {slots} WHERE q_name = :q_name::text AND job_id = ANY (:ids::bigint[]);

-- name: group_heads
-- Reads only. Give the first unfinished job of each group.
SELECT wanted.key, head.id FROM unnest(:groups::text[]) AS wanted (key)
CROSS JOIN LATERAL (
  SELECT id FROM {table} WHERE q_name = :q_name::text AND group_key = wanted.key AND dequeued_at IS NULL
  ORDER BY id LIMIT 1
) AS head;

-- name: take_slots
-- Give places to jobs. The caller has the keys locked; a job that has its place already keeps it.
INSERT INTO {slots} (q_name, key, job_id)
SELECT :q_name::text, place.key, place.job FROM unnest(:keys::text[], :ids::bigint[]) AS place (key, job)
ON CONFLICT DO NOTHING;

-- name: free_slots
-- Free all places of jobs. A DELETE of a place that was freed meanwhile finds nothing.
DELETE FROM {slots} WHERE q_name = :q_name::text AND job_id = ANY (:ids::bigint[]);

-- name: free_places
-- Free single places of jobs that are parked. The caller has the keys locked, so no such job is let in meanwhile.
DELETE FROM {slots} AS slot USING unnest(:keys::text[], :ids::bigint[]) AS place (key, job)
WHERE slot.q_name = :q_name::text AND slot.key = place.key AND slot.job_id = place.job
  AND (SELECT num_nulls(parked_on) = 0 FROM {table} WHERE id = place.job AND q_name = :q_name::text);

-- name: park_again
-- Undo `unpark` in its transaction, which has the rows locked: no fetch has seen them.
WITH again AS (
  UPDATE {table} SET leased_until = 'infinity', parked_on = :key::text
  WHERE id = ANY (:ids::bigint[]) AND q_name = :q_name::text RETURNING id
)
DELETE FROM {slots}
WHERE q_name = :q_name::text AND key = :key::text AND job_id = ANY (ARRAY(SELECT id FROM again));

-- name: unpark_head
-- Let in the head of a group, if it is parked: otherwise it waits, or runs. A locked row is skipped.
WITH head AS (
  SELECT id FROM {table} WHERE q_name = :q_name::text AND group_key = :group::text AND dequeued_at IS NULL
  ORDER BY id LIMIT 1
), free AS (
  SELECT id FROM {table} WHERE id = ANY (ARRAY(SELECT id FROM head)) AND q_name = :q_name::text
    AND parked_on = :key::text
  FOR UPDATE SKIP LOCKED
)
UPDATE {table} SET leased_until = NULL, parked_on = NULL
WHERE id = ANY (ARRAY(SELECT id FROM free)) AND q_name = :q_name::text
RETURNING id, pg_notify(:channel::text, '')::text;

-- name: sweep_slots
-- Free the places of jobs that are finished or gone, which a crash, or a change by hand, left behind.
-- A job that is put or run again meanwhile gets its place later, in a row that this statement's snapshot does not have.
DELETE FROM {slots} AS slot WHERE slot.q_name = :q_name::text
  AND (SELECT num_nulls(dequeued_at) = 1 FROM {table} WHERE id = slot.job_id AND q_name = :q_name::text) IS NOT TRUE;

-- name: slots_of_parked
-- Reads only. Give the places that parked jobs hold.
SELECT slot.key, slot.job_id, job.parked_on FROM {slots} AS slot
CROSS JOIN LATERAL (
  SELECT parked_on FROM {table} WHERE id = slot.job_id AND q_name = :q_name::text AND num_nulls(parked_on) = 0 LIMIT 1
) AS job
WHERE slot.q_name = :q_name::text;
