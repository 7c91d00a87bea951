"""Statements of a queue, composed of fragments: putting, finishing under a lease, counting.

`queue_statements.sql` has the statements that need no fragments. The statements that fetch jobs are in
`pqcore.sql.fetch_statements`.
"""

from __future__ import annotations

from pqcore.sql.fragments import (
    AFTER_WAY,
    AWAITED,
    COLUMNS,
    COMES_OUT,
    DUE_AT,
    ENDED_PARENT,
    EXPRESSIBLE,
    FIRST_DEFERRED,
    FIRST_WAITING,
    FREE_ONES,
    HELD_ONE,
    HELD_ONES,
    HIDDEN_ORDER,
    IDENTITY,
    IS_DEFERRED,
    IS_READY,
    IS_URGENT,
    LANE,
    LANE_COLUMNS,
    MADE_WAY,
    OF_QUEUE,
    PRIORITY_IN_HEADERS,
    PUT_AT,
    QUEUE_DEFERRED,
    QUEUE_READY,
    QUEUE_URGENT,
    QUEUE_WAITING,
    READY_NOW,
    READY_ORDER,
    ROW_TIME,
    STILL_WAITS,
    TIMES,
    URGENT_ORDER,
    VISIBLE_AT,
    VISIBLE_NOW,
    WAITING_ORDER,
    WAITING_UNTIL,
    lane_room,
)
from pqcore.sql.statement import RETENTIONS, Retention
from pqcore.sql.statement_set import StatementSet, composed, family, from_file

_PUT_COLUMNS = "q_name, data, payload, serializer, enqueued_at"
_PUT_VALUES = ":q_name::text, :data::text::json, :payload::bytea, :serializer::text, statement_timestamp()"
_PUT = f"INSERT INTO {{table}} ({_PUT_COLUMNS}) VALUES ({_PUT_VALUES}) RETURNING"
# A put with pqcore's own encoder has two parameters fewer, because a driver takes some microseconds for each.
_PUT_JSON = _PUT.replace(", payload", "").replace(" :payload::bytea,", "").replace(":serializer::text", "'json'")
_PUT_TIMED = (
    f"INSERT INTO {{table}} ({_PUT_COLUMNS}, schedule_at, expected_at) VALUES ({_PUT_VALUES}, {TIMES}) RETURNING"
)

# For rows that come as strings: the values of `data` and `payload`, and the function that yields the rows.
_STORED = (
    "CASE WHEN NOT :binary::boolean THEN item.value::json END,"
    " CASE WHEN :binary::boolean THEN decode(item.value, 'base64') END"
)
_STRINGS = "json_array_elements_text(:items::text::json)"
# For rows that come as JSON: the values of `data` and `payload`, and the function that yields the rows.
_JSON_STORED, _JSONS = "item.value, NULL", "json_array_elements(:items::text::json)"

_NACKED = (
    "UPDATE {table} SET leased_until = NULL,"
    " schedule_at = coalesce(statement_timestamp() + :delay::float8 * interval '1 second', schedule_at)"
)
_EXTENDED = "UPDATE {table} SET leased_until = statement_timestamp() + :lease::float8 * interval '1 second'"

# This statement undoes a get whose result never reached its caller, because the awaiting task was cancelled. The row
# keeps its id and its place.
_RESTORED = f"""
INSERT INTO {{table}} ({COLUMNS}, group_key, priority)
VALUES (:id::bigint, :q_name::text, :enqueued_at::timestamptz, NULL, :expected_at::timestamptz,
  :schedule_at::timestamptz, :data::text::json, :attempts::int, :serializer::text, :payload::bytea,
  :headers::text::json, :failures::int, :excused::int, NULL, :headers::text::json #>> '{{{{gate,group}}}}',
  {PRIORITY_IN_HEADERS.replace("headers", ":headers::text::json")})
ON CONFLICT DO NOTHING RETURNING id"""

