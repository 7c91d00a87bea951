"""The supervisor: a process that keeps several worker processes running.

The supervisor starts a new process for each one that dies. It sends commands to each process through a pipe. A process
dies when its pipe closes, so no process outlives the supervisor. Commands are not signals, because a signal may reach a
process twice: a terminal and systemd send signals to all processes of a service.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from logging import getLogger
from typing import Any

from pqcore.worker.parent_death import end_with_parent

logger = getLogger("pqcore.supervisor")

STABLE_AFTER = 30.0
"""Seconds after which a process counts as started well: if it dies later, the next pause is `FIRST_PAUSE` again."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""The shortest and the longest pause, in seconds, until a process that died is replaced. The pause doubles with each
death, unless the process had started well."""
USAGE_ERROR = 2
"""The exit code of a process whose arguments are wrong; the supervisor does not start such a process again."""
_DRAIN, _STOP_NOW = b"d", b"a"


@dataclass(eq=False)
class _Child:
    number: int
    process: asyncio.subprocess.Process
    pipe: int

    def send(self, word: bytes) -> None:
        with suppress(BrokenPipeError):  # the process died
            os.write(self.pipe, word)


class Supervisor:
    """Keeps processes running until told to stop by SIGTERM or SIGINT.

    The first signal stops the processes gracefully, the second stops them immediately, and the third kills them.

    Args:
        command: Returns the command of a process for its number, from 1. The supervisor adds ``--supervised`` and a
            descriptor for `ParentPipe`.
        processes: The number of processes.
        stop_timeout: Seconds that processes have to stop gracefully; after that they are killed.
        stop_now_timeout: Seconds that processes have to stop after the second signal.
        burst: Whether processes end by themselves when there is no job.
    """

    def __init__(
        self,
        command: Callable[[int], Sequence[str]],
        processes: int,
        *,
        stop_timeout: float,
        stop_now_timeout: float,
        burst: bool = False,
    ) -> None:
        self._command = command
        self._processes = processes
        self._stop_timeout = stop_timeout
        self._stop_now_timeout = stop_now_timeout
        self._burst = burst
        self._children: set[_Child] = set()
        self._signals = 0
        self._code = 0

    def run(self) -> int:
        """Run the processes until they have stopped.

        Returns:
            The exit code: 0 if the processes stopped gracefully, 2 if the arguments of a process are wrong, else 1.
        """
        return asyncio.run(self._run())

    async def _run(self) -> int:
        self._stopping, self._stopping_now = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        logger.info("supervisor starts: %d workers", self._processes)
        supervisions = [loop.create_task(self._supervise(number)) for number in range(1, self._processes + 1)]
        ended = asyncio.gather(*supervisions)
        stopping = loop.create_task(self._stopping.wait())
        either: list[asyncio.Future[Any]] = [ended, stopping]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                await self._drain(ended)
            await ended
        finally:
            stopping.cancel()
            self._kill()
        logger.info("supervisor stopped")
        return self._code

    async def _drain(self, ended: asyncio.Future[list[None]]) -> None:
        stopping_now = asyncio.ensure_future(self._stopping_now.wait())
        either: list[asyncio.Future[Any]] = [ended, stopping_now]
        await asyncio.wait(either, timeout=self._stop_timeout, return_when=asyncio.FIRST_COMPLETED)
        if stopping_now.done():
            await asyncio.wait([ended], timeout=self._stop_now_timeout)
        stopping_now.cancel()
        if not ended.done():
            self._kill()

    def stop(self) -> None:
        """Stop the processes gracefully. The second call stops them immediately, the third kills them."""
        self._signals += 1
        if self._signals == 1:
            self._stopping.set()
            self._send(_DRAIN)
        elif self._signals == 2:
            self._stopping_now.set()
            self._send(_STOP_NOW)
        else:
            self._kill()

    def _on_signal(self) -> None:
        how = ("after their jobs", "immediately")[self._signals] if self._signals < 2 else "by SIGKILL"
        logger.info("told to stop: %d workers must end %s", len(self._children), how)
        self.stop()

    def _send(self, word: bytes) -> None:
        for child in self._children:
            child.send(word)

    def _kill(self) -> None:
        """Kill the remaining processes, and the processes that they have started."""
        for child in self._children:
            if child.process.returncode is None:
                logger.error("killing worker %d (process %d), because it does not end", child.number, child.process.pid)
                with suppress(ProcessLookupError):
                    os.killpg(child.process.pid, signal.SIGKILL)

    async def _supervise(self, number: int) -> None:
        """Start a process, and start another whenever it dies."""
        failures = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            child = await self._start(number)
            code = await child.process.wait()
            self._children.discard(child)
            os.close(child.pipe)
            name = f"worker {number} (process {child.process.pid}) {_described(code)}"
            if self._stopping.is_set():
                self._stopped(name, code)
                return
            if code == USAGE_ERROR:
                logger.error("%s: the command line is wrong, so all workers must end", name)
                self._code = USAGE_ERROR
                self.stop()
                return
            if self._burst and code >= 0:
                logger.info("%s", name)
                self._code = max(self._code, min(code, 1))
                return
            failures = 1 if time.monotonic() - began > STABLE_AFTER else failures + 1
            pause = min(FIRST_PAUSE * 2 ** min(failures - 1, 10), LONGEST_PAUSE) * (0.75 + random.random() / 2)  # noqa: S311
            logger.log(20 if code == 0 else 40, "%s; another worker takes its place in %.1f s", name, pause)
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)

    async def _start(self, number: int) -> _Child:
        theirs, ours = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command(number),
                "--supervised",
                str(theirs),
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs,),
                start_new_session=True,  # a terminal's Ctrl-C must reach only the supervisor
            )
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        child = _Child(number, process, ours)
        self._children.add(child)
        logger.info("worker %d is process %d", number, process.pid)
        if self._stopping.is_set():  # a stop signal came while the process started
            child.send(_DRAIN)
        if self._stopping_now.is_set():
            child.send(_STOP_NOW)
        return child

    def _stopped(self, name: str, code: int) -> None:
        # A SIGTERM that was sent to all processes may have ended this one while it started.
        if code in (0, -signal.SIGTERM, -signal.SIGINT):
            logger.info("%s", name)
        else:
            logger.error("%s", name)
            self._code = max(self._code, 1)


def _described(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


class ParentPipe:
    """A supervised process's end of the pipe: the process ends when its supervisor ends or tells it to.

    The first SIGTERM or SIGINT that the process itself receives stops it gracefully; later ones have no effect. So it
    does not matter whether the process receives signals in addition to the supervisor's commands.

    Args:
        pipe: The descriptor that the supervisor gave.
    """

    def __init__(self, pipe: int) -> None:
        self._level = 0
        self._on_stop: Callable[[int], None] | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._receive(_DRAIN))
        end_with_parent(pipe, self._receive)

    def _receive(self, word: bytes) -> None:
        self._level = max(self._level, 2 if word == _STOP_NOW else 1)
        if self._on_stop is not None:
            with suppress(RuntimeError):  # the loop is closed: the worker has stopped
                self._on_stop(self._level)

    def attach(self, on_stop: Callable[[int], None]) -> None:
        """Set the function to call, in any thread, with 1 for a graceful stop and with 2 for an immediate stop.

        If a command to stop has already arrived, call the function now.
        """
        self._on_stop = on_stop
        if self._level:
            on_stop(self._level)
