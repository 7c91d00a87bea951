--- This trigger wakes waiters once for each statement and queue, on the channel that pq uses (see
--- pqcore.sql.identifiers.channel), if there are any. NOTIFY takes a database-wide lock at commit, which slows
--- small parallel commits. A waiter holds a shared lock on the channel (see pqcore.db.listener); if the
--- exclusive lock is free, nobody waits. The exclusive lock is only tried, and released in the same expression. So no
--- put waits for another, and a cancelled put leaves nothing locked. If two puts try it concurrently, one of them
--- notifies in vain. SET pqcore.notify = 'off' silences the trigger for a session or transaction; 'always' is for
--- sessions that listen without the shared lock. The seed of the hash, which no other locks use, is also in pqcore.sql.
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
