"""The processes of clients and workers; a new process replaces each killed one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pqcore.errors import OutcomeUnknown, PQError
from pqcore.tasks import PQ

from .client import LEASE
from .clock import Clock, library
from .log import Log
from .worker_tasks import GATED, NAME, OTHERS, declare

ROOT = Path(__file__).resolve().parents[2]
WORKER, FORKING = "worker", "forking"
"""The modes of workers and of forking clients; other clients are ``blocking`` or ``async``."""
WORKERS_LEASE = 2
"""The length of workers' leases, in seconds."""


@dataclass
class Member:
    """One process.

    Attributes:
        backend: The process's backend.
        mode: The backend's mode, or `WORKER`, or `FORKING`.
        process: The process.
        clock: The clock of the process, if it can be stepped.
        complaints: The file with the process's stderr.
        log: The path of the log; the file exists as soon as the process works.
    """

    backend: str
    mode: str
    process: subprocess.Popen[bytes]
    clock: Clock | None
    complaints: Path
    log: Path


class Clients:
    """All processes of a run.

    Args:
        dsns: The addresses of the server; each process gets one of them.
        direct: The address of the server for this process, without a proxy.
        folder: The folder of the logs.
        rng: The random generator that chooses processes.
        missed: Which missed ticks are put later, as for a periodic task.

    Attributes:
        logs: The logs.
        missed: Which missed ticks are put later.
        faked: The library that steps the processes' clocks, if there is one.
    """

    def __init__(
        self, dsns: Callable[[], str], direct: Callable[[], str], folder: Path, rng: random.Random, missed: str
    ) -> None:
        self._dsns = dsns
        self._direct = direct
        self._folder = folder
        self._rng = rng
        self._running: list[Member] = []
        self._changing = threading.Lock()  # two threads inject faults
        self._number = self._interrupting = 0
        self.missed = missed
        self.logs = [folder / "history"]
        self._log = Log(self.logs[0])
        self.faked = library()

    def hire(self, backend: str, mode: str) -> None:
        """Start a process."""
        self._number += 1
        log, complaints = (self._folder / f"{kind}-{self._number}" for kind in ("history", "complaints"))
        self.logs.append(log)
        environment = {**os.environ, "CHAOS_BACKEND": backend, "CHAOS_DSN": self._dsns()}
        environment |= {"CHAOS_LOG": str(log), "CHAOS_MISSED": self.missed}
        clock = None
        if self.faked is not None:
            clock = Clock(self._folder / f"clock-{self._number}", self.faked)
            environment |= clock.environment()
        if mode == WORKER:
            command = [
                "pqcore",
                "worker",
                "tests.chaos.worker_tasks:queues",
                "--queues",
                ",".join([NAME, GATED, OTHERS]),
            ]
            command += ["--concurrency", "8", "--poll-interval", "1s", "--stall-timeout", "3s"]
            command += ["--lease", f"{WORKERS_LEASE}s"]
        else:
            seed = str(self._rng.randrange(10**9))
            program, way = "tests.chaos.client", mode
            if mode == FORKING:
                program, way = "tests.chaos.forking", "async" if backend == "asyncpg" else "blocking"
            command = [program, backend, way, environment["CHAOS_DSN"], str(log), seed]
        with complaints.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", *command], cwd=ROOT, env=environment, stderr=stderr, start_new_session=True
            )
        self._running.append(Member(backend, mode, process, clock, complaints, log))

    def kill_one(self) -> None:
        """Send SIGKILL to a random process, and start a new one."""
        with self._changing:
            member = self._running.pop(self._rng.randrange(len(self._running)))
            _kill(member)
            self.hire(member.backend, member.mode)

    def freeze_one(self) -> None:
        """Stop a random process for a while, maybe for longer than its leases last."""
        member = self._rng.choice(self._running)
        member.process.send_signal(signal.SIGSTOP)
        time.sleep(self._rng.choice([0.1, 0.3, 1.2 * LEASE]))
        member.process.send_signal(signal.SIGCONT)

    def interrupt_one(self, number: signal.Signals) -> None:
        """Interrupt a random blocking client at random moments, as Ctrl-C or a time limit would."""
        self._signal("blocking", number, self._rng.randint(5, 30))

    def fork_one(self) -> None:
        """Make a client fork in C."""
        self._signal(FORKING, signal.SIGUSR1, self._rng.randint(1, 2))

    def _signal(self, mode: str, number: signal.Signals, times: int) -> None:
        """Send a signal to a random working process of a mode."""
        with self._changing:
            member = self._rng.choice([member for member in self._running if member.mode == mode])
        for _ in range(times):
            if member.log.exists():
                member.process.send_signal(number)
            time.sleep(self._rng.uniform(0.005, 0.04))

    def interrupt_jobs(self) -> None:
        """Put jobs that raise KeyboardInterrupt in their worker: in a thread, in a coroutine, and in a process."""
        with PQ(self._direct(), backend="psycopg") as pq:
            tasks = declare(pq)
            for name in ("interrupted", "interrupted_process"):
                self._interrupting += 1
                token = f"{name}-{self._interrupting}"
                self._log.write({"act": "put", "outcome": "begun", "tokens": [token]})
                try:
                    tasks[name](token)
                except OutcomeUnknown:
                    outcome = "unknown"
                except PQError:
                    outcome = "failed"
                else:
                    outcome = "ok"
                self._log.write({"act": "put", "outcome": outcome, "tokens": [token]})

    def step_clock(self) -> None:
        """Set the clock of a random process forward or back."""
        clock = self._rng.choice(self._running).clock
        if clock is not None:
            clock.step(self._rng)

    def at_work(self) -> bool:
        """Return whether a worker runs."""
        return any(member.mode == WORKER and member.process.poll() is None for member in self._running)

    def fallen(self) -> list[str]:
        """Return the processes that ended by themselves, which none should do, with their last output."""
        return [
            f"{member.backend} ({member.mode}): exit code {code}: {member.complaints.read_text()[-1500:]}"
            for member in self._running
            if (code := member.process.poll()) is not None
        ]

    def stop(self, *, but: str = "") -> None:
        """Kill the processes.

        Args:
            but: The mode of processes to leave alive.
        """
        for member in self._running:
            if member.mode != but:
                self._log.write({"act": "stopped", "outcome": "ok", "log": member.log.name})
                _kill(member)
        self._running = [member for member in self._running if member.mode == but]
        if not self._running:
            self._log.close()


def _kill(member: Member) -> None:
    """Kill a process and its child processes."""
    with suppress(ProcessLookupError):
        os.killpg(member.process.pid, signal.SIGKILL)
    member.process.wait()
