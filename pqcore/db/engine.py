"""Runs operations: finds the session, keeps the transaction, checks the table once.

One engine serves one `PQ` or `AsyncPQ`.  We never commit what we did not begin:

* on an idle connection an operation is one statement that commits by itself;
* within ``with queue``, and on a connection of the caller's with a transaction
  open, it joins, and a failure is undone to a savepoint;
* given ``connection=``, it is a statement of the caller's and nothing more.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache, partial
from operator import attrgetter
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from pqcore.argument_hints import instead_of_connection, instead_of_target, kind_of
from pqcore.backend import BackendSpec, Capability, Mode, Row
from pqcore.db.backend_adapter import BackendAdapter
from pqcore.db.blocks import OpenTransaction
from pqcore.db.dsn import dsn_text, of_libpq, redact
from pqcore.db.group_commit import Line
from pqcore.db.grouping import Grouping
from pqcore.db.pool import Pool
from pqcore.db.runtime import Runtime
from pqcore.db.savepoints import in_savepoint
from pqcore.db.session import Session
from pqcore.db.sources import (
    AdoptedConnection,
    AdoptedPool,
    ConnectionProvider,
    Loan,
    ProvidedConnections,
    SessionSource,
    lent,
)
from pqcore.db.transactions import limited
from pqcore.errors import AccessDenied, ConfigurationError
from pqcore.plugins import plugins, unwrap
from pqcore.schema import check_version
from pqcore.schema.security import Security
from pqcore.sql.dialect import Dialect
from pqcore.sql.identifiers import TableName
from pqcore.sql.statement import Paramstyle, Query

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

T = TypeVar("T")

ANSWER_TIMEOUT = 60.0
"""Seconds that a statement may wait for the server's answer, unless told otherwise."""
PATIENT = 10
"""How many times that long the statements of operations may take that read or change many rows."""


