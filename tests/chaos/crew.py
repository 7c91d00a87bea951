"""The client processes, and the workers among them; one that is killed has another take its place."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .client import LEASE
from .clock import Clock, library

ROOT = Path(__file__).resolve().parents[2]
WORKER = "worker"
"""What a worker is among modes; clients are ``blocking`` or ``async``."""
WORKERS_LEASE = 2
"""Seconds."""


@dataclass
class Member:
    """One process.

    Attributes:
        backend: Its backend.
        mode: Its mode, or `WORKER`.
        process: The process.
        clock: Its clock, if that can be stepped.
        complaints: What it wrote to stderr.
        log: What it writes down; not there yet before it is at work, and nor for a worker.
    """

    backend: str
    mode: str
    process: subprocess.Popen[bytes]
    clock: Clock | None
    complaints: Path
    log: Path


class Clients:
    """All of them.

    Args:
        dsns: Where the server is; one of them for each process.
        folder: Where they write down what happened.
        rng: Chooses.

    Attributes:
        logs: What they wrote down.
        faked: The library by which their clocks are stepped, if there is one.
    """

    def __init__(self, dsns: Callable[[], str], folder: Path, rng: random.Random) -> None:
        self._dsns = dsns
        self._folder = folder
        self._rng = rng
        self._running: list[Member] = []
        self._number = 0
        self.logs: list[Path] = []
        self.faked = library()

    def hire(self, backend: str, mode: str) -> None:
        """Start one."""
        self._number += 1
        log, complaints = (self._folder / f"{kind}-{self._number}" for kind in ("history", "complaints"))
        environment = {**os.environ, "CHAOS_BACKEND": backend, "CHAOS_DSN": self._dsns()}
        clock = None
        if self.faked is not None:
            clock = Clock(self._folder / f"clock-{self._number}", self.faked)
            environment |= clock.environment()
        if mode == WORKER:
            command = ["pqcore", "worker", "tests.chaos.work:queue", "--lease", f"{WORKERS_LEASE}s"]
            command += ["--concurrency", "4", "--poll-interval", "1s", "--stall-timeout", "3s"]
        else:
            self.logs.append(log)
            seed = str(self._rng.randrange(10**9))
            command = ["tests.chaos.client", backend, mode, environment["CHAOS_DSN"], str(log), seed]
        with complaints.open("wb") as stderr:
            process = subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, env=environment, stderr=stderr)
        self._running.append(Member(backend, mode, process, clock, complaints, log))

    def kill_one(self) -> None:
        """SIGKILL any, and start another."""
        member = self._running.pop(self._rng.randrange(len(self._running)))
        member.process.send_signal(signal.SIGKILL)
        member.process.wait()
        self.hire(member.backend, member.mode)

    def freeze_one(self) -> None:
        """Have any stand still, maybe for longer than its leases last."""
        member = self._rng.choice(self._running)
        member.process.send_signal(signal.SIGSTOP)
        time.sleep(self._rng.choice([0.1, 0.3, 1.2 * LEASE]))
        member.process.send_signal(signal.SIGCONT)

    def interrupt_one(self) -> None:
        """Have what any blocking client does be interrupted, as by Ctrl-C."""
        member = self._rng.choice([member for member in self._running if member.mode == "blocking"])
        for _ in range(self._rng.randint(1, 5)):
            if member.log.exists():
                member.process.send_signal(signal.SIGINT)
            time.sleep(0.03)

    def step_clock(self) -> None:
        """Put the clock of any forward or back."""
        clock = self._rng.choice(self._running).clock
        if clock is not None:
            clock.step(self._rng)

    def fallen(self) -> list[str]:
        """Those that ended by themselves, which none does, with the last that they said."""
        return [
            f"{member.backend} ({member.mode}): exit code {code}: {member.complaints.read_text()[-500:]}"
            for member in self._running
            if (code := member.process.poll()) is not None
        ]

    def stop(self) -> None:
        """Kill all."""
        for member in self._running:
            member.process.kill()
            member.process.wait()
