"""The faults: of clients and their clocks, connections, statements, the server, its limits, its disks."""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal, TypeAlias

import psycopg
from psycopg import sql

from pqcore import PQ
from pqcore.errors import EmbeddedServerError, PQError
from pqcore.testing.proxy import Proxy, _Link
from pqcore_backends.embedded import EmbeddedServer

from .client import APPLICATION
from .client_processes import Clients
from .clock import ServerClock
from .disk import Disk, Disks
from .tables import ROLE

Kinds: TypeAlias = dict[str, Callable[[], Any]]

SETTINGS = {"max_connections": "90", "deadlock_timeout": "20ms", "superuser_reserved_connections": "6"}
"""The server's settings: few connections, so that they can be used up, and early checks for deadlocks."""
RECOVERING = "not yet accepting connections"
"""The message of a server that is recovering from a crash."""
NOTIFY_PAGES, NOTIFY_RELEASE = 64, 17
"""The smallest NOTIFY queue, and the first release where it can be smaller than 8 GB."""
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
"""Settings that applications' roles may have."""
LEVELS = ("repeatable read", "serializable")
"""The levels to which the default isolation is raised."""
NOTIFICATIONS = 500
"""The number of notifications of 7,000 bytes that fill the NOTIFY queue; it holds fewer."""
UNHEARD = 20.0
"""Seconds until a client finds a silent connection closed."""
LONGEST = 15.0
"""Seconds after which a fault's session is cancelled: a server whose clock was set back forgets its own timeouts."""
PATIENCE = 60.0
"""Seconds to wait for a broken server."""


def shrink_notify_queue(server: EmbeddedServer, missing: dict[str, str]) -> None:
    """Make a server's NOTIFY queue small; the server is restarted.

    Args:
        server: The server.
        missing: A function that is told if this is not possible.
    """
    if int(server.version.split(".")[0]) < NOTIFY_RELEASE:
        missing["the NOTIFY queue full"] = f"it holds 8 GB before PostgreSQL {NOTIFY_RELEASE}"
        return
    with psycopg.connect(server.dsn(), autocommit=True) as session:
        session.execute(f"ALTER SYSTEM SET max_notify_queue_pages = {NOTIFY_PAGES}")
    server.restart()


def of_clients(clients: Clients, missing: dict[str, str]) -> Kinds:
    """Return the faults of client processes.

    Args:
        clients: The clients.
        missing: A function that is told which faults cannot be injected, and why.
    """
    kinds: Kinds = {"a client killed": clients.kill_one, "a client frozen": clients.freeze_one}
    if clients.faked is None:
        missing["a client's clock stepped"] = "no libfaketime that works was found: pip install libfaketime"
    else:
        kinds["a client's clock stepped"] = clients.step_clock
    return kinds


def within_clients(clients: Clients, modes: Iterable[str], missing: dict[str, str]) -> Kinds:
    """Return the faults within client processes, which can overlap with any other fault.

    Args:
        clients: The clients.
        modes: The modes of the clients.
        missing: A function that is told which faults cannot be injected, and why.
    """
    kinds: Kinds = {"a client forked in C": clients.fork_one, "jobs raise KeyboardInterrupt": clients.interrupt_jobs}
    interrupts: Kinds = {
        "a client interrupted": lambda: clients.interrupt_one(signal.SIGINT),
        "a client's time limit": lambda: clients.interrupt_one(signal.SIGALRM),
    }
    if "blocking" in modes:
        return kinds | interrupts
    missing |= dict.fromkeys(interrupts, "no client here is blocking")
    return kinds


class SilentProxy(Proxy):
    """A proxy whose connections can fall silent one by one, while others go on."""

    def silence(self, share: float, rng: random.Random, pause: float) -> None:
        """Drop all data of some connections, in both directions; the server notices before the client does.

        Args:
            share: The share of the connections, which may include listening ones.
            rng: The random generator that chooses connections.
            pause: Seconds until the server finds such a connection closed. The client notices
                after `UNHEARD` seconds, unless it gave up before.
        """
        with self._lock:
            links = [link for link in self._links if rng.random() < share]
            for link in links:
                link.stall()
        time.sleep(pause)
        for link in links:
            with suppress(OSError):
                link._ends[1].shutdown(socket.SHUT_RDWR)
        timer = threading.Timer(UNHEARD, _cut, [links])
        timer.daemon = True
        timer.start()


def _cancel(session: psycopg.Connection[Any]) -> None:
    with suppress(psycopg.Error):
        session.cancel()


def _cut(links: Iterable[_Link]) -> None:
    for link in links:
        link.cut()


def lasting_of_network(proxy: SilentProxy, rng: random.Random) -> Kinds:
    """Return the faults of the network that last, which can overlap with any other fault.

    Args:
        proxy: The proxy of all clients.
        rng: The random generator that determines their length.
    """
    return {"connections silent": lambda: proxy.silence(rng.uniform(0.1, 0.4), rng, rng.uniform(0.5, 2.5))}


