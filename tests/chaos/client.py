"""A client process: it puts and takes in all ways, and writes down what it was told of each, before and after."""

from __future__ import annotations

import json
import logging
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pqcore import PQ, AsyncPQ
from pqcore.errors import OutcomeUnknown
from pqcore.testing.portal import Blocking, Portal

QUEUES = ("transaction", "lease", "pop")
LEASE = 1.0
"""Seconds of a lease: some are held for longer."""
APPLICATION = "pqcore-chaos"
EFFECTS = "CREATE TABLE effects (token text, job_id bigint)"
"""Where a job's effect is written, in the job's transaction."""


class Client:
    """One process's.

    Args:
        backend: The backend's name.
        mode: ``blocking`` or ``async``.
        dsn: The server, through whatever fails.
        log: Where it is written what happened, a JSON object a line.
        seed: What is done.
    """

    def __init__(self, backend: str, mode: str, dsn: str, log: Path, seed: int) -> None:
        self._log = log.open("a", buffering=1)
        self._rng = random.Random(seed)
        self._name = f"{os.getpid()}-{seed}"
        self._number = 0
        self._portal = Portal() if mode == "async" else None
        options: dict[str, Any] = {"backend": backend, "timeout": 0.05, "pool_timeout": 5}
        made = AsyncPQ(dsn, **options) if self._portal else PQ(dsn, **options)
        self._pq: Any = made if self._portal is None else Blocking(made, self._portal)

    def run(self) -> None:
        """Go on until killed."""
        acts: list[Callable[[], None]] = [self.put, self.put_block, self.take, self.lease, self.pop]
        while True:
            self._rng.choices(acts, [3, 2, 3, 3, 2])[0]()

    def _tell(self, act: str, outcome: str, **facts: Any) -> None:
        self._log.write(json.dumps({"act": act, "outcome": outcome, "client": self._name, **facts}) + "\n")

    def _try(
        self, act: str, do: Callable[[], Any], told: Callable[[Any], dict[str, Any]] | None = None, **facts: Any
    ) -> Any:
        """Do something, and write down how it ended, as it was told."""
        try:
            found = do()
        except OutcomeUnknown as exc:
            self._tell(act, "unknown", why=str(exc)[:200], **facts)
        except Exception as exc:  # PQError, or what a driver's cursor raises within a block
            self._tell(act, "failed", why=f"{type(exc).__name__}: {exc}"[:200], **facts)
            time.sleep(0.02)
        else:
            self._tell(act, "ok", **facts, **({} if told is None else told(found)))
            return found
        return None

    def _token(self) -> str:
        self._number += 1
        return f"{self._name}-{self._number}"

    def put(self) -> None:
        queue, token = self._rng.choice(QUEUES), self._token()
        self._tell("put", "begun", tokens=[token])
        self._try("put", lambda: self._pq[queue].put(token), tokens=[token])

    def put_block(self) -> None:
        tokens = [self._token(), self._token()]

        def block() -> None:
            with self._pq[QUEUES[0]]:
                for queue, token in zip(QUEUES, tokens, strict=False):
                    self._pq[queue].put(token)

        self._tell("put", "begun", tokens=tokens)
        self._try("put", block, tokens=tokens)

    def take(self) -> None:
        """Take a job, and write its effect, in one transaction."""
        taken: list[str] = []

        def block() -> None:
            with self._pq["transaction"] as cursor:
                job = self._pq["transaction"].get()
                if job is not None:
                    taken.append(job.data)
                    self._effect(cursor, job.data, job.id)
                    self._tell("take", "begun", tokens=taken)

        self._try("take", block, tokens=taken)

    def _effect(self, cursor: Any, token: str, job_id: int) -> None:
        if self._portal is None:
            cursor.execute("INSERT INTO effects VALUES (%s, %s)", [token, job_id])
        elif hasattr(cursor, "fetchrow"):
            self._portal.call(lambda: cursor.execute("INSERT INTO effects VALUES ($1, $2)", token, job_id))
        else:
            self._portal.call(lambda: cursor.execute("INSERT INTO effects VALUES (%s, %s)", [token, job_id]))

    def pop(self) -> None:
        self._tell("pop", "begun")
        self._try("pop", lambda: self._pq["pop"].get(), lambda job: {"tokens": [] if job is None else [job.data]})

    def lease(self) -> None:
        queue = self._pq["lease"]
        job = self._try("lease", lambda: queue.lease(LEASE, wait=0.05))
        if job is None:
            return
        facts = {"tokens": [job.data], "attempt": job.attempts}
        self._tell("leased", "ok", **facts)
        time.sleep(self._rng.choice([0.0, 0.0, 0.01, 1.5 * LEASE]))
        self._tell("ack", "begun", **facts)
        lost = self._try("acked", lambda: queue.ack_many([job]), **facts)
        if lost is not None:
            self._tell("ack", "lost" if lost else "ok", **facts)


if __name__ == "__main__":
    backend, mode, dsn, log, seed = sys.argv[1:]
    logging.getLogger("pqcore").setLevel(logging.CRITICAL)  # it warns of what is done to it
    Client(backend, mode, dsn, Path(log), int(seed)).run()
