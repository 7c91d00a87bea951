"""Checks of the server, and of the connection to it."""

from __future__ import annotations

import time
import uuid
from contextlib import suppress
from typing import Any

from pqcore.backend import Capability
from pqcore.db.session import Session
from pqcore.db.shared_session import ONE_CLIENT
from pqcore.doctor.context import CheckContext
from pqcore.doctor.findings import Finding, Level
from pqcore.errors import PQError
from pqcore.plurals import counted
from pqcore.sql.statement import plain

OLDEST_SERVER = 130_000
"""The ``server_version_num`` of the oldest PostgreSQL that pqcore works with."""
LONG, TOO_LONG = 60.0, 900.0
"""The ages of a database snapshot, in seconds, above which the doctor reports a warning or a problem."""
CLOCKS = 2.0
"""Seconds by which the clocks may differ."""
HEADROOM, NO_HEADROOM = 0.8, 0.95
"""The parts of the server's connections that are in use, above which the doctor reports a warning or a problem."""
LISTEN_PATIENCE = 10.0
"""Seconds within which a notification must arrive."""
MUCH_UNREAD, TOO_MUCH_UNREAD = 0.1, 0.5
"""The parts of the notification queue that are in use, above which the doctor reports a warning or a problem."""


async def check_server(context: CheckContext) -> list[Finding]:
    """Check the version of the server, whether it takes writes, and the default isolation level."""
    [[text, number, standby, read_only, isolation]] = await context.ask(
        "server",
        "SELECT current_setting('server_version'), current_setting('server_version_num')::int, pg_is_in_recovery(),"
        " current_setting('default_transaction_read_only'), current_setting('default_transaction_isolation')",
    )
    details = {"version": text, "backend": context.engine.spec.name, "mode": context.engine.spec.mode}
    found = []
    if number < OLDEST_SERVER:
        found.append(
            Finding("server", "problem", f"PostgreSQL {text}", "pqcore needs PostgreSQL 13 or later: upgrade", details)
        )
    else:
        over = f"over {context.engine.spec.name} ({context.engine.why})"
        found.append(Finding("server", "ok", f"PostgreSQL {text}, {over}", details=details))
    if standby:
        found.append(Finding("writable", "problem", "this server is a standby", "connect to the primary"))
    elif read_only == "on":
        advice = "ALTER ROLE ... RESET default_transaction_read_only, or connect as another role"
        found.append(Finding("writable", "problem", "transactions are read-only by default", advice))
    if isolation != "read committed":
        message = (
            f"transactions are {isolation} by default: pqcore's own transactions are read committed nevertheless, but a"
            " transaction block that takes a job may fail, and must be repeated"
        )
        advice = "ALTER ROLE ... SET default_transaction_isolation = 'read committed'"
        found.append(Finding("isolation", "warning", message, advice, {"isolation": isolation}))
    return found


async def check_durability(context: CheckContext) -> list[Finding]:
    """Check the settings that decide whether committed jobs survive a crash."""
    [[fsync, pages, commit]] = await context.ask(
        "durability",
        "SELECT current_setting('fsync'), current_setting('full_page_writes'), current_setting('synchronous_commit')",
    )
    details = {"fsync": fsync, "full_page_writes": pages, "synchronous_commit": commit}
    if "off" in (fsync, pages):
        off = " and ".join(name for name in ("fsync", "full_page_writes") if details[name] == "off")
        message = f"{off} off: a crash of the machine can destroy the database"
        return [
            Finding("durability", "problem", message, "turn it on, unless you can lose the whole database", details)
        ]
    if commit == "off":
        message = "synchronous_commit is off: a crash of the server loses what was committed just before"
        advice = "turn it on, or accept that jobs may be lost, or run twice"
        return [Finding("durability", "warning", message, advice, details)]
    return [Finding("durability", "ok", f"fsync is on, synchronous_commit {commit}", details=details)]


