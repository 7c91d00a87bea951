"""A client process: it puts and takes in all ways, and writes down what it was told of each, before and after."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from pqcore import Dedup
from pqcore.errors import LeaseLost, OutcomeUnknown, PQError
from pqcore.tasks import PQ, AsyncPQ
from pqcore.testing.portal import Blocking, Portal

from .work import NAME, OPTIONS, work

T = TypeVar("T")

QUEUES = ("transaction", "lease", "pop")
LEASE = 0.7
"""Seconds of a lease: some are held for longer."""
LATER = 1.5
"""Seconds: jobs are scheduled for so long at most."""
THREADS = 3
"""Of each process."""
KEYS = 5
"""Dedup keys that clients share."""
APPLICATION = "pqcore-chaos"


class ApplicationError(Exception):
    """What a driver raised in a statement of the application's own."""


class Log:
    """Where a process writes down what happened, a JSON object a line.

    Args:
        path: The file, made now: from now on the process may be interrupted.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)
        self._lock = threading.Lock()

    def write(self, entry: dict[str, Any]) -> None:
        with self._lock:
            self._file.write(json.dumps(entry) + "\n")


class Client:
    """One thread's; those of a process share its connections.

    Args:
        pq: The queues, which look blocking.
        portal: What makes them look so, if they are asynchronous.
        log: Where it is written what happened.
        name: Its name, which no other has.
        seed: What is done.
    """

    def __init__(self, pq: Any, portal: Portal | None, log: Log, name: str, seed: int) -> None:
        self._pq = pq
        self._portal = portal
        self._log = log
        self._name = name
        self._rng = random.Random(seed)
        self._number = 0
        self._cancellable: list[tuple[str, str, int]] = []
        self._work = self._pq[NAME].task(**OPTIONS)(work)
        self._interruptible = False
        self.acts: dict[Callable[[], None], int] = {
            self.put: 3,
            self.put_later: 1,
            self.put_block: 2,
            self.put_many: 1,
            self.put_keyed: 1,
            self.put_once: 1,
            self.put_work: 2,
            self.cancel: 1,
            self.take: 4,
            self.lease: 4,
            self.pop: 3,
        }

    def run(self) -> None:
        """Go on until killed."""
        acts, weights = list(self.acts), list(self.acts.values())
        while True:
            self._rng.choices(acts, weights)[0]()

    def interrupt(self, *_: object) -> None:
        """As Ctrl-C is heard, but for what writes down what happened."""
        if self._interruptible:
            self._interruptible = False
            raise KeyboardInterrupt

    def _exposed(self, do: Callable[[], T]) -> T:
        """Do something that may be interrupted: no beginning of a block, nor its end, which would be left open."""
        self._interruptible = True
        try:
            return do()
        finally:
            self._interruptible = False

    def _tell(self, act: str, outcome: str, **facts: Any) -> None:
        self._log.write({"act": act, "outcome": outcome, **facts})

    def _try(
        self,
        act: str,
        do: Callable[[], Any],
        told: Callable[[Any], dict[str, Any]] | None = None,
        *,
        block: bool = False,
        **facts: Any,
    ) -> tuple[str, Any]:
        """Do something, and write down how it ended, as it was told."""
        outcome, found = "ok", None
        more: dict[str, Any] = {}
        try:
            found = do() if block else self._exposed(do)
        except KeyboardInterrupt:
            outcome, more = "unknown", {"why": "KeyboardInterrupt"}
        except OutcomeUnknown as exc:
            outcome, more = "unknown", {"why": f"{type(exc).__name__}: {exc}"[:200]}
        except LeaseLost:
            outcome = "lost"
        except (PQError, ApplicationError) as exc:
            outcome, more = "failed", {"why": f"{type(exc).__name__}: {exc}"[:200]}
        except Exception as exc:  # which is wrong: the checker says so
            outcome, more = "failed", {"why": f"{type(exc).__name__}: {exc!r}"[:500], "foreign": True}
        else:
            more = {} if told is None else told(found)
        self._tell(act, outcome, **{**facts, **more})
        if outcome in ("unknown", "failed"):
            time.sleep(0.02)
        return outcome, found

    def _tokens(self, number: int = 1) -> list[str]:
        self._number += number
        return [f"{self._name}-{number}" for number in range(self._number - number + 1, self._number + 1)]

    # Putting

    def put(self) -> None:
        queue, [token] = self._rng.choice(QUEUES), self._tokens()
        self._tell("put", "begun", tokens=[token])
        self._try("put", lambda: self._pq[queue].put(token), tokens=[token])

    def put_later(self) -> None:
        """Put a job that is scheduled or expected, and maybe cancel it later."""
        queue, [token] = self._rng.choice(QUEUES), self._tokens()
        distance = round(self._rng.uniform(0.05, LATER), 3)
        times: dict[str, Any] = {"schedule_at": timedelta(seconds=distance)}
        if self._rng.random() < 0.3:
            times["expected_at"] = timedelta(seconds=5)
        self._tell("put", "begun", tokens=[token], distance=distance)
        _, job_id = self._try("put", lambda: self._pq[queue].put(token, **times), tokens=[token])
        if job_id is not None:
            self._cancellable = [*self._cancellable[-20:], (queue, token, job_id)]

    def put_block(self) -> None:
        tokens = self._tokens(2)

        def block() -> None:
            with self._pq[QUEUES[0]]:
                for queue, token in zip(QUEUES, tokens, strict=False):
                    self._exposed(lambda queue=queue, token=token: self._pq[queue].put(token))  # type: ignore[misc]

        self._tell("put", "begun", tokens=tokens)
        self._try("put", block, block=True, tokens=tokens)

    def put_many(self) -> None:
        queue, tokens = self._rng.choice(QUEUES), self._tokens(self._rng.randint(2, 8))
        self._tell("put", "begun", tokens=tokens)
        self._try("put", lambda: self._pq[queue].put_many(tokens), tokens=tokens)

    def put_work(self) -> None:
        [token] = self._tokens()
        self._tell("put", "begun", tokens=[token])
        self._try("put", lambda: self._work(token), tokens=[token])

    def put_keyed(self) -> None:
        """Put under a key that others put under, too: one job has it at a time."""
        key, [token] = f"shared-{self._rng.randrange(KEYS)}", self._tokens()
        facts: dict[str, Any] = {"tokens": [token], "key": key}
        self._tell("keyed", "begun", **facts)
        self._try(
            "keyed",
            lambda: self._pq["pop"].put(token, dedup=key),
            lambda job: {"job": int(job)},
            **facts,
        )

    def put_once(self) -> None:
        """Put under a key of its own, again and again while it is unknown whether the last put took effect."""
        [token] = self._tokens()
        facts: dict[str, Any] = {"tokens": [token], "key": token}
        dedup = Dedup(token, until="1d")
        for _ in range(5):
            self._tell("keyed", "begun", **facts)
            outcome, _ = self._try(
                "keyed",
                lambda: self._pq["lease"].put(token, dedup=dedup),
                lambda job: {"job": int(job)},
                **facts,
            )
            if outcome != "unknown":
                break

    def cancel(self) -> None:
        if not self._cancellable:
            return
        queue, token, job_id = self._cancellable.pop(self._rng.randrange(len(self._cancellable)))
        self._tell("cancel", "begun", tokens=[token])
        self._try(
            "cancel",
            lambda: self._pq[queue].cancel(job_id),
            lambda done: {"cancelled": bool(done)},
            tokens=[token],
        )

    # Taking

    def take(self) -> None:
        """Take jobs, and write their effects, in one transaction; two take locks in the order that comes."""
        taken: list[str] = []
        number, tallied = self._rng.choice([1, 1, 2]), self._rng.random() < 0.3
        pause = self._rng.choice([0.0, 0.0, 0.03])

        def block() -> None:
            with self._pq["transaction"] as cursor:
                for _ in range(number):
                    job = self._exposed(self._pq["transaction"].get)
                    if job is None:
                        break
                    taken.append(job.data)
                    self._tell("take", "begun", tokens=[job.data])
                    self._sql(cursor, "INSERT INTO effects VALUES ({}, {}, {})", job.data, job.id, tallied)
                time.sleep(pause)
                if taken and tallied:
                    for name in self._rng.sample(["a", "b"], 2):
                        self._sql(cursor, "UPDATE tallies SET number = number + {} WHERE name = {}", len(taken), name)

        self._try("take", block, block=True, tokens=taken)

    def _sql(self, cursor: Any, text: str, *values: Any) -> None:
        """Run a statement of the application's own, as its driver is spoken to."""
        numbered = hasattr(cursor, "fetchrow")
        statement = text.format(*[f"${place}" if numbered else "%s" for place in range(1, len(values) + 1)])
        try:
            if self._portal is None:
                cursor.execute(statement, values)
            else:
                self._portal.call(lambda: cursor.execute(statement, *(values if numbered else (values,))))
        except Exception as exc:
            raise ApplicationError(f"{type(exc).__name__}: {exc}") from exc

    def pop(self) -> None:
        n = self._rng.choice([1, 1, 3])
        self._tell("pop", "begun", n=n)
        self._try(
            "pop",
            lambda: self._pq["pop"].get_many(n),
            lambda jobs: {"tokens": [job.data for job in jobs]},
            n=n,
        )

    def lease(self) -> None:
        """Lease jobs, and let them end in each of the ways there are."""
        queue, n = self._pq["lease"], self._rng.choice([1, 1, 3])
        self._tell("lease", "begun", n=n)
        _, jobs = self._try("lease", lambda: queue.lease_many(n, LEASE, wait=0.05), n=n)
        if not jobs:
            return
        for job in jobs:
            self._tell("leased", "ok", tokens=[job.data], attempt=job.attempts)
        if self._rng.random() < 0.2:
            self._end("extend", jobs, lambda job: queue.extend(job, LEASE))
        time.sleep(self._rng.choice([0.0, 0.0, 0.0, 0.01, 1.5 * LEASE]))
        how = self._rng.random()
        if how < 0.15:
            delay = self._rng.choice([None, timedelta(seconds=0.2)])
            self._end("nack", jobs, lambda job: queue.nack(job, delay))
        elif how < 0.6:
            self._end("ack", jobs, queue.ack)
        elif how < 0.95:
            self._ack_all(queue, jobs)

    def _end(self, act: str, jobs: Sequence[Any], do: Callable[[Any], Any]) -> None:
        for job in jobs:
            facts = {"tokens": [job.data], "attempt": job.attempts}
            for _ in range(2):  # again, if it is unknown whether it took effect
                self._tell(act, "begun", **facts)
                outcome, _ = self._try(act, lambda job=job: do(job), **facts)  # type: ignore[misc]
                if outcome != "unknown":
                    break

    def _ack_all(self, queue: Any, jobs: Sequence[Any]) -> None:
        facts = [{"tokens": [job.data], "attempt": job.attempts} for job in jobs]
        for each in facts:
            self._tell("ack", "begun", **each)
        outcome, lost = self._try("ack_many", lambda: [job.data for job in queue.ack_many(jobs)])
        for each in facts:
            self._tell("ack", outcome if lost is None else "lost" if each["tokens"][0] in lost else "ok", **each)


def main(backend: str, mode: str, dsn: str, log: str, seed: str) -> None:
    """Go on, in several threads, until killed.

    Args:
        backend: The backend's name.
        mode: ``blocking`` or ``async``.
        dsn: The server, through whatever fails.
        log: Where it is written what happened.
        seed: What is done.
    """
    logging.getLogger("pqcore").setLevel(logging.CRITICAL)  # it warns of what is done to it
    portal = Portal() if mode == "async" else None
    options: dict[str, Any] = {"backend": backend, "timeout": 0.05, "pool_timeout": 5}
    pq: Any = PQ(dsn, **options) if portal is None else Blocking(AsyncPQ(dsn, **options), portal)
    written = Log(Path(log))
    clients = [
        Client(pq, portal, written, f"{os.getpid()}-{seed}-{number}", int(seed) + number) for number in range(THREADS)
    ]
    signal.signal(signal.SIGINT, clients[0].interrupt)
    for client in clients[1:]:
        threading.Thread(target=client.run, daemon=True).start()
    clients[0].run()


if __name__ == "__main__":
    main(*sys.argv[1:])