class Engine(Grouping):
    """Runs operations over a backend.

    Args:
        mode: Which kind of backend to choose.
        runtime: How to wait.
        names: The table.
        target: A DSN (text, or a URL of a library's), connection or pool, or a `ConnectionProvider`.
        pool: A pool, if ``target`` is None.
        backend: The name of the backend, if it is to be chosen by name.
        max_connections: Of our own pool.
        pool_timeout: Of our own pool, in seconds.
        prepared: Whether statements may be prepared on the server; None to look whether a pooler is in between.
        idle_limit: Seconds after which the server ends a connection of our own that idles in a transaction.
        answer_timeout: Seconds that a statement may wait for the server's answer; None for no limit.
        dialect: The name of the dialect; None for PQCORE_DIALECT's, or PostgreSQL's own.
        group_commit: Whether concurrent calls travel together; None for as it is best: on our own connections only.
    """

    def __init__(
        self,
        mode: Mode,
        runtime: Runtime,
        names: TableName,
        target: object,
        pool: object,
        *,
        backend: str | None = None,
        max_connections: int = 10,
        pool_timeout: float = 30.0,
        prepared: bool | None = None,
        idle_limit: float | None = None,
        answer_timeout: float | None = ANSWER_TIMEOUT,
        dialect: str | None = None,
        group_commit: bool | None = None,
    ) -> None:
        super().__init__(runtime)
        self.dialect = plugins.dialect(dialect)
        self.names = names
        self._lent = False  # by another engine, which closes it
        self._mode: Mode = mode
        self._prepared, self._pool_timeout, self._answer_timeout = prepared, pool_timeout, answer_timeout
        self._openers: dict[str, BackendAdapter] = {}
        self.security: Security | None = None  # what hides rows of the table, once that was looked at
        self.set_back: list[tuple[datetime, timedelta]] = []  # by the test kit: when all rows' times were, and how far
        if target is not None and pool is not None:
            msg = "give either a connection (or DSN) or a pool, not both"
            raise ConfigurationError(msg)
        given = pool if target is None else target
        if given is None:
            msg = "give PQ a DSN, a connection or a pool: it was given None; is a setting or a variable missing?"
            raise ConfigurationError(msg)
        found = None
        if not isinstance(given, (str, ConnectionProvider)):
            found = plugins.backend_for(given, mode, backend)
        dsn = dsn_text(given) if found is None else None
        self._given = given if dsn is None else dsn
        self.source: SessionSource
        if dsn is not None:
            self.spec, self.why = plugins.choose(mode, name=backend, dsn=dsn)
            opener = self._opener(self.spec)
            self.source = Pool(opener, of_libpq(dsn), runtime, max_connections, pool_timeout, idle_limit)
        elif isinstance(given, ConnectionProvider):
            self.spec = plugins.backend_spec(given.backend, mode)
            self.why = f"{type(given).__name__} lends its connections"
            self.source = ProvidedConnections(self._opener(self.spec), given)
        elif found is None:
            broken = "".join(f"; {error}" for error in plugins.broken_backends())
            kind = f"a {kind_of(given)}; {instead_of_target(given)}{broken}"
            msg = f"not a DSN, connection or pool that {backend or 'any installed backend'} knows: {kind}"
            raise ConfigurationError(msg)
        else:
            (self.spec, is_pool), self.why = found, f"it adopts a {kind_of(given)}"
            opener = self._opener(self.spec)
            self.source = (
                AdoptedPool(opener, given, runtime, pool_timeout)
                if is_pool
                else AdoptedConnection(opener, given, runtime, pool_timeout)
            )
        # Where servers change, LISTEN and the lock of one who waits would stay with one of them, for others.
        opener, listens = self._opener(self.spec), self.offers(Capability.LISTEN)
        self._listeners = self._listen(lambda: listens and not opener.alternates)
        self._group(group_commit)

    def loops(self) -> list[AbstractEventLoop]:
        """The event loops in which it has waited, or holds connections."""
        kept: list[AbstractEventLoop] = self._listeners.loops()
        if isinstance(self.source, Pool):
            kept += self.source.kept.loops()
        return kept

    def offers(self, capability: Capability) -> bool:
        """Whether both the driver and the server offer something."""
        return capability in self.spec.capabilities and capability not in self.dialect.missing

    def clone_for_worker(self, max_connections: int, limit: float) -> Engine:
        """An engine for the same table and server, over the same backend.

        It has connections of its own, if this one was given a DSN or a `ConnectionProvider`; a pool is
        shared, and not closed with the clone.

        Args:
            max_connections: How many of its own, at most.
            limit: Seconds that a statement may wait for the server's answer, and after which the server ends
                a connection of its own that idles in a transaction. When we are cut off, or stand still,
                others do not wait longer for what is locked. The server's part is not set behind a
                pooler, where it would stay with the server's connection.

        Raises:
            ConfigurationError: This one was given a single connection.
        """
        if isinstance(self.source, AdoptedConnection):
            msg = "what was given a single connection can have no further ones"
            raise ConfigurationError(msg)
        clone = Engine(
            self._mode,
            self.runtime,
            self.names,
            self._given.dsn() if isinstance(self._given, ConnectionProvider) else self._given,
            None,
            backend=self.spec.name,
            max_connections=max_connections,
            pool_timeout=self._pool_timeout,
            prepared=self._opener(self.spec).prepared,
            idle_limit=limit,
            answer_timeout=limit,
            dialect=self.dialect.name,
            group_commit=False,
        )
        clone._lent = not isinstance(clone.source, Pool)
        return clone

    def run(
        self,
        operation: Callable[[Session], Awaitable[T]],
        *,
        connection: object = None,
        protect: bool = True,
        patient: bool = False,
        undo: Callable[[T], Awaitable[None]] | None = None,
    ) -> Coroutine[Any, Any, T]:
        """Run an operation in the transaction of the running thread or task, or else by itself.

        Args:
            operation: What to do with the session.
            connection: A connection of the caller's to do it on.
            protect: Whether, inside of a transaction, a failure is undone to a savepoint.
            patient: Whether it reads or changes many rows: its statements may take `PATIENT` times as long.
            undo: What takes the result back, if the caller was cancelled before it arrived.

        Returns:
            What the caller awaits immediately. No coroutine of its own: each one more costs every operation.
        """
        if connection is not None:
            return self._run_on(connection, operation)
        if patient:
            operation = limited(operation, PATIENT)
        transaction = self._current()
        if transaction is not None:
            return self._run_within(transaction, operation, protect=protect, undo=undo)
        if undo is not None and self.runtime.suspends:
            return self._run_settled(Loan(), operation, protect=protect, undo=undo)
        return self._run_alone(Loan(), operation, protect=protect)

    async def _run_on(self, connection: object, operation: Callable[[Session], Awaitable[T]]) -> T:
        session = await self._adopt(connection)
        session.caller_owned = True
        await self._check(session)
        return await operation(session)

    async def _run_settled(
        self,
        loan: Loan,
        operation: Callable[[Session], Awaitable[T]],
        *,
        protect: bool,
        undo: Callable[[T], Awaitable[None]],
        line: Line | None = None,
    ) -> T:
        try:
            if not self.source.lend(loan):
                await self.source.acquire(loan)  # of which a cancellation makes an end
            work = self._run_alone(loan, operation, protect=protect, line=line)
            return await self.runtime.shield(work, undo, loan.abort, own_task=loan[-1].cancels_task)
        except BaseException as exc:
            await self._failed(loan, exc)
            raise

    async def _run_within(
        self,
        transaction: OpenTransaction,
        operation: Callable[[Session], Awaitable[T]],
        *,
        protect: bool,
        undo: Callable[[T], Awaitable[None]] | None,
    ) -> T:
        if not protect and transaction.lock is None:
            return await operation(transaction.session)
        work = self._run_in_block(transaction, operation, protect=protect)
        if undo is None or not self.runtime.suspends:
            return await work
        if not transaction.is_of(self.runtime.task()):
            return await self.runtime.shield(work, undo, transaction.session.abort)
        try:  # in its own block it is undone with the block, which is cheaper while nobody is cancelled
            return await work
        except BaseException as exc:
            if not isinstance(exc, Exception):
                transaction.abort_only = True
            raise

    async def execute(
        self, statement: str, values: Mapping[str, object], *, protect: bool = True, patient: bool = False
    ) -> Sequence[Row]:
        """Run an operation that is a single statement, named as `Dialect` names it (``tasks.heartbeat``)."""

        async def work(session: Session) -> Sequence[Row]:
            query: Query = attrgetter(statement)(session.sql)
            return await session.execute(query, query.bind(values))

        return await self.run(work, protect=protect, patient=patient)

    async def migrate(self, operation: Callable[[Session], Awaitable[T]], *, unlimited: bool = False) -> T:
        """Run an operation that changes the schema, or looks at it: the table is not looked at before.

        Args:
            operation: What to do with the session.
            unlimited: Whether its statements may take as long as they need: an index of a large table takes hours.
                Else they may take `PATIENT` times as long as others.
        """
        transaction = self._current()
        if transaction is not None:
            result = await self._run_in_block(transaction, operation, protect=True)
        else:
            result = await lent(self.source, limited(operation, None if unlimited else PATIENT))
        self._checked = True
        return result

    def refuse_hidden(self, *commands: str) -> None:
        """Refuse what would find nothing, without an error, as row-level security hides rows from the role.

        Args:
            *commands: Those for which the role needs a policy.

        Raises:
            AccessDenied: It has none.
        """
        if self.security is not None:
            try:
                self.security.refuse(*commands)
            except AccessDenied:
                self._checked = False  # it may be granted: the next operation looks again
                raise

    def redact(self, text: str) -> str:
        """Return a text without the DSN that the engine was given, and without the password in the DSN."""
        if not isinstance(self._given, str) or self._given.endswith("://"):  # "postgresql://" names nothing
            return text
        return redact(text, self._given)

    async def close_idle(self) -> None:
        """Close what idles of our own connections; what needs one later opens it."""
        await self.listener.close()
        if isinstance(self.source, Pool):
            await self.source.close_idle()

    async def close(self) -> None:
        """Close the connections; those in use, when they are given back."""
        if not self._lent:
            await self.source.close()  # first, so that who is woken finds it closed
        for listener in self._listeners.others():
            listener.end_from_afar()
        await self.listener.end()

    async def _run_alone(
        self, loan: Loan, operation: Callable[[Session], Awaitable[T]], *, protect: bool, line: Line | None = None
    ) -> T:
        """Run an operation by itself, with the session of a loan, which is acquired if there is none in it yet."""
        source, began = self.source, 0.0
        try:
            if line is not None:
                line.since = began = monotonic()
            if not loan and not source.lend(loan):
                await source.acquire(loan)
            session = loan[-1]
            if not self._checked:
                await self._check(session)
            within = False
            if source.may_have_open_transaction:
                within = session.in_transaction()  # the caller's own
                loan.idle = session.autocommit = not within
            result = await (in_savepoint(session, operation) if within and protect else operation(session))
            del session
            if not source.take_back(loan):
                await source.release(loan, sound=True)
        except BaseException as exc:
            await self._failed(loan, exc)
            raise
        finally:
            if line is not None:
                line.end(began)
        return result

    async def _check(self, session: Session) -> None:
        if not self._checked:
            self.security = await check_version(session, self.names)
            self._checked = True

    async def _adopt(self, connection: object) -> Session:
        target = connection
        for _ in range(5):  # an ORM's session holds a connection that holds the driver's
            found = plugins.backend_for(target, self._mode)
            if found is not None and not found[1]:
                return self._opener(found[0]).wrap(target)
            inner: Any = None if found is not None else unwrap(target)
            if inner is None:
                kind = f"a {kind_of(target)}; {instead_of_connection(target, pool=found is not None)}"
                msg = f"not a connection that any installed backend or plugin knows: {kind}"
                raise ConfigurationError(msg)
            target = await inner if isinstance(inner, Awaitable) else inner
        msg = f"no driver's connection was found inside of a {kind_of(connection)}"
        raise ConfigurationError(msg)

    def _opener(self, spec: BackendSpec) -> BackendAdapter:
        if spec.name not in self._openers:
            sql = _statements(self.dialect, self.names, spec.paramstyle)  # type: ignore[arg-type]  # hashed as a class
            make = partial(plugins.make, spec)
            prepared = False if Capability.PREPARED in self.dialect.missing else self._prepared
            self._openers[spec.name] = BackendAdapter(
                make, sql, suspends=self.runtime.suspends, prepared=prepared, limit=self._answer_timeout
            )
        return self._openers[spec.name]


@lru_cache(maxsize=32)
def _statements(
    dialect: Callable[[TableName, Paramstyle], Dialect], names: TableName, paramstyle: Paramstyle
) -> Dialect:
    """Compile the statements of a table: once for a queue and all of its workers, as it takes some milliseconds."""
    return dialect(names, paramstyle)
