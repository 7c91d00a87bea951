"""Whether a table and its server are as a queue needs them: what ``pqcore doctor`` asks, and how it judges.

Nothing is changed, and nothing is taken: what is not a question to the catalogues runs in a transaction that is
read-only, or is a notification on a channel of its own.  A question that the server does not answer, as the role
may not ask it, is a finding like the others.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

from pqcore import schema
from pqcore.backend import Capability, Row
from pqcore.db.engine import Engine
from pqcore.db.session import Session
from pqcore.errors import AccessDenied, ConnectionLost, DatabaseError, PQError, SchemaTooNew
from pqcore.operations import reencode
from pqcore.operations.job_outcome import PUT_OFF
from pqcore.operations.periodic import AHEAD
from pqcore.operations.schema_info import ask
from pqcore.plugins import plugins
from pqcore.schema import security, sequences
from pqcore.serializers import held_keys, written_under
from pqcore.sql.fragments import IS_DEFERRED, IS_READY
from pqcore.sql.statement import Query, plain

Level: TypeAlias = Literal["ok", "warning", "problem"]

OLDEST_SERVER = 130_000
"""``server_version_num`` of the first PostgreSQL that pqcore works with."""
LONG, TOO_LONG = 60.0, 900.0
"""Seconds that a snapshot may be held, before it is worth a warning, and before it is a problem."""
CLOCKS = 2.0
"""Seconds by which the clocks may differ."""
HEADROOM, NO_HEADROOM = 0.8, 0.95
"""Of the connections that the server takes: the part in use that is a warning, and a problem."""
LISTEN_PATIENCE = 10.0
"""Seconds in which a notification is to arrive."""
MUCH_UNREAD, TOO_MUCH_UNREAD = 0.1, 0.5
"""Of the server's queue of notifications: the part in use that is a warning, and a problem."""
BLOATED = 64 * 2**20
"""Bytes: a table or index that is smaller is not called bloated."""
FEW_PAGES = 32
"""Pages of 8 kB: of a table of no more, which it has from the start, a scan costs next to nothing."""
FEW_ROWS = 100
"""Entries of an index: to sort as many costs next to nothing, so they need not be read in order."""
EXAMINED = 1_000_000
"""Rows of each table whose encoding is looked at, about: those that were put first."""
QUEUES = 3
"""Queues whose takes are explained, those with most jobs first, if none is named."""

_TABLES = (
    "unnest(ARRAY[to_regclass(:table_name::text), to_regclass(:dead_name::text), to_regclass(:archive_name::text),"
    " to_regclass(:slots_name::text), to_regclass(:results_name::text)])"
)


@dataclass(frozen=True)
class Finding:
    """What was found of one thing.

    Attributes:
        check: What was looked at; the same word in every version.
        level: ``ok``; ``warning``: it works, and could be better, or nobody could look; ``problem``: it does
            not work as it should.
        message: What is the case.
        advice: What to do; empty if nothing.
        details: The figures, for programs.
    """

    check: str
    level: Level
    message: str
    advice: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Activity:
    """What the server counts of a table.

    Attributes:
        inserted: Rows that were ever put.
        dead_rows: Rows that are gone and not vacuumed.
        connections: Sessions in all databases.
        oldest: Seconds for which the oldest transaction has been open, of those that can be seen; None without one.
        notifications: How full the server's queue of notifications is, from 0 to 1; None where there is none.
    """

    inserted: int
    dead_rows: int
    connections: int
    oldest: float | None
    notifications: float | None = None


# Where the rows are: in the partitions, or in the table itself.
_STORED = """(
  SELECT relid FROM pg_partition_tree(to_regclass(:table_name::text)) WHERE isleaf
  UNION ALL
  SELECT to_regclass(:table_name::text) WHERE NOT EXISTS (
    SELECT FROM pg_partition_tree(to_regclass(:table_name::text)))
)"""
_ACTIVITY = f"""
SELECT coalesce((SELECT sum(n_tup_ins)::bigint FROM pg_stat_all_tables WHERE relid IN {_STORED}), 0),
  coalesce((SELECT sum(n_dead_tup)::bigint FROM pg_stat_all_tables WHERE relid IN {_STORED}), 0),
  (SELECT sum(numbackends)::int FROM pg_stat_database WHERE datname IS NOT NULL),
  (SELECT extract(epoch FROM clock_timestamp() - min(xact_start))::float8 FROM pg_stat_activity
   WHERE datname = current_database() AND pid <> pg_backend_pid()
     AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL))"""


async def activity(engine: Engine) -> Activity:
    """Ask the server's statistics, which are up to a second old."""

    async def work(s: Session) -> Activity:
        [[inserted, dead, connections, oldest]] = await ask(engine, s, "activity", _ACTIVITY)
        usage = None
        if engine.offers(Capability.LISTEN):
            [[usage]] = await s.execute(s.sql.notification_usage)
        return Activity(int(inserted), int(dead), int(connections), oldest, usage)

    return await engine.run(work, protect=False)


# The examination


class _TableRow(NamedTuple):
    """The columns of the statement that describes the table; of partitions the sums.

    Attributes:
        autovacuum: The server's setting.
        track_counts: The server's setting.
        options: The storage options of the table, each as ``name=value``.
        live: How many live rows the server counts.
        dead: How many dead rows.
        changed: How many rows changed since the table was analyzed.
        vacuumed: Seconds since the table was vacuumed; None if it never was.
        analyzed: Seconds since the table was analyzed; None if it never was.
        vacuums: How often the table was vacuumed.
        main_size: Bytes of the table itself.
        table_size: Bytes of the table with what is stored out of line.
        index_size: Bytes of the indexes.
        pages: How many pages the planner thinks that the table has.
    """

    autovacuum: str
    track_counts: str
    options: list[str] | None
    live: int | None
    dead: int | None
    changed: int | None
    vacuumed: float | None
    analyzed: float | None
    vacuums: int | None
    main_size: int
    table_size: int
    index_size: int
    pages: int


