--- Wakes waiters once a statement and queue, on the channel that pq uses (see pqcore.identifiers.channel),
--- if there are any: NOTIFY takes a database-wide lock at commit, so many small commits in parallel are
--- faster without. Who waits holds a shared lock on the channel (see pqcore.waiting); if the exclusive one
--- is to be had, nobody does. It is tried only, and given back in the same expression, so that no put waits
--- for another, and nothing is left locked by one that is cancelled. Putters that meet notify in vain.
--- SET pqcore.notify = 'off' silences it for a session or transaction, 'always' is for those who listen
--- without that lock. The seed of the hash, which no other locks are taken with, is also in pqcore.dialect.
CREATE OR REPLACE FUNCTION {notify}() RETURNS trigger LANGUAGE plpgsql AS $function$
DECLARE
  setting text := current_setting('pqcore.notify', true);
BEGIN
  IF setting = 'off' THEN
    RETURN NULL;
  END IF;
  PERFORM pg_notify(channel, '')
  FROM (
    SELECT DISTINCT CASE WHEN octet_length(convert_to(q_name, 'UTF8')) > 63
                         THEN 'pq_' || md5(convert_to(q_name, 'UTF8')) ELSE q_name END AS channel
    FROM fresh
  ) AS channels
  WHERE setting = 'always'
    OR CASE WHEN pg_try_advisory_lock(hashtextextended(channel, 7071))
            THEN NOT pg_advisory_unlock(hashtextextended(channel, 7071)) ELSE true END;
  RETURN NULL;
END $function$
