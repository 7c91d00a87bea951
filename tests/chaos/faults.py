"""What fails: clients and their clocks, connections, statements, the server, its limits, its disks."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias

import psycopg
from psycopg import sql

from pqcore import PQ
from pqcore.errors import PQError
from pqcore.testing.proxy import Proxy
from pqcore_backends.embedded import EmbeddedServer

from .client import APPLICATION
from .crew import Clients
from .disk import Disk, Disks
from .tables import ROLE

Kinds: TypeAlias = dict[str, Callable[[], Any]]

SETTINGS = {"max_connections": "60", "deadlock_timeout": "20ms"}
"""Of the server: few connections, so that they can be used up; deadlocks are looked for early."""
SURPRISES = {
    "timezone": "Asia/Kathmandu",
    "datestyle": "SQL, DMY",
    "intervalstyle": "sql_standard",
    "bytea_output": "escape",
    "client_encoding": "LATIN1",
    "client_min_messages": "debug1",
    "enable_indexscan": "off",
    "plan_cache_mode": "force_generic_plan",
}
"""Settings of roles that applications come with."""
RARE = ("server", "the disk of the log")
"""Words of the faults that stop everything, which are chosen less often."""
PATIENCE = 60.0
"""Seconds for which a server that was broken is waited for."""


def of_clients(clients: Clients, modes: Iterable[str], missing: dict[str, str]) -> Kinds:
    """The faults of client processes.

    Args:
        clients: The clients.
        modes: Their modes.
        missing: Is told which of them cannot be injected, and why.
    """
    kinds: Kinds = {"a client killed": clients.kill_one, "a client frozen": clients.freeze_one}
    if "blocking" in modes:
        kinds["a client interrupted"] = clients.interrupt_one
    else:
        missing["a client interrupted"] = "no client here is blocking"
    if clients.faked is None:
        missing["a client's clock stepped"] = "no libfaketime that works was found: pip install libfaketime"
    else:
        kinds["a client's clock stepped"] = clients.step_clock
    return kinds


def of_network(proxy: Proxy, rng: random.Random) -> Kinds:
    """The faults of the network.

    Args:
        proxy: Through which it goes.
        rng: Says for how long.
    """

    def stall() -> None:
        proxy.stall()
        time.sleep(rng.uniform(0.05, 0.5))
        proxy.cut()

    def slow(delay: float, piece: int) -> None:
        proxy.slow(delay, piece)
        time.sleep(rng.uniform(0.2, 1.0))
        proxy.quick()

    def cut(marker: str, *, answered: bool, torn: bool = False) -> None:
        for _ in range(rng.randint(1, 6)):
            proxy.cut_at(marker, answered=answered, torn=torn)
            time.sleep(0.05)

    return {
        "commits cut off before they arrive": lambda: cut("COMMIT", answered=False),
        "commits cut off before their answer": lambda: cut("COMMIT", answered=True),
        "commits cut off within their answer": lambda: cut("COMMIT", answered=True, torn=True),
        "statements cut off before they arrive": lambda: cut("", answered=False),
        "statements cut off before their answer": lambda: cut("", answered=True),
        "statements cut off within their answer": lambda: cut("", answered=True, torn=True),
        "puts cut off before their answer": lambda: cut("INSERT", answered=True),
        "all connections cut": proxy.cut,
        "all connections stalled, then cut": stall,
        "all connections late": lambda: slow(0.02, 2**16),
        "all connections trickling": lambda: slow(0.002, 16),
    }


class OfServer:
    """The faults of one server, its sessions and its disks.

    Args:
        server: The server.
        disks: Those that it writes to, if they are small ones.
        rng: Says for how long.
    """

    def __init__(self, server: EmbeddedServer, disks: Disks | None, rng: random.Random) -> None:
        self._server = server
        self._rng = rng
        self.kinds: Kinds = {
            "backends terminated": lambda: self._signal("pg_terminate_backend", 3),
            "statements cancelled": lambda: self._signal("pg_cancel_backend", 3),
            "the table locked": lambda: self._locked("queue"),
            "deadlocks": self._deadlock,
            "the table rewritten": lambda: self._run("VACUUM FULL queue"),
            "the table altered": lambda: self._run(
                "ALTER TABLE queue ADD COLUMN another int", "ALTER TABLE queue DROP COLUMN another"
            ),
            "the table made again": self._create,
            "statement_timeout": lambda: self._limit("statement_timeout", "5ms", locking=True),
            "lock_timeout": lambda: self._limit("lock_timeout", "5ms", locking=True),
            "idle_in_transaction_session_timeout": lambda: self._limit("idle_in_transaction_session_timeout", "5ms"),
            "all transactions read only": lambda: self._limit("default_transaction_read_only", "on"),
            "all transactions serializable": lambda: self._limit("default_transaction_isolation", "serializable"),
            "settings that surprise": lambda: self._limit(*rng.choice(list(SURPRISES.items()))),
            "max_connections reached": self._crowd,
            "logins refused": lambda: self._deny(f"ALTER ROLE {ROLE} NOLOGIN", f"ALTER ROLE {ROLE} LOGIN"),
            "rights taken away": lambda: self._deny(
                f"REVOKE ALL ON queue, effects FROM {ROLE}",
                f"GRANT SELECT, INSERT, UPDATE, DELETE ON queue, effects TO {ROLE}",
            ),
            "backends frozen": lambda: self._to_backends(signal.SIGSTOP, signal.SIGCONT),
            "a process of the server killed": lambda: self._to_backends(signal.SIGKILL),
            "the server restarted, fast": lambda: server.restart("fast"),
            "the server restarted, immediate": lambda: server.restart("immediate"),
            "the server killed": self._kill,
        }
        release = int(server.version.split(".")[0])
        if release >= 14:
            self.kinds["idle_session_timeout"] = lambda: self._limit("idle_session_timeout", "10ms")
        if release >= 17:
            self.kinds["transaction_timeout"] = lambda: self._limit("transaction_timeout", "10ms")
        if disks is not None:
            self.kinds["the disk of the tables full"] = lambda: self._fill_tables(disks.tables)
            self.kinds["the disk of the log full"] = lambda: self._fill_log(disks.log)

    @contextmanager
    def _session(self) -> Iterator[psycopg.Connection[Any]]:
        """A session of a superuser's; that it breaks is part of it."""
        session = self._connected()
        with suppress(psycopg.Error), session:
            session.execute("SET lock_timeout = '2s'")
            yield session

    def _connected(self) -> psycopg.Connection[Any]:
        """A session, however long the server takes to be there.

        Raises:
            psycopg.OperationalError: It is not in a minute.
        """
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return psycopg.connect(self._server.dsn(), autocommit=True)
            except psycopg.OperationalError:
                if time.monotonic() > until:
                    raise
                self._server.start()  # which does nothing if it is there
                time.sleep(0.05)

    def _run(self, *statements: str) -> None:
        with self._session() as session:
            for statement in statements:
                session.execute(statement)

    def _insist(self, statement: str) -> None:
        """Run what others rest on."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                with self._connected() as session:
                    session.execute(statement)
            except psycopg.Error:
                if time.monotonic() > until:
                    raise
            else:
                return

    def _signal(self, function: str, most: int) -> None:
        statement = (
            f"SELECT {function}(pid) FROM (SELECT pid FROM pg_stat_activity WHERE application_name = %s"
            " ORDER BY random() LIMIT %s) AS some"
        )
        with self._session() as session:
            session.execute(statement, [APPLICATION, most])

    def _to_backends(self, *signals: signal.Signals) -> None:
        """Send signals to some of the server's processes, one after the other."""
        with self._session() as session:
            statement = "SELECT pid FROM pg_stat_activity WHERE application_name = %s ORDER BY random() LIMIT 2"
            backends = [row[0] for row in session.execute(statement, [APPLICATION])]
            for number in signals:
                for backend in backends:
                    with suppress(ProcessLookupError):
                        os.kill(backend, number)
                self._pause()

    def _create(self) -> None:
        with suppress(PQError), PQ(self._server.dsn()) as pq:
            pq.create()

    def _pause(self) -> None:
        time.sleep(self._rng.uniform(0.1, 0.5))

    def _locked(self, table: str) -> None:
        with self._session() as session, session.transaction():
            session.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(sql.Identifier(table)))
            self._pause()

    def _deadlock(self) -> None:
        """Lock what blocks write last, then what they write first: of the two, the client gives way."""
        with self._session() as session:
            session.execute("SET deadlock_timeout = '500ms'")
            for _ in range(5):
                with session.transaction():
                    session.execute("LOCK TABLE effects IN EXCLUSIVE MODE")
                    time.sleep(0.03)
                    session.execute("LOCK TABLE queue IN EXCLUSIVE MODE")

    def _limit(self, setting: str, value: str, *, locking: bool = False) -> None:
        """Have a setting be in force for clients that connect from now on, and that all do."""
        try:
            self._run(f"ALTER ROLE {ROLE} SET {setting} = '{value}'")
            self._signal("pg_terminate_backend", 1000)
            self._pause()
            if locking:
                self._locked("queue")
            self._pause()
        finally:
            self._insist(f"ALTER ROLE {ROLE} RESET {setting}")
            self._signal("pg_terminate_backend", 1000)

    def _deny(self, deny: str, allow: str) -> None:
        try:
            self._run(deny)
            self._signal("pg_terminate_backend", 3)
            self._pause()
        finally:
            self._insist(allow)

    def _crowd(self) -> None:
        """Take all connections that there are, and cut clients off from theirs, in turn."""
        crowd: list[psycopg.Connection[Any]] = []
        try:
            until = time.monotonic() + self._rng.uniform(0.5, 1.0)
            dsn = self._server.dsn().replace("postgres@", f"{ROLE}@", 1)
            while time.monotonic() < until:
                try:
                    crowd.append(psycopg.connect(dsn))
                except psycopg.OperationalError:  # no more
                    self._signal("pg_terminate_backend", 3)
                    time.sleep(0.01)
        finally:
            for connection in crowd:
                connection.close()

    def _fill_tables(self, disk: Disk) -> None:
        """Leave no room for the tables to grow: statements fail, and the server goes on."""
        disk.fill()
        try:
            self._pause()
            self._pause()
        finally:
            disk.empty()

    def _fill_log(self, disk: Disk) -> None:
        """Leave no room for what is to be written ahead: the server stops, and cannot come back until there is."""
        disk.fill()
        try:
            with self._session() as session:
                for _ in range(30):  # past the segments that are there already
                    session.execute("SELECT pg_logical_emit_message(false, 'chaos', 'x'), pg_switch_wal()")
            self._pause()
        finally:
            disk.empty()
            self._insist("SELECT 1")

    def _kill(self) -> None:
        self._server.kill()
        self._server.start()


def chosen(kinds: Kinds, rng: random.Random) -> Iterator[str]:
    """Kinds of faults, without end: each once, then those that stop everything more rarely than others."""
    names = list(kinds)
    yield from rng.sample(names, len(names))
    while True:
        yield rng.choices(names, [1 if any(word in name for word in RARE) else 4 for name in names])[0]
