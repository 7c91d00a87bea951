"""Fragments of SQL that several statements share."""

from __future__ import annotations

DUE_AT = "coalesce(schedule_at, enqueued_at)"
# The three classes of waiting rows, each with an index; see pqcore.sql.fetch_statements.
IS_READY = "dequeued_at IS NULL AND leased_until IS NULL AND expected_at IS NULL"
IS_URGENT = "dequeued_at IS NULL AND leased_until IS NULL AND schedule_at IS NULL AND expected_at IS NOT NULL"
IS_DEFERRED = (
    "dequeued_at IS NULL AND (leased_until IS NOT NULL OR (schedule_at IS NOT NULL AND expected_at IS NOT NULL))"
)
VISIBLE_AT = "coalesce(leased_until, schedule_at)"
READY_ORDER = f"{DUE_AT}, id"
URGENT_ORDER = "expected_at, enqueued_at, id"
HIDDEN_ORDER = f"{VISIBLE_AT}, id"
# The order in which a get takes jobs.
ORDER = f"expected_at, {DUE_AT}, id"
WAITING_ORDER = f"priority DESC, {ORDER}"
UNNAMED = "?"
"""The lane of waiting jobs that were put without a lane, until their own lane is written."""

NO_END = 2_147_483_647
"""The room of a lane without keys."""
# A job that waits for admission has a lease that ends at infinity, and that no consumer holds. Older code parks jobs in
# the same way, so older code does not take this job.
WAITING_UNTIL = "'infinity'"
# Leased jobs, and jobs with both `schedule_at` and `expected_at`, but no jobs that wait for admission.
COMES_OUT = f"{IS_DEFERRED} AND {VISIBLE_AT} < {WAITING_UNTIL}"
# A lease whose end is a time in the future.
IS_LEASED = f"leased_until > statement_timestamp() AND leased_until < {WAITING_UNTIL}"

UNFINISHED = "num_nulls(dequeued_at) <> 0"
# No consumer holds the job: it has no lease, its lease has run out, or it waits for admission.
IS_FREE = (
    "(leased_until IS NULL OR leased_until <= statement_timestamp()"
    f" OR (parked_on IS NOT NULL AND leased_until = {WAITING_UNTIL}))"
)
STILL_WAITS = f"{UNFINISHED} AND coalesce({IS_LEASED}, false)::int <> 1"
"""Whether a row on a lane waits for admission: pq, older code and SQL finish and lease rows without taking them off
their lane.

This form matches no other partial index, and makes the planner expect that nearly all rows match.
"""


def lane_room(lane: str, queue: str) -> str:
    """Return an SQL expression for how many jobs of a lane may be admitted now, according to its keys.

    Args:
        lane: An SQL expression for the lane.
        queue: An SQL expression for the queue's name.
    """
    key = "regexp_replace(need.name, '=[0-9]+$', '')"
    # The keys are an array here: the planner expects ten elements of an array, but a hundred elements of a JSON value,
    # for which it may use JIT compilation.
    return f"""(
  SELECT coalesce(min(CASE WHEN EXISTS (SELECT FROM {{rules}} AS paused WHERE paused.q_name = {queue}
      AND paused.kind = 'pause' AND paused.name = {key} AND (until IS NULL OR until > statement_timestamp())) THEN 0
    ELSE greatest(coalesce((SELECT number::int FROM {{rules}} AS allowed WHERE allowed.q_name = {queue}
      AND allowed.kind = 'limit' AND allowed.name = {key}), row.places, substring(need.name FROM '=([0-9]+)$')::int) - (
        SELECT count(*) FROM unnest(row.running) AS admitted (id) CROSS JOIN LATERAL (
          SELECT FROM {{table}} AS other WHERE other.id = admitted.id AND other.q_name = {queue}
            AND num_nulls(other.dequeued_at) = 1 AND num_nulls(other.parked_on) = 1
            AND num_nulls(other.leased_until) = 0 LIMIT 1) AS alive), 0) END), {NO_END})
  FROM unnest(ARRAY(
    SELECT json_array_elements_text(CASE WHEN {lane} LIKE '[%' THEN {lane} ELSE '[]' END::json) OFFSET 2
  )) AS need (name) LEFT JOIN LATERAL (
    SELECT places, running FROM {{keys}} AS key WHERE key.q_name = {queue} AND key.key = {key}
    ORDER BY version DESC LIMIT 1
  ) AS row ON true)"""