@dataclass
class _Patient:
    """What the checks look at.

    Attributes:
        engine: The engine.
        s: A session, in no transaction.
        queues: Whose takes are explained; empty for those with most jobs.
    """

    engine: Engine
    s: Session
    queues: Sequence[str]
    _table: _TableRow | None = None

    async def table(self) -> _TableRow:
        """The figures of the table; asked for once."""
        if self._table is None:
            [row] = await self.ask("table", _FIGURES)
            self._table = _TableRow._make(row)
        return self._table

    async def ask(self, name: str, template: str, **values: object) -> Sequence[Row]:
        return await ask(self.engine, self.s, name, template, **values)

    def bare(self, name: str) -> str:
        """An identifier as the catalogues have it, of one that is quoted, and maybe qualified with the schema."""
        quoted = self.engine.names.substitutions()[name]
        prefix = "" if self.engine.names.schema is None else self.engine.names.beside("x")[: -len('"x"')]
        return quoted.removeprefix(prefix)[1:-1].replace('""', '"')


async def examine(engine: Engine, queues: Sequence[str] = ()) -> list[Finding]:
    """Look at everything.

    Args:
        engine: Where; it is asked over two connections.
        queues: Whose takes are explained; by default those with most jobs.

    Raises:
        ConfigurationError: The DSN is none.
    """
    found: list[Finding] = []

    async def work(s: Session) -> None:
        patient = _Patient(engine, s, queues)
        for name, check in _SERVER:
            await _collect(found, patient, name, check)
        before = len(found)
        await _collect(found, patient, "schema", _schema)
        if all(one.level != "problem" for one in found[before:]):
            for name, check in _TABLE:
                await _collect(found, patient, name, check)

    try:
        await engine.migrate(work)
    except ConnectionLost as exc:
        found.append(
            Finding("connection", "problem", str(exc), "see that the server runs, and is reached with this DSN")
        )
    except DatabaseError as exc:
        found.append(Finding("connection", "problem", str(exc)))
    return found


_Check: TypeAlias = Callable[[_Patient], Awaitable[Sequence[Finding]]]


async def _collect(found: list[Finding], patient: _Patient, name: str, check: _Check) -> None:
    try:
        found += await check(patient)
    except ConnectionLost:
        raise
    except PQError as exc:
        if patient.s.in_transaction():
            await patient.s.rollback()
        found.append(
            Finding(name, "warning", f"could not be looked at: {exc}", "ask with a role that may: GRANT pg_monitor")
        )


# The server


async def _server(patient: _Patient) -> list[Finding]:
    [[text, number, standby, read_only, isolation]] = await patient.ask(
        "server",
        "SELECT current_setting('server_version'), current_setting('server_version_num')::int, pg_is_in_recovery(),"
        " current_setting('default_transaction_read_only'), current_setting('default_transaction_isolation')",
    )
    details = {"version": text, "backend": patient.engine.spec.name, "mode": patient.engine.spec.mode}
    found = []
    if number < OLDEST_SERVER:
        found.append(
            Finding("server", "problem", f"PostgreSQL {text}", "pqcore needs PostgreSQL 13 or later: upgrade", details)
        )
    else:
        over = f"over {patient.engine.spec.name} ({patient.engine.why})"
        found.append(Finding("server", "ok", f"PostgreSQL {text}, {over}", details=details))
    if standby:
        found.append(Finding("writable", "problem", "this server is a standby", "connect to the primary"))
    elif read_only == "on":
        advice = "ALTER ROLE ... RESET default_transaction_read_only, or connect as another role"
        found.append(Finding("writable", "problem", "transactions are read-only by default", advice))
    if isolation != "read committed":
        message = (
            f"transactions are {isolation} by default: pqcore's own are read committed all the same, but a transaction"
            " block that takes a job may fail, and has to be tried again"
        )
        advice = "ALTER ROLE ... SET default_transaction_isolation = 'read committed'"
        found.append(Finding("isolation", "warning", message, advice, {"isolation": isolation}))
    return found


async def _durability(patient: _Patient) -> list[Finding]:
    [[fsync, pages, commit]] = await patient.ask(
        "durability",
        "SELECT current_setting('fsync'), current_setting('full_page_writes'), current_setting('synchronous_commit')",
    )
    details = {"fsync": fsync, "full_page_writes": pages, "synchronous_commit": commit}
    if "off" in (fsync, pages):
        off = " and ".join(name for name in ("fsync", "full_page_writes") if details[name] == "off")
        message = f"{off} off: a crash of the machine can destroy the database"
        return [Finding("durability", "problem", message, "turn it on, unless all of it can be lost", details)]
    if commit == "off":
        message = "synchronous_commit is off: a crash of the server loses what was committed just before"
        advice = "turn it on, or see that jobs may be lost, and be run twice"
        return [Finding("durability", "warning", message, advice, details)]
    return [Finding("durability", "ok", f"fsync is on, synchronous_commit {commit}", details=details)]


