"""What an operation on the schema would run where there is no table, written down instead of run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

from pqcore.db.isolation import Defaults
from pqcore.db.runtime import run_sync
from pqcore.db.session import Session
from pqcore.plugins import plugins
from pqcore.sql.identifiers import TableName
from pqcore.sql.statement import Query

_ANSWERS: dict[str, list[list[bool | str]]] = {
    "find_table": [[False, False, "read committed"]],
    "find_schema": [[False]],
    # What a statement drops is assumed to be there, and so is another table.
    "find_record": [[True]],
    "record_is_used": [[True]],
}


def write_down(execute: Callable[[str], None], operation: Callable[[Session], Awaitable[object]]) -> None:
    """Give the statements of an operation of `pqcore.schema` to ``execute``, as they are for an empty database."""
    run_sync(cast("Any", operation(cast("Session", _OnPaper(execute)))))


class _OnPaper:
    """A session without a server: it answers as an empty database would, and hands on what changes something."""

    def __init__(self, execute: Callable[[str], None]) -> None:
        self._execute = execute
        self.sql = plugins.dialect()(TableName("queue"), "numeric_dollar")  # its words are of no table
        self.defaults = Defaults()

    async def execute(self, query: Query, parameters: Sequence[object] = ()) -> Any:
        if not query.rows:
            self._execute(query.sql)
        return _ANSWERS.get(query.name, [])

    def in_transaction(self) -> bool:
        return True
