"""What the conductor and its workers say to each other, over one pipe a worker.

A pipe of its own for each: a worker killed in the middle of anything disturbs
nobody else, and a conductor that is gone is noticed, as its end closes.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeAlias


class DemoError(Exception):
    """The demonstration cannot go on."""


class Stopped(Exception):
    """A worker is to end, or its conductor is gone; undoes the transaction that it leaves."""


@dataclass(frozen=True)
class Task:
    """What a worker is to be.

    Attributes:
        name: Unique, such as ``asyncpg consumer 2``.
        driver: The backend's name.
        dsn: The database.
        schema: The schema of all tables.
        directory: Where the files lie.
        halves: What a producer puts at each `Order.GO`: paths of files.  A
            consumer has none.
    """

    name: str
    driver: str
    dsn: str
    schema: str
    directory: Path
    halves: tuple[list[str], ...] = ()

    @property
    def produces(self) -> bool:
        return bool(self.halves)


class Order(enum.Enum):
    """What the conductor says."""

    GO = "start to work, or go on"
    HOLD = "with your next job, stop before the commit"
    STOP = "end"


@dataclass(frozen=True)
class Ready:
    """A worker is connected and waits for `Order.GO`."""


@dataclass(frozen=True)
class Put:
    """A producer committed jobs: ids and paths; ``ordered`` if together with an order."""

    jobs: list[tuple[int, str]]
    ordered: bool


@dataclass(frozen=True)
class RolledBack:
    """A producer rolled back the transaction that put this job."""

    job: int


@dataclass(frozen=True)
class Done:
    """A consumer committed a job and its result."""


@dataclass(frozen=True)
class Holding:
    """A consumer has taken this job and stored its result, and will not commit."""

    job: int


@dataclass(frozen=True)
class Failed:
    """A worker ends with an error."""

    traceback: str


@dataclass(frozen=True)
class StopRequested:
    """A worker has ended as it should; said by the pipe's closing."""


Message: TypeAlias = Ready | Put | RolledBack | Done | Holding | Failed | StopRequested


class WorkerPipe:
    """A worker's end of the pipe.

    Every method raises `Stopped` when the worker is to end.
    """

    def __init__(self, pipe: Connection[Message, Order]) -> None:
        self._pipe = pipe

    def tell(self, message: Message) -> None:
        """Send a message."""
        try:
            self._pipe.send(message)
        except OSError:
            raise Stopped from None

    def has_order(self) -> bool:
        """Whether `order` would return, or raise, at once."""
        return self._pipe.poll()

    def order(self) -> Order:
        """Wait for an order."""
        try:
            order = self._pipe.recv()
        except (EOFError, OSError):
            raise Stopped from None
        if order is Order.STOP:
            raise Stopped
        return order
