"""A run: a server, a proxy, clients and workers of all backends, faults, and the verdict."""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode, urlsplit, urlunsplit

import psycopg

from pqcore.testing.proxy import Proxy
from pqcore_backends.embedded import EmbeddedServer

from . import tables
from .checker import Entry, Verdict, check, read
from .client import APPLICATION, LATER, LEASE, QUEUES
from .crew import WORKER, WORKERS_LEASE, Clients
from .disk import SETTINGS as DISK_SETTINGS
from .disk import Disks
from .faults import SETTINGS, OfServer, chosen, of_clients, of_network
from .work import NAME

SETTLE = 5.0
"""Seconds without faults at the end, in which clients go on."""
PATIENCE = 60.0
"""Seconds in which the server has noticed that clients are gone."""
BACKENDS = (("psycopg", "blocking"), ("psycopg", "async"), ("asyncpg", "async"), ("psycopg2", "blocking"))


@dataclass
class Report:
    """What came of a run.

    Attributes:
        verdict: What the checker found.
        injected: How often each fault was injected.
        missing: The faults that cannot be injected here, and why.
        history: What clients were told.
        found: What is in the tables.
    """

    verdict: Verdict = field(default_factory=Verdict)
    injected: Counter[str] = field(default_factory=Counter)
    missing: dict[str, str] = field(default_factory=dict)
    history: list[Entry] = field(default_factory=list)
    found: tables.Tables | None = None


def run(
    seconds: float,
    seed: int,
    backends: Sequence[tuple[str, str]] = BACKENDS,
    told: Callable[[str], None] = print,
    *,
    settle: float = SETTLE,
    least: int = 0,
    only: Sequence[str] = (),
) -> Report:
    """Run, and check.

    Args:
        seconds: How long faults are injected.
        seed: Which, and what clients do.
        backends: One client of each, and one worker of each kind.
        told: Hears of each fault.
        settle: Seconds without faults at the end.
        least: How many faults are injected, however long it takes.
        only: Parts of the names of the faults that are injected; all of them, if empty.
    """
    rng = random.Random(seed)
    report = Report()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(EmbeddedServer(settings={**SETTINGS, **DISK_SETTINGS}))
        disks = None
        try:
            disks = stack.enter_context(Disks(server))
        except OSError as exc:
            report.missing |= {f"the disk of the {which} full": str(exc) for which in ("tables", "log")}
        else:
            stack.callback(server.stop)  # before its disks are taken away
        tables.make(server.dsn())
        proxy = Proxy(server.dsn())
        stack.callback(proxy.close)
        clients = Clients(lambda: named(proxy.dsn), folder, rng)
        stack.callback(clients.stop)
        kinds = {
            **of_network(proxy, rng),
            **of_clients(clients, [mode for _, mode in backends], report.missing),
            **OfServer(server, disks, rng).kinds,
        }
        kinds = {name: inject for name, inject in kinds.items() if not only or any(part in name for part in only)}
        hire(clients, backends)
        faults = chosen(kinds, rng)
        until = time.monotonic() + seconds
        while time.monotonic() < until or report.injected.total() < least:
            fault = next(faults)
            told(fault)
            kinds[fault]()
            report.injected[fault] += 1
            time.sleep(rng.uniform(0.02, 0.4))
        time.sleep(settle)
        judge(report, clients, server.dsn(), proxy)
    return report


def named(dsn: str) -> str:
    """The address of clients, who say that they are such."""
    parts = urlsplit(dsn)
    hosts = parts.netloc.rpartition("@")[2]
    query = urlencode({"application_name": APPLICATION})
    return urlunsplit(
        parts._replace(netloc=f"{tables.ROLE}@{hosts}", query="&".join(filter(None, [parts.query, query])))
    )


def hire(clients: Clients, backends: Iterable[tuple[str, str]]) -> None:
    """Start a client of each kind, and a worker of each backend, and wait until they are at work."""
    backends = list(backends)
    for backend, mode in backends:
        clients.hire(backend, mode)
    for backend in sorted({backend for backend, _ in backends}):
        clients.hire(backend, WORKER)
    until = time.monotonic() + PATIENCE
    while not all(log.exists() for log in clients.logs):
        if time.monotonic() > until:
            raise TimeoutError(f"clients did not begin: {clients.fallen()}")
        time.sleep(0.02)


def judge(report: Report, clients: Clients, dsn: str, *proxies: Proxy) -> None:
    """Stop the clients, and hold what they were told against what is there."""
    fallen = clients.fallen()
    clients.stop()
    for proxy in proxies:
        proxy.cut()
    _idle(dsn)
    report.history, report.found = read(clients.logs), tables.read(dsn)
    report.found.stuck = tables.drain(dsn, [*QUEUES, NAME], max(LEASE, LATER, WORKERS_LEASE) + 1)
    report.verdict = check(report.history, report.found)
    report.verdict.losses += [f"a client fell: {each}" for each in fallen]


def _idle(dsn: str) -> None:
    """Wait until the server has noticed that the clients are gone, and what they had begun is over.

    Raises:
        TimeoutError: It has not in a minute.
    """
    until = time.monotonic() + PATIENCE
    with psycopg.connect(dsn, autocommit=True) as connection:
        statement = "SELECT pid, state, query FROM pg_stat_activity WHERE application_name = %s"
        while left := connection.execute(statement, [APPLICATION]).fetchall():
            if time.monotonic() > until:
                raise TimeoutError(f"the server has not noticed that clients are gone: {left}")
            time.sleep(0.05)
