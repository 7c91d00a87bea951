"""Runs operations: finds the session, keeps the transaction, checks the table once.

One engine serves one `PQ` or `AsyncPQ`.  We never commit what we did not begin:

* on an idle connection an operation is one statement that commits by itself;
* within ``with queue``, and on a connection of the caller's with a transaction
  open, it joins, and a failure is undone to a savepoint;
* given ``connection=``, it is a statement of the caller's and nothing more.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from asyncio import AbstractEventLoop
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache, partial
from operator import attrgetter
from threading import get_ident
from typing import Any, Protocol, TypeAlias, TypeVar
from weakref import ref

from pqcore.argument_hints import instead_of_connection, instead_of_target, kind_of
from pqcore.backend import BackendSpec, Capability, Mode, Row
from pqcore.db.backend_adapter import BackendAdapter
from pqcore.db.driver_errors import NOTIFICATIONS_FULL
from pqcore.db.dsn import dsn_text, of_libpq, redact
from pqcore.db.listener import Listener
from pqcore.db.pool import Pool
from pqcore.db.runtime import Kept, Lock, Runtime, run_sync
from pqcore.db.session import Session
from pqcore.db.shared_connection_listener import SharedConnectionListener
from pqcore.db.shared_poll import BLIND_POLL, LOOKS
from pqcore.db.sources import (
    AdoptedConnection,
    AdoptedPool,
    ConnectionProvider,
    Loan,
    ProvidedConnections,
    SessionSource,
    lent,
)
from pqcore.errors import (
    AccessDenied,
    ConfigurationError,
    DatabaseError,
    PQError,
    TransactionAborted,
    TransactionOrderError,
    TransientError,
)
from pqcore.plugins import plugins, unwrap
from pqcore.schema import check_version
from pqcore.schema.security import Security
from pqcore.sql.dialect import Dialect
from pqcore.sql.identifiers import TableName
from pqcore.sql.statement import Paramstyle, Query, plain

logger = logging.getLogger("pqcore")

T = TypeVar("T")

NOT_SUPPORTED = "0A000"
"""The SQLSTATE of a prepared statement whose result has got other types since, among others."""
ANSWER_TIMEOUT = 60.0
"""Seconds that a statement may wait for the server's answer, unless told otherwise."""
PATIENT = 10
"""How many times that long the statements of operations may take that read or change many rows."""
SPOILT = "a task was cancelled in this block while it took a job: roll the block back, and begin it again"


@lru_cache(maxsize=64)
def _savepoint(verb: str, name: str) -> Query:
    sql = f"{verb} {name}"
    return plain(sql.lower(), sql, rows=False)


FORKED = (
    "this transaction block was begun by process {}, of which this one is a fork: it is left to that process;"
    " end a forked child within the block, with os._exit()"
)


@dataclass(eq=False, slots=True)
class OpenTransaction:
    """A transaction that a ``with`` block began or joined."""

    loan: Loan
    lock: Lock | None  # where tasks may share it; a thread has its own
    task: object  # that began it, where there are tasks
    blocks: list[Block] = field(default_factory=list)
    abort_only: bool = False  # a job was taken in it for nobody: the block can only be rolled back
    process: int = field(default_factory=os.getpid)

    @property
    def session(self) -> Session:
        return self.loan.session


AtEnd: TypeAlias = "Callable[[Session | None], Awaitable[None]]"
"""Called as a block ends, before its commit: with the session, or with None if the block is undone."""


@dataclass(eq=False, slots=True)
class Block:
    """One ``with`` block; the inner ones are savepoints.

    Attributes:
        transaction: Its transaction.
        savepoint: The name of its savepoint; None if the transaction is its own.
        first: Whether it is the outermost.
        at_end: What is done as it ends.
        statement: Gone as soon as the ``with`` statement is, however that ended. None if that is not known.
    """

    transaction: OpenTransaction
    savepoint: str | None
    first: bool
    statement: ref[object] | None = None
    at_end: list[AtEnd] = field(default_factory=list)


class NamedQueue(Protocol):
    """A queue that a caller waits for.

    Attributes:
        name: The queue's name.
        channel: On which puts into it are notified.
    """

    name: str
    channel: str