# The age, in seconds, of the last commit that a standby has replayed, by the primary's clock: the standby has all older
# commits, too. If a standby has replayed nothing since its start, the expression gives the age of the last checkpoint,
# because the standby has at least the content of that checkpoint.
_STALE = (
    "greatest(extract(epoch FROM statement_timestamp()) - extract(epoch FROM coalesce("
    "pg_last_xact_replay_timestamp(), (SELECT checkpoint_time FROM pg_control_checkpoint()))), 0)::float8"
)


# Each row carries its number (`ROW_TIME`). Usually the ids are consecutive, in the order of the numbers; then the
# statement returns only the first id. Otherwise it returns all ids, sorted by the numbers, which takes longer. Ids are
# compared modulo a thousand million, so that the computed times stay in the range of timestamps.
_STEP = "enqueued_at - (id % 1000000000) * interval '1 microsecond'"
_ALL_IN_ORDER = f"max(id)::numeric - min(id) < count(*) AND min({_STEP}) = max({_STEP})"
# If a trigger has changed times, it is unknown which job has which id: then the square root of -1 makes the statement
# fail.
_ALL_NUMBERED = (
    "count(*) <> :number::int OR (count(DISTINCT enqueued_at) = count(*)"
    " AND max(enqueued_at) - min(enqueued_at) < count(*) * interval '1 microsecond')"
)
_IDS_BY_NUMBER = (
    "(SELECT array_agg(id::text ORDER BY enqueued_at)"
    f" FROM put HAVING sqrt(CASE WHEN {_ALL_NUMBERED} THEN 0 ELSE -1 END) = 0)"
)


def _probe() -> str:
    return f"""
SELECT coalesce(({FIRST_DEFERRED}) <= statement_timestamp(), false), (extract(epoch FROM least(
  (SELECT {DUE_AT} FROM {{table}} WHERE {QUEUE_READY} AND {DUE_AT} > statement_timestamp()
     AND {DUE_AT} < {WAITING_UNTIL} ORDER BY {DUE_AT}, id LIMIT 1),
  (SELECT {VISIBLE_AT} FROM {{table}} WHERE {QUEUE_DEFERRED} AND {VISIBLE_AT} > statement_timestamp()
     AND {VISIBLE_AT} < {WAITING_UNTIL} ORDER BY {VISIBLE_AT}, id LIMIT 1)
)) - extract(epoch FROM statement_timestamp()))::float8, {ENDED_PARENT}"""


def _put_many(stored: str, items: str) -> str:
    return (
        "WITH put AS (INSERT INTO {table} (q_name, data, payload, serializer, enqueued_at, schedule_at, expected_at,"
        f" headers, group_key, {LANE_COLUMNS}) SELECT :q_name::text, {stored}, :serializer::text,"
        f" {ROW_TIME}, {TIMES.replace('statement_timestamp()', f'({ROW_TIME})')}, :headers::text::json,"
        f" :group_key::text, {LANE} FROM {items} WITH ORDINALITY AS item (value, place) RETURNING id, enqueued_at)"
        # The ids are text, because asyncpg reads the elements of other arrays with the application's codecs. If a
        # trigger dropped a row, a division by zero makes the statement fail; in a transaction that pqcore began, this
        # check is off, because pqcore can roll back.
        " SELECT min(id), count(*) / (NOT :fails::boolean OR count(*) = :number::int)::int,"
        f" CASE WHEN {_ALL_IN_ORDER} THEN NULL ELSE {_IDS_BY_NUMBER} END,"
        f" {PUT_AT.replace('enqueued_at', 'min(enqueued_at)')} FROM put"
    )


