"""Several worker processes, kept running by one that does nothing else.

Each is started anew when it dies.  A pipe leads to each, over which it is told to stop, and
at whose end it dies: none outlives its supervisor.  They are told by pipe, not by signal, as a
signal may reach them twice: a terminal and systemd may send it to all processes of a service at once.
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

SETTLED = 30.0
"""Seconds after which a process that dies did not die of being started."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds until a process that died is replaced; twice as many each time, unless it had settled."""
WRONG = 2
"""The exit code of a process that cannot do what it is told to, however often it is started."""
_DRAIN, _AT_ONCE = b"d", b"a"


@dataclass(eq=False)
class _Child:
    number: int
    process: asyncio.subprocess.Process
    pipe: int

    def tell(self, word: bytes) -> None:
        with suppress(BrokenPipeError):  # it died
            os.write(self.pipe, word)


class Supervisor:
    """Keeps processes running until told to stop by SIGTERM or SIGINT.

    The first signal has them stop in order, a second at once, a third kills them.

    Args:
        command: What each runs; the option ``--supervised`` and a descriptor for `ParentPipe` are added.
        processes: How many.
        patience: Seconds in which they are to have stopped in order; then they are killed.
        haste: Seconds in which they are to have stopped once it is to be at once.
        burst: Whether they end by themselves, when there is nothing to do.
    """

    def __init__(
        self, command: Sequence[str], processes: int, *, patience: float, haste: float, burst: bool = False
    ) -> None:
        self._command = command
        self._processes = processes
        self._patience = patience
        self._haste = haste
        self._burst = burst
        self._children: set[_Child] = set()
        self._signals = 0
        self._code = 0

    def run(self) -> int:
        """Run them, until they have stopped.

        Returns:
            The exit code: 0 if they stopped in order; 1 if not; 2 if one said that it cannot do what it is told to.
        """
        return asyncio.run(self._run())

    async def _run(self) -> int:
        self._told, self._hurried = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        logger.info("supervisor starts: %d workers", self._processes)
        keepers = [loop.create_task(self._keep(number)) for number in range(1, self._processes + 1)]
        ended = asyncio.gather(*keepers)
        told = loop.create_task(self._told.wait())
        either: list[asyncio.Future[Any]] = [ended, told]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                await self._drain(ended)
            await ended
        finally:
            told.cancel()
            self._kill()
        logger.info("supervisor stopped")
        return self._code

    async def _drain(self, ended: asyncio.Future[list[None]]) -> None:
        hurried = asyncio.ensure_future(self._hurried.wait())
        either: list[asyncio.Future[Any]] = [ended, hurried]
        await asyncio.wait(either, timeout=self._patience, return_when=asyncio.FIRST_COMPLETED)
        if hurried.done():
            await asyncio.wait([ended], timeout=self._haste)
        hurried.cancel()
        if not ended.done():
            self._kill()

    def stop(self) -> None:
        """Have the processes stop in order; called again, at once; and again, kill them."""
        self._signals += 1
        if self._signals == 1:
            self._told.set()
            self._tell(_DRAIN)
        elif self._signals == 2:
            self._hurried.set()
            self._tell(_AT_ONCE)
        else:
            self._kill()

    def _signalled(self) -> None:
        how = ("in order", "at once")[self._signals] if self._signals < 2 else "by being killed"
        logger.info("told to stop: %d workers are to end %s", len(self._children), how)
        self.stop()

    def _tell(self, word: bytes) -> None:
        for child in self._children:
            child.tell(word)

    def _kill(self) -> None:
        """Kill what is left, with what it has started."""
        for child in self._children:
            if child.process.returncode is None:
                logger.error("worker %d (process %d) is killed: it does not end", child.number, child.process.pid)
                with suppress(ProcessLookupError):
                    os.killpg(child.process.pid, signal.SIGKILL)

    async def _keep(self, number: int) -> None:
        """Start a process, and another in its place whenever it dies."""
        failures = 0
        while not self._told.is_set():
            began = time.monotonic()
            child = await self._start(number)
            code = await child.process.wait()
            self._children.discard(child)
            os.close(child.pipe)
            name = f"worker {number} (process {child.process.pid}) {_described(code)}"
            if self._told.is_set():
                self._stopped(name, code)
                return
            if code == WRONG:
                logger.error("%s: what it was told to do cannot be done; all are to end", name)
                self._code = WRONG
                self.stop()
                return
            if self._burst and code >= 0:
                logger.info("%s", name)
                self._code = max(self._code, min(code, 1))
                return
            failures = 1 if time.monotonic() - began > SETTLED else failures + 1
            pause = min(FIRST_PAUSE * 2 ** min(failures - 1, 10), LONGEST_PAUSE) * (0.75 + random.random() / 2)  # noqa: S311
            logger.log(20 if code == 0 else 40, "%s; another takes its place in %.1f s", name, pause)
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._told.wait(), pause)

    async def _start(self, number: int) -> _Child:
        theirs, ours = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                "--supervised",
                str(theirs),
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs,),
                start_new_session=True,  # a terminal's Ctrl-C is for the supervisor
            )
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        child = _Child(number, process, ours)
        self._children.add(child)
        logger.info("worker %d is process %d", number, process.pid)
        if self._told.is_set():  # meanwhile
            child.tell(_DRAIN)
        if self._hurried.is_set():
            child.tell(_AT_ONCE)
        return child

    def _stopped(self, name: str, code: int) -> None:
        # A SIGTERM that was sent to all processes may have met it while it started.
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
    """A supervised process's end of the pipe: it ends with its supervisor, and when told to.

    A SIGTERM or SIGINT of its own has it stop in order, once, so that it does not
    matter whether signals come to it beside what its supervisor says.

    Args:
        pipe: The descriptor that the supervisor gave.
    """

    def __init__(self, pipe: int) -> None:
        self._level = 0
        self._tell: Callable[[int], None] | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._hear(_DRAIN))
        end_with_parent(pipe, self._hear)

    def _hear(self, word: bytes) -> None:
        self._level = max(self._level, 2 if word == _AT_ONCE else 1)
        if self._tell is not None:
            with suppress(RuntimeError):  # the loop is closed: it has stopped
                self._tell(self._level)

    def attach(self, tell: Callable[[int], None]) -> None:
        """Have ``tell`` called, from any thread: with 1 to stop in order, with 2 at once.

        Also for what was said before.
        """
        self._tell = tell
        if self._level:
            tell(self._level)
