"""The sequences from which ids are drawn, compared with the existing ids.

Logical replication, and a restore of rows alone, do not copy a sequence's value; ``TRUNCATE`` with
``RESTART IDENTITY`` resets the value. After any of these operations, the sequence gives ids that other jobs have or
had.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pqcore.schema import in_short_transactions
from pqcore.sql.identifiers import literal
from pqcore.sql.statement import plain

if TYPE_CHECKING:
    from pqcore.db.session import Session
    from pqcore.sql.identifiers import TableName

HOLDERS: dict[str, tuple[tuple[str, str], ...]] = {
    "table": (
        ("table", "id"),
        ("archive", "id"),
        ("dead", "id"),
        ("results", "job_id"),
        ("slots", "job_id"),
        ("dedup", "job_id"),
        ("attempts", "job_id"),
        ("blocked", "job_id"),
        ("dependencies", "job_id"),
    ),
    "batches": (("batches", "id"),),
}
"""For each table whose ``id`` comes from a sequence: the tables and columns that hold such ids."""


@dataclass(frozen=True)
class IdSequence:
    """A sequence, and the existing ids that came from it.

    Attributes:
        name: The sequence's name, quoted and, if needed, qualified.
        following: The id that the sequence gives next; None if the role may not see this id.
        highest: The highest existing id by table, for tables that have ids; tables are named as in SQL.
    """

    name: str
    following: int | None
    highest: dict[str, int] = field(default_factory=dict)

    @property
    def behind(self) -> bool:
        """Whether the sequence will give an id that is or was in use."""
        return self.following is not None and self.following <= max(self.highest.values(), default=0)

    @property
    def remedy(self) -> str:
        """Return the statement that sets the sequence beyond all existing ids."""
        return f"SELECT setval({literal(self.name)}, {max(self.highest.values())})"


async def look(session: Session, names: TableName) -> list[IdSequence]:
    """Return the sequences of the existing tables."""
    places = names.substitutions()
    tables = ", ".join(literal(places[place]) for holders in HOLDERS.values() for place, _ in holders)
    rows = await session.execute(
        plain("find_holders", f"SELECT name FROM unnest(ARRAY[{tables}]) AS name WHERE to_regclass(name) IS NOT NULL")
    )
    there = {name for (name,) in rows}
    found = []
    for owner, holders in HOLDERS.items():
        table = literal(places[owner])
        # The query finds the sequence in the column's default: a sequence made by hand may be owned by no column.
        rows = await session.execute(
            plain(
                "find_sequence",
                "SELECT seq.oid::regclass::text, s.seqstart, has_sequence_privilege(seq.oid, 'SELECT'),"
                " has_sequence_privilege(seq.oid, 'USAGE'),"
                " pg_sequence_last_value(seq.oid) FROM pg_class AS seq JOIN pg_sequence AS s ON s.seqrelid = seq.oid"
                " WHERE seq.oid = coalesce((SELECT d.refobjid FROM pg_attrdef AS def JOIN pg_attribute AS a"
                " ON a.attrelid = def.adrelid AND a.attnum = def.adnum JOIN pg_depend AS d"
                " ON d.classid = 'pg_attrdef'::regclass AND d.objid = def.oid AND d.refclassid = 'pg_class'::regclass"
                " JOIN pg_class AS c ON c.oid = d.refobjid AND c.relkind = 'S'"
                f" WHERE def.adrelid = to_regclass({table}) AND a.attname = 'id' LIMIT 1),"
                f" pg_get_serial_sequence({table}, 'id')::regclass)",
            )
        )
        for name, start, readable, usable, last in rows:
            # Without a privilege, the last value is NULL, as for a sequence that has not given an id yet.
            following = int(last) + 1 if last is not None else int(start) if usable else None
            if readable:
                [[value, called]] = await session.execute(
                    plain("read_sequence", f"SELECT last_value, is_called FROM {name}")
                )
                following = int(value) + int(called)
            highest = {}
            for place, column in holders:
                if places[place] not in there:
                    continue
                [[most]] = await session.execute(plain("highest_id", f"SELECT max({column}) FROM {places[place]}"))
                if most is not None:
                    highest[places[place]] = int(most)
            found.append(IdSequence(name, following, highest))
    return found


async def advance(
    session: Session, names: TableName, sleep: Callable[[float], Awaitable[None]]
) -> Sequence[IdSequence]:
    """Set sequences whose values are below existing ids, and return these sequences as they were before.

    No other session can put meanwhile: a statement that draws an id locks the table, and this operation takes a lock
    that conflicts with such locks.

    Raises:
        TransientError: The table was in use for too long; call this again.
    """
    if not any(one.behind for one in await look(session, names)):
        return ()

    async def work() -> Sequence[IdSequence]:
        places = names.substitutions()
        tables = ", ".join(places[owner] for owner in HOLDERS)
        await session.execute(plain("lock_tables", f"LOCK TABLE {tables} IN SHARE ROW EXCLUSIVE MODE", rows=False))
        behind = [one for one in await look(session, names) if one.behind]
        for one in behind:
            await session.execute(plain("set_sequence", one.remedy))
        return behind

    if session.in_transaction():
        return await work()
    return await in_short_transactions(session, names, sleep, work)
