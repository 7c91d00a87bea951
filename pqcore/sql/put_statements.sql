-- Statements of puts with options that need no fragments. pqcore.sql.put_statements composes the others.

-- name: claim_key
-- Claim a key for a time; return no row if another job holds it. ON CONFLICT DO UPDATE locks the row of the key, and
-- checks the locked row, in one statement. The claimant puts the job, and stores its id, in the same transaction: other
-- sessions wait for its end. The job draws its id like any other job, so a role that can only put needs no privilege to
-- choose ids.
INSERT INTO {dedup} AS held (q_name, dedup_key, job_id, until)
VALUES (:q_name::text, :dedup_key::text, 0, clock_timestamp() + :period::float8 * interval '1 second')
ON CONFLICT (q_name, dedup_key) DO UPDATE SET job_id = excluded.job_id, until = excluded.until
  WHERE held.until <= clock_timestamp()
RETURNING job_id;

-- name: set_key_holder
-- Store which job holds a key. The claimant has locked the row.
UPDATE {dedup} SET job_id = :id::bigint WHERE q_name = :q_name::text AND dedup_key = :dedup_key::text;

-- name: sweep_dedup
-- Delete keys whose time is over. If another session is claiming a key, this statement waits, and then checks the key
-- again.
DELETE FROM {dedup} WHERE q_name = :q_name::text AND until <= statement_timestamp();

-- name: claim_keys
-- Claim keys for a time; return the keys that no other job holds. See `claim_key`. Keys are inserted in their order, so
-- that two such statements do not deadlock.
INSERT INTO {dedup} AS held (q_name, dedup_key, job_id, until)
SELECT :q_name::text, item.dedup_key, 0, clock_timestamp() + item.period * interval '1 second'
FROM json_to_recordset(:items::text::json) AS item (dedup_key text, period float8) ORDER BY item.dedup_key
ON CONFLICT (q_name, dedup_key) DO UPDATE SET job_id = excluded.job_id, until = excluded.until
  WHERE held.until <= clock_timestamp()
RETURNING dedup_key;

-- name: set_key_holders
-- Store which jobs hold keys. The claimant has locked the rows.
UPDATE {dedup} AS held SET job_id = item.id
FROM json_to_recordset(:items::text::json) AS item (dedup_key text, id bigint)
WHERE held.q_name = :q_name::text AND held.dedup_key = item.dedup_key;
