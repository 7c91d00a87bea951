"""The workers' processes: starting them, reading their messages, killing them, and leaving none behind."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import final

from pqcore.demo.messages import DemoError, Failed, Message, Order, StopRequested, Task
from pqcore.demo.workers import work

PATIENCE = 60.0
"""Seconds without any message after which the demonstration is given up."""
FAREWELL = 5.0
"""Seconds that a process may take to end."""


@dataclass(eq=False)
class Member:
    """A worker's process, and the conductor's end of its pipe."""

    task: Task
    process: BaseProcess
    pipe: Connection[Order, Message]


@final
class WorkerProcesses:
    """All worker processes. At the end of the ``with`` block, no worker process is left, even after an error."""

    def __init__(self) -> None:
        self.members: list[Member] = []
        self._spawn = multiprocessing.get_context("spawn")
        resource_tracker.ensure_running()  # called before `hire`, because it changes the signal mask

    def __enter__(self) -> WorkerProcesses:
        return self

    def __exit__(self, *error: object) -> None:
        for end in ("terminate", "kill"):
            for member in self.members:
                getattr(member.process, end)()
            deadline = time.monotonic() + FAREWELL
            for member in self.members:
                member.process.join(max(0.0, deadline - time.monotonic()))
        for member in self.members:
            member.pipe.close()
        self.members.clear()

    def hire(self, task: Task) -> None:
        """Start a worker."""
        ours, theirs = self._spawn.Pipe()
        process = self._spawn.Process(target=work, args=(task, theirs), name=task.name, daemon=True)
        # Ctrl-C reaches every process of the terminal. Workers ignore Ctrl-C from the start, because the conductor ends
        # them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            process.start()
            self.members.append(Member(task, process, ours))
        finally:
            theirs.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def order(self, members: list[Member], order: Order) -> None:
        """Send an order; `messages` will notice a worker that is gone."""
        for member in members:
            with contextlib.suppress(OSError):
                member.pipe.send(order)

    def kill(self, member: Member) -> None:
        """Kill a worker with SIGKILL, and wait until it is dead."""
        member.process.kill()
        self._bury(member, expected=-signal.SIGKILL)

    def messages(self) -> Iterator[tuple[Member, Message]]:
        """Yield the messages of the workers, until all have ended.

        Raises:
            DemoError: A worker failed, or no message came for `PATIENCE` seconds.
        """
        while self.members:
            by_pipe: dict[object, Member] = {member.pipe: member for member in self.members}
            speaking = connection.wait([member.pipe for member in self.members], PATIENCE)
            if not speaking:
                names = ", ".join(member.task.name for member in self.members)
                raise DemoError(f"no worker has sent a message for {PATIENCE:.0f} seconds; still running: {names}")
            for pipe in speaking:
                member = by_pipe[pipe]
                message: Message
                try:
                    message = member.pipe.recv()
                except (EOFError, OSError):
                    self._bury(member, expected=0)
                    message = StopRequested()
                if isinstance(message, Failed):
                    raise DemoError(f"{member.task.name} failed:\n{message.traceback}")
                yield member, message

    def _bury(self, member: Member, expected: int) -> None:
        member.process.join(FAREWELL)
        if member.process.exitcode != expected:
            raise DemoError(f"{member.task.name} ended with exit code {member.process.exitcode}")
        self.members.remove(member)
        member.pipe.close()
