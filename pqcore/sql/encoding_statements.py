"""The statements that read how data is encoded, and that store re-encoded data.

`pqcore.sql.dialect` explains why statements are safe under concurrency. A table is read in slices, in the order of its
ids, without locks. Each row is changed separately. A row stays unchanged if another session has changed it since it was
read, or has locked it.
"""

from __future__ import annotations

from pqcore.sql.fragments import OF_QUEUE, STORED_STATE
from pqcore.sql.statement_set import StatementSet, composed, family

SLICE = 10_000
"""The number of rows that one statement looks at."""
ROWS = ("table", "dead", "archive", "results")
"""The tables whose rows themselves hold encoded data; batches and schedules hold encoded data in a stored call."""

_NOW = "statement_timestamp()"
_BEGIN = "decode('6b65793a', 'hex')"  # the text "key:", whose colon would otherwise begin a parameter


def _mark(place: int) -> str:
    return f"CASE WHEN substr(payload, {place}, 4) = {_BEGIN} THEN encode(substr(payload, {place}, 13), 'escape') END"


# This expression returns up to three marks at the beginning of the bytes; each mark names a key. `read_marks` returns
# the keys' ids. PostgreSQL fetches only the head of a long value. A regular expression would take ten times as long.
_MARKS = f"coalesce({_mark(1)} || coalesce({_mark(14)} || coalesce({_mark(27)}, ''), ''), '')"
_HELD = f"coalesce(leased_until > {_NOW} AND parked_on IS NULL AND dequeued_at IS NULL, false)"
_LINKED = "coalesce(headers::text ~ '\"(then|previous)\"', false)"
_HAS_DATA = "(data IS NOT NULL OR payload IS NOT NULL)"


def _key(place: str) -> str:
    return "job_id" if place == "results" else "id"


def _state(place: str) -> str:
    return STORED_STATE if place == "table" else f"'{place}'"


def _linked(place: str) -> str:
    return "false" if place == "results" else _LINKED


def _slice(place: str) -> str:
    return (
        f"(SELECT * FROM {{{place}}} WHERE {_key(place)} > :after::bigint ORDER BY {_key(place)} LIMIT {SLICE}) AS row"
    )


