"""The transaction blocks of threads and tasks. pqcore never commits a transaction that it did not begin.

Within ``with queue``, and on a caller's connection with an open transaction, an operation runs in that transaction.
If the operation fails, pqcore rolls back to a savepoint.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from threading import get_ident
from typing import Any, TypeVar
from weakref import ref

from pqcore.db.blocks import Block, OpenTransaction, entered, leaves
from pqcore.db.driver_errors import NOTIFICATIONS_FULL
from pqcore.db.runtime import Runtime, run_sync
from pqcore.db.savepoints import in_savepoint, savepoint_query, undo
from pqcore.db.session import Session
from pqcore.db.sources import Loan, SessionSource
from pqcore.errors import PQError, TransactionAborted, TransactionOrderError, TransientError

logger = logging.getLogger("pqcore")

T = TypeVar("T")

SPOILT = "a task was cancelled in this block while it took a job: roll the block back, and begin it again"
FORKED = (
    "this transaction block belongs to process {}, and this process is a fork of it; end a forked child within the"
    " block, with os._exit()"
)


class Transactions(ABC):
    """The transaction blocks of threads and tasks over one source of sessions.

    Args:
        runtime: The runtime, which waits.

    Attributes:
        runtime: The runtime, which waits.
        source: The lender of sessions.
    """

    source: SessionSource

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._blocks = runtime.context_slot()
        # The open blocks of all threads and tasks.
        self._open: set[Block] = set()
        # Whether a check has found the table.
        self._checked = False

    @abstractmethod
    async def _check(self, session: Session) -> None:
        """Check that the table exists, unless this was checked before."""

    async def enter(self, options: Mapping[str, Any]) -> Any:
        """Begin a block, and return what the user gets, usually a cursor.

        Args:
            options: Options for the cursor.
        """
        statement = entered(self)
        transaction = self._current()
        if transaction is None:
            return await self._enter_first(options, statement)
        savepoint = f"pq_{len(transaction.blocks)}"
        query = savepoint_query("SAVEPOINT", savepoint)
        block = Block(transaction, savepoint, first=False)
        try:
            await self._run_in_block(transaction, lambda s: s.execute(query), protect=False)
            handle = transaction.session.cursor(options)
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
            # On one of pqcore's own connections, `shield` is not needed: an interrupt would only lose the connection.
            if source.may_have_open_transaction:
                savepoint = await self.runtime.shield(begin, partial(self._abandon, loan), loan.abort)
            else:
                savepoint = await begin
            task = None
            if self.runtime.suspends:
                running = self.runtime.task()
                task = None if running is None else ref(running)
                if loan.session.lock is None:
                    loan.session.lock = self.runtime.lock()
            else:
                loan.session.block_of = get_ident()
            block = Block(OpenTransaction(loan, loan.session.lock, task), savepoint, first=True)
            handle = loan.session.cursor(options)
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

    async def leave(self, *, failed: bool) -> None:
        """End the block that the running thread or task entered last: commit or roll back."""
        leaves()
        blocks = self._here()
        if not blocks:
            msg = "no transaction block is open in this thread or task"
            raise TransactionOrderError(msg)
        block = blocks[-1]
        try:
            self._blocks.set(blocks[:-1])
            self._open.discard(block)
            if self._ends(block, failed=failed):
                finish = self._finish(block.transaction, block, failed=failed)
                # A cancellation does not stop COMMIT or ROLLBACK, so it is known whether the block was committed.
                await (
                    self.runtime.shield(finish, keep_result, block.transaction.loan.abort)
                    if self.runtime.suspends
                    else finish
                )
        except BaseException as exc:
            if is_interrupt(exc) and not self.runtime.suspends:
                self._cut_off(block)
            block.statement = None
            raise
        block.statement = None

    def _ends(self, block: Block, *, failed: bool) -> bool:
        """Remove a block from its transaction; return whether the transaction must be ended."""
        transaction = block.transaction
        if transaction.process != os.getpid():
            if failed:
                return False
            raise TransactionOrderError(FORKED.format(transaction.process))
        if not transaction.blocks or transaction.blocks[-1] is not block:
            if block in transaction.blocks:
                transaction.blocks.remove(block)  # when the last block ends, the connection is given back
            msg = "transaction blocks did not end in the reverse order of their begin: do concurrent tasks share one?"
            raise TransactionOrderError(msg)
        transaction.blocks.pop()
        return True

    def in_block(self) -> bool:
        """Return whether the running thread or task is within ``with queue``."""
        return self._current() is not None

    def block(self) -> Block | None:
        """Return the innermost open block of the running thread or task."""
        transaction = self._current()
        return None if transaction is None else transaction.blocks[-1]

    def _here(self) -> tuple[Block, ...]:
        """Return the blocks that the running thread or task is in."""
        blocks: tuple[Block, ...] = self._blocks.get() or ()
        for block in blocks:
            if block.statement is not None and block.statement() is None:
                self._cut_off(block)  # an interrupt may have stopped the call at the end of the ``with`` statement
        return tuple(block for block in blocks if block in self._open)

    def _current(self) -> OpenTransaction | None:
        if not self._open:
            return None
        blocks = self._here()
        if blocks and blocks[-1].transaction.process == os.getpid():
            return blocks[-1].transaction
        return None

    def _cut_off(self, block: Block) -> None:
        """End a block that an interrupt left open, although the block's ``with`` statement has ended."""
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
                elif transaction.loan:
                    run_sync(undo(transaction.session, block.savepoint))
            return
        transaction.blocks.clear()
        loan = transaction.loan
        if not self.source.lose(loan):
            try:
                self.runtime.finish(lambda: self._abandon(loan, block.savepoint))
            except PQError as exc:
                logger.warning("cannot roll back an interrupted transaction block: %s", exc)

    async def _failed(self, loan: Loan, exc: BaseException) -> None:
        interrupted = is_interrupt(exc)
        for session in loan:
            session.state_unknown = session.state_unknown or interrupted
            if not interrupted:
                await make_room(session, exc)
            if (
                loan.idle
                and self.source.may_have_open_transaction
                and session.usable()
                and (interrupted or session.in_transaction())
            ):
                await undo(session, None)  # a transaction that pqcore began
        try:
            await self.source.release(loan)
        except PQError as error:
            if not interrupted:
                raise
            logger.warning("cannot return a connection to the pool after an interrupt: %s", error)

    async def _run_in_block(
        self, transaction: OpenTransaction, operation: Callable[[Session], Awaitable[T]], *, protect: bool
    ) -> T:
        lock = transaction.lock
        if lock is not None:
            await lock.enter()
        try:
            if transaction.abort_only:
                raise TransactionAborted(SPOILT)
            if protect:
                return await in_savepoint(transaction.session, operation, transaction)
            return await operation(transaction.session)
        finally:
            if lock is not None:
                lock.leave()

    async def _begin(self, loan: Loan) -> str | None:
        try:
            session = loan.session
            if not self._checked:
                await self._check(session)
            if self.source.may_have_open_transaction and session.in_transaction():  # the caller's own transaction
                session.autocommit = False
                await session.execute(savepoint_query("SAVEPOINT", "pq_0"))
                return "pq_0"
            loan.idle = True
            await session.begin()
        except BaseException as exc:
            await self._failed(loan, exc)
            raise
        return None

    async def _abandon(self, loan: Loan, savepoint: str | None) -> None:
        try:
            if loan:
                await undo(loan.session, savepoint)
        finally:
            await self.source.release(loan)

    async def _finish(self, transaction: OpenTransaction, block: Block, *, failed: bool) -> None:
        lock = transaction.lock
        try:
            if lock is not None:
                await lock.enter()
            try:
                undone = failed or transaction.abort_only
                if block.at_end:
                    await self._end_with(transaction.session, block, undone=undone)
                if undone:
                    await undo(transaction.session, block.savepoint)
                    transaction.abort_only = False
                elif block.savepoint is None:
                    try:
                        await transaction.session.commit()
                    except TransientError as exc:
                        await make_room(transaction.session, exc)
                        raise
                else:
                    await transaction.session.execute(savepoint_query("RELEASE", block.savepoint))
            finally:
                if lock is not None:
                    lock.leave()
            if not transaction.blocks:
                transaction.session.block_of = None
                await self.source.release(transaction.loan, sound=not undone)
        except BaseException as exc:
            if not transaction.blocks:
                await self._failed(transaction.loan, exc)
            raise
        if undone and not failed:
            raise TransactionAborted(SPOILT)

    async def _end_with(self, session: Session, block: Block, *, undone: bool) -> None:
        """Call the functions in `Block.at_end`."""
        try:
            for operation in block.at_end:
                await operation(None if undone else session)
        except BaseException:
            if session.usable():
                await undo(session, block.savepoint)
            raise


def is_interrupt(exc: BaseException) -> bool:
    """Return whether an exception may have come at any line, so that the progress of the work is unknown.

    Drivers' exceptions are already translated. Any other exception is a cancellation, or was raised by a signal's
    handler, and may have any class.
    """
    return not isinstance(exc, PQError)


async def make_room(session: Session, error: BaseException) -> None:
    """Ask the server to remove, from its full notification queue, the entries that all sessions have read."""
    if not isinstance(error, TransientError) or error.sqlstate != NOTIFICATIONS_FULL:
        return
    if session.usable() and not session.in_transaction():
        with suppress(PQError):
            await session.execute(session.sql.notification_usage)


async def keep_result(result: object) -> None:
    """Undo nothing, although the caller was cancelled, because other callers can use the operation's result, too."""


def limited(operation: Callable[[Session], Awaitable[T]], times: int | None) -> Callable[[Session], Awaitable[T]]:
    """Return an operation whose statements have ``times`` the usual time limit, or no limit if ``times`` is None."""

    async def work(session: Session) -> T:
        with session.limited(None if times is None or session.limit is None else session.limit * times):
            return await operation(session)

    return work