def _put_group(stored: str, items: str, headers: str = "") -> str:
    # `place` is the number of a row in the group, from 0. The time of the put carries this number as microseconds. The
    # statement computes `place` from the time in the stored row, so `place` is right even if triggers change ids or
    # drop rows.
    return (
        f"WITH put AS (INSERT INTO {{table}} ({_PUT_COLUMNS}{', headers' if headers else ''})"
        f" SELECT :q_name::text, {stored}, :serializer::text,"
        f" statement_timestamp() + (place - 1) * interval '1 microsecond'{headers and f', {headers}'}"
        f" FROM {items} WITH ORDINALITY AS item (value, place)"
        " RETURNING id, round(date_part('epoch', enqueued_at - statement_timestamp()) * 1000000)::int AS place)"
        # The statement returns one value: only the first id if all are consecutive, otherwise each id with its place.
        " SELECT min(id), CASE WHEN min(id - place) = max(id - place) AND count(*) = :number::int THEN NULL"
        " ELSE (SELECT string_agg(place || ' ' || id, ' ') FROM put) END, date_part('epoch', statement_timestamp()),"
        # If a trigger has changed the times, so that a `place` is invalid, a division by zero fails the statement.
        " 1 / (coalesce(min(place) >= 0 AND max(place) < :number::int, true)"
        " AND count(DISTINCT place) = count(*))::int FROM put"
    )


def tell_deleted(source: str) -> str:
    """Return a CTE that records the deletion of jobs for the jobs that wait for them.

    Args:
        source: The CTE with the deleted rows.
    """
    return f""", told AS (
  UPDATE {{dependencies}} SET outcome = 'deleted' WHERE outcome IS NULL
    AND parent_id = ANY (ARRAY(SELECT id FROM {source} WHERE awaited AND dequeued_at IS NULL))
)"""


def _stats(which: str, queue: str) -> str:
    # Each term counts one class of waiting rows through its own index, so finished rows are not read. Jobs on lanes
    # become visible at infinity, and so do all jobs with the ``schedule_at`` infinity, such as jobs that wait for other
    # jobs. On a standby, one more row, without a name, has the age of the data.
    columns = (
        f"q_name, {DUE_AT} AS due_at, coalesce(leased_until > statement_timestamp(), false) AS held,"
        f" {DUE_AT} <= statement_timestamp() AND coalesce(leased_until <= statement_timestamp(), true) AS due"
    )
    classes = " UNION ALL ".join(
        f"SELECT {columns} FROM {{table}} WHERE {kind}{which}" for kind in (IS_READY, IS_URGENT, COMES_OUT)
    )
    return f"""
SELECT q_name, sum(due)::bigint, sum(scheduled)::bigint, sum(held)::bigint,
  (extract(epoch FROM statement_timestamp()) - extract(epoch FROM min(due_at)))::float8, sum(parked)::bigint,
  sum(blocked)::bigint
FROM (
  SELECT q_name, count(*) FILTER (WHERE due) AS due, count(*) FILTER (WHERE NOT due AND NOT held) AS scheduled,
    count(*) FILTER (WHERE held) AS held, min(due_at) FILTER (WHERE due) AS due_at, 0 AS parked,
    count(*) FILTER (WHERE due_at = {WAITING_UNTIL} AND NOT held) AS blocked
  FROM ({classes}) AS plain GROUP BY q_name
  UNION ALL
  SELECT q_name, next.number, CASE WHEN parked_on IS NULL THEN lane.number ELSE 0 END, 0,
    CASE WHEN next.number > 0 THEN due_at END, CASE WHEN parked_on IS NULL THEN 0 ELSE lane.number - next.number END,
    CASE WHEN parked_on IS NULL THEN lane.number ELSE 0 END
  FROM (
    SELECT q_name, parked_on, count(*) AS number, min({DUE_AT}) AS due_at, min(group_key) AS group_key
    FROM {{table}} WHERE {IS_DEFERRED} AND {VISIBLE_AT} = {WAITING_UNTIL}{which} GROUP BY q_name, parked_on
  ) AS lane CROSS JOIN LATERAL (
    SELECT CASE WHEN parked_on IS NULL THEN 0 ELSE least(number, CASE WHEN lane.group_key IS NULL OR lane.parked_on = (
      SELECT parked_on FROM {{table}} AS first WHERE first.q_name = {queue} AND first.group_key = lane.group_key
        AND first.dequeued_at IS NULL ORDER BY id LIMIT 1
    ) THEN {lane_room("lane.parked_on", queue)} ELSE 0 END) END AS number
  ) AS next
) AS classes GROUP BY q_name
UNION ALL SELECT NULL, 0, 0, 0, {_STALE}, 0, 0 WHERE pg_is_in_recovery()
ORDER BY q_name"""


