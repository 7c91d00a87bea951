"""Pieces of SQL that several statements share."""

from __future__ import annotations

DUE_AT = "coalesce(schedule_at, enqueued_at)"
# The three classes of waiting rows, each of an index; see pqcore.sql.fetch_statements.
IS_READY = "dequeued_at IS NULL AND leased_until IS NULL AND expected_at IS NULL"
IS_URGENT = "dequeued_at IS NULL AND leased_until IS NULL AND schedule_at IS NULL AND expected_at IS NOT NULL"
IS_DEFERRED = (
    "dequeued_at IS NULL AND (leased_until IS NOT NULL OR (schedule_at IS NOT NULL AND expected_at IS NOT NULL))"
)
VISIBLE_AT = "coalesce(leased_until, schedule_at)"
READY_ORDER = f"{DUE_AT}, id"
URGENT_ORDER = "expected_at, enqueued_at, id"
HIDDEN_ORDER = f"{VISIBLE_AT}, id"
# The order of a get.
ORDER = f"expected_at, {DUE_AT}, id"
WAITING_ORDER = f"priority DESC, {ORDER}"
UNNAMED = "?"
"""The lane of waiting jobs whose own lane is still to be written down: jobs that were put without one."""

NO_END = 2_147_483_647
"""The room of a lane without keys."""
# A job that waits to be admitted is leased without an end, to nobody: so older code, which parks jobs so, takes none.
WAITING_UNTIL = "'infinity'"
# Leased, or scheduled and expected: not those that wait.
COMES_OUT = f"{IS_DEFERRED} AND {VISIBLE_AT} < {WAITING_UNTIL}"
# A lease that has an end, which is still to come.
IS_LEASED = f"leased_until > statement_timestamp() AND leased_until < {WAITING_UNTIL}"

UNFINISHED = "num_nulls(dequeued_at) <> 0"
# Under no lease, or under one that has run out; a job that waits is leased to nobody.
IS_FREE = (
    "(leased_until IS NULL OR leased_until <= statement_timestamp()"
    f" OR (parked_on IS NOT NULL AND leased_until = {WAITING_UNTIL}))"
)
STILL_WAITS = f"{UNFINISHED} AND coalesce({IS_LEASED}, false)::int <> 1"
"""Whether a row on a lane waits to be admitted: pq, older code and SQL finish and lease rows that stay on their lane.

In these words it leads the planner to no partial index of others, and lets it expect that nearly all rows are such.
"""