async def _connections(patient: _Patient) -> list[Finding]:
    [[used, most, of_database, for_database, of_role, for_role]] = await patient.ask(
        "connections",
        "SELECT (SELECT sum(numbackends)::int FROM pg_stat_database WHERE datname IS NOT NULL),"
        " current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
        " - coalesce(current_setting('reserved_connections', true)::int, 0),"
        " (SELECT numbackends FROM pg_stat_database WHERE datname = current_database()),"
        " (SELECT datconnlimit FROM pg_database WHERE datname = current_database()),"
        " (SELECT count(*) FROM pg_stat_activity WHERE usename = session_user),"
        " (SELECT rolconnlimit FROM pg_roles WHERE rolname = session_user)",
    )
    found = []
    for what, number, limit in (
        ("the server", used, most),
        ("the database", of_database, for_database),
        ("the role", of_role, for_role),
    ):
        if limit < 0:  # none
            continue
        details = {"of": what, "used": number, "limit": limit}
        level: Level = "problem" if number >= NO_HEADROOM * limit else "warning" if number >= HEADROOM * limit else "ok"
        advice = "" if level == "ok" else "lower max_connections of PQ, put a pooler in between, or raise the limit"
        found.append(
            Finding("connections", level, f"{number} of {limit} connections of {what} in use", advice, details)
        )
    return found


async def _clocks(patient: _Patient) -> list[Finding]:
    apart, trip = 0.0, float("inf")
    for _ in range(3):
        before = time.time()
        [[server]] = await patient.ask("clock", "SELECT extract(epoch FROM clock_timestamp())::float8")
        after = time.time()
        if 0 <= after - before < trip:
            trip, apart = after - before, server - (before + after) / 2
    details = {"server_ahead": apart, "round_trip": trip}
    if abs(apart) > CLOCKS + trip:
        side = "ahead of" if apart > 0 else "behind"
        message = f"the server's clock is {abs(apart):.1f} seconds {side} this one's"
        advice = "keep clocks by NTP; what is due is decided by the server's: give times as distances, such as '5m'"
        return [Finding("clock", "warning", message, advice, details)]
    message = f"clocks agree within {abs(apart) + trip / 2:.3f} seconds; a round trip takes {trip * 1000:.1f} ms"
    return [Finding("clock", "ok", message, details=details)]


# Sessions of any database: what one of them has not read, the server keeps for all.
_IN_TRANSACTION = """
SELECT pid, coalesce(application_name, ''), datname::text, extract(epoch FROM clock_timestamp() - xact_start)::float8
FROM pg_stat_activity WHERE xact_start IS NOT NULL AND pid <> pg_backend_pid() AND datname IS NOT NULL
ORDER BY xact_start LIMIT 1"""


async def _notifications(patient: _Patient) -> list[Finding]:
    if Capability.LISTEN in patient.engine.dialect.missing:
        return []
    [[usage]] = await patient.s.execute(patient.s.sql.notification_usage)
    details: dict[str, Any] = {"usage": usage}
    message = f"the server's queue of notifications is {100 * usage:.0f} % full"
    if usage < MUCH_UNREAD:
        return [Finding("notifications", "ok", message, details=details)]
    advice = "end the transaction of the session that listens, and set idle_in_transaction_session_timeout"
    for pid, application, database, seconds in await patient.ask("in_transaction", _IN_TRANSACTION):
        details |= {"pid": pid, "application_name": application, "database": database, "seconds": seconds}
        name = f" ({application!r})" if application else ""
        advice = (
            f"SELECT pg_terminate_backend({pid}), if it listens: session {pid}{name} of database {database!r} has been"
            f" in a transaction for {seconds:.0f} seconds, longer than all others; set"
            " idle_in_transaction_session_timeout"
        )
    level: Level = "problem" if usage >= TOO_MUCH_UNREAD else "warning"
    message += ": when it is full, puts and ends of jobs that notify fail"
    return [Finding("notifications", level, message, advice, details)]


_POOLER = (
    "connect to the server itself, or to a pooler in session mode with PQ(dsn, prepared=True); else waiters poll"
    " (poll_interval), and PQ(dsn, prepared=False) says so"
)


async def _listening(patient: _Patient) -> list[Finding]:
    engine, s = patient.engine, patient.s
    if Capability.LISTEN not in engine.spec.capabilities:
        reason = engine.spec.missing.get(Capability.LISTEN, "")
        return [Finding("listen", "warning", f"{engine.spec.name} cannot listen, so waiters poll: {reason}")]
    listener = await engine.source.listener()
    if listener is None:
        return [Finding("listen", "warning", "there is no connection to listen on, so waiters poll")]
    try:
        if await _is_moved(s, listener):
            message = "a pooler in transaction mode is in between: statements of one connection reach several sessions"
            return [Finding("listen", "problem", message, _POOLER, {"heard": False, "seconds": None, "pooler": True})]
        topic = f"pqcore_doctor_{uuid.uuid4().hex}"
        await listener.listen(topic)
        began = time.monotonic()
        await patient.ask("notify", "SELECT pg_notify(:channel::text, '')::text", channel=topic)
        heard = False
        while not heard and (left := LISTEN_PATIENCE - (time.monotonic() - began)) > 0:
            await listener.wait(min(left, 1.0))
            heard = topic in await listener.notifications()
        took = time.monotonic() - began
    finally:
        with suppress(PQError):
            await listener.close()
    details = {"heard": heard, "seconds": took, "pooler": False}
    if not heard:
        message = (
            f"no notification arrived within {LISTEN_PATIENCE:g} seconds: is a pooler in transaction mode between?"
        )
        return [Finding("listen", "problem", message, _POOLER, details)]
    return [Finding("listen", "ok", f"a notification arrived after {took * 1000:.0f} ms", details=details)]


_PID = plain("pid", "SELECT pg_backend_pid()")


async def _is_moved(s: Session, other: Session) -> bool:
    """Whether statements of a connection reach several sessions of the server's, or those of two the same one.

    The one that was used last is given to whoever comes next, or it is the next one's turn; and none is given while
    somebody has a transaction open on it.
    """

    async def pid(session: Session) -> int:
        [[number]] = await session.execute(_PID)
        return int(number)

    ours, others = set(), {await pid(other)}
    for _ in range(2):
        ours |= {await pid(s), await pid(s)}
        await s.begin_own()
        try:
            ours.add(await pid(s))
            others.add(await pid(other))
        finally:
            await s.rollback()
    return len(ours) > 1 or len(others) > 1 or bool(ours & others)