def _acknowledged(retention: Retention, columns: str, which: str = HELD_ONES) -> str:
    if retention == "keep":
        return (
            f"UPDATE {{table}} SET dequeued_at = statement_timestamp(), leased_until = NULL{which} RETURNING {columns}"
        )
    if retention == "delete":
        return f"DELETE FROM {{table}}{which} RETURNING {columns}"
    return f"""
WITH gone AS (DELETE FROM {{table}}{which} RETURNING *){MADE_WAY["archive"]}, kept AS (
  INSERT INTO {{archive}} ({COLUMNS})
  SELECT {COLUMNS.replace("dequeued_at", "statement_timestamp()")} FROM gone{AFTER_WAY}
)
SELECT {columns} FROM gone"""


def ended_ctes(retention: Retention) -> str:
    """Return CTEs that finish leased jobs; the last CTE, ``ended``, has their ids and tokens."""
    if retention != "archive":
        return f"ended AS ({_acknowledged(retention, 'id, attempts')})"
    ctes, _, columns = _acknowledged(retention, "id, attempts").rpartition("\n)\n")
    return f"{ctes.removeprefix(chr(10) + 'WITH ')}\n), ended AS ({columns})"


class QueueStatements(StatementSet):
    """The statements of a queue."""

    file = "queue_statements.sql"

    # Putting.

    @composed(hot=True)
    def put(self) -> str:
        """Insert a job. The insert takes no lock for which another insert waits."""
        return f"{_PUT} id"

    @composed(hot=True)
    def put_json(self) -> str:
        """Insert a job whose data pqcore's own encoder wrote; see `put`."""
        return f"{_PUT_JSON} id"

    @composed(hot=True)
    def put_timed(self) -> str:
        """Insert a job with times; see `put`."""
        return f"{_PUT_TIMED} id"

    @composed(hot=True)
    def put_call(self) -> str:
        """Insert a job, and return all that a handle needs; see `put`."""
        return f"{_PUT} {IDENTITY}"

    @composed(hot=True)
    def put_call_json(self) -> str:
        """Insert a job whose data pqcore's own encoder wrote, and return all that a handle needs; see `put`."""
        return f"{_PUT_JSON} {IDENTITY}"

    @composed(hot=True)
    def put_call_timed(self) -> str:
        """Insert a job with times, and return all that a handle needs; see `put`."""
        return f"{_PUT_TIMED} {IDENTITY}"

    @composed(hot=True)
    def put_many(self) -> str:
        """Insert jobs; like `put`, this waits for no other insert.

        All rows are in one text, a JSON array, because many parameters cost the driver more time than splitting the
        text costs the server. All ids are returned in one value, which is NULL if the ids are consecutive, so that the
        first id suffices. A number that each row carries (`_STEP`) matches ids to rows, in whatever order triggers and
        sequences give ids.
        """
        return _put_many(_JSON_STORED, _JSONS)

    @composed(hot=True)
    def put_many_encoded(self) -> str:
        """Insert jobs from strings, each of which is parsed separately: bytes, or text that may not be JSON."""
        return _put_many(_STORED, _STRINGS)

    @composed(hot=True)
    def put_group(self) -> str:
        """Insert the jobs of concurrent callers; like `put`, this waits for no other insert.

        No row's time is in the future, because inserting a row takes more than a microsecond.
        """
        return _put_group(_JSON_STORED, _JSONS)

    @composed(hot=True)
    def put_group_encoded(self) -> str:
        """Insert the jobs of concurrent callers, like `put_group`, from strings, like `put_many_encoded`."""
        return _put_group(_STORED, _STRINGS)

    @composed(hot=True)
    def put_group_headed(self) -> str:
        """Insert the jobs of concurrent callers, like `put_group`; a job is a pair of data and headers."""
        return _put_group("item.value -> 0, NULL", _JSONS, "item.value -> 1")

    @composed(hot=True)
    def put_group_encoded_headed(self) -> str:
        """Insert the jobs of concurrent callers, like `put_group_encoded`.

        Each job is given as a pair of its data and its headers.
        """
        return _put_group(_STORED.replace("item.value", "(item.value ->> 0)"), _JSONS, "item.value -> 1")

    # Waiting.

    @composed(hot=True)
    def next_due_probe(self) -> str:
        """Return why a fetch found nothing, and the seconds until the next look. This statement only reads.

        The result says whether a hidden job became due, or its lease ended, and whether a parent of a waiting job may
        have ended.
        """
        return _probe()

    @composed(hot=True)
    def empty_get_probe(self) -> str:
        """Return the values of `next_due_probe`, and whether a job waits for admission; a get may take such a job, too.

        A consumer that leases does not ask for this: under an old snapshot, the search for waiting jobs scans the index
        entries of all jobs that were admitted since the snapshot.
        """
        return f"{_probe()}, ({FIRST_WAITING}) IS NOT NULL"

    @composed()
    def ready_queues(self) -> str:
        """Return the queues of a list that have a job.

        This statement only reads: the fetches decide which waiter gets a job.

        The probes are scalar subqueries, which the planner cannot turn into a join or hash: so PostgreSQL looks once
        into each index for each name.
        """
        classes = (
            (QUEUE_URGENT, URGENT_ORDER),
            (READY_NOW, READY_ORDER),
            (VISIBLE_NOW, HIDDEN_ORDER),
            (QUEUE_WAITING, WAITING_ORDER),
        )
        probes = ", ".join(
            f"(SELECT true FROM {{table}} WHERE {condition.replace(OF_QUEUE, 'q_name = waited.name')}"
            f" ORDER BY {order} LIMIT 1)"
            for condition, order in classes
        )
        probes += f", {ENDED_PARENT.replace(OF_QUEUE, 'q_name = waited.name')}"
        return f"SELECT name FROM unnest(:names::text[]) AS waited (name) WHERE coalesce({probes}, false)"

    # Jobs under a lease, and jobs that were taken with `get`.

    @family("ack_{}", RETENTIONS, hot=True)
    def ack(self, retention: Retention) -> str:
        """Finish leased jobs. The token is checked on the locked row; see `LEASE_HELD`."""
        return _acknowledged(retention, "id, attempts")

    @family("ack_one_{}", RETENTIONS, hot=True)
    def ack_one(self, retention: Retention) -> str:
        """Finish one leased job like `ack`, but without arrays, which would double the time."""
        return _acknowledged(retention, "id, attempts", f" WHERE {HELD_ONE}")

    @family("ack_and_tell_{}", RETENTIONS, hot=True)
    def ack_and_tell(self, retention: Retention) -> str:
        """Finish leased jobs that have places under limits, and notify takers, because the places are free now."""
        return _acknowledged(retention, "id, attempts, pg_notify(:channel::text, '')::text")

    @family("ack_group_{}", RETENTIONS, hot=True)
    def ack_group(self, retention: Retention) -> str:
        """Finish leased jobs of several callers; see `LEASE_HELD`.

        Rows that other sessions have locked are left out.
        """
        return _acknowledged(retention, "id, attempts", FREE_ONES)

    @family("ack_group_and_tell_{}", RETENTIONS, hot=True)
    def ack_group_and_tell(self, retention: Retention) -> str:
        """Finish leased jobs like `ack_and_tell`. Rows that other sessions have locked are left out."""
        return _acknowledged(retention, "id, attempts, pg_notify(:channel::text, '')::text", FREE_ONES)

    @family("restore_{}", RETENTIONS)
    def restore(self, retention: Retention) -> str:
        """Put back a job that was taken with `get`.

        If another job has the id by now, the job is not put back (ON CONFLICT DO NOTHING).
        """
        if retention == "keep":
            return f"""
UPDATE {{table}} SET dequeued_at = NULL, attempts = :attempts::int, dedup_key = NULL
WHERE id = :id::bigint AND {OF_QUEUE} RETURNING id, pg_notify(:channel::text, '')::text"""
        if retention == "delete":
            return _RESTORED
        return f"WITH taken AS (DELETE FROM {{archive}} WHERE id = :id::bigint AND {OF_QUEUE}) {_RESTORED}"

    @composed()
    def nack(self) -> str:
        """Give up a lease; see `LEASE_HELD`.

        Without a delay, the job returns to its position in the queue, and waiters are notified. With a delay, it is
        scheduled, and waiters learn the time from `next_due_probe`.
        """
        return f"{_NACKED} WHERE {HELD_ONE} RETURNING id, pg_notify(:channel::text, '')::text"

    @composed()
    def nack_group(self) -> str:
        """Give up leases of several callers, like `nack`. Rows that other sessions have locked are left out."""
        return f"{_NACKED}{FREE_ONES} RETURNING id, attempts, pg_notify(:channel::text, '')::text"

    @composed(hot=True)
    def extend(self) -> str:
        """Extend a lease; see `LEASE_HELD`."""
        return f"{_EXTENDED} WHERE {HELD_ONE} RETURNING id"

    @composed(hot=True)
    def extend_group(self) -> str:
        """Extend leases of several callers; see `LEASE_HELD`. Rows that other sessions have locked are left out."""
        return f"{_EXTENDED}{FREE_ONES} RETURNING id, attempts"

    update = from_file()

    @composed()
    def cancel(self) -> str:
        """Delete a waiting job. A locked row is skipped (SKIP LOCKED), because another session works on that job."""
        return (
            "DELETE FROM {table} WHERE q_name = :q_name::text AND id = (SELECT id FROM {table}"
            " WHERE id = :id::bigint AND q_name = :q_name::text AND dequeued_at IS NULL"
            " AND (leased_until IS NULL OR leased_until <= statement_timestamp() OR parked_on IS NOT NULL)"
            f" FOR UPDATE SKIP LOCKED) RETURNING id, headers::text, {EXPRESSIBLE.format('enqueued_at')}, {AWAITED}"
        )

    # All jobs of a queue.

    @composed()
    def clear(self) -> str:
        """Delete all jobs, and return the headers of jobs that belong to a batch.

        The statement waits for rows that other sessions have locked. If a job waits for a deleted job, the
        statement also records that the parent was deleted; otherwise the trigger would record that the parent is done.
        """
        return f"""
WITH gone AS (
  DELETE FROM {{table}} WHERE {OF_QUEUE} RETURNING id, headers, dequeued_at, {AWAITED} AS awaited
){tell_deleted("gone")}
SELECT headers::text FROM gone WHERE dequeued_at IS NULL AND headers::text LIKE '%"batch"%'"""

    @composed()
    def count(self) -> str:
        """Count the due jobs; each term counts one class of rows through its own index. This statement only reads."""
        return (
            f"SELECT (SELECT count(*) FROM {{table}} WHERE {QUEUE_URGENT})"
            f" + (SELECT count(*) FROM {{table}} WHERE {READY_NOW})"
            f" + (SELECT count(*) FROM {{table}} WHERE {VISIBLE_NOW} AND {DUE_AT} <= statement_timestamp()"
            " AND parked_on IS NULL)"
            f" + (SELECT count(*) FROM {{table}} WHERE {OF_QUEUE} AND parked_on IS NOT NULL AND {STILL_WAITS})"
        )

    @composed()
    def stats(self) -> str:
        """Count the jobs of a queue by state. This statement only reads."""
        return _stats(f" AND {OF_QUEUE}", ":q_name::text")

    @composed()
    def stats_all(self) -> str:
        """Count the jobs of each queue by state. This statement only reads."""
        return _stats("", "lane.q_name")

    purge_kept = from_file()
    purge_archive = from_file()
