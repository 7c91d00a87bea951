"""Snapshots of each dialect's statements, as they are sent to a server, in SQL that psql and reviewers can read.

After a statement was changed on purpose, this writes the snapshots again; the difference belongs to the change:

    python -m tests.statement_snapshots

White space is not part of a snapshot: each clause stands on a line of its own.  A file can be given to psql, on a
database with a table ``queue`` of that dialect: it prepares the statements, after it has made the table.
"""

from __future__ import annotations

import re
from difflib import unified_diff
from pathlib import Path
from typing import get_args

from pqcore.backend import Capability
from pqcore.schema.scripts import RECORD, migrations
from pqcore.sql.citus import Citus
from pqcore.sql.cockroachdb import CockroachDB
from pqcore.sql.dialect import SCHEMA_STATEMENTS, Dialect
from pqcore.sql.fetch_statements import Finish, Pick
from pqcore.sql.identifiers import TableName
from pqcore.sql.statement import RETENTIONS, Query
from pqcore.sql.statement_set import read_statements

FOLDER = Path(__file__).parent / "snapshots"
DIALECTS: tuple[type[Dialect], ...] = (Dialect, Citus, CockroachDB)
NAMES = TableName("queue")

_TOKEN = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|\s+|[()]|[^\s'\"()]+")
_CLAUSE = re.compile(
    "SELECT|FROM|WHERE|AND|OR|SET|VALUES|RETURNING|ON|ORDER|GROUP|UNION|UPDATE|DELETE|INSERT|LEFT|CROSS|JOIN|LIMIT"
    "|FOR|CASE"
)
_INSIDE = frozenset({"epoch", "DISTINCT", "DO", "DELETE", "FOR", "LEFT", "CROSS", "BETWEEN", "SKIP"})
"""Words after which no new clause begins: ``extract(epoch FROM ...)``, ``FOR UPDATE``."""


def queries(dialect: Dialect) -> dict[str, Query]:
    """All statements of a dialect by name; a statement for a number of rows is shown for two rows."""
    sets = (
        dialect,
        dialect.tasks,
        dialect.admin,
        dialect.rules,
        dialect.encodings,
        dialect.explain,
        dialect.workers,
        dialect.attempts,
        dialect.samples,
        dialect.schedules,
        dialect.dependencies,
    )
    found = [query for each in sets for query in each.queries()]
    for finish in get_args(Finish):
        picks = [pick for pick in get_args(Pick) if pick != "idle" or Capability.LISTEN not in dialect.missing]
        found += [dialect.fetch(pick, finish, 2) for pick in picks]
    found += [dialect.peek(2), dialect.take_lanes(2)]
    if "end and take" not in dialect.unsupported:
        found += [dialect.end_and_take(retention, 2) for retention in RETENTIONS]
    places = {"key": "'pqcore \"queue\"'", "table_name": "'\"queue\"'"}
    found += [dialect.schema_statement(name, **places) for name in read_statements(SCHEMA_STATEMENTS)]
    return {query.name: query for query in found}


def laid_out(sql: str) -> str:
    """Return a statement with one clause per line, and without white space that has no meaning."""
    tokens = _TOKEN.findall(sql.strip())
    text, depth = "", 0
    for place, token in enumerate(tokens):
        depth += {"(": 1, ")": -1}.get(token, 0)
        if not token.isspace():
            text += token
        elif not text.endswith("(") and (after := tokens[place + 1]) != ")":
            word = text.split()[-1].rpartition("(")[2]
            text += "\n" + "  " * (depth + 1) if _CLAUSE.fullmatch(after) and word not in _INSIDE else " "
    return text


def snapshot(kind: type[Dialect]) -> str:
    """Return all statements of a dialect; the statements of migrations come first."""
    dialect = kind(NAMES, "numeric_dollar")
    places = NAMES.substitutions() | {"concurrently": ""}
    parts = [f"-- The statements of the dialect {kind.name}. python -m tests.statement_snapshots writes them."]
    for number, version in enumerate([(RECORD,), *migrations()]):
        for statement in version:
            made = [each.format_map(places).strip().rstrip(";") for each in dialect.migration(statement)]
            parts += [f"-- migration {number}\n{each};" for each in made]
    for name, query in sorted(queries(dialect).items()):
        notes = [*(["hot"] if query.hot else []), *([] if query.rows else ["no rows"])]
        parameters = [f"${number} {query.order[place]}" for number, place in enumerate(query.first, 1)]
        head = " ".join([f"-- {name}", *(f"[{note}]" for note in notes), ", ".join(parameters)]).rstrip()
        quoted = '"' + name + '"'
        prepared = query.numbered if name in UNPREPARED else query.prepare(quoted)
        parts.append(f"{head}\n{laid_out(prepared)};")
    return "\n\n".join(parts) + "\n"


UNPREPARED = ("replan", "discard_plans")
"""Statements that cannot be prepared."""


def path(kind: type[Dialect]) -> Path:
    """Return the path of a dialect's snapshot."""
    return FOLDER / f"{kind.name}.sql"


def difference(kind: type[Dialect]) -> str:
    """Return the difference between a dialect's statements and their snapshot."""
    old, new = path(kind).read_text("utf-8").splitlines(), snapshot(kind).splitlines()
    return "\n".join(unified_diff(old, new, "snapshot", "code", n=8, lineterm=""))


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for each in DIALECTS:
        path(each).write_text(snapshot(each), "utf-8")