def lane_room(lane: str, queue: str) -> str:
    """Return an expression: how many jobs of a lane may be admitted now, as far as its keys know.

    Args:
        lane: An expression that gives the lane.
        queue: An expression that gives the queue's name.
    """
    key = "regexp_replace(need.name, '=[0-9]+$', '')"
    # Of an array the planner expects ten elements, of the JSON a hundred, which may have it compile the statement.
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
    """Return an expression: whether a waiting job could be admitted now. The queue's table is called ``job``.

    Such a job is among the first of its lane, as many as the lane has room for.

    Args:
        queue: An expression that gives the queue's name; as a parameter, one partition of a table is looked at.
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


# The state of a job in the queue's table, as far as its row tells: of those that wait to be admitted, some could be.
STORED_STATE = (
    "CASE WHEN dequeued_at IS NOT NULL THEN 'done' WHEN parked_on IS NOT NULL THEN 'parked'"
    " WHEN leased_until > statement_timestamp() THEN 'leased'"
    f" WHEN {DUE_AT} > statement_timestamp() THEN 'scheduled' ELSE 'ready' END"
)


def job_state(queue: str) -> str:
    """Return an expression: the state of a job; see `is_next`."""
    return (
        f"CASE WHEN dequeued_at IS NULL AND parked_on IS NOT NULL AND {is_next(queue)} THEN 'ready'"
        f" ELSE {STORED_STATE} END"
    )


# Python's datetime ends where PostgreSQL's goes on, to infinity: a job is not to be lost for that.
EXPRESSIBLE = "least(greatest({} AT TIME ZONE 'UTC', timestamp '0001-01-01'), timestamp '9999-12-31 23:59:59.999999')"
# What names one job, whatever becomes of the sequence of ids: see `pqcore.job.JobId`.  The time is in seconds, which
# drivers read sooner than a timestamp.
PUT_AT = f"date_part('epoch', {EXPRESSIBLE.format('enqueued_at')})"
IDENTITY = f"id, {PUT_AT}"
OF_PUT = (
    f"(:put_at::timestamptz IS NULL OR {EXPRESSIBLE.format('enqueued_at')} = :put_at::timestamptz AT TIME ZONE 'UTC')"
)
COLUMNS = (
    "id, q_name, enqueued_at, dequeued_at, expected_at, schedule_at, data, attempts, serializer, payload,"
    " headers, failures, excused, error"
)
# The same of a job that is run again: due immediately, with a clean record; what it went through is excused.
RESET_COLUMNS = (
    COLUMNS.replace("dequeued_at", "NULL::timestamptz")
    .replace(" schedule_at", " statement_timestamp()")
    .replace("failures", "NULL::int")
    .replace("excused", "attempts")
    .replace("error", "NULL::json")
)
# One more, of a number that PostgreSQL can count no further: a job is not to hold up its queue for that.  The number of
# attempts begins again, as it has to differ from that of the last lease; others stay as they are.
NEXT_ATTEMPT = "mod(attempts, 2147483647) + 1"
# How often a job was run: the column `attempts` is the fencing token, which counts every lease.
ATTEMPTS = "greatest(attempts - coalesce(excused, 0), 0)"
ONE_MORE = "least(coalesce({}, 0), 2147483646) + 1"
# Ids come again after logical replication, TRUNCATE ... RESTART IDENTITY, or a restore: none carries the sequence.
# A row of the archive, or a dead letter, whose id comes again makes way: it gets a negative id, of no sequence.  An
# INSERT that refers to `made_way` runs after it, and sees no conflict: the old id was given up by its own transaction.
MADE_WAY = {
    place: f""", made_way AS (
  UPDATE {{{place}}} SET id = -1 - (random() * 9007199254740990)::bigint WHERE id = ANY (ARRAY(SELECT id FROM gone))
  RETURNING id
)"""
    for place in ("archive", "dead")
}
AFTER_WAY = " WHERE (SELECT count(*) FROM made_way) IS NOT NULL"
# The same of what comes back to the queue's table: a job whose id is taken there is put under a new one.
_LESS_ID = len("id, ")

# What headers say of the priority, which a row that was forged may say wrongly.
PRIORITY_IN_HEADERS = (
    "CASE WHEN headers #>> '{{gate,priority}}' ~ '^-?[0-9]{{1,9}}$' THEN (headers #>> '{{gate,priority}}')::int"
    " ELSE 0 END"
)
# The same of the group: columns of the table that no other table has.
GROUP_AND_PRIORITY = f"headers #>> '{{{{gate,group}}}}', {PRIORITY_IN_HEADERS}"


def come_back(source: str) -> str:
    """CTEs that put rows into the table again: ``same`` under their ids, ``renumbered`` those whose ids are taken.

    Of two that take an id at the same time, ON CONFLICT has one wait for the other, and find the id taken.

    Args:
        source: The CTE that has the rows, of the columns of `COLUMNS`.
    """
    return f"""same AS (
  INSERT INTO {{table}} ({COLUMNS}, group_key, priority)
  SELECT {RESET_COLUMNS}, {GROUP_AND_PRIORITY} FROM {source} WHERE id >= 0 ON CONFLICT DO NOTHING RETURNING id
), renumbered AS (
  INSERT INTO {{table}} ({COLUMNS[_LESS_ID:]}, group_key, priority)
  SELECT {RESET_COLUMNS[_LESS_ID:]}, {GROUP_AND_PRIORITY} FROM {source} WHERE id NOT IN (SELECT id FROM same)
  RETURNING id
)"""


# Headers that a producer wrote in SQL, with escapes that functions of JSON do not read: a NUL, or half of a surrogate
# pair. (Whole pairs have the same escapes.) No other job of the queue may suffer for such a row.
UNREADABLE = "strpos(lower(headers::text), chr(92) || 'u0000') + strpos(lower(headers::text), chr(92) || 'ud') > 0"
# Whether a dedup key is held until the job starts.
HELD_UNTIL_STARTED = (
    f"""strpos(headers::text, '"started"') > 0 AND CASE WHEN {UNREADABLE}"""
    """ THEN strpos(headers::text, '"dedup":"started"') > 0 ELSE headers #>> '{{gate,dedup}}' = 'started' END"""
)
# Whether a job may name keys, a share or a priority; see `pqcore.lanes`.
IS_GATED = """strpos(headers::text, '"gate"') > 0"""
# How a take of a lease changes a row.  A job that names keys and does not wait was put by older code, scheduled, or
# given back: it is not leased, but made to wait for its admission.
_ADOPTED = f"parked_on IS NULL AND {IS_GATED}"
LEASED = (
    f"attempts = CASE WHEN {_ADOPTED} THEN attempts ELSE {NEXT_ATTEMPT} END,"
    f" leased_until = CASE WHEN {_ADOPTED} THEN {WAITING_UNTIL}"
    " ELSE statement_timestamp() + :lease::float8 * interval '1 second' END,"
    f" parked_on = CASE WHEN {_ADOPTED} THEN '{UNNAMED}' END"
)
# Distances are numbers of seconds: an interval with days in it is shorter or longer when clocks change.
_SCHEDULE = "coalesce(:schedule_at::timestamptz, statement_timestamp() + :schedule_in::float8 * interval '1 second')"
TIMES = (
    f"{_SCHEDULE},"
    " coalesce(:expected_at::timestamptz, statement_timestamp() + :expected_in::float8 * interval '1 second')"
)
# A job with a lane waits on it from the start, unless it is put for later: then a take of a lease finds it when it is
# due, and has it wait.  See `LANE`.
LANE_COLUMNS = "parked_on, leased_until, priority"
_WAITS = f"CASE WHEN {_SCHEDULE} > statement_timestamp() THEN NULL ELSE :lane::text END"
LANE = f"{_WAITS}, CASE WHEN {_WAITS} IS NOT NULL THEN {WAITING_UNTIL}::timestamptz END, :priority::int"

