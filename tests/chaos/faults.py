"""What fails: clients, connections, statements, the server."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg

from pqcore.testing.proxy import Proxy
from pqcore_backends.embedded import EmbeddedServer

from .client import APPLICATION


class Faults:
    """Injects them.

    Args:
        server: The server.
        proxy: What clients connect through.
        kill_client: Kills one, with SIGKILL, and has another take its place.
        rng: Chooses.
    """

    def __init__(
        self, server: EmbeddedServer, proxy: Proxy, kill_client: Callable[[], None], rng: random.Random
    ) -> None:
        self._server = server
        self._proxy = proxy
        self._rng = rng
        self.kinds: dict[str, Callable[[], Any]] = {
            "a client killed": kill_client,
            "a commit cut off before it arrives": lambda: proxy.cut_at("COMMIT", answered=False),
            "a commit cut off before its answer": lambda: proxy.cut_at("COMMIT", answered=True),
            "a statement cut off before it arrives": lambda: proxy.cut_at("", answered=False),
            "a statement cut off before its answer": lambda: proxy.cut_at("", answered=True),
            "all connections cut": proxy.cut,
            "all connections stalled, then cut": self._stall,
            "backends terminated": lambda: self._signal("pg_terminate_backend"),
            "statements cancelled": lambda: self._signal("pg_cancel_backend"),
            "the table locked": self._lock,
            "the server restarted, fast": lambda: server.restart("fast"),
            "the server restarted, immediate": lambda: server.restart("immediate"),
            "the server killed": self._kill,
        }

    def choose(self) -> str:
        """A kind; those that stop everything are rarer."""
        names = list(self.kinds)
        return self._rng.choices(names, [1 if "the server" in name else 6 for name in names])[0]

    def _stall(self) -> None:
        self._proxy.stall()
        time.sleep(self._rng.uniform(0.05, 0.5))
        self._proxy.cut()

    def _signal(self, function: str) -> None:
        statement = (
            f"SELECT {function}(pid) FROM (SELECT pid FROM pg_stat_activity WHERE application_name = %s"
            " ORDER BY random() LIMIT 3) AS some"
        )
        with suppress(psycopg.Error), psycopg.connect(self._server.dsn(), autocommit=True) as connection:
            connection.execute(statement, [APPLICATION])

    def _lock(self) -> None:
        with suppress(psycopg.Error), psycopg.connect(self._server.dsn()) as connection:
            connection.execute("LOCK TABLE queue IN ACCESS EXCLUSIVE MODE")
            time.sleep(self._rng.uniform(0.05, 0.5))

    def _kill(self) -> None:
        self._server.kill()
        self._server.start()
