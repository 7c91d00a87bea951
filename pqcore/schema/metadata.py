"""The tables, columns and indexes that the migrations declare, as data.

The data serves code that describes pqcore's tables to other tools, such as SQLAlchemy's metadata. Only the migrations
define the schema; they are simple enough for this module to parse.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from pqcore.errors import SchemaError
from pqcore.schema.scripts import RECORD, migrations
from pqcore.sql.identifiers import TableName, unquoted

_TABLE = re.compile(r"(?s)CREATE TABLE IF NOT EXISTS \{(\w+)\} \((.*)\)")
_ADDED = re.compile(r"(?s)ALTER TABLE \{(\w+)\}\s+ADD COLUMN (.*)")
_INDEX = re.compile(
    r"(?s)CREATE (UNIQUE )?INDEX (?:\{concurrently\} )?IF NOT EXISTS \{(\w+)\} ON \{(\w+)\}"
    r"\s*\((.*?)\)(?:\s+WHERE (.*))?"
)
_COLUMN = re.compile(r"(?s)(?:ADD COLUMN )?(?:IF NOT EXISTS )?(\w+)\s+(double precision|\w+(?:\[\])?)(.*)")
_DEFAULT = re.compile(r"DEFAULT (\S+)")
_CHECK = re.compile(r"CHECK \((.*)\)")


@dataclass(frozen=True)
class DeclaredColumn:
    """A column.

    Attributes:
        name: The name of the column.
        type: The type as the migrations write it: ``bigserial``, ``timestamptz``.
        nullable: Whether the column may be NULL.
        default: The expression of the default; None if there is none.
        check: The expression of the check; None if there is none.
    """

    name: str
    type: str
    nullable: bool
    default: str | None
    check: str | None


@dataclass(frozen=True)
class DeclaredIndex:
    """An index.

    Attributes:
        name: The name of the index.
        expressions: The columns or expressions of the index.
        unique: Whether the index is unique.
        where: The expression of a partial index; None for all rows.
    """

    name: str
    expressions: tuple[str, ...]
    unique: bool
    where: str | None


@dataclass(frozen=True)
class DeclaredTable:
    """A table.

    Attributes:
        name: The name of the table, without the schema and not quoted.
        primary_key: The names of the primary key's columns.
        columns: The columns, in order.
        indexes: The indexes, without that of the primary key.
    """

    name: str
    primary_key: tuple[str, ...]
    columns: list[DeclaredColumn] = field(default_factory=list)
    indexes: list[DeclaredIndex] = field(default_factory=list)


def declared_tables(names: TableName) -> list[DeclaredTable]:
    """Return the tables that `create` makes, in order; the queue's own is first, the record of migrations last.

    Raises:
        SchemaError: A migration is written in a form that this module cannot parse.
    """
    places = names.substitutions()
    tables: dict[str, DeclaredTable] = {}
    made = [each for version in migrations() for each in version]
    # `RECORD` declares all columns of the table of migrations, so the other statements about that table are left out.
    for statement in [*(each for each in made if "{migrations}" not in each), RECORD]:
        if found := _TABLE.fullmatch(statement):
            tables[found[1]] = _table(_bare(names, places[found[1]]), _parts(found[2]))
        elif found := _ADDED.fullmatch(statement):
            added = [part for part in _parts(found[2]) if not part.startswith("ALTER COLUMN")]
            tables[found[1]].columns.extend(_column(part, ()) for part in added)
        elif found := _INDEX.fullmatch(statement):
            where = None if found[5] is None else " ".join(found[5].split())
            index = DeclaredIndex(_bare(names, places[found[2]]), tuple(_parts(found[4])), found[1] is not None, where)
            tables[found[3]].indexes.append(index)
        elif re.match(r"CREATE (TABLE|(UNIQUE )?INDEX)|ALTER TABLE \{\w+\}\s+(ADD|DROP|RENAME)", statement):
            raise SchemaError(f"cannot parse a migration as the declaration of a table, column or index: {statement}")
    return list(tables.values())


def _table(name: str, parts: list[str]) -> DeclaredTable:
    of_table = [part for part in parts if part.startswith("PRIMARY KEY")]
    parts = [part for part in parts if part not in of_table]
    if of_table:
        key = tuple(_parts(of_table[0].partition("(")[2].rstrip(")")))
    else:
        key = tuple(part.split()[0] for part in parts if "PRIMARY KEY" in part)
    return DeclaredTable(name, key, [_column(part, key) for part in parts])


def _column(part: str, key: tuple[str, ...]) -> DeclaredColumn:
    found = _COLUMN.fullmatch(part)
    if found is None:
        raise SchemaError(f"cannot parse the declaration of a column: {part}")
    name, kind, rest = found.groups()
    default, check = _DEFAULT.search(rest), _CHECK.search(rest)
    nullable = name not in key and "NOT NULL" not in rest
    return DeclaredColumn(name, kind, nullable, default and default[1], check and check[1])


def _parts(text: str) -> list[str]:
    """Return the parts of a text between commas that are outside parentheses."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _bare(names: TableName, quoted: str) -> str:
    """Return an unquoted name without the schema that may qualify it."""
    prefix = names.qualified("x")[: -len('"x"')]
    return unquoted(quoted.removeprefix(prefix))
