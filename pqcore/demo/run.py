"""The course of the demonstration: which worker gets which order, and when."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from pqcore.demo.display import PlainBoard, Tally
from pqcore.demo.messages import DemoError, Done, Holding, Message, Order, Put, Ready, RolledBack, StopRequested, Task
from pqcore.demo.tables import Books
from pqcore.demo.worker_processes import Member, WorkerProcesses

DRIVERS = ("psycopg2", "psycopg", "asyncpg")
CONSUMERS = 2
"""The number of consumers of each driver; each driver also has one producer."""


@dataclass(frozen=True)
class Plan:
    """The jobs to move, and the database and the tables through which they move.

    Attributes:
        dsn: The DSN of the database.
        schema: The schema of all tables.
        directory: The directory of the files.
        paths: The paths of the files, one for each job.
    """

    dsn: str
    schema: str
    directory: Path
    paths: list[str]


class Run:
    """One run of the demonstration.

    All workers start together. When a third of the jobs is done, one consumer of each driver is told to hold its next
    job. After that, the producers are told to put the second half of the jobs, so that there are jobs to hold. Each
    consumer that holds a job is killed, and another is started in its place.

    Args:
        processes: The workers, of which none has started yet.
        plan: The plan of the jobs.
        board: The board that shows the progress.
    """

    def __init__(self, processes: WorkerProcesses, plan: Plan, board: PlainBoard) -> None:
        self.books = Books()
        self._processes = processes
        self._plan = plan
        self._board = board
        self._tally: Tally = board.tally
        self._waiting = 0
        self._done = 0
        self._halfway = self._over = False

    def perform(self) -> Books:
        """Run to the end.

        Returns:
            The numbers and events that the workers reported.

        Raises:
            DemoError: A worker failed, or no message came for too long.
        """
        for place, driver in enumerate(DRIVERS):
            paths = self._plan.paths[place :: len(DRIVERS)]
            middle = len(paths) // 2
            self._hire(self._task(f"{driver} producer", driver, (paths[:middle], paths[middle:])))
            for number in range(1, CONSUMERS + 1):
                self._hire(self._task(f"{driver} consumer {number}", driver))
        for member, message in self._processes.messages():
            self._take_note(member, message)
            self._direct()
            self._board.refresh()
        return self.books

    def _take_note(self, member: Member, message: Message) -> None:
        driver = member.task.driver
        if isinstance(message, Done):
            self._done += 1
            self._tally.done[driver] += 1
        elif isinstance(message, Put):
            self.books.put += [(*job, driver, message.ordered) for job in message.jobs]
            self._tally.put[driver] += len(message.jobs)
        elif isinstance(message, RolledBack):
            self.books.undone.append((message.job,))
        elif isinstance(message, Ready):
            self._waiting -= 1
            if self._tally.began is not None:  # a replacement worker
                self._processes.order([member], Order.GO)
        elif isinstance(message, Holding):
            self._replace(member, message.job)
        elif isinstance(message, StopRequested):
            self._tally.alive[driver] -= 1
            if not member.task.produces and not self._over:
                raise DemoError(f"{member.task.name} ended before all jobs were done")

    def _direct(self) -> None:
        if self._tally.began is None:
            if self._waiting == 0:
                self._tally.began = time.monotonic()
                self._board.note(f"all {len(self._processes.members)} workers are connected: go")
                self._processes.order(self._processes.members, Order.GO)
        elif not self._halfway:
            if self._done >= len(self._plan.paths) // 3:
                self._halfway = True
                victims = [member for member in self._consumers() if member.task.name.endswith(" 1")]
                self._processes.order(victims, Order.HOLD)
                self._processes.order(self._producers(), Order.GO)
        elif not self._over and not self._producers() and self._done >= len(self.books.put):
            self._over = True
            self._tally.ended = time.monotonic()
            self._processes.order(self._processes.members, Order.STOP)

    def _replace(self, member: Member, job: int) -> None:
        """Kill a worker that holds a job in an open transaction, and start another."""
        self._processes.kill(member)
        self._tally.alive[member.task.driver] -= 1
        self._tally.killed[member.task.driver] += 1
        self.books.held.append((job, member.task.name))
        name = f"{member.task.driver} consumer {CONSUMERS + self._tally.killed[member.task.driver]}"
        self._board.note(f"killed {member.task.name} while it held job {job}; {name} takes its place")
        self._hire(replace(member.task, name=name))

    def _hire(self, task: Task) -> None:
        self._processes.hire(task)
        self._waiting += 1
        self._tally.alive[task.driver] += 1

    def _task(self, name: str, driver: str, halves: tuple[list[str], ...] = ()) -> Task:
        plan = self._plan
        return Task(name, driver, plan.dsn, plan.schema, plan.directory, halves)

    def _consumers(self) -> list[Member]:
        return [member for member in self._processes.members if not member.task.produces]

    def _producers(self) -> list[Member]:
        return [member for member in self._processes.members if member.task.produces]
