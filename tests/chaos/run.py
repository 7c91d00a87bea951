"""A run: a server, a proxy, clients of all backends, faults, and the verdict."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlencode

import psycopg

from pqcore import PQ
from pqcore.testing.proxy import Proxy
from pqcore_backends.embedded import EmbeddedServer

from .checker import Verdict, check, read
from .client import APPLICATION, EFFECTS
from .faults import Faults

ROOT = Path(__file__).resolve().parents[2]
SETTLE = 5.0
"""Seconds without faults at the end, in which clients go on."""
BACKENDS = (("psycopg", "blocking"), ("psycopg", "async"), ("asyncpg", "async"), ("psycopg2", "blocking"))


class Clients:
    """The processes; one that dies has another take its place."""

    def __init__(self, dsn: str, folder: Path, rng: random.Random) -> None:
        self._dsn = dsn
        self._folder = folder
        self._rng = rng
        self._running: list[tuple[tuple[str, str], subprocess.Popen[bytes]]] = []
        self.logs: list[Path] = []

    def hire(self, kind: tuple[str, str]) -> None:
        log = self._folder / f"client-{len(self.logs)}.jsonl"
        self.logs.append(log)
        command = [
            sys.executable,
            "-m",
            "tests.chaos.client",
            *kind,
            self._dsn,
            str(log),
            str(self._rng.randrange(10**9)),
        ]
        self._running.append((kind, subprocess.Popen(command, cwd=ROOT)))

    def kill_one(self) -> None:
        kind, process = self._running.pop(self._rng.randrange(len(self._running)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        self.hire(kind)

    def fallen(self) -> list[str]:
        """The clients that ended by themselves, which none does."""
        return [
            f"{kind[0]} ({kind[1]}): exit code {process.poll()}" for kind, process in self._running if process.poll()
        ]

    def stop(self) -> None:
        for _, process in self._running:
            process.kill()
            process.wait()


def run(
    seconds: float, seed: int, backends: Sequence[tuple[str, str]] = BACKENDS, told: Callable[[str], None] = print
) -> tuple[Verdict, Counter[str]]:
    """Run, and check.

    Args:
        seconds: How long faults are injected.
        seed: Which, and what clients do.
        backends: One client of each.
        told: Hears of each fault.

    Returns:
        The verdict, and how often each fault was injected.
    """
    rng = random.Random(seed)
    injected: Counter[str] = Counter()
    with EmbeddedServer() as server, tempfile.TemporaryDirectory() as folder:
        with PQ(server.dsn()) as pq:
            pq.create()
        with psycopg.connect(server.dsn()) as connection:
            connection.execute(EFFECTS)
        proxy = Proxy(server.dsn())
        dsn = f"{proxy.dsn}?{urlencode({'application_name': APPLICATION})}"
        clients = Clients(dsn, Path(folder), rng)
        faults = Faults(server, proxy, clients.kill_one, rng)
        try:
            for kind in backends:
                clients.hire(kind)
            time.sleep(1.0)
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                kind_of_fault = faults.choose()
                told(kind_of_fault)
                faults.kinds[kind_of_fault]()
                injected[kind_of_fault] += 1
                time.sleep(rng.uniform(0.02, 0.4))
            time.sleep(SETTLE)
            fallen = clients.fallen()
        finally:
            clients.stop()
            proxy.close()
        _idle(server.dsn())
        verdict = check(read(clients.logs), server.dsn())
        verdict.losses += [f"a client fell: {each}" for each in fallen]
    return verdict, injected


def _idle(dsn: str) -> None:
    """Wait until the server has noticed that the clients are gone, and what they had begun is over."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        statement = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
        while connection.execute(statement, [APPLICATION]).fetchone() != (0,):
            time.sleep(0.05)