class Engine:
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
    ) -> None:
        self.dialect = plugins.dialect(dialect)
        self.runtime = runtime
        self.names = names
        self._lent = False  # by another engine, which closes it
        self._pool_timeout = pool_timeout
        self._mode: Mode = mode
        self._prepared = prepared
        self._answer_timeout = answer_timeout
        self._openers: dict[str, BackendAdapter] = {}
        self._blocks = runtime.context_slot()
        self._open: set[Block] = set()  # by whatever thread or task
        self._checked = False
        self.security: Security | None = None  # what hides rows of the table, once that was looked at
        self.set_back: list[tuple[datetime, timedelta]] = []  # by the test kit: when all rows' times were, and how far
        self._blind = 0  # waiters that nothing can wake
        if target is not None and pool is not None:
            msg = "give either a connection (or DSN) or a pool, not both"
            raise ConfigurationError(msg)
        given = pool if target is None else target
        if given is None:
            msg = "give PQ a DSN, a connection or a pool: it was given None; is a setting or a variable missing?"
            raise ConfigurationError(msg)
        if answer_timeout is not None and not (isinstance(answer_timeout, (int, float)) and answer_timeout > 0):
            msg = f"answer_timeout is {answer_timeout!r}; give a number of seconds greater than 0, or None"
            raise ConfigurationError(msg)
        found = None
        if not isinstance(given, (str, ConnectionProvider)):
            found = plugins.backend_for(given, mode, backend)
        dsn = dsn_text(given) if found is None else None
        self._given = given if dsn is None else dsn
        self.source: SessionSource
        if dsn is not None:
            if not isinstance(max_connections, int) or max_connections < 1:
                msg = f"max_connections is {max_connections!r}; give a number of at least 1"
                raise ConfigurationError(msg)
            if not isinstance(pool_timeout, (int, float)) or not pool_timeout >= 0:
                msg = f"pool_timeout is {pool_timeout!r}; give a number of seconds"
                raise ConfigurationError(msg)
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
            self.spec, is_pool = found
            self.why = f"it adopts a {kind_of(given)}"
            opener = self._opener(self.spec)
            self.source = (
                AdoptedPool(opener, given, runtime, pool_timeout)
                if is_pool
                else AdoptedConnection(opener, given, runtime, pool_timeout)
            )
        # Where servers change, LISTEN and the lock of one who waits would stay with one of them, for others.
        opener, listens = self._opener(self.spec), self.offers(Capability.LISTEN)

        def able() -> bool:
            return listens and not opener.alternates

        self._listeners: Kept[Listener | SharedConnectionListener]
        if isinstance(self.source, AdoptedConnection):
            sole = SharedConnectionListener(self.source, runtime, able=able)
            self._listeners = runtime.kept(lambda: sole)
        else:
            self._listeners = runtime.kept(partial(Listener, self.source, runtime, able=able))

    @property
    def listener(self) -> Listener | SharedConnectionListener:
        """Waits for notifications, for this process or event loop."""
        return self._listeners.get()

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
            operation = _limited(operation, PATIENT)
        transaction = self._current()
        if transaction is not None:
            return self._run_within(transaction, operation, protect=protect, undo=undo)
        if undo is not None and self.runtime.suspends:
            return self._run_settled(operation, protect=protect, undo=undo)
        return self._run_alone(Loan(), operation, protect=protect)

    async def _run_on(self, connection: object, operation: Callable[[Session], Awaitable[T]]) -> T:
        session = await self._adopt(connection)
        session.caller_owned = True
        await self._check(session)
        return await operation(session)

    async def _run_settled(
        self,
        operation: Callable[[Session], Awaitable[T]],
        *,
        protect: bool,
        undo: Callable[[T], Awaitable[None]],
    ) -> T:
        loan = Loan()
        try:
            if not self.source.lend(loan):
                await self.source.acquire(loan)  # of which a cancellation makes an end
            return await self.runtime.shield(self._run_alone(loan, operation, protect=protect), undo, loan.abort)
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
        if transaction.task is not self.runtime.task():
            return await self.runtime.shield(work, undo, transaction.session.abort)
        try:  # in its own block it is undone with the block, which is cheaper while nobody is cancelled
            return await work
        except BaseException as exc:
            if not isinstance(exc, Exception):
                transaction.abort_only = True
            raise

    async def enter(self, options: Mapping[str, Any]) -> Any:
        """Begin a block; what it gives to the user, a cursor mostly.

        Args:
            options: For the cursor.
        """
        statement = _entered()
        transaction = self._current()
        if transaction is None:
            return await self._enter_first(options, statement)
        savepoint = f"pq_{len(transaction.blocks)}"
        query = _savepoint("SAVEPOINT", savepoint)
        block = Block(transaction, savepoint, first=False)
        try:
            await self._run_in_block(transaction, lambda s: s.execute(query), protect=False)
            handle = transaction.session.driver.cursor(**options)
            self._opened(block, statement)
            return handle  # noqa: TRY300 - an interrupt may come to this line, too
        except BaseException:
            if block in transaction.blocks:
                self._cut_off(block)
            raise

    async def _enter_first(self, options: Mapping[str, Any], statement: object) -> Any:
        source, loan = self.source, Loan()
        block: Block | None = None
        try:
            await source.acquire(loan)
            begin = self._begin(loan)
            if source.may_have_open_transaction:  # else, if interrupted, it costs a connection of our own
                savepoint = await self.runtime.shield(begin, partial(self._abandon, loan), loan.abort)
            else:
                savepoint = await begin
            task = None
            if self.runtime.suspends:
                task = self.runtime.task()
                if loan.session.lock is None:
                    loan.session.lock = self.runtime.lock()
            else:
                loan.session.block_of = get_ident()
            block = Block(OpenTransaction(loan, loan.session.lock, task), savepoint, first=True)
            handle = loan.session.driver.cursor(**options)
            self._opened(block, statement)
            return handle  # noqa: TRY300 - an interrupt may come to this line, too
        except BaseException as exc:
            if block is None:
                await self._failed(loan, exc)
            else:
                block.statement = None
                self._open.discard(block)
                await self._abandon(loan, block.savepoint)
            raise

    def _opened(self, block: Block, statement: object) -> None:
        if statement is not None:
            block.statement = ref(statement, lambda _: self._cut_off(block))
        block.transaction.blocks.append(block)
        self._open.add(block)
        self._blocks.set((*self._here(), block))

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
            result = await lent(self.source, _limited(operation, None if unlimited else PATIENT))
        self._checked = True
        return result

    async def leave(self, *, failed: bool) -> None:
        """End the block that the running thread or task entered last: keep what was done in it, or undo it."""
        blocks = self._here()
        if not blocks:
            msg = "no transaction block is open here"
            raise TransactionOrderError(msg)
        block = blocks[-1]
        try:
            self._blocks.set(blocks[:-1])
            self._open.discard(block)
            if self._ends(block, failed=failed):
                finish = self._finish(block.transaction, block, failed=failed)
                # Let finish whatever happens, so that it is known whether it was committed.
                await (
                    self.runtime.shield(finish, _leave_it, block.transaction.loan.abort)
                    if self.runtime.suspends
                    else finish
                )
        except BaseException as exc:
            if _is_interrupt(exc) and not self.runtime.suspends:
                self._cut_off(block)
            block.statement = None
            raise
        block.statement = None

    def _ends(self, block: Block, *, failed: bool) -> bool:
        """Take a block out of its transaction; whether there is something to do for that."""
        transaction = block.transaction
        if transaction.process != os.getpid():
            if failed:
                return False
            raise TransactionOrderError(FORKED.format(transaction.process))
        if not transaction.blocks or transaction.blocks[-1] is not block:
            if block in transaction.blocks:
                transaction.blocks.remove(block)  # the last one to end gives the connection back
            msg = "transaction blocks ended in another order than they began: is one shared by concurrent tasks?"
            raise TransactionOrderError(msg)
        transaction.blocks.pop()
        return True

    async def wait(self, channel: str, ticket: int | None, seconds: float) -> None:
        """Wait for a notification, for at most ``seconds``; may return early, to look at the table.

        Args:
            channel: What is waited for.
            ticket: What `ticket` gave before the last look.
            seconds: At most so long.
        """
        if isinstance(self.listener, SharedConnectionListener) and self._current() is not None:
            await self.runtime.sleep(min(seconds, BLIND_POLL))  # the block has the only connection
        elif ticket is not None:
            await self.listener.wait(channel, ticket, seconds)
        else:
            deadline = time.monotonic() + seconds
            if not await self.listener.listen(channel, seconds):
                self._blind += 1
                try:
                    pause = max(BLIND_POLL, self._blind / LOOKS)
                    await self.listener.pause(channel, min(max(deadline - time.monotonic(), 0.0), pause))
                finally:
                    self._blind -= 1

    async def wait_for_jobs(self, queue: NamedQueue, ticket: int | None, seconds: float, poll_interval: float) -> None:
        """Wait until a queue may have a job, for at most ``seconds``; may return early, to look at the table.

        Waiters that no notification can wake share one look, which finds what their own would find. A waiter within a
        block looks by itself, as only that look sees what the block has done. So does a waiter on a framework's
        connections, which may be in a transaction of the framework's.

        Args:
            queue: The queue.
            ticket: What `Listener.snapshot` gave for its channel before the last look.
            seconds: Seconds until it is worth another look.
            poll_interval: Seconds after which to look in any case, unless the look is shared.
        """
        listener, pause = self.listener, min(seconds, self.poll_interval(poll_interval))
        if (
            ticket is not None
            or poll_interval < BLIND_POLL
            or isinstance(listener, SharedConnectionListener)
            or isinstance(self.source, ProvidedConnections)
            or "shared looks" in self.dialect.unsupported
            or self._current() is not None
        ):
            await self.wait(queue.channel, ticket, pause)
            return
        deadline = time.monotonic() + seconds
        if not await listener.listen(queue.channel, pause):
            left = max(deadline - time.monotonic(), 0.0)
            await listener.share(queue.channel, queue.name, left, self._ready_queues)

    async def _ready_queues(self, names: Sequence[str]) -> Sequence[str]:
        """Of these queues, give those that have a job to take."""

        async def work(session: Session) -> Sequence[Row]:
            return await session.execute(
                session.sql.ready_queues, session.sql.ready_queues.bind({"names": list(names)})
            )

        return [name for [name] in await self.run(work, protect=False, undo=_leave_it)]

    def poll_interval(self, seconds: float) -> float:
        """How long a waiter waits that polls every ``seconds``: longer where very many wait."""
        return max(seconds, self.listener.crowd / LOOKS)

    def snapshot(self, channel: str) -> int | None:
        """What is given to `wait`, asked for before a look; None if the channel is not listened to."""
        return self.listener.snapshot(channel) if self._listeners.made() else None

    def in_block(self) -> bool:
        """Whether the running thread or task is within ``with queue``."""
        return self._current() is not None

    def wake(self, channel: str) -> None:
        """Wake those who wait on a channel, as a notification would."""
        self.listener.wake(channel)

    def wake_unlistened(self, channel: str) -> None:
        """Wake those who wait on a channel that is not listened to, and which a notification cannot reach."""
        if self.snapshot(channel) is None:
            self.listener.wake(channel)

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

    # Within

    def block(self) -> Block | None:
        """The innermost block that the running thread or task has open."""
        transaction = self._current()
        return None if transaction is None else transaction.blocks[-1]

    def _here(self) -> tuple[Block, ...]:
        """The blocks that the running thread or task is in."""
        blocks: tuple[Block, ...] = self._blocks.get() or ()
        for block in blocks:
            if block.statement is not None and block.statement() is None:
                self._cut_off(block)  # if an interrupt came to that, too
        return tuple(block for block in blocks if block in self._open)

    def _current(self) -> OpenTransaction | None:
        if not self._open:
            return None
        blocks = self._here()
        if blocks and blocks[-1].transaction.process == os.getpid():
            return blocks[-1].transaction
        return None

    def _cut_off(self, block: Block) -> None:
        """End a block of which the ``with`` statement is over, though it was not left: it was interrupted."""
        transaction = block.transaction
        block.statement = None
        self._open.discard(block)
        if transaction.process != os.getpid():
            return
        if not block.first:
            if block in transaction.blocks:
                transaction.blocks.remove(block)
                if self.runtime.suspends:
                    transaction.abort_only = True
                elif transaction.loan.held:
                    run_sync(self._undo(transaction.session, block.savepoint))
            return
        transaction.blocks.clear()
        loan = transaction.loan
        if not self.source.lose(loan):
            try:
                self.runtime.finish(lambda: self._abandon(loan, block.savepoint))
            except PQError as exc:
                logger.warning("a block that was interrupted could not be rolled back: %s", exc)

    async def _run_alone(self, loan: Loan, operation: Callable[[Session], Awaitable[T]], *, protect: bool) -> T:
        """Run an operation by itself, with the session of a loan, which is acquired if there is none in it yet."""
        source = self.source
        try:
            held = loan.held
            if not held and not source.lend(loan):
                await source.acquire(loan)
            session = held[-1]
            if not self._checked:
                await self._check(session)
            within = False
            if source.may_have_open_transaction:
                within = session.in_transaction()  # the caller's own
                loan.idle = session.autocommit = not within
            if within and protect:
                result = await self._in_savepoint(session, operation)
            else:
                result = await operation(session)
            del session
            if not source.take_back(loan):
                await source.release(loan, sound=True)
        except BaseException as exc:
            await self._failed(loan, exc)
            raise
        return result

    async def _failed(self, loan: Loan, exc: BaseException) -> None:
        interrupted = _is_interrupt(exc)
        for session in loan.held:
            session.state_unknown = session.state_unknown or interrupted
            if not interrupted:
                await _make_room(session, exc)
            if (
                loan.idle
                and self.source.may_have_open_transaction
                and session.usable()
                and (interrupted or session.in_transaction())
            ):
                await self._undo(session, None)  # what we began
        try:
            await self.source.release(loan)
        except PQError as error:
            if not interrupted:
                raise
            logger.warning("giving back a connection after an interrupt failed: %s", error)

    async def _run_in_block(
        self, transaction: OpenTransaction, operation: Callable[[Session], Awaitable[T]], *, protect: bool
    ) -> T:
        gate = transaction.lock
        if gate is not None:
            await gate.enter()
        try:
            if transaction.abort_only:
                raise TransactionAborted(SPOILT)
            if protect:
                return await self._in_savepoint(transaction.session, operation)
            return await operation(transaction.session)
        finally:
            if gate is not None:
                gate.leave()

    async def _begin(self, loan: Loan) -> str | None:
        try:
            session = loan.session
            if not self._checked:
                await self._check(session)
            if self.source.may_have_open_transaction and session.in_transaction():  # the caller's own
                session.autocommit = False
                await session.execute(_savepoint("SAVEPOINT", "pq_0"))
                return "pq_0"
            loan.idle = True
            await session.begin()
            session.owed = []
        except BaseException as exc:
            await self._failed(loan, exc)
            raise
        return None

    async def _abandon(self, loan: Loan, savepoint: str | None) -> None:
        try:
            if loan.held:
                await self._undo(loan.session, savepoint)
        finally:
            await self.source.release(loan)

    async def _finish(self, transaction: OpenTransaction, block: Block, *, failed: bool) -> None:
        gate = transaction.lock
        try:
            if gate is not None:
                await gate.enter()
            try:
                undone = failed or transaction.abort_only
                if block.at_end:
                    await self._end_with(transaction.session, block, undone=undone)
                if undone:
                    await self._undo(transaction.session, block.savepoint)
                    transaction.abort_only = False
                elif block.savepoint is None:
                    try:
                        await transaction.session.commit()
                    except TransientError as exc:
                        await _make_room(transaction.session, exc)
                        raise
                    await self._pay(transaction.session)
                else:
                    await transaction.session.execute(_savepoint("RELEASE", block.savepoint))
            finally:
                if gate is not None:
                    gate.leave()
            if not transaction.blocks:
                transaction.session.block_of = None
                await self.source.release(transaction.loan, sound=not undone)
        except BaseException as exc:
            if not transaction.blocks:
                await self._failed(transaction.loan, exc)
            raise
        if undone and not failed:
            raise TransactionAborted(SPOILT)

    async def _pay(self, session: Session) -> None:
        """Do what a block left for after its commit."""
        owed, session.owed = session.owed or (), None
        for work in owed:
            try:
                await work(session)
            except PQError as exc:  # the block is committed: nothing may hide that
                logger.warning("a place under a limit is free, and is given to a job by the next sweep: %s", exc)

    async def _end_with(self, session: Session, block: Block, *, undone: bool) -> None:
        """Run the operations that a block has for its end."""
        try:
            for operation in block.at_end:
                await operation(None if undone else session)
        except BaseException:
            if session.usable():
                await self._undo(session, block.savepoint)
            raise

    async def _in_savepoint(
        self, session: Session, operation: Callable[[Session], Awaitable[T]], *, again: bool = True
    ) -> T:
        await session.execute(_savepoint("SAVEPOINT", "pq_op"))
        try:
            result = await operation(session)
        except BaseException as exc:
            if session.usable():
                await self._undo(session, "pq_op")
                # Refused, as a prepared statement's result has got other types: its session has forgotten it by now.
                if again and isinstance(exc, DatabaseError) and exc.sqlstate == NOT_SUPPORTED:
                    return await self._in_savepoint(session, operation, again=False)
            raise
        await session.execute(_savepoint("RELEASE", "pq_op"))
        return result

    async def _undo(self, session: Session, savepoint: str | None) -> None:
        try:  # the user's exception is under way: it is not to be hidden by another
            if savepoint is None:
                session.owed = None
                await session.rollback()
            else:
                await session.execute(_savepoint("ROLLBACK TO", savepoint))
                await session.execute(_savepoint("RELEASE", savepoint))
        except PQError as exc:
            logger.warning("rolling back failed; the server does so when the connection ends: %s", exc)

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


