-- needs 5
--- `pqcore_put` puts a job, like `Queue.put`, from SQL and from any language. The statements are those of
--- pqcore.sql.put_statements, with the fields of `item` in place of parameters; a test compares them. A caller's search
--- path cannot change what a name means: the function has its own path, and names the table's schema. So the table's
--- schema is looked up here. Only roles that may put jobs may call the function, with their own privileges.
DO $do$
DECLARE
  home text;
  queue text;
  dedup text;
  made text;
  body text := $put$
CREATE OR REPLACE FUNCTION <put> (
  queue text,
  data jsonb DEFAULT NULL,
  schedule_at timestamptz DEFAULT NULL,
  expected_at timestamptz DEFAULT NULL,
  delay interval DEFAULT NULL,
  task text DEFAULT NULL,
  args jsonb DEFAULT NULL,
  kwargs jsonb DEFAULT NULL,
  max_retries integer DEFAULT NULL,
  timeout interval DEFAULT NULL,
  deadline timestamptz DEFAULT NULL,
  keep_result interval DEFAULT NULL,
  priority integer DEFAULT NULL,
  tenant text DEFAULT NULL,
  group_key text DEFAULT NULL,
  limits jsonb DEFAULT NULL,
  dedup_key text DEFAULT NULL,
  dedup_until text DEFAULT 'finished',
  on_conflict text DEFAULT 'keep',
  headers jsonb DEFAULT NULL
) RETURNS bigint LANGUAGE plpgsql SECURITY INVOKER SET search_path = pg_catalog, pg_temp AS $function$
#variable_conflict use_column
DECLARE
  fault text;
  period float8;
  gate text;
  lane text;
  run text;
  item record;
