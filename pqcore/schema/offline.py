"""Recording the statements that a schema operation would run on an empty database, instead of running them."""

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
    # These answers say that the record of versions exists, and that another table uses it.
    "find_record": [[True]],
    "record_is_used": [[True]],
}


def write_down(execute: Callable[[str], None], operation: Callable[[Session], Awaitable[object]]) -> None:
    """Pass to ``execute`` the statements that an operation of `pqcore.schema` would run on an empty database."""
    run_sync(cast("Any", operation(cast("Session", _OnPaper(execute)))))


class _OnPaper:
    """A session without a server, which answers like an empty database, and passes on all statements that write."""

    def __init__(self, execute: Callable[[str], None]) -> None:
        self._execute = execute
        # only the dialect's rewriting is used, which does not depend on the table
        self.sql = plugins.dialect()(TableName("queue"), "numeric_dollar")
        self.defaults = Defaults()

    async def execute(self, query: Query, parameters: Sequence[object] = ()) -> Any:
        if not query.rows:
            self._execute(query.sql)
        return _ANSWERS.get(query.name, [])

    def in_transaction(self) -> bool:
        return True
