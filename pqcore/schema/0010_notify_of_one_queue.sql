-- needs 5
--- Like the last version, but a statement whose rows all belong to one queue, as nearly all do, uses the first and the
--- last name. Gathering the distinct names took a tenth of the time of inserting many rows.
CREATE OR REPLACE FUNCTION {notify}() RETURNS trigger LANGUAGE plpgsql AS $function$
DECLARE
  setting text := current_setting('pqcore.notify', true);
  channel text;
  last text;
BEGIN
  IF setting = 'off' THEN
    RETURN NULL;
  END IF;
  SELECT min(q_name COLLATE "C"), max(q_name COLLATE "C") INTO channel, last FROM fresh;
  IF channel = last THEN
    IF octet_length(convert_to(channel, 'UTF8')) > 63 THEN
      channel := 'pq_' || md5(convert_to(channel, 'UTF8'));
    END IF;
    IF setting = 'always'
      OR (CASE WHEN pg_try_advisory_lock(hashtextextended(channel, 7071))
               THEN NOT pg_advisory_unlock(hashtextextended(channel, 7071)) ELSE true END) THEN
      PERFORM pg_notify(channel, '');
    END IF;
    RETURN NULL;
  END IF;
  PERFORM pg_notify(channels.channel, '')
  FROM (
    SELECT DISTINCT CASE WHEN octet_length(convert_to(q_name, 'UTF8')) > 63
                         THEN 'pq_' || md5(convert_to(q_name, 'UTF8')) ELSE q_name END AS channel
    FROM fresh
  ) AS channels
  WHERE setting = 'always'
    OR CASE WHEN pg_try_advisory_lock(hashtextextended(channels.channel, 7071))
            THEN NOT pg_advisory_unlock(hashtextextended(channels.channel, 7071)) ELSE true END;
  RETURN NULL;
END $function$
