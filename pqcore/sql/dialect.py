"""The statements: named, commented with why they are safe under concurrency, compiled once.

The table's waiting rows fall into three classes, each with a partial index that
ends in the id, so that a row is found by reading a bounded number of pages:

``ready``
    No expectation, no lease; ordered by the time due.  One range scan gives
    those due; those scheduled for later lie behind them and cost nothing.
``urgent``
    With an expectation, never scheduled: always due; ordered by expectation.
``hidden``
    Leased, or scheduled *and* expected: ordered by when they come out.  One
    probe tells whether any is out.  Usually none is, and the two other
    classes are the whole truth; else the slower ``merged`` pick is used.

An expectation precedes none, so ``urgent`` comes before ``ready``.  A finished
row is in none of the three.

All of it runs at READ COMMITTED or above.  ``FOR UPDATE SKIP LOCKED`` makes a
row the taker's own until its transaction ends; a row that another session
changed between this statement's snapshot and the lock is checked again by
PostgreSQL against the whole WHERE clause (EvalPlanQual), so a job taken a moment
ago is not taken twice.  ``statement_timestamp()`` is the server's clock at the
statement, not at the start of a long transaction.

After a pick, ``id = ANY (ARRAY(...))`` looks the rows up by primary key whatever
the statistics say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property, lru_cache
from typing import ClassVar, Literal, TypeAlias

from pqcore.backend import Capability
from pqcore.rows import JOB
from pqcore.sql.admin_statements import UpkeepStatements
from pqcore.sql.encoding_statements import EncodingStatements
from pqcore.sql.fragments import (
    AFTER_WAY,
    COLUMNS,
    DUE_AT,
    EXPRESSIBLE,
    HELD_ONE,
    HELD_ONES,
    HIDDEN_ORDER,
    IDENTITY,
    IS_DEFERRED,
    IS_GATED,
    IS_READY,
    IS_URGENT,
    MADE_WAY,
    NEXT_ATTEMPT,
    OF_QUEUE,
    ONE_MORE,
    ORDER,
    READY_ORDER,
    TIMES,
    URGENT_ORDER,
    VISIBLE_AT,
)
from pqcore.sql.identifiers import TableName
from pqcore.sql.statement import Paramstyle, Query, Retention, compile_query
from pqcore.sql.task_statements import TaskStatements

Pick: TypeAlias = Literal["ordered", "bounded", "unguarded", "merged"]
Finish: TypeAlias = Literal["keep", "delete", "archive", "lease"]

SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000)
"""Rows: for so many the statement is worth being prepared; who may choose a number chooses one of these."""
ADMISSION = 10
"""Seconds for which a gated job is leased until it is admitted: if that fails, it comes again after no longer."""
REACH = 1_000
"""Rows: of the jobs that came out of hiding, so many are considered, the longest due first."""

_READY, _URGENT, _HIDDEN = (f"{OF_QUEUE} AND {kind}" for kind in (IS_READY, IS_URGENT, IS_DEFERRED))
_OUT_NOW = f"{_HIDDEN} AND {VISIBLE_AT} <= statement_timestamp()"
_READY_NOW = f"{_READY} AND {DUE_AT} <= statement_timestamp()"
# The first one by order, not any: then the planner has no reason to try its luck with a scan.
_FIRST_HIDDEN = f"SELECT {VISIBLE_AT} AS out_at FROM {{table}} WHERE {_HIDDEN} ORDER BY {HIDDEN_ORDER} LIMIT 1"

# Whether a queue of a list of names has a job to take: a probe of each class.
_WAITED_FOR = [
    f"(SELECT true FROM {{table}} WHERE {condition.replace(OF_QUEUE, 'q_name = waited.name')} ORDER BY {order} LIMIT 1)"
    for condition, order in ((_URGENT, URGENT_ORDER), (_READY_NOW, READY_ORDER), (_OUT_NOW, HIDDEN_ORDER))
]

# What a waiter locks: the seed is of these locks alone.
_WAITED = "hashtextextended(channel, 7071)"


def _head(condition: str, order: str, n: int, suffix: str = "", most: str = "", columns: str = "id") -> str:
    # The inner LIMIT, a constant, tells the planner that few rows are wanted.  The outer one, which it
    # cannot know, has it prefer what gives rows at once, the index, to what gives all of a few cheaply,
    # a sort: a prepared statement keeps its plan when the few have become a million.
    return (
        f"SELECT * FROM (SELECT {columns} FROM {{table}} WHERE {condition}"
        f" ORDER BY {order} LIMIT {n}{suffix}) AS head LIMIT {most or f'(SELECT {n})'}"
    )


def _ordered(n: int, first: str = "", guard: str = "", urgent: str = "", ready: str = "") -> str:
    # The outer limit of the second stops pulling, and so locking, once urgent ones fill the order.
    rest = f"{n} - (SELECT count(*) FROM urgent)"
    return f"""