def _is_interrupt(exc: BaseException) -> bool:
    """Return whether an exception may have come at any line, so that nobody knows what was done.

    Drivers' exceptions are translated. What is left is a cancellation, or what a signal's handler raises: of any class.
    """
    return not isinstance(exc, PQError)


async def _make_room(session: Session, error: BaseException) -> None:
    """Have a full queue of notifications emptied of what everybody has read: the server does so when it is asked."""
    if not isinstance(error, TransientError) or error.sqlstate != NOTIFICATIONS_FULL:
        return
    if session.usable() and not session.in_transaction():
        with suppress(PQError):
            await session.execute(session.sql.notification_usage)


_entering = threading.local()
"""The ``with`` statement of a thread that is about to begin a block."""


class Leaving:
    """The ``__exit__`` of a queue, or its ``__aexit__``: what a ``with`` statement calls to leave the block.

    An interrupt may come after the body and before the first line of ``__exit__``, which is not called again then.
    But until it is over, the ``with`` statement holds on to what it would call; then Python lets go of that. So it is
    made for each statement, and the block lasts as long as it does. It is no function, as tracebacks keep functions.

    Args:
        leave: Leaves a block; called with the engine, what stands for the statement, and what ``__exit__`` is called
            with.
        awaited: Whether it is a coroutine function. An ``async with`` lets go of it before it awaits the coroutine.
    """

    def __init__(self, leave: Callable[..., Any], *, awaited: bool = False) -> None:
        self._leave = leave
        self._awaited = awaited

    def __get__(self, queue: Any, owner: type) -> Callable[..., Any]:
        statement = _Statement() if self._awaited else None
        leaving = (
            partial(_leave_of, self._leave, statement)  # for contextlib.ExitStack, which calls it with the queue
            if queue is None
            else partial(self._leave, queue.engine, statement)
        )
        _entering.statement = ref(statement or leaving)
        return leaving


class _Statement:
    """Stands for an ``async with`` statement: kept by the coroutine that leaves the block."""

    __slots__ = ("__weakref__",)


def _entered() -> object:
    known: ref[object] | None = getattr(_entering, "statement", None)
    _entering.statement = None
    return None if known is None else known()


def _leave_of(leave: Callable[..., Any], statement: object, queue: Any, *called: object) -> Any:
    return leave(queue.engine, statement, *called)


def _limited(operation: Callable[[Session], Awaitable[T]], times: int | None) -> Callable[[Session], Awaitable[T]]:
    """An operation whose statements have a bound that is this many times as long; no bound, if None."""

    async def work(session: Session) -> T:
        with session.limited(None if times is None or session.limit is None else session.limit * times):
            return await operation(session)

    return work


async def _leave_it(result: object) -> None:
    """Undo nothing: what was begun is as good to others."""