def is_next(queue: str) -> str:
    """Return an SQL expression that says whether a waiting job could be admitted now.

    The queue's table must have the alias ``job``.

    Such a job is among the first jobs of its lane; `lane_room` says how many of them have free places.

    Args:
        queue: An SQL expression for the queue's name; if it is a parameter, only one partition of the table is read.
    """
    room = lane_room("job.parked_on", queue)
    return f"""CASE WHEN job.group_key IS NULL THEN job.id IN (
    SELECT id FROM {{table}} AS waiting WHERE waiting.q_name = {queue} AND waiting.parked_on = job.parked_on
      AND num_nulls(waiting.dequeued_at) <> 0
    ORDER BY {ORDER} LIMIT least({room}, 10000)
  ) ELSE job.id = (
    SELECT id FROM {{table}} AS first WHERE first.q_name = {queue} AND first.group_key = job.group_key
      AND first.dequeued_at IS NULL ORDER BY id LIMIT 1
  ) AND {room} > 0 END"""


# The state of a job according to its row in the queue's table. The row of a job that waits for admission does not show
# whether the job could be admitted.
STORED_STATE = (
    "CASE WHEN dequeued_at IS NOT NULL THEN 'done' WHEN parked_on IS NOT NULL THEN 'parked'"
    " WHEN leased_until > statement_timestamp() THEN 'leased'"
    f" WHEN {DUE_AT} > statement_timestamp() THEN 'scheduled' ELSE 'ready' END"
)


def job_state(queue: str) -> str:
    """Return an SQL expression for the state of a job; see `is_next`."""
    return (
        f"CASE WHEN dequeued_at IS NULL AND parked_on IS NOT NULL AND {is_next(queue)} THEN 'ready'"
        f" ELSE {STORED_STATE} END"
    )


# PostgreSQL's timestamps exceed the range of Python's datetime, up to infinity: a driver could not read such a row.
EXPRESSIBLE = "least(greatest({} AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999')"
# The time that identifies a job together with its id, even if ids repeat: see `pqcore.job.JobId`. The time is in
# seconds, which drivers read faster than a timestamp.
PUT_AT = f"date_part('epoch', {EXPRESSIBLE.format('enqueued_at')})"
IDENTITY = f"id, {PUT_AT}"
OF_PUT = (
    f"(:put_at::timestamptz IS NULL OR {EXPRESSIBLE.format('enqueued_at')} = :put_at::timestamptz AT TIME ZONE 'UTC')"
)
COLUMNS = (
    "id, q_name, enqueued_at, dequeued_at, expected_at, schedule_at, data, attempts, serializer, payload,"
    " headers, failures, excused, error"
)
# The values for a job that is run again: due immediately, without failures, and with earlier attempts excused.
RESET_COLUMNS = (
    COLUMNS.replace("dequeued_at", "NULL::timestamptz")
    .replace(" schedule_at", " statement_timestamp()")
    .replace("failures", "NULL::int")
    .replace("excused", "attempts")
    .replace("error", "NULL::json")
)
# The next value of `attempts`. After the largest integer of PostgreSQL, the value begins again at 1; otherwise
# statements that take jobs would fail with an overflow. Other counters stay at their largest value, but this one must
# change with every lease.
NEXT_ATTEMPT = "mod(attempts, 2147483647) + 1"
# How often a job was run: the column `attempts` is the fencing token, which counts every lease.
ATTEMPTS = "greatest(attempts - coalesce(excused, 0), 0)"
ONE_MORE = "least(coalesce({}, 0), 2147483646) + 1"
# Ids repeat after logical replication, TRUNCATE with RESTART IDENTITY, or a restore, because none of these keeps the
# value of the sequence. If a new job gets the id of an archived job or a dead letter, the old row makes way: it gets a
# negative id, which no sequence gives. An INSERT that refers to `made_way` runs after this UPDATE, and meets no
# conflict, because the UPDATE of the same transaction has changed the old id.
MADE_WAY = {
    place: f""", made_way AS (
  UPDATE {{{place}}} SET id = -1 - (random() * 9007199254740990)::bigint WHERE id = ANY (ARRAY(SELECT id FROM gone))
  RETURNING id
)"""
    for place in ("archive", "dead")
}
AFTER_WAY = " WHERE (SELECT count(*) FROM made_way) IS NOT NULL"
# For rows that return to the queue's table: if another job has the id there, the returning job gets a new id.
_LESS_ID = len("id, ")