BEGIN
  fault := CASE
    WHEN coalesce(queue, '') = '' THEN 'queue is empty; give the name of a queue'
    WHEN octet_length(convert_to(queue, 'UTF8')) > 2000
      THEN format('queue %L... has %s bytes; give at most 2000', left(queue, 80),
        octet_length(convert_to(queue, 'UTF8')))
    WHEN num_nonnulls(data, task) = 0
      THEN 'data is NULL; give JSON, such as ''null'', or the name of a task'
    WHEN num_nonnulls(data, task) = 2
      THEN 'data and task are both given; give one of them, and the arguments of a task as args and kwargs'
    WHEN btrim(task, E' \t\n\r\f\x0b') = '' THEN format('task is %L; give the name of a task', left(task, 80))
    WHEN task IS NULL AND num_nonnulls(args, kwargs, max_retries, timeout, deadline, keep_result) > 0
      THEN 'args, kwargs, max_retries, timeout, deadline and keep_result are options of a task; give task, too'
    WHEN jsonb_typeof(args) <> 'array' THEN format('args is %s; give an array, as in ''[42]''', left(args::text, 80))
    WHEN jsonb_typeof(kwargs) <> 'object'
      THEN format('kwargs is %s; give an object, as in ''{{"to": "x"}}''', left(kwargs::text, 80))
    WHEN max_retries < 0 THEN format('max_retries is %s; give a number of at least 0', max_retries)
    WHEN num_nonnulls(schedule_at, delay) = 2 THEN 'schedule_at and delay are both given; give one of them'
    WHEN abs(priority::bigint) > 1000000
      THEN format('priority is %s; give a whole number from -1,000,000 to 1,000,000', priority)
    WHEN jsonb_typeof(limits) <> 'object'
      THEN format('limits is %s; give an object, as in ''{{"reports": 3}}''', left(limits::text, 80))
    WHEN jsonb_typeof(headers) <> 'object'
      THEN format('headers is %s; give an object, as in ''{{"x": 1}}''', left(headers::text, 80))
    WHEN on_conflict IS NULL OR on_conflict NOT IN ('keep', 'replace', 'error')
      THEN format('on_conflict is %L; choose ''keep'', ''replace'' or ''error''', left(on_conflict, 80))
    WHEN dedup_until IS NULL THEN 'dedup_until is NULL; give ''finished'', ''started'', or a time, as in ''5 minutes'''
  END;
  IF fault IS NULL AND dedup_until NOT IN ('finished', 'started') THEN
    BEGIN
      period := date_part('epoch', dedup_until::interval);
    EXCEPTION WHEN data_exception THEN
      fault := format('dedup_until is %L; give ''finished'', ''started'', or a time, as in ''5 minutes''',
        left(dedup_until, 80));
    END;
  END IF;
  fault := coalesce(fault,
    (SELECT format('%s is %s; give a nearer time', name, moment)
     FROM (VALUES ('schedule_at', schedule_at), ('expected_at', expected_at), ('deadline', deadline))
       AS given (name, moment)
     WHERE moment NOT BETWEEN '0001-01-01 00:00:00+00' AND '9999-12-31 23:59:59.999998+00' LIMIT 1),
    (SELECT format('%s is %s s; give a time from %s to 31622400000 s (366,000 days)', name, number, lowest)
     FROM (VALUES ('delay', date_part('epoch', delay), -31622400000), ('timeout', date_part('epoch', timeout), 0),
       ('keep_result', date_part('epoch', keep_result), 0), ('dedup_until', period, 0)) AS given (name, number, lowest)
     WHERE number NOT BETWEEN lowest AND 31622400000 LIMIT 1),
    (SELECT CASE name WHEN '' THEN what || ' is empty; give a name, or leave it out'
       ELSE format('%s %L... has %s bytes; give at most 500', what, left(name, 80),
         octet_length(convert_to(name, 'UTF8'))) END
     FROM (VALUES ('group_key', group_key), ('tenant', tenant), ('dedup_key', dedup_key)
       UNION ALL SELECT 'limit', jsonb_object_keys(limits)) AS given (what, name)
     WHERE name = '' OR octet_length(convert_to(name, 'UTF8')) > 500 LIMIT 1),
    (SELECT format('limit %L is %s; give the number of jobs that may run concurrently, from 1 to 2,147,483,647',
       name, left(places::text, 80))
     FROM jsonb_each(limits) AS given (name, places)
     WHERE NOT CASE WHEN places::text ~ '^[0-9]{{1,10}}$' THEN places::text::bigint BETWEEN 1 AND 2147483647
       ELSE false END LIMIT 1),
    (SELECT format('header %L is pqcore''s own; choose another name', name)
     FROM jsonb_object_keys(headers) AS given (name)
     WHERE name IN ('gate', 'run', 'keep', 'then', 'batch', 'batch_token', 'previous') LIMIT 1));
  IF fault IS NOT NULL THEN
    RAISE invalid_parameter_value USING MESSAGE = fault;
  END IF;
  period := CASE WHEN dedup_key IS NOT NULL THEN period END;
  gate := concat_ws(',', '"group":' || to_json(group_key), '"limits":' || nullif(limits, '{{}}')::text,
    '"share":' || to_json(tenant), '"priority":' || nullif(priority, 0),
    CASE WHEN dedup_key IS NOT NULL AND dedup_until = 'started' THEN '"dedup":"started"' END);
  IF gate <> '' THEN
    lane := (SELECT concat('[', coalesce(priority, 0), ',', to_json(coalesce(tenant, '')),
        string_agg(',' || to_json(key || '=' || places), '' ORDER BY key COLLATE "C"), ']')
      FROM (SELECT 'limit:' || name, places::text FROM jsonb_each(limits) AS given (name, places)
        UNION ALL SELECT 'group:' || group_key, '1' WHERE group_key IS NOT NULL) AS need (key, places));
    IF octet_length(convert_to(lane, 'UTF8')) > 500 THEN
      lane := format('[%s,"","#%s"]', coalesce(priority, 0), encode(sha256(convert_to(lane, 'UTF8')), 'hex'));
    END IF;
  END IF;
  run := concat_ws(',', '"timeout":' || date_part('epoch', timeout), '"deadline":' || date_part('epoch', deadline));
  SELECT NULL::bigint AS id, queue AS q_name, 'json' AS serializer, NULL::bytea AS payload,
    coalesce(data::text, concat('{{"function": ', to_json(task), ', "args": ', coalesce(args, '[]'), ', "kwargs": ',
      coalesce(kwargs, '{{}}'), ', "retried": 0', ', "max_retries": ' || max_retries, '}}')) AS data,
    schedule_at, date_part('epoch', delay) AS schedule_in, expected_at, NULL::float8 AS expected_in,
    '{{' || nullif(concat_ws(',', nullif(substr(headers::text, 2, length(headers::text) - 2), ''),
      '"run":{{' || nullif(run, '') || '}}', '"keep":' || date_part('epoch', keep_result),
      '"gate":{{' || nullif(gate, '') || '}}'), '') || '}}' AS headers,
    group_key, dedup_key, lane, coalesce(priority, 0) AS priority, period INTO item;
  FOR attempt IN 1..20 LOOP
    IF period IS NOT NULL THEN
      INSERT INTO <dedup> AS held (q_name, dedup_key, job_id, until)
      VALUES (item.q_name::text, item.dedup_key::text, 0, clock_timestamp() + item.period::float8 * interval '1 second')
      ON CONFLICT (q_name, dedup_key) DO UPDATE SET job_id = excluded.job_id, until = excluded.until
        WHERE held.until <= clock_timestamp();
    END IF;
    IF period IS NULL OR FOUND THEN
      item.dedup_key := CASE WHEN period IS NULL THEN dedup_key END;
      INSERT INTO <table> (q_name, data, payload, serializer, enqueued_at, schedule_at, expected_at, headers, group_key,
        dedup_key, parked_on, leased_until, priority)
      VALUES (item.q_name::text, item.data::text::json, item.payload::bytea, item.serializer::text,
        statement_timestamp(),
        coalesce(item.schedule_at::timestamptz, statement_timestamp() + item.schedule_in::float8 * interval '1 second'),
        coalesce(item.expected_at::timestamptz, statement_timestamp() + item.expected_in::float8 * interval '1 second'),
        item.headers::text::json, item.group_key::text, item.dedup_key::text,
        CASE WHEN coalesce(item.schedule_at::timestamptz, statement_timestamp()
          + item.schedule_in::float8 * interval '1 second')
          > statement_timestamp() THEN NULL ELSE item.lane::text END,
        CASE WHEN CASE WHEN coalesce(item.schedule_at::timestamptz, statement_timestamp()
          + item.schedule_in::float8 * interval '1 second')
          > statement_timestamp() THEN NULL ELSE item.lane::text END IS NOT NULL
          THEN 'infinity'::timestamptz END, item.priority::int)
      ON CONFLICT (q_name, dedup_key) WHERE dedup_key IS NOT NULL AND dequeued_at IS NULL DO NOTHING
      RETURNING id INTO item.id;
      IF FOUND AND period IS NOT NULL THEN
        item.dedup_key := dedup_key;
        UPDATE <dedup> SET job_id = item.id::bigint
        WHERE q_name = item.q_name::text AND dedup_key = item.dedup_key::text;
      END IF;
      IF item.id IS NOT NULL THEN
        RETURN item.id;
      END IF;
      EXIT WHEN dedup_key IS NULL OR period IS NOT NULL;
      SELECT id INTO item.id FROM <table>
      WHERE q_name = item.q_name::text AND dedup_key = item.dedup_key::text AND dequeued_at IS NULL;
    ELSE
      SELECT job_id INTO item.id FROM <dedup> AS held
      WHERE q_name = item.q_name::text AND dedup_key = item.dedup_key::text;
    END IF;
    CONTINUE WHEN NOT FOUND;
    IF on_conflict = 'error' THEN
      RAISE unique_violation USING MESSAGE =
        format('job %s of queue %L has the dedup key %L; nothing was put', item.id, queue, dedup_key);
    ELSIF on_conflict = 'replace' THEN
      UPDATE <table> AS held SET data = item.data::text::json, payload = item.payload::bytea,
        serializer = item.serializer::text,
        schedule_at = coalesce(item.schedule_at::timestamptz, statement_timestamp()
          + item.schedule_in::float8 * interval '1 second'),
        expected_at = coalesce(item.expected_at::timestamptz, statement_timestamp()
          + item.expected_in::float8 * interval '1 second'),
        headers = item.headers::text::json, group_key = item.group_key::text,
        (parked_on, leased_until, priority) = ROW (
        CASE WHEN coalesce(item.schedule_at::timestamptz, statement_timestamp()
          + item.schedule_in::float8 * interval '1 second')
          > statement_timestamp() THEN NULL ELSE item.lane::text END,
        CASE WHEN CASE WHEN coalesce(item.schedule_at::timestamptz, statement_timestamp()
          + item.schedule_in::float8 * interval '1 second')
          > statement_timestamp() THEN NULL ELSE item.lane::text END IS NOT NULL
          THEN 'infinity'::timestamptz END, item.priority::int),
        failures = NULL, excused = held.attempts, error = NULL, cancelling = NULL
      WHERE id = item.id::bigint AND q_name = item.q_name::text
        AND dequeued_at IS NULL AND (leased_until IS NULL OR parked_on IS NOT NULL);
      IF FOUND THEN
        PERFORM pg_notify(CASE WHEN octet_length(convert_to(queue, 'UTF8')) > 63
          THEN 'pq_' || md5(convert_to(queue, 'UTF8')) ELSE queue END, '');
      END IF;
    END IF;
    RETURN item.id;
  END LOOP;
  IF dedup_key IS NULL OR period IS NOT NULL THEN
    RAISE EXCEPTION 'no job was put: a trigger or a row-level security policy of the table dropped the row';
  END IF;
  RAISE serialization_failure USING MESSAGE = format('no job was put: dedup key %L is taken, and no job with it is'
    || ' visible; other jobs take and release it, so try again, or row-level security hides that job', dedup_key);
