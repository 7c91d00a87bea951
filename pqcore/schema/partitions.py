"""A table in partitions by the queue's name: a queue's rows are in one, with indexes and a vacuum of its own.

The migrations are written for a table without.  What PostgreSQL does not take of one with partitions is put in other
words here: its primary key has the column that it is partitioned by, and each partition has its own storage parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pqcore.errors import ConfigurationError
from pqcore.sql.rewrite import replace, substitute

if TYPE_CHECKING:
    from pqcore.sql.identifiers import TableName

MOST = 1_000
"""Partitions: with more, planning a statement takes longer than running it."""
_PADDING = 128
"""Rows that a migration puts, and deletes again, so that the table has some pages."""


@dataclass(frozen=True)
class Partitions:
    """The partitions of a table.

    Attributes:
        names: Of each, quoted and qualified.
        made: Whether they are there; else the migration makes them.
    """

    names: tuple[str, ...]
    made: bool

    @classmethod
    def new(cls, names: TableName, number: int) -> Partitions:
        """So many, by a hash of the queue's name.

        Raises:
            ConfigurationError: It is no number from 1 to `MOST`.
        """
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= MOST:
            msg = f"partitions is {number!r}; give a number from 1 to {MOST:,}"
            raise ConfigurationError(msg)
        return cls(tuple(names.related(f"_p{place}") for place in range(number)), made=False)

    def statements(self, statement: str) -> Iterator[str]:
        """What is to be run for a statement of a migration.

        Args:
            statement: As a template.
        """
        parts = [name.replace("{", "{{").replace("}", "}}") for name in self.names]
        rows = _PADDING * len(parts)
        if not parts:
            yield statement
        elif statement.startswith("CREATE TABLE IF NOT EXISTS {table} ("):
            if not self.made:
                yield _keyed(statement)
                for place, part in enumerate(parts):
                    yield (
                        f"CREATE TABLE IF NOT EXISTS {part} PARTITION OF {{table}}"
                        f" FOR VALUES WITH (MODULUS {len(parts)}, REMAINDER {place})"
                    )
        elif statement.startswith("ALTER TABLE {table} SET ("):
            yield from (statement.replace("{table}", part, 1) for part in parts)
        elif "generate_series" in statement and statement.startswith("INSERT INTO {table} "):
            if not self.made:  # else nobody knows which names they are for
                found = replace(statement, "'-', 'none'", "number::text, 'none'")
                yield replace(found, f"generate_series(1, {_PADDING})", f"generate_series(1, {rows})")
        elif statement.startswith("DELETE FROM {table} WHERE id BETWEEN "):
            yield replace(statement, f"BETWEEN -{_PADDING} AND -1", f"BETWEEN -{rows} AND -1")
        else:
            yield statement


def _keyed(statement: str) -> str:
    """The table's declaration, with a primary key that names the queue; the id comes first, as ids are looked up."""
    columns = substitute(statement, r"(bigserial\s+)PRIMARY KEY", r"\1NOT NULL", 1)
    return columns.rpartition(")")[0].rstrip() + ",\n  PRIMARY KEY (id, q_name)\n) PARTITION BY HASH (q_name)"
