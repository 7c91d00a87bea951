"""Statements of puts with options, composed of fragments: for one job under a dedup key, or for many jobs.

`put_statements.sql` has the statements without fragments. `pqcore.sql.dialect` explains why statements are
safe under concurrency.
"""

from __future__ import annotations

import re

from pqcore.sql.fragments import IDENTITY, LANE, LANE_COLUMNS, OF_QUEUE, PUT_AT, ROW_TIME, TIMES
from pqcore.sql.statement_set import StatementSet, composed, from_file

_NOW = "statement_timestamp()"
_IN = "{} + :{}::float8 * interval '1 second'"
PUT_COLUMNS = (
    "q_name, data, payload, serializer, enqueued_at, schedule_at, expected_at, headers, group_key, dedup_key,"
    f" {LANE_COLUMNS}"
)
PUT_VALUES = (
    f":q_name::text, :data::text::json, :payload::bytea, :serializer::text, {_NOW}, {TIMES},"
    f" :headers::text::json, :group_key::text, :dedup_key::text, {LANE}"
)
CONFLICT = "ON CONFLICT (q_name, dedup_key) WHERE dedup_key IS NOT NULL AND dequeued_at IS NULL"
HOLDER = "q_name = :q_name::text AND dedup_key = :dedup_key::text AND dequeued_at IS NULL"
IS_WAITING = "dequeued_at IS NULL AND (leased_until IS NULL OR parked_on IS NOT NULL)"
# The assignments that replace a waiting job: the job gets all values of a new job, except its id and its place in the
# order. The job then has no failures, and only the limits that the put names.
REPLACED = (
    "data = :data::text::json, payload = :payload::bytea, serializer = :serializer::text,"
    f" schedule_at = coalesce(:schedule_at::timestamptz, {_IN.format(_NOW, 'schedule_in')}),"
    f" expected_at = coalesce(:expected_at::timestamptz, {_IN.format(_NOW, 'expected_in')}),"
    f" headers = :headers::text::json, group_key = :group_key::text, ({LANE_COLUMNS}) = ROW ({LANE}),"
    " failures = NULL, excused = held.attempts, error = NULL, cancelling = NULL"
)
_TELL_REPLACED = """
)
SELECT id, put_at, pg_notify(:channel::text, '')::text FROM put"""


def of_items(values: str) -> str:
    """Return the values of a statement for one job, taken from the columns of ``item`` instead of parameters."""
    values = re.sub(r":([a-z_]+)::", r"item.\1::", values)
    return values.replace("item.payload::bytea", "decode(item.payload, 'base64')")


# Jobs as JSON: each member is a column, and a missing member is NULL. The member `data` is a string with JSON text:
# otherwise, a job whose data is JSON's null would get NULL. Bytes are base64.
_ITEM_COLUMNS = (
    "q_name text, data text, payload text, serializer text, schedule_at timestamptz, schedule_in float8,"
    " expected_at timestamptz, expected_in float8, headers text, group_key text, dedup_key text, lane text,"
    " priority int"
)
_ITEMS = (
    "(SELECT *, ordinality AS place FROM ROWS FROM"
    f" (json_to_recordset(:items::text::json) AS ({_ITEM_COLUMNS})) WITH ORDINALITY) AS item"
)
_ITEM_VALUES = of_items(PUT_VALUES.replace(f"{_NOW}, {TIMES}", f"{ROW_TIME}, {TIMES.replace(_NOW, f'({ROW_TIME})')}"))
_NEW_COLUMNS = f"data, payload, serializer, schedule_at, expected_at, headers, group_key, {LANE_COLUMNS}"
_NEW_VALUES = of_items(
    f":data::text::json, :payload::bytea, :serializer::text, {TIMES}, :headers::text::json, :group_key::text, {LANE}"
)
# The number of a row, from 0, computed back from its time (`ROW_TIME`). If a trigger has moved all times by the same
# distance, and no row is missing, the numbers count from the first row. If a trigger has changed times in another way,
# it is unknown which job has which id: then the expression takes the square root of -1, so that the statement fails.
_PLACE = f"round(date_part('epoch', enqueued_at - {_NOW}) * 1000000)::bigint - 1"
_PLACES_ARE_VALID = (
    "count(DISTINCT place) = count(*) AND CASE WHEN count(*) = :number::int THEN max(place) - min(place) < count(*)"
    " ELSE coalesce(min(place) >= 0 AND max(place) < :number::int, true) END"
)
_UNKEYED = "count(*) FILTER (WHERE dedup_key IS NULL)"


