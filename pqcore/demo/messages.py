"""The messages between the conductor (the main process) and its workers, over one pipe for each worker.

Each worker has its own pipe, so a worker that is killed affects no other. A worker notices that the conductor is gone,
because the conductor's end of the pipe closes.
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
    """The worker was told to end, or its conductor is gone; the exception makes an open transaction block roll back."""


@dataclass(frozen=True)
class Task:
    """The description of a worker.

    Attributes:
        name: A unique name, such as ``asyncpg consumer 2``.
        driver: The backend's name.
        dsn: The DSN of the database.
        schema: The schema of all tables.
        directory: The directory of the files.
        halves: The paths of files that a producer puts at each `Order.GO`. A consumer has none.
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
    """The commands that the conductor sends to workers."""

    GO = "start to work, or go on"
    HOLD = "with your next job, stop before the commit"
    STOP = "end"


@dataclass(frozen=True)
class Ready:
    """A worker is connected, and waits for `Order.GO`."""


@dataclass(frozen=True)
class Put:
    """A producer committed jobs: their ids and paths, and whether the transaction of the put also stored an order."""

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
    """A worker has ended without an error: it closed its pipe, and its exit code is 0."""


Message: TypeAlias = Ready | Put | RolledBack | Done | Holding | Failed | StopRequested


class WorkerPipe:
    """A worker's end of the pipe.

    Every method raises `Stopped` when the worker must end.
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
        """Return whether `order` would return, or raise, immediately."""
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