WITH {first}urgent AS (
  {_head(_URGENT + guard + urgent, URGENT_ORDER, n, " FOR UPDATE SKIP LOCKED")}
), ready AS (
  {_head(_READY_NOW + guard + ready, READY_ORDER, n, " FOR UPDATE SKIP LOCKED", rest)}
), picked AS (SELECT id FROM urgent UNION ALL SELECT id FROM ready)"""


def _candidates(near: int, reach: int, columns: str) -> str:
    return f"""
  ({_head(_URGENT, URGENT_ORDER, near, columns=columns)})
  UNION ALL ({_head(_READY_NOW, READY_ORDER, near, columns=columns)})
  UNION ALL ({_head(_OUT_NOW, HIDDEN_ORDER, reach, columns=columns)})"""


def _merged(n: int) -> str:
    # Looks without locking at the heads of all three classes, then goes through them in the order of
    # the whole and locks the first n free ones; every condition stands again beside FOR UPDATE, where
    # it is checked against the row as it is once locked.
    return f"""
WITH picked AS (
  SELECT free.id FROM (
    SELECT id FROM ({_candidates(n + 100, max(n, REACH), "id, expected_at, schedule_at, enqueued_at")}
    ) AS candidates ORDER BY {ORDER}
  ) AS candidate CROSS JOIN LATERAL (
    SELECT id FROM {{table}} WHERE id = candidate.id AND {OF_QUEUE}
      AND dequeued_at IS NULL AND {DUE_AT} <= statement_timestamp()
      AND (leased_until IS NULL OR leased_until <= statement_timestamp())
    FOR UPDATE SKIP LOCKED
  ) AS free LIMIT {n}
)"""


# The five parts of a bound in one text: a driver takes longer over each parameter than the server over splitting one.
_AFTER = "(string_to_array(:bound::text, ' '))"
_PICKS: dict[Pick, Callable[[int], str]] = {
    "ordered": lambda n: _ordered(
        n,
        f"hidden AS ({_FIRST_HIDDEN}), ",
        " AND NOT EXISTS (SELECT FROM hidden WHERE out_at <= statement_timestamp())",
    ),
    # Begins where the last one left off: what lies before is not looked at (see pqcore.scan_position).
    "bounded": lambda n: _ordered(
        n,
        urgent=f" AND (expected_at, enqueued_at, id) > ({_AFTER}[1]::timestamptz, {_AFTER}[2]::timestamptz,"
        f" {_AFTER}[3]::bigint)",
        ready=f" AND ({DUE_AT}, id) > ({_AFTER}[4]::timestamptz, {_AFTER}[5]::bigint)",
    ),
    "unguarded": _ordered,
    "merged": _merged,
}

# How a picked row leaves the waiting ones.  Each is one statement with the pick,
# so there is no moment at which a job is neither waiting nor taken.
_PICKED = f"id = ANY (ARRAY(SELECT id FROM picked)) AND {OF_QUEUE}"
_FINISHES: dict[Finish, str] = {
    "keep": f"""
UPDATE {{table}} SET dequeued_at = statement_timestamp(), attempts = {NEXT_ATTEMPT}, leased_until = NULL
WHERE {_PICKED} RETURNING {JOB}""",
    "delete": f"""
DELETE FROM {{table}} WHERE {_PICKED} RETURNING {JOB.replace("attempts", NEXT_ATTEMPT)}""",
    "archive": f""", gone AS (DELETE FROM {{table}} WHERE {_PICKED} RETURNING *){MADE_WAY["archive"]}, kept AS (
  INSERT INTO {{archive}} ({COLUMNS})
  SELECT {COLUMNS.replace("dequeued_at", "statement_timestamp()").replace("attempts", NEXT_ATTEMPT)}
  FROM gone{AFTER_WAY}
)
SELECT {JOB.replace("attempts", NEXT_ATTEMPT)} FROM gone""",
    "lease": f"""
