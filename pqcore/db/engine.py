"""The engine runs operations: it finds the session, manages the transaction, and checks the table once.

One engine serves one `PQ` or `AsyncPQ`. The engine never commits a transaction that it did not begin:

* on an idle connection, an operation is one statement that commits by itself;
* within ``with queue``, and on a caller's connection with an open transaction, an operation runs in that
  transaction; if the operation fails, the engine rolls back to a savepoint;
* with ``connection=``, an operation is only a statement in the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from operator import attrgetter
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from pqcore.argument_hints import instead_of_connection, instead_of_target, kind_of
from pqcore.backend import BackendSpec, Capability, Mode, Row
from pqcore.db.backend_adapter import BackendAdapter, compiled
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
from pqcore.sql.identifiers import TableName
from pqcore.sql.statement import Query

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

T = TypeVar("T")

ANSWER_TIMEOUT = 60.0
"""The default number of seconds that a statement may wait for the server's answer."""
PATIENT = 10
"""The factor by which the time limit is longer for operations that read or change many rows."""


class Engine(Grouping):
    """The runner of operations over a backend.

    Args:
        mode: The kind of backend to choose.
        runtime: The runtime, which waits.
        names: The table.
        target: A DSN (text, or a URL object of a library), connection or pool, or a `ConnectionProvider`.
        pool: A pool, if ``target`` is None.
        backend: The name of the backend; None to choose one.
        max_connections: The largest number of connections in the engine's own pool.
        pool_timeout: Seconds to wait for a connection of the engine's own pool.
        prepared: Whether statements may be prepared on the server; None to check for a pooler.
        idle_limit: Seconds after which the server ends a connection of the engine that is idle in a transaction.
        answer_timeout: Seconds that a statement may wait for the server's answer; None for no limit.
        dialect: The name of the dialect; None for the dialect in PQCORE_DIALECT, or for PostgreSQL's own.
        group_commit: Whether concurrent calls share statements; None to share only on the engine's own connections.
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
        for kind, name in (("backend", backend), ("dialect", dialect)):
            if name is not None and not isinstance(name, str):
                raise ConfigurationError(f"{kind} is {name!r}; give the name of a {kind}")
        self.dialect, self.names = plugins.dialect(dialect), names
        self._lent = False  # Whether another engine lent the backend, and will close it.
        self._origin: SessionSource | None = None  # If this engine is a clone, the source of the original engine.
        self._mode: Mode = mode
        self._prepared, self._pool_timeout, self._answer_timeout = prepared, pool_timeout, answer_timeout
        self._openers: dict[str, BackendAdapter] = {}
        self.security: Security | None = None  # Why rows of the table are hidden; None before the first check.
        self.set_back: list[tuple[datetime, timedelta]] = []  # How far the test kit moved stored times, and when.
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
        # Behind a pooler, each transaction may use another server session, but LISTEN and a waiter's lock stay in the
        # session that ran them.
        opener, listens = self._opener(self.spec), self.offers(Capability.LISTEN)
        self._listeners = self._listen(lambda: listens and not opener.alternates)
        self._group(group_commit)

    def loops(self) -> list[AbstractEventLoop]:
        """Return the event loops in which the engine has waited, or holds connections."""
        kept: list[AbstractEventLoop] = self._listeners.loops()
        if isinstance(self.source, Pool):
            kept += self.source.kept.loops()
        return kept

    def offers(self, capability: Capability) -> bool:
        """Return whether the driver, on this kind of connection, and the server have a capability."""
        adopted = isinstance(self.source, AdoptedConnection) and capability in self.spec.missing_on_adopted
        return capability in self.spec.capabilities and capability not in self.dialect.missing and not adopted

    def clone_for_worker(self, max_connections: int, limit: float) -> Engine:
        """Return an engine for the same table and server, over the same backend.

        The clone has its own connections if this engine was given a DSN or a `ConnectionProvider`. Both engines use a
        caller's pool, or the only connection to a server whose clients share one session; the clone closes neither.

        Args:
            max_connections: The largest number of the clone's own connections.
            limit: Seconds that a statement may wait for the server's answer, and after which the server ends an idle
                transaction of the clone. If this process dies, other clients wait for its locks at most for this time.
                Behind a pooler, the server's limit is not set: it would stay with the server's connection.

        Raises:
            ConfigurationError: This engine was given a single connection.
        """
        if isinstance(self.source, AdoptedConnection):
            msg = "a PQ that was given a single connection cannot open more; give PQ a DSN or a pool"
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
        clone._lent, clone._origin = not isinstance(clone.source, Pool), self.source
        if self._opener(self.spec).shares_session:
            clone.source, clone._lent = self.source, True
        return clone

    async def share_connection(self) -> None:
        """Let an unused clone share the original engine's connection if all clients of the server share one session."""
        if self._opener(self.spec).shares_session and isinstance(self._origin, Pool) and not self._lent:
            await self.source.close()
            self.source, self._lent = self._origin, True

    def run(
        self,
        operation: Callable[[Session], Awaitable[T]],
        *,
        connection: object = None,
        protect: bool = True,
        patient: bool = False,
        undo: Callable[[T], Awaitable[None]] | None = None,
    ) -> Coroutine[Any, Any, T]:
        """Run an operation in the transaction of the running thread or task, or by itself if there is no transaction.

        Args:
            operation: The coroutine function to call with the session.
            connection: A caller's connection to use.
            protect: Whether, inside a transaction, a failure is rolled back to a savepoint.
            patient: Whether the operation reads or changes many rows, so that its statements may take `PATIENT` times
                as long.
            undo: A function that takes the result back, if the caller was cancelled before the result arrived.

        Returns:
            This method returns an awaitable, and the caller must await it immediately. The method is not a coroutine
            itself, because each coroutine adds to the cost of every operation.
        """
        if connection is not None:
            return self._run_on(connection, operation)
        if patient:
            operation = limited(operation, PATIENT)
        transaction = self._current()
        if transaction is not None:
            return self._run_within(transaction, operation, protect=protect, undo=undo)
        if undo is not None and self.runtime.suspends:
            return self.run_settled(operation, undo, protect=protect)
        return self.run_alone(operation, protect=protect)

    async def _run_on(self, connection: object, operation: Callable[[Session], Awaitable[T]]) -> T:
        session = await self._adopt(connection)
        session.caller_owned = True
        await self._check(session)
        return await operation(session)

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
        try:  # a cancellation may abort the task's own block, so `Runtime.shield`, which costs more, is not needed
            return await work
        except BaseException as exc:
            if not isinstance(exc, Exception):
                transaction.abort_only = True
            raise

    async def execute(
        self, statement: str, values: Mapping[str, object], *, protect: bool = True, patient: bool = False
    ) -> Sequence[Row]:
        """Run an operation that is a single statement, by the statement's name in `Dialect` (``tasks.heartbeat``)."""

        async def work(session: Session) -> Sequence[Row]:
            query: Query = attrgetter(statement)(session.sql)
            return await session.execute(query, query.bind(values))

        return await self.run(work, protect=protect, patient=patient)

    async def migrate(self, operation: Callable[[Session], Awaitable[T]], *, unlimited: bool = False) -> T:
        """Run an operation that changes or inspects the schema, without first checking the table.

        Args:
            operation: The coroutine function to call with the session.
            unlimited: Whether its statements may take any time: an index of a large table takes hours. Otherwise the
                time limit is `PATIENT` times as long as for other operations.
        """
        transaction = self._current()
        if transaction is not None:
            result = await self._run_in_block(transaction, operation, protect=True)
        else:
            result = await lent(self.source, limited(operation, None if unlimited else PATIENT))
        self._checked = True
        return result

    def refuse_hidden(self, *commands: str) -> None:
        """Raise if row-level security hides rows from the role: statements would find nothing, without an error.

        Args:
            *commands: The commands for which the role needs a policy.

        Raises:
            AccessDenied: The role has no such policy.
        """
        if self.security is not None:
            try:
                self.security.refuse(*commands)
            except AccessDenied:
                self._checked = False  # a privilege may be granted meanwhile: the next operation checks again
                raise

    def redact(self, text: str) -> str:
        """Return a text with the engine's DSN and its password removed."""
        if not isinstance(self._given, str) or self._given.endswith("://"):  # an empty DSN
            return text
        return redact(text, self._given)

    async def close_idle(self) -> None:
        """Close idle connections of the engine; a later operation opens new ones."""
        await self.listener.close()
        if isinstance(self.source, Pool):
            await self.source.close_idle()

    async def close(self) -> None:
        """Close the connections; those in use are closed when they are given back."""
        if not self._lent:
            await self.source.close()  # before the waiters wake, so that they find the source closed
        for listener in self._listeners.others():
            listener.end_from_afar()
        await self.listener.end()

    async def run_alone(
        self,
        operation: Callable[[Session], Awaitable[T]],
        line: Line | None = None,
        *,
        protect: bool = True,
        loan: Loan | None = None,
    ) -> T:
        """Run an operation as `run` does, but do not check for blocks: the caller has called `line`, which checks them.

        Args:
            operation: See `run`.
            line: The line in which other calls wait for this one; None if there is none.
            protect: See `run`.
            loan: A loan, which may have a session; None to make one.
        """
        source, began = self.source, monotonic()
        loan = Loan() if loan is None else loan
        try:
            if line is not None:
                line.since = began
            if not loan and not source.lend(loan, began):
                await source.acquire(loan)
            session = loan[-1]
            if not self._checked:
                await self._check(session)
            within = False
            if source.may_have_open_transaction:
                within = session.in_transaction()  # the caller's own transaction
                loan.idle = session.autocommit = not within
            result = await (in_savepoint(session, operation) if within and protect else operation(session))
            del session
            if not source.take_back(loan):
                await source.release(loan, sound=True)
        except BaseException as exc:
            await self._failed(loan, exc)
            raise
        finally:
            if line is not None and line.since == began:
                line.pass_on()
        return result

    async def _check(self, session: Session) -> None:
        if not self._checked:
            self.security = await check_version(session, self.names)
            self._checked = True

    async def _adopt(self, connection: object) -> Session:
        target = connection
        for _ in range(5):  # an ORM's session may hold a wrapper that holds the driver's connection
            found = plugins.backend_for(target, self._mode)
            if found is not None and not found[1]:
                return self._opener(found[0]).wrap(target)
            inner: Any = None if found is not None else unwrap(target)
            if inner is None:
                kind = f"a {kind_of(target)}; {instead_of_connection(target, pool=found is not None)}"
                msg = f"not a connection that any installed backend or plugin knows: {kind}"
                raise ConfigurationError(msg)
            target = await inner if isinstance(inner, Awaitable) else inner
        msg = f"no driver's connection was found inside a {kind_of(connection)}; give a driver's connection"
        raise ConfigurationError(msg)

    def _opener(self, spec: BackendSpec) -> BackendAdapter:
        if spec.name not in self._openers:
            sql = compiled(self.dialect, self.names, spec.paramstyle)  # type: ignore[arg-type]  # hashed as a class
            prepared = False if Capability.PREPARED in self.dialect.missing else self._prepared
            make, suspends = partial(plugins.make, spec), self.runtime.suspends
            self._openers[spec.name] = BackendAdapter(
                make, sql, suspends=suspends, prepared=prepared, limit=self._answer_timeout
            )
        return self._openers[spec.name]
