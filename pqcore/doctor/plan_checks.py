"""Checks of the plans of the statements that take jobs."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from pqcore.db.session import Session
from pqcore.doctor.context import CheckContext
from pqcore.doctor.findings import Finding, Level
from pqcore.sql.statement import Query, plain

FEW_PAGES = 32
"""Pages of 8 kB; a new table has this size, and scanning that many pages costs almost nothing."""
FEW_ROWS = 100
"""Index entries; sorting this number costs almost nothing, so they need not be read in order."""
QUEUES = 3
"""The number of queues whose takes are explained if the caller names none: those with the most jobs."""
_WHOLE = """
SELECT part.relname::text, whole.relname::text FROM (
  SELECT to_regclass(:table_name::text)::oid AS oid
  UNION ALL SELECT indexrelid FROM pg_index WHERE indrelid = to_regclass(:table_name::text)
) AS ours CROSS JOIN LATERAL pg_partition_tree(ours.oid) AS tree
JOIN pg_class AS part ON part.oid = tree.relid JOIN pg_class AS whole ON whole.oid = ours.oid"""


async def check_plans(context: CheckContext) -> list[Finding]:
    """Check the custom and the generic plans of the statements that take jobs."""
    queues = list(context.queues)
    if not queues:
        rows = await context.s.execute(context.s.sql.stats_all)
        numbers = [
            (ready + scheduled + leased + parked, queue) for queue, ready, scheduled, leased, _, parked, _ in rows
        ]
        most = sorted(numbers, key=lambda number: number[0], reverse=True)
        queues = [queue for _, queue in most[:QUEUES] if queue is not None] or ["pqcore doctor"]
    pages = (await context.table()).pages
    # The plan for a partitioned table names a partition, or an index of a partition.
    whole = {str(part): str(name) for part, name in await context.ask("partitions", _WHOLE)}
    found: list[Finding] = []
    takes = [context.s.sql.fetch("ordered", "keep", 1), context.s.sql.fetch("ordered", "lease", 1)]
    for queue in queues:
        for query in (*takes, context.s.sql.next_due_probe):
            for mode in ("custom", "generic"):
                plan = await _explained(context.s, query, {"q_name": queue, "lease": 60.0}, mode)
                found += _judged(context, queue, query, mode, plan, whole, few=pages <= FEW_PAGES)
    problems = [one for one in found if one.level == "problem"]
    if problems:
        return problems
    if found:
        message = "some takes read the table as a whole, because it is small: that costs less than an index"
        return [Finding("plan", "ok", message, details={"statements": [one.details for one in found]})]
    names = ", ".join(context.bare(name) for name in ("urgent_index", "ready_index", "hidden_index"))
    some = ", ".join(repr(queue) for queue in queues)
    return [Finding("plan", "ok", f"takes of {some} go through {names}", details={"queues": queues})]


async def _explained(s: Session, query: Query, values: Mapping[str, object], mode: str) -> Any:
    """Prepare a statement, and return the plan that EXPLAIN shows for it; do not run the statement.

    The transaction is read-only, so the examination cannot take a job, even if EXPLAIN ran the statement.
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
    context: CheckContext, queue: str, query: Query, mode: str, plan: Any, whole: Mapping[str, str], *, few: bool
) -> Iterator[Finding]:
    nodes = list(_nodes(plan))
    table = context.engine.names.table
    wanted = {context.bare(name) for name in ("ready_index", "urgent_index", "hidden_index")}
    if query.name == "next_due_probe":
        wanted.discard(context.bare("urgent_index"))
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
    advice = f"ANALYZE {context.engine.names}; see that enable_indexscan is on, and that all indexes are valid"
    if scans:
        level: Level = "ok" if few else "problem"
        yield Finding("plan", level, f"{subject} reads the table as a whole", advice, details)
    elif not wanted <= used:
        unused = ", ".join(sorted(wanted - used))
        yield Finding("plan", "problem", f"{subject} does not go through {unused}", advice, details)


def _in_order(node: Any) -> bool:
    """Return whether a node of a plan reads an index in order, or reads only a few entries, which are cheap to sort."""
    if node["Node Type"] == "Bitmap Index Scan":
        return bool(node["Plan Rows"] <= FEW_ROWS)
    return node["Node Type"] in ("Index Scan", "Index Only Scan")


def _nodes(plan: Any) -> Iterator[Any]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from _nodes(below)