class PutStatements(StatementSet):
    """The statements of puts with options."""

    file = "put_statements.sql"

    # One job under a key.

    @composed(name="put_keyed", hot=True)
    def put(self) -> str:
        """Insert a job under a dedup key.

        The unique index decides: if two sessions use a key concurrently, one waits for the end of the other's
        transaction, and then finds the key taken or free.
        """
        return f"INSERT INTO {{table}} ({PUT_COLUMNS}) VALUES ({PUT_VALUES}) {CONFLICT} DO NOTHING RETURNING {IDENTITY}"

    @composed()
    def put_replacing(self) -> str:
        """Replace the waiting job that holds a key, or insert a job; see `put`.

        The statement does not use DO UPDATE, which would lock even a running job that it does not change. The worker
        could then not finish the job before the transaction of the put ends.
        """
        return f"""
WITH replaced AS (
  UPDATE {{table}} AS held SET {REPLACED} WHERE {HOLDER} AND {IS_WAITING} RETURNING {IDENTITY}
), added AS (
  INSERT INTO {{table}} ({PUT_COLUMNS}) SELECT {PUT_VALUES} WHERE NOT EXISTS (SELECT FROM replaced)
  {CONFLICT} DO NOTHING RETURNING {IDENTITY}
), put (id, put_at) AS (
  SELECT * FROM replaced UNION ALL SELECT * FROM added{_TELL_REPLACED}"""

    @composed()
    def find_duplicate(self) -> str:
        """Return the job that holds a key. This statement only reads."""
        return f"SELECT {IDENTITY} FROM {{table}} WHERE {HOLDER}"

    claim_key = from_file()
    set_key_holder = from_file(rows=False)
    sweep_dedup = from_file(rows=False)

    @composed()
    def find_held(self) -> str:
        """Return the job for which a key is held for a time, if the job exists. This statement only reads."""
        return (
            f"SELECT job_id, (SELECT {PUT_AT} FROM {{table}} WHERE id = held.job_id AND {OF_QUEUE})"
            " FROM {dedup} AS held WHERE q_name = :q_name::text AND dedup_key = :dedup_key::text"
        )

    @composed()
    def replace(self) -> str:
        """Replace a waiting job. The row is checked again when it is locked: a job that has started is not changed."""
        return f"""
WITH put (id, put_at) AS (
  UPDATE {{table}} AS held SET {REPLACED} WHERE id = :id::bigint AND {OF_QUEUE} AND {IS_WAITING}
  RETURNING {IDENTITY}{_TELL_REPLACED}"""

    # Many jobs, each with its own options.

    claim_keys = from_file()
    set_key_holders = from_file(rows=False)

    @composed()
    def put_each(self) -> str:
        """Insert jobs, except those whose dedup key is taken; the unique index decides, as for `put`.

        Ids are drawn in the order of the items. The statement returns them as one text: the number and the id of each
        item in turn. If all items were inserted, with consecutive ids, the text is NULL, because the first id suffices.

        Two statements may wait for each other's keys. The server then ends one of the statements (deadlock), and
        its caller repeats the statement. If a trigger dropped a job without a key, a division by zero makes the
        statement fail; in a transaction that pqcore began, this check is off, because pqcore can roll back.
        """
        return f"""
WITH put AS (
  INSERT INTO {{table}} ({PUT_COLUMNS}) SELECT {_ITEM_VALUES}
  FROM {_ITEMS}
  {CONFLICT} DO NOTHING RETURNING id, dedup_key, enqueued_at
)
SELECT min(id), CASE WHEN count(*) = :number::int AND min(id - place) = max(id - place) THEN NULL
    ELSE string_agg(place || ' ' || id, ' ') END,
  min(place), {PUT_AT.replace("enqueued_at", "min(enqueued_at)")},
  {_UNKEYED} / (NOT :fails::boolean OR {_UNKEYED} = :unkeyed::int)::int,
  sqrt(CASE WHEN {_PLACES_ARE_VALID} THEN 0 ELSE -1 END)
FROM (SELECT id, dedup_key, enqueued_at, {_PLACE} AS place FROM put) AS put"""

    @composed()
    def find_duplicates(self) -> str:
        """Return the jobs that hold keys, each with its key. This statement only reads."""
        return (
            f"SELECT dedup_key, {IDENTITY} FROM {{table}} WHERE {OF_QUEUE} AND dedup_key = ANY (:dedup_keys::text[])"
            " AND dedup_key IS NOT NULL AND dequeued_at IS NULL"
        )

    @composed()
    def find_all_held(self) -> str:
        """Return the jobs for which keys are held for a time, each with its key. This statement only reads."""
        return (
            f"SELECT dedup_key, job_id, (SELECT {PUT_AT} FROM {{table}} WHERE id = held.job_id AND {OF_QUEUE})"
            f" FROM {{dedup}} AS held WHERE {OF_QUEUE} AND dedup_key = ANY (:dedup_keys::text[])"
        )

    @composed()
    def replace_each(self) -> str:
        """Replace each of several waiting jobs by a new job.

        Rows are locked in the order of their ids, so that two such statements do not deadlock. Each row is checked
        again when it is locked (EvalPlanQual): a job that has started is not changed.
        """
        changes = ", ".join(f"{column} = given.{column}" for column in _NEW_COLUMNS.split(", "))
        return f"""
WITH given (id, {_NEW_COLUMNS}) AS (
  SELECT item.id, {_NEW_VALUES}
  FROM json_to_recordset(:items::text::json) AS item (id bigint, {_ITEM_COLUMNS})
), waiting AS (
  SELECT id FROM {{table}} WHERE id = ANY (:ids::bigint[]) AND {OF_QUEUE} AND {IS_WAITING} ORDER BY id FOR UPDATE
), put AS (
  UPDATE {{table}} AS held SET {changes}, failures = NULL, excused = held.attempts, error = NULL, cancelling = NULL
  FROM given WHERE held.id = given.id AND held.id = ANY (ARRAY(SELECT id FROM waiting)) AND held.q_name = :q_name::text
  RETURNING held.id
)
SELECT pg_notify(:channel::text, '')::text WHERE EXISTS (SELECT FROM put)"""