# A lease is held by the consumer that knows the count of attempts that it was given with: the
# fencing token.  The count rises with each lease, so a token that was overtaken
# matches no row.  The UPDATE or DELETE locks the row, and re-checks the token on
# the row as locked: of two that come concurrently, one finds it changed.
#
# num_nulls() is IS NULL in words that no partial index answers to: the planner is to look up the id.
# IS TRUE keeps the pairs from being joined: they are a hash that each row found is looked up in,
# and the rows are locked in the order of their ids.
LEASE_HELD = "leased_until IS NOT NULL AND num_nulls(dequeued_at, parked_on) = 2"
#
# The queue is named beside the id, so that of a table that is partitioned by queue one partition is looked at.
OF_QUEUE = "q_name = :q_name::text"
HELD_ANYWHERE = f"""
WHERE id = ANY (:ids::bigint[]) AND {LEASE_HELD} AND (
  (id, attempts) IN (SELECT job, token FROM unnest(:ids::bigint[], :tokens::int[]) AS held (job, token))
) IS TRUE"""
HELD_ONES = f"{HELD_ANYWHERE} AND {OF_QUEUE}"
# Those of held jobs that nobody has locked.  The row is checked as it is locked, and is ours from then on.
FREE_ANYWHERE = f"\nWHERE id = ANY (ARRAY(SELECT id FROM {{table}}{HELD_ANYWHERE} FOR UPDATE SKIP LOCKED))"
FREE_ONES = f"\nWHERE id = ANY (ARRAY(SELECT id FROM {{table}}{HELD_ONES} FOR UPDATE SKIP LOCKED)) AND {OF_QUEUE}"
HELD_ONE = f"id = :id::bigint AND attempts = :token::int AND {LEASE_HELD} AND {OF_QUEUE}"

# The classes of a queue's waiting rows.
QUEUE_READY, QUEUE_URGENT, QUEUE_DEFERRED = (f"{OF_QUEUE} AND {kind}" for kind in (IS_READY, IS_URGENT, IS_DEFERRED))
QUEUE_WAITING = f"{OF_QUEUE} AND parked_on IS NOT NULL AND {UNFINISHED}"
READY_NOW = f"{QUEUE_READY} AND {DUE_AT} <= statement_timestamp()"
VISIBLE_NOW = f"{QUEUE_DEFERRED} AND {VISIBLE_AT} <= statement_timestamp()"
# The first one by order, not any: then the planner has no reason to try its luck with a scan.
FIRST_WAITING = f"SELECT id FROM {{table}} WHERE {QUEUE_WAITING} ORDER BY {WAITING_ORDER} LIMIT 1"
FIRST_DEFERRED = f"SELECT {VISIBLE_AT} AS out_at FROM {{table}} WHERE {QUEUE_DEFERRED} ORDER BY {HIDDEN_ORDER} LIMIT 1"
