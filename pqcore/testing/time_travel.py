"""Time travel for `pqcore.testing.jobs`: it sets the times in rows back, and puts the jobs of ticks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any

from pqcore.errors import ConfigurationError
from pqcore.operations.atomic import atomic
from pqcore.sql.statement import Query

if TYPE_CHECKING:
    from pqcore.db.session import Session
    from pqcore.operations.deferred_put import StoredPut
    from pqcore.sql.identifiers import TableName
    from pqcore.tasks.periodic import Timetable

MOST_TICKS = 10_000
"""The largest number of ticks of one periodic task that are put."""
LOCK_TIMEOUT = "5s"
"""How long to wait for rows that a transaction has locked."""

# All columns that hold a time, in all tables of a queue.
_TIMES = """
SELECT c.oid::regclass::text, quote_ident(a.attname)
FROM unnest(:names::text[]) AS wanted (name) JOIN pg_class AS c ON c.oid = to_regclass(wanted.name)
JOIN pg_attribute AS a ON a.attrelid = c.oid
WHERE c.relkind = 'r' AND a.atttypid = 'timestamptz'::regtype AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY 1, 2"""
_DEADLINES = """SELECT id, {column}::text FROM {{{table}}} WHERE position('"deadline"' in {column}::text) > 0"""
_SET_DEADLINES = "UPDATE {{{table}}} SET {column} = :value::text::json WHERE id = :id::bigint"


def compiled(session: Session, name: str, template: str, *, rows: bool = True) -> Query:
    """Return a statement about a session's table."""
    return session.sql._compile("test_" + name, template, rows=rows)


async def set_back(session: Session, names: TableName, distance: timedelta) -> None:
    """Move all times in the tables of a queue back, and delete what has expired."""
    no_tables = ("migrations", "put_function", "ended")
    places = names.substitutions()
    others = [name for key, name in places.items() if key not in no_tables and not key.endswith("_name")]
    by = {"by": distance.total_seconds()}
    joined = session.in_transaction()
    async with atomic(session):
        if not joined:
            timeout = f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"
            await session.execute(compiled(session, "lock_timeout", timeout, rows=False))
        query = compiled(session, "times", _TIMES)
        columns: dict[str, list[str]] = {}
        for table, column in await session.execute(query, query.bind({"names": others})):
            columns.setdefault(table, []).append(column)
        for table, moved in columns.items():
            changes = ", ".join(f"{column} = {column} - :by::float8 * interval '1 second'" for column in moved)
            statement = f"UPDATE {table} SET {changes}".replace("{", "{{").replace("}", "}}")
            query = compiled(session, "set_back", statement, rows=False)
            await session.execute(query, query.bind(by))
        for table, column in (("table", "headers"), ("dead", "headers"), ("batches", "callback")):
            await _set_deadlines_back(session, table, column, distance)
        await session.execute(session.sql.tasks.sweep_results)


async def _set_deadlines_back(session: Session, table: str, column: str, distance: timedelta) -> None:
    """Move back the deadlines in the headers of jobs, and in the headers of the jobs that follow these jobs."""
    found = await session.execute(compiled(session, "deadlines", _DEADLINES.format(table=table, column=column)))
    for number, text in found:
        stored = json.loads(text)
        _shift(stored if column == "headers" else stored["headers"], distance.total_seconds())
        query = compiled(session, "set_deadline", _SET_DEADLINES.format(table=table, column=column), rows=False)
        await session.execute(query, query.bind({"value": json.dumps(stored), "id": number}))


def _shift(headers: dict[str, Any], by: float) -> None:
    run = headers.get("run")
    if isinstance(run, dict) and "deadline" in run:
        run["deadline"] -= by
    for link in headers.get("then", []):
        _shift(link["headers"], by)


@dataclass(frozen=True)
class Ticks:
    """Ticks to put.

    Attributes:
        queue: The queue.
        timetable: The timetable of a periodic task or of a schedule.
        job: A function that makes the job of a tick.
        last: The last tick before the ticks in ``due``, by the test's clock.
        due: The ticks, by the test's clock.
    """

    queue: Any
    timetable: Timetable
    job: Callable[[], StoredPut]
    last: datetime
    due: list[datetime]


def due(timetable: Timetable, last: datetime, arrival: datetime, *, down: bool) -> list[datetime]:
    """Return the ticks to put until ``arrival``: every tick or, if no worker ran, the ticks that ``missed`` chooses.

    Raises:
        ConfigurationError: There are more than `MOST_TICKS` ticks.
    """
    if down:
        return timetable.due(last, arrival)
    ticks: list[datetime] = []
    for tick in islice(timetable.ticks_after(last), MOST_TICKS + 1):
        if tick > arrival:
            return ticks
        ticks.append(tick)
    if len(ticks) > MOST_TICKS:
        msg = f"{timetable.name} has more than {MOST_TICKS} ticks until {arrival}: travel with down=True"
        raise ConfigurationError(msg)
    return ticks