UPDATE {{table}} SET attempts = {NEXT_ATTEMPT},
  leased_until = statement_timestamp()
    + least(:lease::float8, CASE WHEN {IS_GATED} THEN {ADMISSION} END) * interval '1 second',
  excused = CASE WHEN {IS_GATED} THEN {ONE_MORE.format("excused")} ELSE excused END
WHERE {_PICKED} RETURNING {JOB}""",
}

_ACKS: dict[Retention, str] = {
    "keep": f"""
UPDATE {{table}} SET dequeued_at = statement_timestamp(), leased_until = NULL{HELD_ONES} RETURNING id, attempts""",
    "delete": f"""
DELETE FROM {{table}}{HELD_ONES} RETURNING id, attempts""",
    "archive": f"""
WITH gone AS (DELETE FROM {{table}}{HELD_ONES} RETURNING *){MADE_WAY["archive"]}, kept AS (
  INSERT INTO {{archive}} ({COLUMNS})
  SELECT {COLUMNS.replace("dequeued_at", "statement_timestamp()")} FROM gone{AFTER_WAY}
)
SELECT id, attempts FROM gone""",
}

# Undoes a pop whose result never reached its caller (an awaiting task was cancelled).
# The row keeps its id and its place.
_RESTORED = f"""
INSERT INTO {{table}} ({COLUMNS}, group_key)
VALUES (:id::bigint, :q_name::text, :enqueued_at::timestamptz, NULL, :expected_at::timestamptz,
  :schedule_at::timestamptz, :data::text::json, :attempts::int, :serializer::text, :payload::bytea,
  :headers::text::json, :failures::int, :excused::int, NULL, :headers::text::json #>> '{{{{gate,group}}}}')
ON CONFLICT DO NOTHING RETURNING id"""
_RESTORES: dict[Retention, str] = {
    "keep": f"""
UPDATE {{table}} SET dequeued_at = NULL, attempts = :attempts::int, dedup_key = NULL
WHERE id = :id::bigint AND {OF_QUEUE} RETURNING id, pg_notify(:channel::text, '')::text""",
    "delete": _RESTORED,
    "archive": f"""
WITH taken AS (DELETE FROM {{archive}} WHERE id = :id::bigint AND {OF_QUEUE}) {_RESTORED}""",
}


# On a standby, seconds since the last commit that it has replayed was made, by its own clock: what is older it has.
# If it has replayed none since it was started, it has at least what its last checkpoint had.
_STALE = (
    "greatest(extract(epoch FROM statement_timestamp()) - extract(epoch FROM coalesce("
    "pg_last_xact_replay_timestamp(), (SELECT checkpoint_time FROM pg_control_checkpoint()))), 0)::float8"
)


def _stats(which: str) -> str:
    # Only a standby gives a row without a name: how old the others may be.
    columns = (
        f"q_name, {DUE_AT} AS due_at, coalesce(leased_until > statement_timestamp(), false) AS held,"
        f" {DUE_AT} <= statement_timestamp() AND coalesce(leased_until <= statement_timestamp(), true) AS due,"
        " parked_on"
    )
    classes = " UNION ALL ".join(
        f"SELECT {columns} FROM {{table}} WHERE {kind}{which}" for kind in (IS_READY, IS_URGENT, IS_DEFERRED)
    )
    return f"""
SELECT q_name,
  count(*) FILTER (WHERE due), count(*) FILTER (WHERE NOT due AND NOT held),
  count(*) FILTER (WHERE held AND parked_on IS NULL),
  (extract(epoch FROM statement_timestamp()) - extract(epoch FROM min(due_at) FILTER (WHERE due)))::float8,
  count(*) FILTER (WHERE parked_on IS NOT NULL)
FROM ({classes}) AS waiting GROUP BY q_name
UNION ALL SELECT NULL, 0, 0, 0, {_STALE}, 0 WHERE pg_is_in_recovery()
ORDER BY q_name"""


def _put_many(stored: str, items: str) -> str:
    return (
        "WITH put AS (INSERT INTO {table} (q_name, data, payload, serializer, enqueued_at, schedule_at, expected_at,"
        f" headers, group_key) SELECT :q_name::text, {stored}, :serializer::text, statement_timestamp(), {TIMES},"
        " :headers::text::json, :group_key::text"
        f" FROM {items} WITH ORDINALITY AS item (value, place) ORDER BY place RETURNING id)"
        # As text, since asyncpg reads the elements of other arrays by the application's codecs.
        # Divides by zero, and so is undone, if a trigger left a row out; not where there is a transaction to be undone.
        " SELECT min(id), count(*) / (:number::int IS NULL OR count(*) = :number::int)::int,"
        " CASE WHEN max(id) - min(id) >= count(*) THEN array_agg(id::text) END,"
        " date_part('epoch', statement_timestamp()) FROM put"
    )


class Dialect:
    """The statements of one table, in one driver's paramstyle.

    A subclass speaks to an engine that is like PostgreSQL, and not the same: it rewords what that does not take.

    Args:
        names: The table.
        paramstyle: How the driver wants placeholders.

    Attributes:
        name: As users write it: ``PQ(dsn, dialect="citus")``.
        missing: Why the engine lacks what a driver may offer; by `pqcore.backend.Capability`.
        unsupported: Why the engine cannot do what else can be done: ``move``, ``partitions``, ``shared looks`` (one
            statement that looks at many queues; without it, each waiter that cannot be notified polls).
        api: The version of the plugin API that it was written for.
    """

    name: ClassVar[str] = "postgresql"
    missing: ClassVar[Mapping[Capability, str]] = {}
    unsupported: ClassVar[Mapping[str, str]] = {}
    api: ClassVar[int] = 1

    def reworded(self, name: str, template: str) -> str:
        """The template of a statement, as the engine takes it.

        Args:
            name: The statement's.
            template: With ``{table}`` for identifiers and ``:name`` for parameters.
        """
        return template

    def declared(self, statement: str) -> Iterable[str]:
        """What is run for a statement of a migration: itself, another, several, or none."""
        return (statement,)

    def __init__(self, names: TableName, paramstyle: Paramstyle) -> None:
        self._substitutions = names.substitutions()
        self._paramstyle: Paramstyle = paramstyle
        # Bounded: get_many(n) has a statement for each n.
        self.take = lru_cache(maxsize=64)(self._take)

        compiled = self._compile

        # Inserting takes no lock that another insert waits for.
        columns = "q_name, data, payload, serializer, enqueued_at"
        stored = ":q_name::text, :data::text::json, :payload::bytea, :serializer::text, statement_timestamp()"
        plain = f"INSERT INTO {{table}} ({columns}) VALUES ({stored}) RETURNING "
        timed = f"INSERT INTO {{table}} ({columns}, schedule_at, expected_at) VALUES ({stored}, {TIMES}) RETURNING "
        self.put = compiled("put", f"{plain}id", hot=True)
        self.put_timed = compiled("put_timed", f"{timed}id", hot=True)
        # The same, for handles.
        self.put_call = compiled("put_call", f"{plain}{IDENTITY}", hot=True)
        self.put_call_timed = compiled("put_call_timed", f"{timed}{IDENTITY}", hot=True)
        # All rows in one text, a JSON array, and all ids in one value, which is NULL where none is left out between
        # the first and the last: a driver takes longer over 5,000 values than the server over splitting them.  Ids
        # are drawn in order: a column default is computed above the Sort.
        self.put_many = compiled(
            "put_many", _put_many("item.value, NULL", "json_array_elements(:items::text::json)"), hot=True
        )
        # The same of elements that are strings, of which each is read by itself: bytes, or text that may not be JSON.
        self.put_many_encoded = compiled(
            "put_many_encoded",
            _put_many(
                "CASE WHEN NOT :binary::boolean THEN item.value::json END,"
                " CASE WHEN :binary::boolean THEN decode(item.value, 'base64') END",
                "json_array_elements_text(:items::text::json)",
            ),
            hot=True,
        )
        # Reads only. Tells why a take came back empty, and when it is worth another look.
        self.next_due_probe = compiled(
            "next_due_probe",
            f"""
SELECT coalesce(({_FIRST_HIDDEN}) <= statement_timestamp(), false), (extract(epoch FROM least(
  (SELECT {DUE_AT} FROM {{table}} WHERE {_READY} AND {DUE_AT} > statement_timestamp()
   ORDER BY {DUE_AT}, id LIMIT 1),
  (SELECT {VISIBLE_AT} FROM {{table}} WHERE {_HIDDEN} AND {VISIBLE_AT} > statement_timestamp()
   ORDER BY {VISIBLE_AT}, id LIMIT 1)
)) - extract(epoch FROM statement_timestamp()))::float8""",
            hot=True,
        )
        # Reads only. Of the queues that are waited for, those that have a job; who takes it is decided by the takes.
        # Scalar subqueries, which the planner makes no join or hash of: a probe of each index for each name.
        self.ready_queues = compiled(
            "ready_queues",
            f"SELECT name FROM unnest(:names::text[]) AS waited (name) WHERE coalesce({', '.join(_WAITED_FOR)}, false)",
        )
        self.ack: dict[Retention, Query] = {kept: compiled(f"ack_{kept}", sql, hot=True) for kept, sql in _ACKS.items()}
        self.restore: dict[Retention, Query] = {
            kept: compiled(f"restore_{kept}", sql) for kept, sql in _RESTORES.items()
        }
        # Without a delay the job goes back to its place, and waiters are told;
        # with one it is scheduled anew, and waiters find the time in next_due_probe.
        self.nack = compiled(
            "nack",
            f"UPDATE {{table}} SET leased_until = NULL,"
            f" schedule_at = coalesce(statement_timestamp() + :delay::float8 * interval '1 second', schedule_at)"
            f" WHERE {HELD_ONE} RETURNING id, pg_notify(:channel::text, '')::text",
        )
        self.extend = compiled(
            "extend",
            f"UPDATE {{table}} SET leased_until = statement_timestamp() + :lease::float8 * interval '1 second'"
            f" WHERE {HELD_ONE} RETURNING id",
            hot=True,
        )
        self.update = compiled(
            "update",
            "UPDATE {table} SET data = :data::text::json, payload = :payload::bytea, serializer = :serializer::text"
            " WHERE id = :id::bigint AND q_name = :q_name::text RETURNING id",
        )
        # Skips a locked row instead of waiting: whoever holds it is working on it.
        self.cancel = compiled(
            "cancel",
            "DELETE FROM {table} WHERE q_name = :q_name::text AND id = (SELECT id FROM {table}"
            " WHERE id = :id::bigint AND q_name = :q_name::text AND dequeued_at IS NULL"
            " AND (leased_until IS NULL OR leased_until <= statement_timestamp() OR parked_on IS NOT NULL)"
            f" FOR UPDATE SKIP LOCKED) RETURNING id, headers::text, {EXPRESSIBLE.format('enqueued_at')}",
        )
        # Places under limits go with the jobs that held them.  Gives the headers of those that a batch waits for.
        self.clear = compiled(
            "clear",
            "WITH freed AS (DELETE FROM {slots} WHERE q_name = :q_name::text),"
            " gone AS (DELETE FROM {table} WHERE q_name = :q_name::text RETURNING headers, dequeued_at)"
            " SELECT headers::text FROM gone WHERE dequeued_at IS NULL AND headers::text LIKE '%\"batch\"%'",
        )
        # One class a term, so that each is counted through its own index.
        self.count = compiled(
            "count",
            f"SELECT (SELECT count(*) FROM {{table}} WHERE {_URGENT})"
            f" + (SELECT count(*) FROM {{table}} WHERE {_READY_NOW})"
            f" + (SELECT count(*) FROM {{table}} WHERE {_OUT_NOW}"
            f" AND {DUE_AT} <= statement_timestamp())",
        )
        # One class a term here, too: a table of finished rows is not read.
        self.stats = compiled("stats", _stats(" AND q_name = :q_name::text"))
        self.stats_all = compiled("stats_all", _stats(""))
        # A slice of ids a statement, so that none runs long or locks much, however
        # large the table. Finished rows are changed by nobody else.
        self.purge_kept = compiled(
            "purge_kept",
            """
WITH slice AS (
  SELECT id FROM {table} WHERE id > :after::bigint ORDER BY id LIMIT 10000
), gone AS (
  DELETE FROM {table} WHERE id = ANY (ARRAY(SELECT id FROM slice)) AND q_name = :q_name::text
    AND dequeued_at <= statement_timestamp() - :age::float8 * interval '1 second'
  RETURNING id
)
SELECT max(id), (SELECT count(*) FROM gone) FROM slice""",
        )
        self.purge_archive = compiled(
            "purge_archive",
            """
WITH slice AS (
  SELECT id FROM (SELECT id FROM {archive} WHERE q_name = :q_name::text
    AND dequeued_at <= statement_timestamp() - :age::float8 * interval '1 second'
    ORDER BY dequeued_at LIMIT 10000 FOR UPDATE SKIP LOCKED) AS head LIMIT (SELECT 10000)
), gone AS (
  DELETE FROM {archive} WHERE id = ANY (ARRAY(SELECT id FROM slice)) AND q_name = :q_name::text RETURNING id
)
SELECT max(id), count(*) FROM gone""",
        )
        self.tasks = TaskStatements(compiled)
        self.ping = compiled("ping", "SELECT 1")
        # The lock of one who waits on a channel, which the trigger looks for (see 0005_notify_who_waits.sql).
        # Putters hold the exclusive one within an expression only, so it is not waited for long. Gives no
        # row, and takes no lock, where LISTEN is not in force: a pooler gave us another server's connection.
        # Else one row per channel. Deadlocks are impossible: an exclusive lock is tried, and not waited for.
        self.register = compiled(
            "register",
            f"SELECT pg_advisory_lock_shared({_WAITED})::text FROM pg_listening_channels() AS channel"
            " JOIN unnest(:channels::text[]) AS wanted ON wanted = channel",
        )
        # One who was counted twice, as where the answer got lost, stays: then puts notify in vain.
        self.unregister = compiled(
            "unregister", f"SELECT pg_advisory_unlock_shared({_WAITED}) FROM unnest(:channels::text[]) AS channel"
        )
        # Settings of this session alone; those that the server does not know are left out. A mild one is set only
        # where nobody has set it: neither the server's, the role's nor the caller's own value is replaced.
        self.session_settings = compiled(
            "session_settings",
            "SELECT set_config(name, value, false)"
            " FROM unnest(:names::text[], :values::text[], :mild::bool[]) AS wanted (name, value, mild)"
            " WHERE current_setting(name, true) IS NOT NULL AND (NOT mild OR current_setting(name, true) = '0')",
        )
        # Gives no row on a connection that listens to nothing.
        self.listening = compiled("listening", "SELECT channel FROM pg_listening_channels() AS channel LIMIT 1")
        # The trigger does not see locks of its own session: one who waits on the connection that others put on
        # is told of all puts on it. What the user has set is left as it is.
        self.notify_always = compiled(
            "notify_always",
            "SELECT set_config('pqcore.notify', 'always', false)"
            " WHERE coalesce(current_setting('pqcore.notify', true), '') = ''",
        )
        self.notify_waiters = compiled(
            "notify_waiters",
            "SELECT set_config('pqcore.notify', '', false) WHERE current_setting('pqcore.notify', true) = 'always'",
        )
        # Reads only. Of a standby, and of a server or role that is read-only by default.
        self.read_only = compiled("read_only", "SELECT current_setting('transaction_read_only') = 'on'")
        # How full the server's queue of notifications is, from 0 to 1. The question also frees what all listeners have
        # read, which else waits until one of them reads on. Commits that notify wait for it for a moment only.
        self.notification_usage = compiled(
            "notification_usage",
            "SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_notification_queue_usage() ELSE 0 END",
        )
        # A prepared statement keeps the plan of the table it was planned for: a scan, if it was empty.
        self.replan = compiled("replan", "DISCARD PLANS", rows=False)

    @cached_property
    def upkeep(self) -> UpkeepStatements:
        """The statements of operators, compiled when the first is used."""
        return UpkeepStatements(self._compile)

    @cached_property
    def encodings(self) -> EncodingStatements:
        """The statements that count and re-encode data, compiled when the first is used."""
        return EncodingStatements(self._compile)

    def _take(self, pick: Pick, finish: Finish, n: int) -> Query:
        """The statement that takes up to ``n`` rows.

        Args:
            pick: ``ordered`` gives nothing when a hidden row came out; ``bounded`` and
                ``unguarded`` do not look, and the former begins at a bound; ``merged`` takes hidden rows too.
            finish: What becomes of the rows.
            n: Rows, at most.
        """
        name = f"{finish}_{n}_{pick}"
        return self._compile(name, _PICKS[pick](n) + _FINISHES[finish], hot=n in SIZES)

    def peek(self, n: int) -> Query:
        """The statement that reads the next ``n`` rows due, locking nothing."""
        sql = (
            f"SELECT {JOB} FROM ({_candidates(n, max(n, REACH), '*')}) AS candidates"
            f" WHERE {DUE_AT} <= statement_timestamp() ORDER BY {ORDER} LIMIT {n}"
        )
        return self._compile(f"peek_{n}", sql)

    def _compile(self, name: str, template: str, *, rows: bool = True, hot: bool = False) -> Query:
        worded = self.reworded(name, template)
        return compile_query(name, worded, self._substitutions, self._paramstyle, rows=rows, hot=hot)