_SNAPSHOTS = """
SELECT 'session', pid::text, application_name, state, datname::text, usename::text,
  extract(epoch FROM clock_timestamp() - coalesce(xact_start, backend_start))::float8,
  greatest(age(backend_xmin), age(backend_xid))::bigint, true
FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
  AND (datname = current_database() OR backend_type = 'walsender') AND backend_type <> 'autovacuum worker'
UNION ALL
SELECT 'prepared transaction', gid, '', 'prepared', database::text, owner::text,
  extract(epoch FROM clock_timestamp() - prepared)::float8, age(transaction)::bigint, true
FROM pg_prepared_xacts WHERE database = current_database()
UNION ALL
SELECT 'replication slot', slot_name::text, coalesce(plugin::text, ''), slot_type, database::text, '',
  NULL, age(xmin)::bigint, active
FROM pg_replication_slots WHERE xmin IS NOT NULL"""
_HIDDEN_SESSIONS = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND query = '<insufficient privilege>'"""


async def _snapshots(patient: _Patient) -> list[Finding]:
    rows = await patient.ask("snapshots", _SNAPSHOTS)
    [[unseen]] = await patient.ask("unseen_sessions", _HIDDEN_SESSIONS)
    holders = [_holder(*row) for row in rows]
    bad = [one for one in holders if one.level != "ok"]
    bad.sort(key=lambda one: (one.level == "problem", one.details["transactions"]), reverse=True)
    found = bad[:10]
    if not found:
        message = "no transaction has been open for long"
        if holders:
            oldest = max(holders, key=lambda one: one.details["transactions"])
            message = f"the oldest snapshot: {oldest.message}"
        found = [Finding("snapshots", "ok", message)]
    if unseen:
        message = f"{unseen} sessions of other roles cannot be seen: one of them may hold an old snapshot"
        found.append(Finding("snapshots", "warning", message, "GRANT pg_monitor TO the role that asks"))
    return found


def _holder(
    kind: str, who: str, application: str, state: str | None, database: str, role: str, seconds: float | None,
    transactions: int, active: bool,
) -> Finding:  # fmt: skip
    details = {
        "kind": kind,
        "id": who,
        "application_name": application,
        "state": state,
        "database": database,
        "role": role,
        "seconds": seconds,
        "transactions": transactions,
    }
    quoted = who.replace("'", "''")
    name = f" ({application!r})" if application else ""
    since = "" if seconds is None else f", for {seconds:.0f} seconds"
    message = f"{kind} {who}{name}, {state or 'in the background'}{since}: dead rows since then cannot be removed"
    if kind == "replication slot":
        level: Level = "ok" if active else "problem"
        advice = f"SELECT pg_drop_replication_slot('{quoted}'), if nobody needs it"
        message = f"{kind} {who}, {'in use' if active else 'not in use'}: holds back {transactions} transactions"
    else:
        level = "ok" if (seconds or 0) < LONG else "warning" if (seconds or 0) < TOO_LONG else "problem"
        advice = (
            f"SELECT pg_terminate_backend({who}); set idle_in_transaction_session_timeout, and keep transactions short"
            if kind == "session"
            else f"ROLLBACK PREPARED '{quoted}', if its owner has forgotten it"
        )
    return Finding("snapshots", level, message, "" if level == "ok" else advice, details)


# The table


async def _row_security(patient: _Patient) -> list[Finding]:
    names = patient.engine.names
    tables = [names.beside("pqcore_migrations"), *(names.substitutions()[place] for place in _TABLES_OF_JOBS)]
    bound = [one for table in tables if (one := await security.look(patient.s, table)) is not None]
    found = []
    for one in bound:
        needed = {"SELECT"} if one.table == tables[0] else set(one.lacking)
        if needed & set(one.lacking):
            details = {"table": one.table, "role": one.role, "lacking": list(one.lacking)}
            found.append(Finding("row_security", "problem", one.message, one.advice, details))
    if found:
        return found
    if bound:
        some = ", ".join(one.table for one in bound)
        message = f"row-level security binds role {bound[0].role!r}, which has policies for all it does, on {some}"
        return [Finding("row_security", "ok", f"{message}: it sees the rows that they let it see")]
    return [Finding("row_security", "ok", "row-level security hides nothing from this role")]


async def _schema(patient: _Patient) -> list[Finding]:
    names = patient.engine.names
    try:
        found = await schema.version(patient.s, names)
    except AccessDenied as exc:
        if exc.sqlstate is not None:  # the server's own: the role lacks a right
            raise
        return [Finding("schema", "problem", str(exc), "see row_security")]
    details = {"version": found, "latest": schema.latest()}
    if found is None:
        return [Finding("schema", "problem", f"table {names} does not exist", "pqcore create", details)]
    if found > schema.latest():
        message = f"table {names} is of schema version {found}, this pqcore knows {schema.latest()}"
        try:
            await schema.check_version(patient.s, names)
        except SchemaTooNew:
            return [Finding("schema", "problem", message, "upgrade pqcore", details)]
        return [Finding("schema", "ok", f"{message}, and can work on it", details=details)]
    if found < schema.latest():
        message = f"table {names} is of schema version {found}, this pqcore needs {schema.latest()}"
        advice = "pqcore migrate" if found else "pqcore adopt, if it is pq's"
        return [Finding("schema", "problem", message, advice, details)]
    return [Finding("schema", "ok", f"table {names} is of schema version {found}, the latest", details=details)]


_TABLES_OF_JOBS = ("table", "archive", "dead", "slots", "results", "batches", "ticks", "rates", "dedup")
_PRIVILEGES = ("SELECT", "INSERT", "UPDATE", "DELETE")


async def _privileges(patient: _Patient) -> list[Finding]:
    places = patient.engine.names.substitutions()
    allowed = ", ".join(f"has_table_privilege(:of::text, '{what}')" for what in _PRIVILEGES)
    missing = []
    for quoted in (places[place] for place in _TABLES_OF_JOBS):
        [answers] = await patient.ask("privileges", f"SELECT {allowed}", of=quoted)
        if lacking := [what for what, yes in zip(_PRIVILEGES, answers, strict=True) if not yes]:
            missing.append(f"GRANT {', '.join(lacking)} ON {quoted}")
    [[sequence, usable]] = await patient.ask(
        "sequence",
        "SELECT pg_get_serial_sequence(:table_name::text, 'id'),"
        " has_sequence_privilege(pg_get_serial_sequence(:table_name::text, 'id'), 'USAGE')",
    )
    if sequence is not None and not usable:
        missing.append(f"GRANT USAGE ON SEQUENCE {sequence}")
    if missing:
        return [Finding("privileges", "problem", "the role lacks privileges", f"{'; '.join(missing)} TO the role")]
    return [Finding("privileges", "ok", "the role may read and write the tables")]


def _table_names(patient: _Patient) -> dict[str, object]:
    places = patient.engine.names.substitutions()
    return {f"{name}_name": places[name] for name in ("dead", "archive", "slots", "results")}


def _statements_with(patient: _Patient, placeholder: str, *, concurrently: bool = True) -> list[str]:
    """The statements of the migrations that name something, as they would be run now."""
    places = patient.engine.names.substitutions() | {"concurrently": "CONCURRENTLY" if concurrently else ""}
    return [
        " ".join(statement.format_map(places).split())
        for statements in schema.migrations()
        for statement in statements
        if f"{{{placeholder}}}" in statement
    ]


async def _indexes(patient: _Patient) -> list[Finding]:
    rows = await patient.ask(
        "indexes",
        "SELECT c.relname::text, i.indisvalid AND i.indisready, i.indisprimary,"
        " i.indrelid = to_regclass(:table_name::text)"
        f" FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid JOIN {_TABLES} AS ours (oid)"
        " ON i.indrelid = ours.oid",
        **_table_names(patient),
    )
    valid = {name: is_valid for name, is_valid, _, _ in rows}
    places = [name for name in patient.engine.names.substitutions() if name.endswith("_index")]
    found = []
    for place in places:
        name = patient.bare(place)
        remedy = "; ".join(_statements_with(patient, place)) or "pqcore create"
        if name not in valid:
            found.append(Finding("indexes", "problem", f"index {name} is missing", remedy, {"index": name}))
        elif not valid[name]:
            drop = f"DROP INDEX CONCURRENTLY {patient.engine.names.beside(name)}"
            message = f"index {name} is invalid: its build was interrupted"
            found.append(Finding("indexes", "problem", message, f"{drop}; {remedy}", {"index": name}))
    if not any(of_table and primary and is_valid for _, is_valid, primary, of_table in rows):
        advice = f"ALTER TABLE {patient.engine.names} ADD PRIMARY KEY (id)"
        found.append(Finding("indexes", "problem", "the primary key is missing", advice, {"index": "primary key"}))
    if not found:
        names = sorted(valid)
        return [Finding("indexes", "ok", f"all {len(names)} are there, and valid", details={"indexes": names})]
    return found


async def _sequences(patient: _Patient) -> list[Finding]:
    found = []
    for one in await sequences.look(patient.s, patient.engine.names):
        highest = max(one.highest.values(), default=0)
        details = {"sequence": one.name, "next": one.following, "highest": one.highest}
        if one.behind:
            where = ", ".join(f"{table} has {most}" for table, most in one.highest.items() if most >= one.following)
            message = f"sequence {one.name} gives id {one.following} next, and is behind: {where}; ids come again"
            found.append(Finding("sequences", "problem", message, one.remedy, details))
        else:
            message = f"sequence {one.name} gives id {one.following} next, beyond all that are there, up to {highest}"
            found.append(Finding("sequences", "ok", message, details=details))
    return found


async def _trigger(patient: _Patient) -> list[Finding]:
    rows = await patient.ask(
        "triggers",
        "SELECT tgname::text, tgenabled::text FROM pg_trigger"
        " WHERE tgrelid = to_regclass(:table_name::text) AND NOT tgisinternal",
    )
    [[silenced]] = await patient.ask("notify_setting", "SELECT coalesce(current_setting('pqcore.notify', true), '')")
    enabled = {str(trigger): str(state) for trigger, state in rows}
    name = patient.bare("notify_trigger")
    found = []
    if name not in enabled:
        remedy = "; ".join(_statements_with(patient, "notify_trigger"))
        found.append(Finding("trigger", "problem", f"trigger {name} is missing: nobody is woken, waiters poll", remedy))
    elif enabled[name] not in ("O", "A"):
        quoted = patient.engine.names.substitutions()["notify_trigger"]
        remedy = f"ALTER TABLE {patient.engine.names} ENABLE TRIGGER {quoted}"
        found.append(
            Finding("trigger", "problem", f"trigger {name} is disabled: nobody is woken, waiters poll", remedy)
        )
    elif silenced == "off":
        message = "pqcore.notify is off for this role or database: nobody is woken, waiters poll"
        found.append(Finding("trigger", "warning", message, "ALTER ROLE (or DATABASE) ... RESET pqcore.notify"))
    if "pq_insert" in enabled:
        message = "pq's trigger pq_insert is there too, and notifies row by row"
        found.append(Finding("trigger", "warning", message, f"DROP TRIGGER pq_insert ON {patient.engine.names}"))
    return found or [Finding("trigger", "ok", f"trigger {name} is there, and enabled")]


# Of partitions the sums; the options are those of the one that has the fewest.
_FIGURES = f"""
WITH stored AS (
  SELECT c.oid, c.reloptions, c.relpages FROM pg_class AS c WHERE c.oid IN {_STORED}
)
SELECT current_setting('autovacuum'), current_setting('track_counts'),
  (SELECT reloptions FROM stored ORDER BY coalesce(cardinality(reloptions), 0) LIMIT 1),
  sum(s.n_live_tup)::bigint, sum(s.n_dead_tup)::bigint, sum(s.n_mod_since_analyze)::bigint,
  extract(epoch FROM clock_timestamp() - max(greatest(s.last_vacuum, s.last_autovacuum)))::float8,
  extract(epoch FROM clock_timestamp() - max(greatest(s.last_analyze, s.last_autoanalyze)))::float8,
  sum(s.vacuum_count + s.autovacuum_count)::bigint,
  sum(pg_relation_size(c.oid))::bigint, sum(pg_table_size(c.oid))::bigint, sum(pg_indexes_size(c.oid))::bigint,
  sum(c.relpages)::bigint
