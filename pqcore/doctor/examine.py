"""Examine a table and its server for ``pqcore doctor``, and judge what the checks find.

The examination changes nothing, and takes no job. Queries run in a read-only transaction; the only other statement is a
notification on a separate channel. If the role lacks the privilege for a query, the report says so in a finding.
"""

from __future__ import annotations

from collections.abc import Sequence

from pqcore.db.engine import Engine
from pqcore.db.session import Session
from pqcore.doctor.backlog_checks import check_backlog, check_dead_letters, check_expiry, check_leases, check_samples
from pqcore.doctor.context import Check, CheckContext
from pqcore.doctor.findings import Finding
from pqcore.doctor.job_checks import (
    check_batches,
    check_dependencies,
    check_encodings,
    check_pauses,
    check_put_off,
    check_ticks,
)
from pqcore.doctor.plan_checks import check_plans
from pqcore.doctor.privilege_checks import check_privileges
from pqcore.doctor.server_checks import (
    check_clock,
    check_connections,
    check_durability,
    check_listen,
    check_notifications,
    check_server,
    check_snapshots,
)
from pqcore.doctor.table_checks import (
    check_autovacuum,
    check_bloat,
    check_indexes,
    check_put_function,
    check_row_security,
    check_schema_version,
    check_sequences,
    check_trigger,
)
from pqcore.errors import AccessDenied, ConnectionLost, DatabaseError, PQError, StatementCancelled

LIMIT = 10.0
"""Seconds that each statement of a check may take, because it could wait for another session's lock."""
_WAITING = "SELECT pid, pg_blocking_pids(pid), query FROM pg_stat_activity WHERE wait_event_type = 'Lock'"


async def examine(engine: Engine, queues: Sequence[str] = (), *, read_only: bool = False) -> list[Finding]:
    """Run all checks.

    Args:
        engine: The engine; the checks use two connections.
        queues: The queues whose takes are explained; by default those with the most jobs.
        read_only: Whether to send no notification; everything else only reads in any case.

    Raises:
        ConfigurationError: The DSN cannot be read.
    """
    found: list[Finding] = []

    async def work(s: Session) -> None:
        context = CheckContext(engine, s, queues, read_only=read_only)
        for name, check in _SERVER:
            await _collect(found, context, name, check)
        before = len(found)
        await _collect(found, context, "schema", check_schema_version)
        if any(one.level == "problem" for one in found[before:]):
            return
        for name, check in _TABLE:
            await _collect(found, context, name, check)
        if any(one.check == "indexes" and one.level == "problem" for one in found):
            message = "the statements that take jobs were not explained, because an index is missing"
            found.append(Finding("plan", "warning", message, "repair the indexes, and run pqcore doctor again"))
        else:
            await _collect(found, context, "plan", check_plans)

    try:
        await engine.migrate(work)
    except ConnectionLost as exc:
        found.append(
            Finding("connection", "problem", str(exc), "check that the server runs, and that this DSN reaches it")
        )
    except DatabaseError as exc:
        found.append(Finding("connection", "problem", str(exc)))
    return found


async def _collect(found: list[Finding], context: CheckContext, name: str, check: Check) -> None:
    try:
        with context.s.limited(LIMIT):
            found += await check(context)
    except ConnectionLost:
        raise
    except PQError as exc:
        if context.s.in_transaction():
            await context.s.rollback()
        reason = str(exc)
        if isinstance(exc, StatementCancelled):
            reason = f"{reason.partition(':')[0]} took longer than {LIMIT:.0f} s, and was cancelled"
            advice = f"end the session that holds a lock, if one does: {_WAITING}; otherwise try again later"
        elif not isinstance(exc, AccessDenied):
            advice = "try again when the server is less busy"
        elif (name, check) in _SERVER:
            advice = "use a role with this right: GRANT pg_monitor"
        else:
            advice = "use a role that may read the tables, such as their owner; see privileges"
        found.append(Finding(name, "warning", f"could not be checked: {reason}", advice))


_SERVER: tuple[tuple[str, Check], ...] = (
    ("server", check_server),
    ("durability", check_durability),
    ("connections", check_connections),
    ("clock", check_clock),
    ("listen", check_listen),
    ("notifications", check_notifications),
    ("snapshots", check_snapshots),
    ("row_security", check_row_security),
)
_TABLE: tuple[tuple[str, Check], ...] = (
    ("privileges", check_privileges),
    ("indexes", check_indexes),
    ("sequences", check_sequences),
    ("trigger", check_trigger),
    ("put_function", check_put_function),
    ("autovacuum", check_autovacuum),
    ("bloat", check_bloat),
    ("batches", check_batches),
    ("dependencies", check_dependencies),
    ("put_off", check_put_off),
    ("backlog", check_backlog),
    ("leases", check_leases),
    ("dead_letters", check_dead_letters),
    ("expiry", check_expiry),
    ("samples", check_samples),
    ("pauses", check_pauses),
    ("ticks", check_ticks),
    ("encodings", check_encodings),
)
