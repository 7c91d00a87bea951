"""A table partitioned by the queue's name.

All rows of a queue are in one partition, with its own indexes and its own VACUUM.

The migrations are written for a table without partitions. This module rewrites the statements that PostgreSQL does
not accept for a partitioned table: its primary key must include the partition column, and each partition has its own
storage parameters.
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
"""The largest number of partitions: with more, planning a statement takes longer than running it."""
_PADDING = 128
"""The number of rows that a migration inserts and deletes again, so that the table has some pages."""


@dataclass(frozen=True)
class Partitions:
    """The partitions of a table.

    Attributes:
        names: The names of the partitions, quoted and qualified.
        made: Whether the partitions exist; otherwise the migration makes them.
    """

    names: tuple[str, ...]
    made: bool

    @classmethod
    def new(cls, names: TableName, number: int) -> Partitions:
        """Return the given number of new partitions, which divide the rows by a hash of the queue's name.

        Raises:
            ConfigurationError: The value is not a number from 1 to `MOST`.
        """
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= MOST:
            msg = f"partitions is {number!r}; give a number from 1 to {MOST:,}"
            raise ConfigurationError(msg)
        return cls(tuple(names.related(f"_p{place}") for place in range(number)), made=False)

    def statements(self, statement: str) -> Iterator[str]:
        """Yield the statements that replace one statement of a migration.

        Args:
            statement: The statement, as a template.
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
            if not self.made:  # existing partitions may accept only certain names of queues
                found = replace(statement, "'-', 'none'", "number::text, 'none'")
                yield replace(found, f"generate_series(1, {_PADDING})", f"generate_series(1, {rows})")
        elif statement.startswith("DELETE FROM {table} WHERE id BETWEEN "):
            yield replace(statement, f"BETWEEN -{_PADDING} AND -1", f"BETWEEN -{rows} AND -1")
        else:
            yield statement


def _keyed(statement: str) -> str:
    """Return the table's declaration, with the queue in its primary key.

    The id is the first column of the key, because statements look jobs up by id.
    """
    columns = substitute(statement, r"(bigserial\s+)PRIMARY KEY", r"\1NOT NULL", 1)
    return columns.rpartition(")")[0].rstrip() + ",\n  PRIMARY KEY (id, q_name)\n) PARTITION BY HASH (q_name)"
