"""A session whose statements are seen one by one; before any of them its connection may be ended by the server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

from pqcore import schema
from pqcore.backend import Row
from pqcore.db.backend_adapter import BackendAdapter
from pqcore.db.blocking_runtime import BlockingRuntime
from pqcore.db.runtime import run_sync
from pqcore.db.session import Session
from pqcore.plugins import plugins
from pqcore.sql.dialect import Dialect
from pqcore.sql.identifiers import TableName
from pqcore.sql.statement import Query, plain

QUEUE = TableName("queue")


class Watched:
    """A session, to `pqcore.schema`.

    Args:
        session: What does it.
        before: Called with each statement, and the session, before it is run.
        after: Called once the statement was run.
    """

    def __init__(
        self,
        session: Session,
        before: Callable[[str, Session], object] = lambda *_: None,
        after: Callable[[str, Session], object] = lambda *_: None,
    ) -> None:
        self._session = session
        self._before = before
        self._after = after

    async def execute(self, query: Query, parameters: Sequence[object] = ()) -> Sequence[Row]:
        self._before(query.sql, self._session)
        found = await self._session.execute(query, parameters)
        self._after(query.sql, self._session)
        return found

    async def commit(self) -> None:
        self._before("COMMIT", self._session)
        await self._session.commit()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def create(self, sleep: Callable[[float], Any] | None = None) -> None:
        """Make the table, or migrate it, statement by statement."""
        run_sync(schema.create(cast("Session", self), QUEUE, sleep or BlockingRuntime().sleep))


@contextmanager
def session(dsn: str) -> Iterator[Session]:
    """A session over psycopg."""
    spec = plugins.backend_spec("psycopg", "blocking")
    opener = BackendAdapter(partial(plugins.make, spec), Dialect(QUEUE, spec.paramstyle), suspends=False, prepared=True)
    made = opener.session(run_sync(opener.call("connect", dsn)))
    run_sync(made.enter())
    try:
        yield made
    finally:
        if made.usable():
            run_sync(made.close())


def pid(session: Session) -> int:
    """The server's process of a session."""
    [[found]] = ask(session, "SELECT pg_backend_pid()")
    return int(found)


def ask(session: Session, sql: str) -> Sequence[Row]:
    """Run a statement on a session."""
    return run_sync(cast("Any", session.execute(plain("ask", sql))))