def of_network(proxy: Proxy, rng: random.Random) -> Kinds:
    """Return the faults of the network.

    Args:
        proxy: The proxy of all clients.
        rng: The random generator that determines their length.
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
        disks: The server's disks, if they are small ones.
        rng: The random generator that determines the length of faults.

    Attributes:
        kinds: The faults that are injected one at a time.
        lasting: The faults that last, and can overlap with any other fault.
        brief: The short faults that can overlap with any other fault.
    """

    def __init__(self, server: EmbeddedServer, disks: Disks | None, rng: random.Random) -> None:
        self._server = server
        self._rng = rng
        self._starting = threading.Lock()
        self.lasting: Kinds = {
            "the default isolation raised": self._isolate,
            "the default isolation raised for new sessions": self._isolate_new,
        }
        self.brief: Kinds = {
            "backends terminated": lambda: self._signal("pg_terminate_backend", 3),
            "statements cancelled": lambda: self._signal("pg_cancel_backend", 3),
            "the table rewritten": lambda: self._run("VACUUM FULL queue"),
            "the table made again": self._create,
        }
        self.kinds: Kinds = {
            "the table locked": lambda: self._locked("queue"),
            "deadlocks": self._deadlock,
            "the table altered": lambda: self._run(
                "ALTER TABLE queue ADD COLUMN another int", "ALTER TABLE queue DROP COLUMN another"
            ),
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
            "the server restarted, fast": lambda: self._restart("fast"),
            "the server restarted, immediate": lambda: self._restart("immediate"),
            "the server killed": self._kill,
        }
        release = int(server.version.split(".")[0])
        if release >= 14:
            self.kinds["idle_session_timeout"] = lambda: self._limit("idle_session_timeout", "10ms")
        if release >= 17:
            self.kinds["transaction_timeout"] = lambda: self._limit("transaction_timeout", "10ms")
        if release >= NOTIFY_RELEASE:
            self.lasting["the NOTIFY queue full"] = self._fill_notify_queue
        if disks is not None:
            self.kinds["the disk of the tables full"] = lambda: self._fill_tables(disks.tables)
            self.kinds["the disk of the log full"] = lambda: self._fill_log(disks.log)

    @contextmanager
    def _session(self) -> Iterator[psycopg.Connection[Any]]:
        """Open a session of a superuser for a block; if the fault breaks the session, that is no error."""
        session = self._connected(options="-c lock_timeout=2s")
        limit = threading.Timer(LONGEST, _cancel, [session])
        limit.daemon = True
        limit.start()
        try:
            with suppress(psycopg.Error), session:
                yield session
        finally:
            limit.cancel()

    def _connected(self, options: str = "") -> psycopg.Connection[Any]:
        """Return a session, as soon as the server accepts one.

        Args:
            options: Settings of the session, in libpq's form.

        Raises:
            psycopg.OperationalError: The server accepted none within a minute.
        """
        until, hung = time.monotonic() + PATIENCE, time.monotonic() + PATIENCE / 3
        while True:
            try:
                return psycopg.connect(self._server.dsn(), autocommit=True, options=options)
            except psycopg.OperationalError as exc:
                if time.monotonic() > until:
                    raise
                with self._starting:
                    if time.monotonic() > hung and RECOVERING in str(exc):
                        self._server.kill()  # recovery can hang as a session does: see `ServerClock`
                        hung = until
                    self._server.start()  # does nothing if the server runs
                time.sleep(0.05)

    def _run(self, *statements: str) -> None:
        with self._session() as session:
            for statement in statements:
                session.execute(statement)

    def _insist(self, statement: str) -> None:
        """Run a statement that later steps depend on, and repeat it until it succeeds."""
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
        """Lock the rows that blocks write last, then those that they write first: the client loses the deadlock."""
        with self._session() as session:
            session.execute("SET deadlock_timeout = '500ms'")
            for _ in range(5):
                with session.transaction():
                    session.execute("LOCK TABLE effects IN EXCLUSIVE MODE")
                    time.sleep(0.03)
                    session.execute("LOCK TABLE queue IN EXCLUSIVE MODE")

    def _limit(self, setting: str, value: str, *, locking: bool = False) -> None:
        """Change a setting for new connections, and make all clients connect again."""
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
        """Alternately take all free connections, and end those of clients."""
        crowd: list[psycopg.Connection[Any]] = []
        try:
            until = time.monotonic() + self._rng.uniform(0.5, 1.0)
            dsn = self._server.dsn().replace("postgres@", f"{ROLE}@", 1)
            while time.monotonic() < until:
                try:
                    crowd.append(psycopg.connect(dsn))
                except psycopg.OperationalError:  # no connection is free
                    self._signal("pg_terminate_backend", 3)
                    time.sleep(0.01)
        finally:
            for connection in crowd:
                connection.close()

    def _fill_tables(self, disk: Disk) -> None:
        """Fill the disk of the tables: statements fail, and the server goes on."""
        disk.fill()
        try:
            self._pause()
            self._pause()
        finally:
            disk.empty()

    def _fill_log(self, disk: Disk) -> None:
        """Fill the disk of the write-ahead log: the server stops, and cannot start until there is room.

        Nothing starts the server meanwhile: a failed start would remove its data.
        """
        try:
            with self._session() as session, self._starting:
                try:
                    disk.fill()
                    with suppress(psycopg.Error):
                        for _ in range(30):  # more than the existing segments hold
                            session.execute("SELECT pg_logical_emit_message(false, 'chaos', 'x'), pg_switch_wal()")
                    self._pause()
                finally:
                    disk.empty()
        finally:
            self._insist("SELECT 1")

    def _restart(self, mode: Literal["fast", "immediate"]) -> None:
        with self._starting:
            try:
                self._server.restart(mode)
            except EmbeddedServerError:  # a session hangs: see `ServerClock`
                self._server.kill()
                self._server.start()

    def _kill(self) -> None:
        with self._starting:
            self._server.kill()
            self._server.start()

    # Faults that last

    def _last(self) -> None:
        time.sleep(self._rng.uniform(1.0, 2.0))

    def _isolate(self) -> None:
        """Raise the default isolation of all sessions, including open ones."""
        level = self._rng.choice(LEVELS)
        try:
            self._run(f"ALTER SYSTEM SET default_transaction_isolation = '{level}'", "SELECT pg_reload_conf()")
            self._last()
        finally:
            self._insist("ALTER SYSTEM RESET default_transaction_isolation")
            self._insist("SELECT pg_reload_conf()")

    def _isolate_new(self) -> None:
        """Raise the default isolation of new sessions, and make clients open some."""
        level = self._rng.choice(LEVELS)
        try:
            self._run(f"ALTER DATABASE postgres SET default_transaction_isolation = '{level}'")
            self._signal("pg_terminate_backend", 20)
            self._last()
        finally:
            self._insist("ALTER DATABASE postgres RESET default_transaction_isolation")
            self._signal("pg_terminate_backend", 1000)

    def _fill_notify_queue(self) -> None:
        """Fill the NOTIFY queue, while a listener's open transaction holds its tail."""
        tail = self._connected()
        try:
            with suppress(psycopg.Error):
                tail.execute("LISTEN chaos_tail")
                tail.execute("BEGIN")
                tail.execute("SELECT 1")
                with self._session() as session:
                    for number in range(NOTIFICATIONS):
                        session.execute("SELECT pg_notify('chaos_tail', repeat('x', 7000) || %s)", [number])
                self._last()
        finally:
            tail.close()
            self._insist("SELECT pg_notification_queue_usage()")  # this moves the tail