async def check_connections(context: CheckContext) -> list[Finding]:
    """Check how many connections the server, the database and the role have left."""
    [[used, most, of_database, for_database, of_role, for_role]] = await context.ask(
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
        if limit < 0:  # no limit
            continue
        details = {"of": what, "used": number, "limit": limit}
        level: Level = "problem" if number >= NO_HEADROOM * limit else "warning" if number >= HEADROOM * limit else "ok"
        advice = "" if level == "ok" else "lower max_connections of PQ, use a pooler, or raise the limit"
        found.append(
            Finding("connections", level, f"{number} of {limit} connections of {what} in use", advice, details)
        )
    return found


async def check_clock(context: CheckContext) -> list[Finding]:
    """Check the difference between this machine's clock and the server's."""
    apart, trip = 0.0, float("inf")
    for _ in range(3):
        before = time.time()
        [[server]] = await context.ask("clock", "SELECT extract(epoch FROM clock_timestamp())::float8")
        after = time.time()
        if 0 <= after - before < trip:
            trip, apart = after - before, server - (before + after) / 2
    details = {"server_ahead": apart, "round_trip": trip}
    if abs(apart) > CLOCKS + trip:
        side = "ahead of" if apart > 0 else "behind"
        message = f"the server's clock is {abs(apart):.1f} seconds {side} this one's"
        advice = (
            "set all clocks by NTP; the server's clock decides which jobs are due, so give delays such as '5m' rather"
            " than points in time"
        )
        return [Finding("clock", "warning", message, advice, details)]
    message = f"clocks agree within {abs(apart) + trip / 2:.3f} seconds; a round trip takes {trip * 1000:.1f} ms"
    return [Finding("clock", "ok", message, details=details)]


# The query includes sessions of other databases: the server keeps a notification until every listening session has
# read it.
_IN_TRANSACTION = """
SELECT pid, coalesce(application_name, ''), datname::text, extract(epoch FROM clock_timestamp() - xact_start)::float8
FROM pg_stat_activity WHERE xact_start IS NOT NULL AND pid <> pg_backend_pid() AND datname IS NOT NULL
ORDER BY xact_start LIMIT 1"""

_HIDDEN_ELSEWHERE = """
SELECT count(*) FROM pg_stat_activity WHERE datname IS NOT NULL AND query = '<insufficient privilege>'"""
_MONITOR = "GRANT pg_monitor TO the role that runs pqcore doctor"


async def check_notifications(context: CheckContext) -> list[Finding]:
    """Check how full the server's notification queue is."""
    if Capability.LISTEN in context.engine.dialect.missing:
        return []
    [[usage]] = await context.s.execute(context.s.sql.notification_usage)
    details: dict[str, Any] = {"usage": usage}
    message = f"the server's queue of notifications is {100 * usage:.0f} % full"
    if usage < MUCH_UNREAD:
        return [Finding("notifications", "ok", message, details=details)]
    advice = "end the transaction of the session that listens, and set idle_in_transaction_session_timeout"
    for pid, application, database, seconds in await context.ask("in_transaction", _IN_TRANSACTION):
        details |= {"pid": pid, "application_name": application, "database": database, "seconds": seconds}
        name = f" ({application!r})" if application else ""
        advice = (
            f"SELECT pg_terminate_backend({pid}), if it listens: session {pid}{name} of database {database!r} has been"
            f" in a transaction for {seconds:.0f} seconds, longer than all others; set"
            " idle_in_transaction_session_timeout"
        )
    [[unseen]] = await context.ask("unseen_elsewhere", _HIDDEN_ELSEWHERE)
    if unseen:
        advice += f"; {counted(unseen, 'session')} of other roles cannot be seen, and may be older: {_MONITOR}"
    level: Level = "problem" if usage >= TOO_MUCH_UNREAD else "warning"
    message += ": when it is full, puts and ends of jobs that notify fail"
    return [Finding("notifications", level, message, advice, details)]


_POOLER = (
    "waiters hear of jobs sooner on connections to the server itself, or to a pooler in session mode with"
    " PQ(dsn, prepared=True); PQ(dsn, prepared=False) says that a pooler is in between"
)


_ONE_CLIENT = "run several programs, or workers in several processes, on a PostgreSQL server"


async def check_listen(context: CheckContext) -> list[Finding]:
    """Check whether a notification arrives, and whether the connection goes through a pooler in transaction mode."""
    engine, s = context.engine, context.s
    if Capability.LISTEN not in engine.spec.capabilities:
        reason = engine.spec.missing.get(Capability.LISTEN, "")
        return [Finding("listen", "warning", f"{engine.spec.name} cannot listen, so waiters poll: {reason}")]
    await s.direct()
    if s.shares_session:
        shared = {"heard": False, "seconds": None, "pooler": False}
        return [Finding("listen", "warning", f"waiters poll, because {ONE_CLIENT}", _ONE_CLIENT, shared)]
    listener = await engine.source.listener()
    if listener is None:
        return [Finding("listen", "warning", "there is no connection to listen on, so waiters poll")]
    try:
        if await _is_moved(s, listener):
            message = "a pooler in transaction mode is in between, so waiters poll, and nothing is prepared"
            return [Finding("listen", "ok", message, _POOLER, {"heard": False, "seconds": None, "pooler": True})]
        if context.read_only:
            message = "no notification was sent, because of --read-only"
            return [Finding("listen", "ok", message, details={"heard": False, "seconds": None, "pooler": False})]
        topic = f"pqcore_doctor_{uuid.uuid4().hex}"
        await listener.listen(topic)
        began = time.monotonic()
        await context.ask("notify", "SELECT pg_notify(:channel::text, '')::text", channel=topic)
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
        message = f"no notification arrived within {LISTEN_PATIENCE:g} seconds: is there a pooler in transaction mode?"
        return [Finding("listen", "problem", message, _POOLER, details)]
    return [Finding("listen", "ok", f"a notification arrived after {took * 1000:.0f} ms", details=details)]


_PID = plain("pid", "SELECT pg_backend_pid()")


async def _is_moved(s: Session, other: Session) -> bool:
    """Return whether a pooler assigns the server's sessions to connections separately for each transaction.

    In that case, one connection reaches several sessions, or two connections reach the same session. A pooler assigns
    the session that was used last, or the next session in turn, but no session with an open transaction.
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


async def check_snapshots(context: CheckContext) -> list[Finding]:
    """Check for old snapshots, which keep dead rows from being removed."""
    rows = await context.ask("snapshots", _SNAPSHOTS)
    [[unseen]] = await context.ask("unseen_sessions", _HIDDEN_SESSIONS)
    holders = [_holder(*row) for row in rows]
    bad = [one for one in holders if one.level != "ok"]
    bad.sort(key=lambda one: (one.level == "problem", one.details["transactions"]), reverse=True)
    found = bad[:10]
    if not found:
        message = "no transaction has been open for a long time"
        if holders:
            oldest = max(holders, key=lambda one: one.details["transactions"])
            message = f"the oldest snapshot: {oldest.message}"
        found = [Finding("snapshots", "ok", message)]
    if unseen:
        message = f"{counted(unseen, 'session')} of other roles cannot be seen: one of them may hold an old snapshot"
        found.append(Finding("snapshots", "warning", message, _MONITOR))
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
        use = "in use" if active else "not in use"
        message = f"{kind} {who}, {use}: keeps the dead rows of the last {transactions} transactions"
    else:
        level = "ok" if (seconds or 0) < LONG else "warning" if (seconds or 0) < TOO_LONG else "problem"
        advice = (
            f"SELECT pg_terminate_backend({who}); set idle_in_transaction_session_timeout, and keep transactions short"
            if kind == "session"
            else f"ROLLBACK PREPARED '{quoted}', if its owner has forgotten it"
        )
    return Finding("snapshots", level, message, "" if level == "ok" else advice, details)