class EncodingStatements(StatementSet):
    """The statements that count and re-encode data."""

    @family("count_encoded_{}", ROWS)
    def count(self, place: str) -> str:
        """Count the data in a slice of ids, by queue, state, serializer and key. This statement only reads.

        The ids of keys are read from the marks before the bytes, so no key is needed. The last column counts all rows,
        even rows without data, so its sum is the number of rows in the slice.
        """
        return (
            f"SELECT max({_key(place)}), q_name, {_state(place)} AS state, serializer, {_MARKS} AS marks,"
            f" {_linked(place)} AS linked, count(*) FILTER (WHERE {_HAS_DATA}), count(*)"
            f" FROM {_slice(place)} GROUP BY q_name, state, serializer, marks, linked"
        )

    @family("list_encoded_{}", ROWS)
    def list(self, place: str) -> str:
        """List the rows of a slice that may need re-encoding, with the approximate size of each in bytes.

        This statement only reads.
        """
        return (
            f"SELECT {_key(place)}, q_name, serializer, {_MARKS}, {_linked(place)},"
            " (coalesce(pg_column_size(data), 0) + coalesce(pg_column_size(payload), 0))::bigint"
            f" FROM {{{place}}} WHERE {_key(place)} > :after::bigint AND {_key(place)} <= :last::bigint"
            f" AND ((q_name = ANY (:names::text[]) AND {_HAS_DATA}) OR {_linked(place)}) ORDER BY {_key(place)}"
        )

    @family("headers_of_{}", ("table", "dead", "archive"))
    def headers(self, place: str) -> str:
        """Return the headers in a slice that hold encoded data of calls or results. This statement only reads."""
        return (
            f"SELECT q_name, headers::text FROM {{{place}}}"
            f" WHERE id > :after::bigint AND id <= :last::bigint AND {_LINKED} ORDER BY id"
        )

    @family("read_encoded_{}", ROWS)
    def read(self, place: str) -> str:
        """Return the given rows of a queue, with their data and headers. This statement only reads."""
        return (
            f"SELECT {_key(place)}, serializer, data::text, payload,"
            f" {'NULL::text' if place == 'results' else 'headers::text'},"
            f" {_HELD if place == 'table' else 'false'}"
            f" FROM {{{place}}} WHERE {_key(place)} = ANY (:ids::bigint[]) AND {OF_QUEUE} ORDER BY {_key(place)}"
        )

    @family("write_encoded_{}", ROWS)
    def write(self, place: str) -> str:
        """Store re-encoded data in a row.

        The row is locked if it is unchanged since it was read, and no other session has locked it. A row in use is
        skipped, so the statement waits for no session, and cannot deadlock. Under a lease, the data may be rewritten,
        because the lease's holder has already read the data. When the job ends, the holder puts the calls from the
        headers as it read them, so the headers are not rewritten while the lease lasts. If the lease has run out, the
        statement removes it, so that its former holder cannot finish the job (see `LEASE_HELD`).
        """
        condition = (
            " AND data::text IS NOT DISTINCT FROM :old_data::text AND payload IS NOT DISTINCT FROM :old_payload::bytea"
            " AND serializer IS NOT DISTINCT FROM :old_serializer::text"
        )
        changes = "data = :data::text::json, payload = :payload::bytea, serializer = :serializer::text"
        if place != "results":
            condition += " AND headers::text IS NOT DISTINCT FROM :old_headers::text"
            changes += ", headers = :headers::text::json"
        if place == "table":
            condition += f" AND NOT (:linked::boolean AND {_HELD})"
            changes += (
                ", leased_until = CASE WHEN :linked::boolean AND parked_on IS NULL THEN NULL ELSE leased_until END"
            )
        return f"""
WITH free AS (
  SELECT {_key(place)} FROM {{{place}}} WHERE {_key(place)} = :id::bigint AND {OF_QUEUE}{condition}
  FOR UPDATE SKIP LOCKED
)
UPDATE {{{place}}} SET {changes}
WHERE {_key(place)} = ANY (ARRAY(SELECT {_key(place)} FROM free)) AND {OF_QUEUE} RETURNING {_key(place)}"""

    @composed()
    def callbacks(self) -> str:
        """List the calls that follow open batches. This statement only reads."""
        return f"SELECT id, q_name, callback::text FROM {{batches}} WHERE id > :after::bigint ORDER BY id LIMIT {SLICE}"

    @composed()
    def scheduled_calls(self) -> str:
        """List the calls of schedules. This statement only reads."""
        return (
            "SELECT name, q_name, call::text FROM {schedules} WHERE (q_name, name) > (:q_name::text, :after::text)"
            f" ORDER BY q_name, name LIMIT {SLICE}"
        )

    @family("write_call_{}", ("batches", "schedules"))
    def write_call(self, place: str) -> str:
        """Store a re-encoded call of a batch or schedule, like `write`.

        Locked rows are skipped (SKIP LOCKED). The row of a batch is locked while the batch counts the end of a job; the
        row of a schedule is locked while a worker puts the job of its tick.
        """
        if place == "batches":
            key, given, column, more = "id", ":id::bigint", "callback", ""
        else:
            key, given, column, more = "name", ":id::text", "call", ", updated_at = clock_timestamp()"
        return f"""
WITH free AS (
  SELECT {key} FROM {{{place}}} WHERE {key} = {given} AND {OF_QUEUE}
    AND {column}::text IS NOT DISTINCT FROM :old_call::text FOR UPDATE SKIP LOCKED
)
UPDATE {{{place}}} SET {column} = :call::text::json{more}
WHERE {key} = ANY (ARRAY(SELECT {key} FROM free)) AND {OF_QUEUE} RETURNING {key}"""