def of_clock(clock: ServerClock, rng: random.Random) -> Kinds:
    """Return the faults of the server's clock, which last.

    Args:
        clock: The clock.
        rng: The random generator that determines their length.
    """

    def step(sign: str) -> None:
        try:
            clock.step(sign)
            time.sleep(clock.LATE + rng.uniform(0.5, 2.0))
        finally:
            clock.right()

    return {"the clock ahead, then right": lambda: step("+"), "the clock behind, then right": lambda: step("-")}


class FaultOrder:
    """The order in which all threads of a run inject faults: the fault that was injected least is the next."""

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()
        self._lock = threading.Lock()

    def choose(self, kinds: Iterable[str], rng: random.Random) -> str:
        """Return the name of the next fault.

        Args:
            kinds: The names to choose from.
            rng: The random generator that chooses among faults that were injected equally often.
        """
        with self._lock:
            least = min(self._begun[name] for name in kinds)
            fault = rng.choice([name for name in kinds if self._begun[name] == least])
            self._begun[fault] += 1
            return fault


class ConcurrentFaults:
    """A thread that injects faults one after the other, while other threads inject faults.

    Args:
        kinds: The faults.
        order: The object that chooses the next fault.
        rng: The random generator for the choice and the pauses.
        told: A function that is told of each fault.
    """

    def __init__(self, kinds: Kinds, order: FaultOrder, rng: random.Random, told: Callable[[str], None]) -> None:
        self._kinds = kinds
        self._order = order
        self._rng = rng
        self._told = told
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="concurrent faults", daemon=True)
        self._failed: list[BaseException] = []
        self.injected: Counter[str] = Counter()

    def start(self) -> None:
        """Start the thread."""
        if self._kinds:
            self._thread.start()

    def stop(self) -> None:
        """Wait for the end of the present fault; raise the exception of a fault, if there was one."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self._failed:
            raise self._failed.pop()

    def _run(self) -> None:
        try:
            while not self._over.wait(self._rng.uniform(0.1, 0.5)):
                fault = self._order.choose(self._kinds, self._rng)
                self._told(fault)
                self._kinds[fault]()
                self.injected[fault] += 1
        except BaseException as exc:
            self._failed.append(exc)