FROM stored AS c LEFT JOIN pg_stat_all_tables AS s ON s.relid = c.oid"""
_OPTIONS = ("vacuum_index_cleanup", "autovacuum_vacuum_scale_factor", "autovacuum_vacuum_threshold")


async def _vacuum(patient: _Patient) -> list[Finding]:
    table_row = await patient.table()
    running, counting = table_row.autovacuum, table_row.track_counts
    vacuumed, analyzed = table_row.vacuumed, table_row.analyzed
    settings = dict(option.partition("=")[::2] for option in table_row.options or ())
    live, dead, changed = int(table_row.live or 0), int(table_row.dead or 0), int(table_row.changed or 0)
    details = {
        "live": live,
        "dead": dead,
        "changed_since_analyze": changed,
        "seconds_since_vacuum": vacuumed,
        "seconds_since_analyze": analyzed,
        "vacuums": table_row.vacuums,
        "options": settings,
    }
    table = patient.engine.names
    found = []
    if running == "off" or counting == "off":
        message = (
            f"autovacuum is {running}, track_counts {counting}: dead rows are not removed, and each get passes them"
        )
        found.append(Finding("autovacuum", "problem", message, "turn both on", details))
    elif settings.get("autovacuum_enabled") in ("false", "off", "0", "no"):
        advice = f"ALTER TABLE {table} RESET (autovacuum_enabled)"
        found.append(Finding("autovacuum", "problem", "autovacuum is off for the table", advice, details))
    elif absent := [name for name in _OPTIONS if name not in settings]:
        statements = [each for each in _statements_with(patient, "table") if "vacuum_index_cleanup" in each]
        message = f"the table lacks the settings that pqcore gives it: {', '.join(absent)}"
        found.append(Finding("autovacuum", "warning", message, "; ".join(statements), details))
    threshold = 1_000 + 0.01 * live
    if dead > 10 * threshold:
        message = f"{dead} dead rows beside {live} live ones: vacuum does not keep up"
        advice = f"see what holds the oldest snapshot, above; VACUUM {table}; more autovacuum_max_workers"
        found.append(Finding("autovacuum", "warning", message, advice, details))
    if changed > 10_000 and (analyzed is None or changed > live):
        message = f"{changed} rows changed since the table was analyzed"
        found.append(Finding("autovacuum", "warning", message, f"ANALYZE {table}", details))
    if found:
        return found
    last = "never vacuumed yet" if vacuumed is None else f"vacuumed {vacuumed:.0f} seconds ago"
    then = "never analyzed yet" if analyzed is None else f"analyzed {analyzed:.0f} seconds ago"
    return [Finding("autovacuum", "ok", f"on; {last}, {then}; {dead} dead rows", details=details)]


async def _bloat(patient: _Patient) -> list[Finding]:
    table_row = await patient.table()
    live, dead = int(table_row.live or 0), int(table_row.dead or 0)
    main, whole, indexes = int(table_row.main_size), int(table_row.table_size), int(table_row.index_size)
    rows = await patient.ask(
        "index_sizes",
        "SELECT c.relname::text, pg_relation_size(c.oid), c.reltuples::float8 FROM pg_index AS i"
        f" JOIN pg_class AS c ON c.oid = i.indexrelid WHERE i.indrelid IN {_STORED}",
    )
    details = {"live": live, "dead": dead, "table": whole, "indexes": indexes}
    found = []
    # A row has at most 2 kB in the table itself, the rest is elsewhere; so a page has four at least.
    if main > BLOATED and main > 8_192 * max(live + dead, 1):
        message = f"the table takes {_size(main)} for {live} rows: most of its pages are empty"
        advice = f"VACUUM FULL {patient.engine.names} while nothing runs, or pg_repack"
        found.append(Finding("bloat", "warning", message, advice, details))
    for name, size, entries in rows:
        if size > BLOATED and size > 1_000 * max(entries, 1):
            message = f"index {name} takes {_size(size)} for {max(entries, 0):.0f} entries"
            advice = f"REINDEX INDEX CONCURRENTLY {patient.engine.names.beside(name)}"
            found.append(Finding("bloat", "warning", message, advice, {"index": name, "size": size}))
    if found:
        return found
    message = f"table {_size(whole)}, indexes {_size(indexes)}, {live} rows, {dead} dead"
    return [Finding("bloat", "ok", message, details=details)]


async def _batches(patient: _Patient) -> list[Finding]:
    """Batches whose jobs were deleted in SQL, or taken by a process that died: nobody told how they ended."""
    rows = await patient.ask(
        "open_batches",
        "SELECT id, q_name, pending FROM {batches} WHERE pending > 0 AND coalesce(held_until < clock_timestamp(), true)"
        " ORDER BY id LIMIT 1000",
    )
    query = patient.s.sql.tasks.live_batches
    ids = [batch for batch, _, _ in rows]
    alive = {batch for (batch,) in await patient.s.execute(query, query.bind({"ids": ids}))}
    lost = [(batch, queue, pending) for batch, queue, pending in rows if batch not in alive]
    if not lost:
        return [Finding("batches", "ok", f"{len(rows)} are open, and their jobs are there", details={"lost": []})]
    details = {"lost": [{"batch": batch, "queue": queue, "pending": pending} for batch, queue, pending in lost]}
    batch, queue, pending = lost[0]
    message = (
        f"of {len(lost)} open batches the jobs are gone, first of batch {batch} of queue {queue!r}, which waits for"
        f" {pending}"
    )
    advice = "run a worker of the queue, which ends the batch within two minutes and counts the jobs as failed"
    return [Finding("batches", "warning", message, advice, details)]


# Only rows that wait, and no more than are needed to say so: finished ones are not read.
_PUT_OFF = f"""
SELECT q_name, error->>'type', count(*), min(error->>'message') FROM (
  {
    " UNION ALL ".join(
        f"(SELECT q_name, error FROM {{table}} WHERE {kind} AND error IS NOT NULL AND schedule_at IS NOT NULL"
        " LIMIT 10000)"
        for kind in (IS_READY, IS_DEFERRED)
    )
} ) AS waiting
WHERE error->>'type' = ANY (:reasons::text[]) GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2"""


async def _put_off(patient: _Patient) -> list[Finding]:
    """Jobs that wait for another deployment: for a worker that knows the function, or can read the data."""
    rows = await patient.ask("put_off_jobs", _PUT_OFF, reasons=list(PUT_OFF))
    if not rows:
        return [Finding("put_off", "ok", "no job waits for another deployment of its workers", details={"jobs": []})]
    details = {"jobs": [dict(zip(("queue", "reason", "number", "message"), row, strict=True)) for row in rows]}
    queue, reason, number, message = rows[0]
    said = f"{number} jobs of queue {queue!r} are put off again and again, as {reason} to workers: {message}"
    advice = (
        "deploy workers with the serializer, accept and keys, or with the function, that these jobs need; each is tried"
        " again within a minute"
    )
    return [Finding("put_off", "warning", said, advice, details)]


async def _ticks(patient: _Patient) -> list[Finding]:
    """Last ticks ahead of the server's clock, which ran ahead when they were put."""
    rows = await patient.ask(
        "ticks_ahead",
        "SELECT q_name, name, (extract(epoch FROM tick) - extract(epoch FROM clock_timestamp()))::float8 FROM {ticks}"
        " WHERE tick > clock_timestamp() + :ahead::float8 * interval '1 second' ORDER BY tick DESC",
        ahead=AHEAD.total_seconds(),
    )
    if not rows:
        return [Finding("ticks", "ok", "no last tick lies ahead of the server's clock", details={"ahead": []})]
    details = {"ahead": [{"queue": queue, "name": name, "seconds": seconds} for queue, name, seconds in rows]}
    queue, name, seconds = rows[0]
    message = (
        f"the last tick of {name!r} in queue {queue!r} lies {seconds:.0f} seconds ahead of the server's clock,"
        " which ran ahead"
    )
    advice = "see that the clock is right; a worker that knows the task lets its ticks begin from now, within a minute"
    return [Finding("ticks", "warning", message, advice, details)]