# The priority in the headers; a row that was written in SQL may have any value there.
PRIORITY_IN_HEADERS = (
    "CASE WHEN headers #>> '{{gate,priority}}' ~ '^-?[0-9]{{1,9}}$' THEN (headers #>> '{{gate,priority}}')::int"
    " ELSE 0 END"
)
# The group and the priority in the headers; only the queue's table has columns for them.
GROUP_AND_PRIORITY = f"headers #>> '{{{{gate,group}}}}', {PRIORITY_IN_HEADERS}"


def come_back(source: str) -> str:
    """Return CTEs that put rows into the table again.

    The CTE ``same`` puts rows under their own ids; if an id is taken, ``renumbered`` puts the row under a new id.

    If two sessions use an id concurrently, ON CONFLICT makes one session wait for the other and then find the id taken.

    Args:
        source: The CTE that has the rows, with the columns of `COLUMNS`.
    """
    return f"""same AS (
  INSERT INTO {{table}} ({COLUMNS}, group_key, priority)
  SELECT {RESET_COLUMNS}, {GROUP_AND_PRIORITY} FROM {source} WHERE id >= 0 ON CONFLICT DO NOTHING RETURNING id
), renumbered AS (
  INSERT INTO {{table}} ({COLUMNS[_LESS_ID:]}, group_key, priority)
  SELECT {RESET_COLUMNS[_LESS_ID:]}, {GROUP_AND_PRIORITY} FROM {source} WHERE id NOT IN (SELECT id FROM same)
  RETURNING id
)"""


# True for headers that a producer wrote in SQL with escapes that JSON functions cannot read, such as a NUL or half a
# surrogate pair. Whole pairs match, too, because they use the same escapes. Such a row must not affect other jobs of
# the queue.
UNREADABLE = "strpos(lower(headers::text), chr(92) || 'u0000') + strpos(lower(headers::text), chr(92) || 'ud') > 0"
# Whether a dedup key is held until the job starts.
HELD_UNTIL_STARTED = (
    f"""strpos(headers::text, '"started"') > 0 AND CASE WHEN {UNREADABLE}"""
    """ THEN strpos(headers::text, '"dedup":"started"') > 0 ELSE headers #>> '{{gate,dedup}}' = 'started' END"""
)
# Whether a job may name keys, a share or a priority; see `pqcore.lanes`.
IS_GATED = """strpos(headers::text, '"gate"') > 0"""
# How a statement that leases a job changes the job's row. If a job names keys but does not wait on a lane, older code
# put it, or it was scheduled or given back. The statement parks such a job for admission instead of leasing it.
_ADOPTED = f"parked_on IS NULL AND {IS_GATED}"
LEASED = (
    f"attempts = CASE WHEN {_ADOPTED} THEN attempts ELSE {NEXT_ATTEMPT} END,"
    f" leased_until = CASE WHEN {_ADOPTED} THEN {WAITING_UNTIL}"
    " ELSE statement_timestamp() + :lease::float8 * interval '1 second' END,"
    f" parked_on = CASE WHEN {_ADOPTED} THEN '{UNNAMED}' END"
)
# Delays are numbers of seconds, because the length of an interval with days depends on clock changes.
SCHEDULE = "coalesce(:schedule_at::timestamptz, statement_timestamp() + :schedule_in::float8 * interval '1 second')"
EXPECTED = "coalesce(:expected_at::timestamptz, statement_timestamp() + :expected_in::float8 * interval '1 second')"
TIMES = f"{SCHEDULE}, {EXPECTED}"
# Each row that one statement puts carries its number within the statement, as microseconds of `enqueued_at`. By these
# numbers, pqcore finds the id of each item, in whatever order triggers and sequences give ids. Inserting a row takes
# more than a microsecond, so no time is in the future.
ROW_TIME = "statement_timestamp() + item.place * interval '1 microsecond'"
# The statement that puts a job with a lane also parks the job on the lane. If the job is put for later, a take parks
# the job when it is due. See `LANE`.
LANE_COLUMNS = "parked_on, leased_until, priority"
_WAITS = f"CASE WHEN {SCHEDULE} > statement_timestamp() THEN NULL ELSE :lane::text END"
LANE = f"{_WAITS}, CASE WHEN {_WAITS} IS NOT NULL THEN {WAITING_UNTIL}::timestamptz END, :priority::int"

