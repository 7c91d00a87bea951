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
from .client_processes import FORKING, WORKER, WORKERS_LEASE, Clients
from .clock import ServerClock, library
from .disk import SETTINGS as DISK_SETTINGS
from .disk import Disks
from .faults import (
    SETTINGS,
    ConcurrentFaults,
    FaultOrder,
    Kinds,
    OfServer,
    SilentProxy,
    lasting_of_network,
    of_clients,
    of_clock,
    of_network,
    shrink_notify_queue,
    within_clients,
)
from .worker_tasks import NAME

SETTLE = 5.0
"""Seconds without faults at the end, while clients go on."""
BACKLOG = 90.0
"""Seconds within which workers do another remaining job: longer than a free place stays unnoticed."""
PATIENCE = 60.0
"""Seconds within which the server notices that clients are gone."""
BACKENDS = (("psycopg", "blocking"), ("psycopg", "async"), ("asyncpg", "async"), ("psycopg2", "blocking"))


@dataclass
class Report:
    """The result of a run.

    Attributes:
        verdict: The checker's verdict.
        injected: How often each fault was injected.
        missing: The faults that cannot be injected here, and why.
        history: The logs of the clients.
        found: The content of the tables.
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
    """Run clients and faults, and check the result.

    Args:
        seconds: How long faults are injected.
        seed: The seed that determines the faults and the acts of clients.
        backends: The backends; each gets one client, and one worker of each kind.
        told: A function that is told of each fault.
        settle: Seconds without faults at the end.
        least: The smallest number of faults, however long they take.
        only: Parts of the names of the faults to inject; all faults, if empty.
    """
    rng = random.Random(seed)
    report = Report()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pqcore-chaos-", dir="/tmp")))
        server = stack.enter_context(EmbeddedServer(settings={**SETTINGS, **DISK_SETTINGS}))
        shrink_notify_queue(server, report.missing)
        disks = None
        try:
            disks = stack.enter_context(Disks(server))
        except OSError as exc:
            report.missing |= {f"the disk of the {which} full": str(exc) for which in ("tables", "log")}
        else:
            stack.callback(server.stop)  # before the server's disks are removed
        clock = _clock(server, folder, report)
        tables.make(server.dsn())
        proxy = SilentProxy(server.dsn())
        stack.callback(proxy.close)
        clients = Clients(lambda: named(proxy.dsn), server.dsn, folder, rng, "all" if clock is None else "latest")
        stack.callback(clients.stop)
        of_server = OfServer(server, disks, rng)
        brief = {**of_clients(clients, report.missing), **of_server.brief}
        calm, quick = random.Random(rng.random()), random.Random(rng.random())  # other threads'
        of_connections = {**of_network(proxy, quick), **brief}
        lasting = {
            **brief,
            **within_clients(clients, [mode for _, mode in backends], report.missing),
            **lasting_of_network(proxy, calm),
            **of_server.lasting,
            **({} if clock is None else of_clock(clock, calm)),
        }
        order = FaultOrder()
        concurrent = [
            ConcurrentFaults(_only(lasting, only), order, calm, told),
            ConcurrentFaults(_only(of_connections, only), order, quick, told),
        ]
        kinds = _only({**of_server.kinds, **brief}, only)
        hire(clients, backends)
        until = time.monotonic() + seconds
        for thread in concurrent:
            stack.callback(thread.stop)
            thread.start()
        while time.monotonic() < until or (kinds and report.injected.total() < least):
            if kinds:
                fault = order.choose(kinds, rng)
                told(fault)
                kinds[fault]()
                report.injected[fault] += 1
            time.sleep(rng.uniform(0.02, 0.4))
        for thread in concurrent:
            thread.stop()
            report.injected += thread.injected
        time.sleep(settle)
        judge(report, clients, server.dsn(), proxy, clock=clock)
    return report


def _only(kinds: Kinds, parts: Sequence[str]) -> Kinds:
    """Return the kinds with one of the parts in their names; all kinds, if no part is given."""
    return {name: inject for name, inject in kinds.items() if not parts or any(part in name for part in parts)}


def _clock(server: EmbeddedServer, folder: Path, report: Report) -> ServerClock | None:
    """Return the server's clock, if it can be stepped here."""
    preloaded = library()
    why = "no libfaketime that works was found: pip install libfaketime"
    if preloaded is not None:
        folder.chmod(0o711)
        try:
            return ServerClock(server, folder, preloaded)
        except OSError as exc:
            why = str(exc)
    report.missing |= dict.fromkeys(("the clock ahead, then right", "the clock behind, then right"), why)
    return None


def named(dsn: str) -> str:
    """Return the address with clients' ``application_name``."""
    parts = urlsplit(dsn)
    hosts = parts.netloc.rpartition("@")[2]
    query = urlencode({"application_name": APPLICATION})
    return urlunsplit(
        parts._replace(netloc=f"{tables.ROLE}@{hosts}", query="&".join(filter(None, [parts.query, query])))
    )


def hire(clients: Clients, backends: Iterable[tuple[str, str]]) -> None:
    """Start the clients, and a worker and a forking client for each backend; wait until all work."""
    backends = list(backends)
    for backend, mode in backends:
        clients.hire(backend, mode)
    for backend in sorted({backend for backend, _ in backends}):
        clients.hire(backend, WORKER)
        clients.hire(backend, FORKING)
    until = time.monotonic() + PATIENCE
    while not all(log.exists() for log in clients.logs):
        if time.monotonic() > until:
            raise TimeoutError(f"clients did not begin: {clients.fallen()}")
        time.sleep(0.02)


def judge(report: Report, clients: Clients, dsn: str, *proxies: Proxy, clock: ServerClock | None = None) -> None:
    """Stop the clients, then the workers, and compare their logs with the tables."""
    ticking = tables.ticks_go_on(dsn, PATIENCE / 2)
    fallen = clients.fallen()
    clients.stop(but=WORKER)
    late = time.monotonic()
    if clock is not None:
        clock.pass_all()
        late += clock.LATE
    tables.workers_are_done(dsn, BACKLOG, clients.at_work)
    time.sleep(max(late - time.monotonic(), 0.0))
    fallen += clients.fallen()
    clients.stop()
    for proxy in proxies:
        proxy.cut()
    _idle(dsn)
    report.history, report.found = read(clients.logs), tables.read(dsn)
    report.found.ticking, report.found.missed = ticking, clients.missed
    report.found.unsteady = [] if clock is None else clock.unsteady
    report.found.stuck = tables.drain(dsn, [*QUEUES, NAME], max(LEASE, LATER, WORKERS_LEASE) + 1)
    report.verdict = check(report.history, report.found)
    report.verdict.losses += [f"a client fell: {each}" for each in dict.fromkeys(fallen)]


def _idle(dsn: str) -> None:
    """Wait until the server has noticed that the clients are gone, and their transactions have ended.

    Raises:
        TimeoutError: The server did not notice it within a minute.
    """
    until = time.monotonic() + PATIENCE
    with psycopg.connect(dsn, autocommit=True) as connection:
        statement = "SELECT pid, state, query FROM pg_stat_activity WHERE application_name = %s"
        while left := connection.execute(statement, [APPLICATION]).fetchall():
            if time.monotonic() > until:
                raise TimeoutError(f"the server has not noticed that clients are gone: {left}")
            if time.monotonic() > until - PATIENCE / 2:  # a clock set back delays deadlock checks
                connection.execute(f"SELECT pg_terminate_backend(pid) FROM ({statement}) AS client", [APPLICATION])
            time.sleep(0.05)