async def _encodings(patient: _Patient) -> list[Finding]:
    """Find data of serializers that this process does not have, or under keys that it does not hold."""
    counted = await reencode.counted(patient.s, EXAMINED)
    kinds = {(one.serializer, one.key) for one in counted}
    serializers = {name: _serializer(name) for name, _ in kinds if name}
    found = []
    for name, key in sorted(kinds):
        some = [one for one in counted if (one.serializer, one.key) == (name, key)]
        number, queues = sum(one.number for one in some), sorted({one.queue for one in some})
        details = {"serializer": name, "key": key, "number": number, "queues": queues}
        names = ", ".join(map(repr, queues[:QUEUES])) + " and others" * (len(queues) > QUEUES)
        where = f"{number} pieces of data of {names}"
        serializer = serializers.get(name)
        if isinstance(serializer, PQError):
            message = f"{where} are stored as {name!r}, which this process cannot read: {serializer}"
            advice = "give it here what the workers have: the package, the key, or --import of what registers it"
            found.append(Finding("encodings", "warning", message, advice, details))
        elif key and not set(key.split("+")) <= (held := held_keys(serializer)):
            message = f"{where} are under key {key}, and this process holds {', '.join(sorted(held)) or 'none'}"
            advice = "add the key; then pqcore reencode writes the data under the first one"
            found.append(Finding("encodings", "warning", message, advice, details))
        elif not key and written_under(serializer):
            message = f"{where} do not say under which key they are: another program wrote them"
            advice = "pqcore reencode writes them under the first key, and says so"
            found.append(Finding("encodings", "warning", message, advice, details))
    if found:
        return found
    names = ", ".join(sorted({name for name, _ in kinds if name})) or "nothing"
    return [Finding("encodings", "ok", f"what is stored can be read here: {names}", details={"number": len(counted)})]