# A lease is held by the consumer that knows the number of attempts at the time of the lease: the fencing token. Every
# new lease increments the number, so a statement with an older token matches no row. The UPDATE or DELETE locks the
# row, and checks the token on the locked row again (EvalPlanQual): of two concurrent statements, the second finds that
# the row has changed.
#
# Here, num_nulls() replaces IS NULL, so that the planner looks the id up, and does not use a partial index. IS TRUE
# keeps the planner from joining rows with the pairs of ids and tokens: the server looks each row up in a hash of the
# pairs, so rows are locked in the order of their ids.
LEASE_HELD = "leased_until IS NOT NULL AND num_nulls(dequeued_at, parked_on) = 2"
#
# The queue is named in addition to the id, so that only one partition is read if the table is partitioned by queue.
OF_QUEUE = "q_name = :q_name::text"
HELD_ANYWHERE = f"""
WHERE id = ANY (:ids::bigint[]) AND {LEASE_HELD} AND (
  (id, attempts) IN (SELECT job, token FROM unnest(:ids::bigint[], :tokens::int[]) AS held (job, token))
) IS TRUE"""
HELD_ONES = f"{HELD_ANYWHERE} AND {OF_QUEUE}"
# The jobs whose leases are held and whose rows no other session has locked. Each row is checked again when it is
# locked, and then stays locked until the transaction ends.
FREE_ANYWHERE = f"\nWHERE id = ANY (ARRAY(SELECT id FROM {{table}}{HELD_ANYWHERE} FOR UPDATE SKIP LOCKED))"
FREE_ONES = f"\nWHERE id = ANY (ARRAY(SELECT id FROM {{table}}{HELD_ONES} FOR UPDATE SKIP LOCKED)) AND {OF_QUEUE}"
HELD_ONE = f"id = :id::bigint AND attempts = :token::int AND {LEASE_HELD} AND {OF_QUEUE}"

# The classes of a queue's waiting rows.
QUEUE_READY, QUEUE_URGENT, QUEUE_DEFERRED = (f"{OF_QUEUE} AND {kind}" for kind in (IS_READY, IS_URGENT, IS_DEFERRED))
QUEUE_WAITING = f"{OF_QUEUE} AND parked_on IS NOT NULL AND {UNFINISHED}"
READY_NOW = f"{QUEUE_READY} AND {DUE_AT} <= statement_timestamp()"
VISIBLE_NOW = f"{QUEUE_DEFERRED} AND {VISIBLE_AT} <= statement_timestamp()"
# Whether any job waits. The query has an order, although any row would do, so that the planner reads the index and not
# the whole table.
FIRST_WAITING = f"SELECT id FROM {{table}} WHERE {QUEUE_WAITING} ORDER BY {WAITING_ORDER} LIMIT 1"
FIRST_DEFERRED = f"SELECT {VISIBLE_AT} AS out_at FROM {{table}} WHERE {QUEUE_DEFERRED} ORDER BY {HIDDEN_ORDER} LIMIT 1"
# Whether other jobs wait for the job.
AWAITED = "awaited"
# Whether a parent of a waiting job has ended, or may have ended without a record; see `pqcore.operations.dependencies`.
ENDED_PARENT = (
    f"coalesce((SELECT true FROM {{dependencies}} WHERE {OF_QUEUE} AND (outcome IS NOT NULL OR polled)"
    " ORDER BY q_name LIMIT 1), false)"
)