END $function$
$put$;
  arguments text := '(text, jsonb, timestamptz, timestamptz, interval, text, jsonb, jsonb, integer, interval,'
    || ' timestamptz, interval, integer, text, text, jsonb, text, text, text, jsonb)';
  missing record;
BEGIN
  SELECT quote_ident(n.nspname), format('%I.%I', n.nspname, c.relname) INTO STRICT home, queue
  FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = to_regclass($name${table}$name$);
  SELECT format('%s.%I', home, relname) INTO STRICT dedup FROM pg_class WHERE oid = to_regclass($name${dedup}$name$);
  made := home || '.' || $name${put_name}$name$;
  body := replace(body, '<put>', made);
  body := replace(replace(body, '<table>', queue), '<dedup>', dedup);
  BEGIN
    EXECUTE body;
  EXCEPTION WHEN insufficient_privilege THEN
    RAISE insufficient_privilege USING MESSAGE = format('role %I may not make the function %s: %s; GRANT CREATE ON'
      || ' SCHEMA %s TO %1$I, or let a role that may do so run pqcore migrate', current_user, made, SQLERRM, home);
  END;
  EXECUTE 'REVOKE ALL ON FUNCTION ' || made || arguments || ' FROM PUBLIC';
  FOR missing IN
    SELECT CASE granted.grantee WHEN 0 THEN 'PUBLIC' ELSE granted.grantee::regrole::text END AS role
    FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS granted
    WHERE c.oid = to_regclass($name${table}$name$) AND granted.privilege_type = 'INSERT'
      AND granted.grantee <> c.relowner
    UNION
    SELECT CASE granted.grantee WHEN 0 THEN 'PUBLIC' ELSE granted.grantee::regrole::text END
    FROM pg_attribute AS a CROSS JOIN LATERAL aclexplode(a.attacl) AS granted
    WHERE a.attrelid = to_regclass($name${table}$name$) AND a.attname = 'group_key'
      AND granted.privilege_type = 'INSERT'
  LOOP
    EXECUTE 'GRANT EXECUTE ON FUNCTION ' || made || arguments || ' TO ' || missing.role;
  END LOOP;
END $do$
