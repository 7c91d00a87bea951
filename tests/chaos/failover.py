"""A primary with a synchronous standby: again and again, the primary dies, and the standby takes its place."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg

from pqcore.testing.proxy import Proxy
from pqcore_backends.embedded import EmbeddedServer

from . import tables
from .client_processes import Clients
from .faults import FaultOrder, OfServer, of_clients, of_network, within_clients
from .run import BACKENDS, SETTLE, Report, hire, judge, named

PATIENCE = 60.0
"""Seconds to wait for a standby."""
SETTINGS = {"synchronous_standby_names": "*", "deadlock_timeout": "20ms"}
"""The settings of both servers: a promoted server answers no commit before it has its own standby."""
FAILOVER = "the primary killed, its standby promoted"


class Pair:
    """A primary and its standby, each behind a proxy, and both behind one that leads to the primary.

    Args:
        folder: The folder of the data, accessible to the servers' user.

    Attributes:
        primary: The primary.
        proxies: The proxy that leads to the present primary, and the proxies of the two servers.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0
        self._servers = ExitStack()
        self._first: EmbeddedServer | None = None
        self.primary = self._started(self._place())
        self.proxies = [Proxy(self.primary.dsn()) for _ in range(3)]
        self._of_primary, self._of_standby = self.proxies[1:]
        self._follow()
        tables.make(self.primary.dsn())  # waits for the standby, as all commits do

    def addresses(self) -> list[str]:
        """Return the addresses for clients: one that leads to the primary, and one that names both servers."""
        one, first, second = (urlsplit(proxy.dsn) for proxy in self.proxies)
        hosts = ",".join(parts.netloc.rpartition("@")[2] for parts in (first, second))
        both = first._replace(netloc=f"{tables.ROLE}@{hosts}", query="target_session_attrs=read-write")
        return [named(urlunsplit(one)), named(urlunsplit(both))]

    def fail(self) -> None:
        """Kill the primary, promote the standby, and make a new standby of the new primary."""
        self.primary.kill()
        if self.primary is not self._first:
            self.primary.stop()
        shutil.rmtree(self.primary.data_dir)
        self.primary = self._standby
        _wait_for(self.primary.dsn(), "SELECT pg_promote()")
        _wait_for(self.primary.dsn(), "SELECT NOT pg_is_in_recovery()")
        self.proxies[0].point(self.primary.dsn())
        self._of_primary, self._of_standby = self._of_standby, self._of_primary
        self._follow()

    def close(self) -> None:
        """Stop both servers and the proxies."""
        for proxy in self.proxies:
            proxy.close()
        self._servers.close()

    def _place(self) -> Path:
        self._number += 1
        return self._folder / f"data-{self._number}"

    def _started(self, place: Path, **settings: str) -> EmbeddedServer:
        programs = None if self._first is None else self._first.programs  # so that the data is copied only once
        server = EmbeddedServer(data_dir=place, settings={**SETTINGS, **settings}, binaries=programs)
        self._servers.enter_context(server)
        self._first = self._first or server
        return server

    def _follow(self) -> None:
        """Copy the primary, and make the copy its synchronous standby."""
        place, link = self._place(), self.primary.dsn()
        command = [
            str(self.primary.programs / "pg_basebackup"),
            "-D",
            str(place),
            "-d",
            link,
            "-c",
            "fast",
            "--no-sync",
        ]
        environment = {**os.environ, "LD_LIBRARY_PATH": str(self.primary.programs.parent / "lib")}
        subprocess.run(command, check=True, capture_output=True, env=environment, timeout=PATIENCE)
        (place / "standby.signal").touch()
        self._standby = self._started(place, primary_conninfo=link)
        self._of_standby.point(self._standby.dsn())
        _wait_for(link, "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE sync_state = 'sync')")


def run(
    seconds: float,
    seed: int,
    backends: Sequence[tuple[str, str]] = BACKENDS,
    told: Callable[[str], None] = print,
    *,
    settle: float = SETTLE,
    most: int = 10**6,
) -> Report:
    """Run a failover test, and check that everything acknowledged survives each failover.

    No statement is cancelled here: if a commit is cancelled while it waits for the standby, the server reports success,
    with a warning, although the standby does not have it.

    Args:
        seconds: How long faults are injected.
        seed: The seed that determines the faults and the acts of clients.
        backends: The backends; each gets one client, and one worker of each kind.
        told: A function that is told of each fault.
        settle: Seconds without faults at the end.
        most: The largest number of failures of the primary.
    """
    rng = random.Random(seed)
    report = Report()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pqcore-pair-", dir="/tmp")))
        folder.chmod(0o711)
        pair = Pair(folder)
        stack.callback(pair.close)
        addresses = cycle(pair.addresses())
        clients = Clients(lambda: next(addresses), lambda: pair.primary.dsn(), folder, rng, "all")
        stack.callback(clients.stop)
        kinds = of_clients(clients, report.missing)
        kinds |= within_clients(clients, [mode for _, mode in backends], report.missing)
        for proxy in pair.proxies:
            kinds |= {f"{name} ({proxy.dsn[-5:]})": do for name, do in of_network(proxy, rng).items()}
        hire(clients, backends)
        kinds["backends terminated"] = lambda: OfServer(pair.primary, None, rng).brief["backends terminated"]()
        order = FaultOrder()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            pause = time.monotonic() + rng.uniform(0.5, 2.0)
            while time.monotonic() < pause:
                fault = order.choose(kinds, rng)
                told(fault)
                kinds[fault]()
                report.injected[fault.partition(" (")[0]] += 1
                time.sleep(rng.uniform(0.02, 0.4))
            if report.injected[FAILOVER] < most:
                told(FAILOVER)
                pair.fail()
                report.injected[FAILOVER] += 1
        time.sleep(settle)
        judge(report, clients, pair.primary.dsn(), *pair.proxies)
    return report


def _wait_for(dsn: str, question: str) -> None:
    until = time.monotonic() + PATIENCE
    with psycopg.connect(dsn, autocommit=True) as connection:
        while connection.execute(question).fetchone() != (True,):
            if time.monotonic() > until:
                raise TimeoutError(f"not so in {PATIENCE:.0f} s: {question}")
            time.sleep(0.02)