def _serializer(name: str) -> object:
    """Return the serializer that reads what is stored under a name, or the error that says why there is none."""
    try:
        return plugins.serializer(name)
    except PQError as exc:
        return exc


def _size(number: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 10_240 or unit == "GB":
            return f"{number:.0f} {unit}"
        number /= 1_024
    return ""  # not reached


# Plans


_WHOLE = """
SELECT part.relname::text, whole.relname::text FROM (
  SELECT to_regclass(:table_name::text)::oid AS oid
  UNION ALL SELECT indexrelid FROM pg_index WHERE indrelid = to_regclass(:table_name::text)
) AS ours CROSS JOIN LATERAL pg_partition_tree(ours.oid) AS tree
JOIN pg_class AS part ON part.oid = tree.relid JOIN pg_class AS whole ON whole.oid = ours.oid"""


async def _plans(patient: _Patient) -> list[Finding]:
    queues = list(patient.queues)
    if not queues:
        rows = await patient.s.execute(patient.s.sql.stats_all)
        numbers = [(ready + scheduled + leased + parked, queue) for queue, ready, scheduled, leased, _, parked in rows]
        most = sorted(numbers, key=lambda number: number[0], reverse=True)
        queues = [queue for _, queue in most[:QUEUES] if queue is not None] or ["pqcore doctor"]
    pages = (await patient.table()).pages
    # What is named in a plan is a partition, or an index of one.
    whole = {str(part): str(name) for part, name in await patient.ask("partitions", _WHOLE)}
    found: list[Finding] = []
    takes = [patient.s.sql.fetch("ordered", "keep", 1), patient.s.sql.fetch("ordered", "lease", 1)]
    for queue in queues:
        for query in (*takes, patient.s.sql.next_due_probe):
            for mode in ("custom", "generic"):
                plan = await _explained(patient.s, query, {"q_name": queue, "lease": 60.0}, mode)
                found += _judged(patient, queue, query, mode, plan, whole, few=pages <= FEW_PAGES)
    if found:
        return found
    names = ", ".join(patient.bare(name) for name in ("urgent_index", "ready_index", "hidden_index"))
    some = ", ".join(repr(queue) for queue in queues)
    return [Finding("plan", "ok", f"takes of {some} go through {names}", details={"queues": queues})]


async def _explained(s: Session, query: Query, values: Mapping[str, object], mode: str) -> Any:
    """The plan of a statement, as a server-side prepared statement has it; it is not run.

    In a transaction that is read-only, so that even an EXPLAIN ANALYZE would take nothing.
    """
    name = f"pqcore_doctor_{uuid.uuid4().hex}"
    arguments = [_literal(value) for value in query.given(values)]
    given = f"({', '.join(arguments)})" if arguments else ""
    await s.begin_own()
    try:
        for sql in (
            "SET TRANSACTION READ ONLY",
            f"SET LOCAL plan_cache_mode = force_{mode}_plan",
            f"PREPARE {name} AS {query.numbered}",
        ):
            await s.execute(plain("explain", sql, rows=False))
        [[plan]] = await s.execute(plain("explain", f"EXPLAIN (FORMAT JSON) EXECUTE {name}{given}"))
        await s.execute(plain("explain", f"DEALLOCATE {name}", rows=False))
    finally:
        if s.usable():
            await s.rollback()
    return (json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"]


def _literal(value: object) -> str:
    if isinstance(value, str):
        return "E'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return repr(value)


def _judged(
    patient: _Patient, queue: str, query: Query, mode: str, plan: Any, whole: Mapping[str, str], *, few: bool
) -> Iterator[Finding]:
    nodes = list(_nodes(plan))
    table = patient.engine.names.table
    wanted = {patient.bare(name) for name in ("ready_index", "urgent_index", "hidden_index")}
    if query.name == "next_due_probe":
        wanted.discard(patient.bare("urgent_index"))
    used = {whole.get(node["Index Name"], node["Index Name"]) for node in nodes if _in_order(node)}
    read = [(node["Node Type"], node.get("Relation Name")) for node in nodes]
    scans = sorted({kind for kind, name in read if "Seq" in kind and whole.get(name, name) == table})
    details = {
        "queue": queue,
        "statement": query.name,
        "plan": mode,
        "indexes": sorted(used),
        "nodes": [node["Node Type"] for node in nodes],
    }
    subject = f"{query.name} of {queue!r} ({mode} plan)"
    advice = f"ANALYZE {patient.engine.names}; see that enable_indexscan is on, and that all indexes are valid"
    if scans:
        level: Level = "warning" if few else "problem"
        small = "; the table is small, so it costs little" if few else ""
        yield Finding("plan", level, f"{subject} reads the table as a whole{small}", advice, details)
    elif not wanted <= used:
        unused = ", ".join(sorted(wanted - used))
        yield Finding("plan", "problem", f"{subject} does not go through {unused}", advice, details)


def _in_order(node: Any) -> bool:
    """Whether a node reads an index in its order, or so few of its entries that to sort them costs as much."""
    if node["Node Type"] == "Bitmap Index Scan":
        return bool(node["Plan Rows"] <= FEW_ROWS)
    return node["Node Type"] in ("Index Scan", "Index Only Scan")


def _nodes(plan: Any) -> Iterator[Any]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from _nodes(below)


_SERVER: tuple[tuple[str, _Check], ...] = (
    ("server", _server),
    ("durability", _durability),
    ("connections", _connections),
    ("clock", _clocks),
    ("listen", _listening),
    ("notifications", _notifications),
    ("snapshots", _snapshots),
    ("row_security", _row_security),
)
_TABLE: tuple[tuple[str, _Check], ...] = (
    ("privileges", _privileges),
    ("indexes", _indexes),
    ("sequences", _sequences),
    ("trigger", _trigger),
    ("autovacuum", _vacuum),
    ("bloat", _bloat),
    ("plan", _plans),
    ("batches", _batches),
    ("put_off", _put_off),
    ("ticks", _ticks),
    ("encodings", _encodings),
)
