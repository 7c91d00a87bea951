"""A client process: it puts and takes in all ways, and logs each act before it begins and after it ends."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import string
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import pqcore
import pqcore_backends
from pqcore import Dedup
from pqcore.errors import LeaseLost, OutcomeUnknown, PQError
from pqcore.tasks import PQ, AsyncPQ
from pqcore.testing.portal import Blocking, Portal, unwrapped

from .log import Log
from .worker_tasks import BRIEF, GATED, RECORD, declare

T = TypeVar("T")

QUEUES = ("transaction", "lease", "pop")
CANCELLED = (*QUEUES, GATED)
"""The queues whose jobs are cancelled."""
PLACES = (1, 2, 5)
"""How many jobs may run concurrently under each limit."""
LEASE = 0.7
"""The length of a lease, in seconds; some leases are held for longer."""
LATER = 1.5
"""The longest time until a scheduled job is due, in seconds."""
THREADS = 3
"""The number of threads of each process."""
CROWD = 7
"""The number of threads that sometimes call concurrently with another thread, so that calls share a statement."""
KEYS = 5
"""Dedup keys that clients share."""
PAUSE = 4.0
"""Seconds between two acts of a thread that put jobs which wait for one another, so that workers can keep up."""
APPLICATION = "pqcore-chaos"
OWN = tuple(f"{Path(module.__file__).parent}/" for module in (pqcore, pqcore_backends) if module.__file__)
"""The folder of pqcore's code."""


class ApplicationError(Exception):
    """An exception of a driver, in one of the application's own statements."""


class TimeLimit(Exception):
    """An application's time limit, raised by the handler of SIGALRM."""


class Client:
    """A client in one thread; the clients of a process share its connections.

    Args:
        pq: The queues; asynchronous ones look blocking.
        portal: The portal that makes asynchronous queues look blocking; None for blocking ones.
        log: The log of the client's acts.
        name: The client's unique name.
        seed: The seed that determines the acts.
    """

    def __init__(self, pq: Any, portal: Portal | None, log: Log, name: str, seed: int) -> None:
        self._pq = pq
        self._portal = portal
        self._log = log
        self._name = name
        self._rng = random.Random(seed)
        self._number = 0
        self._cancellable: list[tuple[str, str, int]] = []
        self._tasks = declare(pq)
        self._interruptible = False
        self._lines = 0
        self._scarce = (
            self.put_limited,
            self.put_grouped,
            self.put_bound,
            self.put_crosswise,
            self.put_shared,
            self.put_kept,
        )
        self._rested = 0.0
        self._seed = seed
        self._crowd: list[Client] = []
        self.acts: dict[Callable[[], None], int] = {
            self.put: 3,
            self.put_later: 1,
            self.put_block: 2,
            self.put_many: 1,
            self.put_keyed: 1,
            self.put_once: 1,
            self.put_work: 2,
            self.put_limited: 1,
            self.put_grouped: 1,
            self.put_bound: 1,
            self.put_crosswise: 1,
            self.put_shared: 1,
            self.put_kept: 1,
            self.ask: 1,
            self.cancel: 1,
            self.take: 4,
            self.lease: 4,
            self.lease_gated: 3,
            self.pop: 3,
            self.pop_gated: 1,
            self.put_together: 2,
            self.take_together: 2,
        }

    def run(self) -> None:
        """Act until the process is killed."""
        while True:
            self.step()

    def step(self) -> None:
        """Perform one act."""
        [act] = self._rng.choices(list(self.acts), list(self.acts.values()))
        if act in self._scarce:
            now = time.monotonic()
            if now < self._rested:
                return
            self._rested = now + PAUSE
        act()

    def become(self, name: str) -> None:
        """Continue under another name, in a forked process."""
        self._name, self._number, self._cancellable, self._crowd = name, 0, [], []
        self._rng = random.Random(name)

    def interrupt(self, *_: object) -> None:
        """Raise KeyboardInterrupt, at any moment of an act except while the log is written."""
        if self._interruptible:
            self._interruptible = False
            raise KeyboardInterrupt

    def limit(self, *_: object) -> None:
        """Make a time limit run out before one of the next lines of pqcore's code.

        An act mostly waits for the server, so an exception at a random moment would rarely hit a line of pqcore.
        """
        self._lines = int(10 ** self._rng.uniform(0, 3.5))

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(OWN):
            return None
        if event == "line" and self._interruptible:
            self._lines -= 1
            if self._lines == 0:
                self._interruptible = False
                sys.settrace(None)
                raise TimeLimit
        return self._trace

    def _exposed(self, do: Callable[[], T]) -> T:
        """Call a function that may be interrupted."""
        self._interruptible = True
        try:
            if self._lines > 0:
                sys.settrace(self._trace)
            return do()
        finally:
            sys.settrace(None)
            self._interruptible = False

    def _tell(self, act: str, outcome: str, **facts: Any) -> None:
        interruptible, self._interruptible = self._interruptible, False
        self._log.write({"act": act, "outcome": outcome, "who": self._name, **facts})
        self._interruptible = interruptible

    def _try(
        self,
        act: str,
        do: Callable[[], Any],
        told: Callable[[Any], dict[str, Any]] | None = None,
        **facts: Any,
    ) -> tuple[str, Any]:
        """Call a function, and log the outcome that the client saw."""
        outcome, found = "ok", None
        more: dict[str, Any] = {}
        begun = time.monotonic()
        try:
            found = self._exposed(do)
        except (KeyboardInterrupt, TimeLimit) as exc:
            outcome, more = "unknown", {"why": type(exc).__name__}
        except OutcomeUnknown as exc:
            outcome, more = "unknown", {"why": f"{type(exc).__name__}: {exc}"[:200]}
        except LeaseLost:
            outcome = "lost"
        except (PQError, ApplicationError) as exc:
            outcome, more = "failed", {"why": f"{type(exc).__name__}: {exc}"[:200]}
        except Exception as exc:  # this is a fault, which the checker reports
            outcome, more = "failed", {"why": f"{type(exc).__name__}: {exc!r}"[:500], "foreign": True}
        else:
            more = {} if told is None else told(found)
        self._tell(act, outcome, **{**facts, **more}, took=round(time.monotonic() - begun, 3))
        if outcome in ("unknown", "failed"):
            time.sleep(0.02)
        return outcome, found

    def _call(self, name: str, method: str, *args: Any, **options: Any) -> Any:
        """Call a method of a queue; on an asynchronous queue, sometimes in a task that is soon cancelled.

        A get or a lease is not cancelled: it would be undone, which the checker cannot know.
        """
        if self._portal is None or method not in ("put", "ack") or self._rng.random() < 0.7:
            return getattr(self._pq[name], method)(*args, **options)
        target, seconds = unwrapped(self._pq[name]), 10 ** self._rng.uniform(-4, -1.5)

        async def limited() -> Any:
            return await asyncio.wait_for(getattr(target, method)(*args, **options), seconds)

        try:
            return self._portal.call(limited)
        except asyncio.TimeoutError:
            raise TimeLimit from None

    def _tokens(self, number: int = 1) -> list[str]:
        self._number += number
        return [f"{self._name}-{number}" for number in range(self._number - number + 1, self._number + 1)]

    # Putting

    def put(self, queue: str = "") -> None:
        queue, [token] = queue or self._rng.choice(QUEUES), self._tokens()
        self._tell("put", "begun", tokens=[token])
        self._try("put", lambda: self._call(queue, "put", token), lambda job: {"jobs": [int(job)]}, tokens=[token])

    def put_later(self) -> None:
        """Put a job that is scheduled or expected, and maybe cancel it later."""
        queue, [token] = self._rng.choice(QUEUES), self._tokens()
        distance = round(self._rng.uniform(0.05, LATER), 3)
        times: dict[str, Any] = {"schedule_at": timedelta(seconds=distance)}
        if self._rng.random() < 0.3:
            times["expected_at"] = timedelta(seconds=5)
        self._tell("put", "begun", tokens=[token], distance=distance)
        _, job_id = self._try(
            "put", lambda: self._pq[queue].put(token, **times), lambda job: {"jobs": [int(job)]}, tokens=[token]
        )
        if job_id is not None:
            self._cancellable = [*self._cancellable[-20:], (queue, token, job_id)]

    def put_block(self) -> None:
        tokens = self._tokens(2)

        def block() -> None:
            with self._pq[QUEUES[0]]:
                for queue, token in zip(QUEUES, tokens, strict=False):
                    self._pq[queue].put(token)

        self._tell("put", "begun", tokens=tokens)
        self._try("put", block, tokens=tokens)

    def put_many(self) -> None:
        queue, tokens = self._rng.choice(QUEUES), self._tokens(self._rng.randint(2, 8))
        self._tell("put", "begun", tokens=tokens)
        self._try(
            "put", lambda: self._pq[queue].put_many(tokens), lambda jobs: {"jobs": [*map(int, jobs)]}, tokens=tokens
        )

    def put_work(self) -> None:
        [token] = self._tokens()
        self._tell("put", "begun", tokens=[token])
        self._try("put", lambda: self._tasks["work"](token), tokens=[token])

    def _gated(self, tokens: Sequence[str], limits: dict[str, int], group: str | None = None) -> None:
        """Log the limits and groups that jobs need to run."""
        self._tell("gate", "begun", tokens=list(tokens), limits=limits, group=group)

    def _limits(self, *numbers: int) -> dict[str, int]:
        """Return limits that clients share; the keys change, because a place may be held while the clock is ahead."""
        moment = f"{time.monotonic() // 10:.0f}"
        return {f"{moment}-{places}-{self._rng.randrange(2)}": places for places in numbers}

    def put_limited(self) -> None:
        """Put more jobs under a limit than may run concurrently, with random tenants and priorities."""
        places = self._rng.choice(PLACES)
        limits, tokens = self._limits(places), self._tokens(places + 2)
        self._gated(tokens, limits)
        for token in tokens:
            self._put_gated(token, limits)

    def _put_gated(self, token: str, limits: dict[str, int], group: str | None = None) -> str:
        put = self._gated_put(token, limits, group)
        self._tell("put", "begun", tokens=[token])
        outcome, job_id = self._try("put", put, tokens=[token])
        if job_id is not None and self._rng.random() < 0.1:
            self._cancellable = [*self._cancellable[-20:], (GATED, token, job_id)]
        return outcome

    def _gated_put(self, token: str, limits: dict[str, int], group: str | None = None) -> Callable[[], Any]:
        """Return a function that puts a job under limits or in a group, with a random tenant and priority."""
        tenant, priority = self._rng.choice([None, None, "one", "two"]), self._rng.choice([0, 0, 0, -1, 5])
        return lambda: self._tasks["gated"](token, limits, group, tenant, priority)

    def put_grouped(self, *places: int) -> None:
        """Put jobs into a new group, each after the previous put was acknowledged, so that their order is known."""
        tokens = self._tokens(4)
        for token in tokens:
            limits = self._limits(*places)
            self._gated([token], limits, tokens[0])
            if self._put_gated(token, limits, tokens[0]) != "ok":
                break

    def put_bound(self) -> None:
        """Put jobs of a group, each under two limits."""
        self.put_grouped(*self._rng.sample(PLACES, 2))

    def put_shared(self) -> None:
        """Put a job that has a tenant, or a priority, and no limits."""
        [token] = self._tokens()
        self._gated([token], {})
        self._put_gated(token, {})

    def put_crosswise(self) -> None:
        """Put jobs under two limits in a block that stays open for a moment; other clients use the opposite order."""
        tokens = self._tokens(2)
        keys = list(self._limits(*PLACES[:2]).items())
        self._rng.shuffle(keys)
        for token, (key, places) in zip(tokens, keys, strict=True):
            self._gated([token], {key: places})

        def block() -> None:
            with self._pq[GATED]:
                for token, (key, places) in zip(tokens, keys, strict=True):
                    self._gated_put(token, {key: places})()
                    time.sleep(BRIEF)

        self._tell("put", "begun", tokens=tokens)
        self._try("put", block, tokens=tokens)

    def put_kept(self) -> None:
        """Put a job that is retried and has a result: both events notify."""
        [token] = self._tokens()
        self._tell("put", "begun", tokens=[token])
        self._try("put", lambda: self._tasks["kept"](token), tokens=[token])

    def put_keyed(self) -> None:
        """Put under a dedup key that other clients use, too: one job has the key at a time."""
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
        """Put under a unique dedup key, and repeat while it is unknown whether the last put took effect."""
        [token] = self._tokens()
        facts: dict[str, Any] = {"tokens": [token], "key": token}
        dedup = Dedup(token, until="1000d")  # longer than any step of a clock
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

    def put_together(self) -> None:
        """Put jobs into one queue by several threads concurrently."""
        queue = self._rng.choice(QUEUES)
        self._together(lambda client: client.put(queue))

    def take_together(self) -> None:
        """Take jobs from one queue by several threads concurrently."""
        self._together(self._rng.choice([Client.pop, Client.lease]))

    def _together(self, act: Callable[[Client], None]) -> None:
        if not self._crowd:
            letters = string.ascii_lowercase[:CROWD]
            self._crowd = [
                Client(self._pq, self._portal, self._log, f"{self._name}-{letter}", self._seed + 1000 * ord(letter))
                for letter in letters
            ]
            self._threads = ThreadPoolExecutor(CROWD)
        calls = [self._threads.submit(act, client) for client in self._crowd]
        act(self)
        for call in calls:
            call.result()

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

    def ask(self) -> None:
        """Make the server return a value that the client sends, in a block."""
        [token] = self._tokens()

        def block() -> Any:
            with self._pq["transaction"] as cursor:
                return self._sql(cursor, "SELECT CAST({} AS text)", token, answered=True)

        self._tell("ask", "begun", asked=token)
        self._try("ask", block, lambda answer: {"answer": answer}, asked=token)

    def take(self) -> None:
        """Take jobs, and write their effects, in one transaction; with two jobs, locks are taken in any order."""
        taken: list[str] = []
        number, tallied = self._rng.choice([1, 1, 2]), self._rng.random() < 0.3
        pause = self._rng.choice([0.0, 0.0, 0.03])

        def block() -> None:
            with self._pq["transaction"] as cursor:
                for _ in range(number):
                    job = self._pq["transaction"].get()
                    if job is None:
                        break
                    taken.append(job.data)
                    self._tell("take", "begun", tokens=[job.data])
                    self._sql(cursor, "INSERT INTO effects VALUES ({}, {}, {})", job.data, job.id, tallied)
                time.sleep(pause)
                if taken and tallied:
                    for name in self._rng.sample(["a", "b"], 2):
                        self._sql(cursor, "UPDATE tallies SET number = number + {} WHERE name = {}", len(taken), name)

        self._try("take", block, tokens=taken)

    def _sql(self, cursor: Any, text: str, *values: Any, answered: bool = False) -> Any:
        """Run one of the application's own statements through its driver; return the value."""
        numbered = hasattr(cursor, "fetchval")
        statement = text.format(*[f"${place}" if numbered else "%s" for place in range(1, len(values) + 1)])
        call = (lambda make: make()) if self._portal is None else self._portal.call
        try:
            if numbered:
                return call(lambda: cursor.fetchval(statement, *values))
            call(lambda: cursor.execute(statement, values))
            return call(cursor.fetchone)[0] if answered else None
        except TimeLimit:
            raise
        except Exception as exc:
            raise ApplicationError(f"{type(exc).__name__}: {exc}") from exc

    def pop(self) -> None:
        n = self._rng.choice([1, 1, 3])
        self._tell("pop", "begun", n=n)
        self._try(
            "pop",
            lambda: self._pq["pop"].get_many(n) if n > 1 else _some(self._call("pop", "get")),
            lambda jobs: {"tokens": [job.data for job in jobs]},
            n=n,
        )

    def lease(self) -> None:
        """Lease jobs, and end the leases in all possible ways."""
        queue, n = self._pq["lease"], self._rng.choice([1, 1, 3])
        self._tell("lease", "begun", n=n)

        def told(jobs: Sequence[Any]) -> dict[str, Any]:
            for job in jobs:  # before the end of the act is logged, because the process may be killed in between
                self._tell("leased", "ok", tokens=[job.data], attempt=job.token)
            return {}

        def lease() -> Sequence[Any]:
            if n > 1:
                return queue.lease_many(n, LEASE, wait=0.05)  # type: ignore[no-any-return]
            return _some(self._call("lease", "lease", LEASE, wait=0.05))

        _, jobs = self._try("lease", lease, told, n=n)
        if not jobs:
            return
        if self._rng.random() < 0.2:
            self._end("extend", jobs, lambda job: queue.extend(job, LEASE))
        time.sleep(self._rng.choice([0.0, 0.0, 0.0, 0.01, 1.5 * LEASE]))
        how = self._rng.random()
        if how < 0.15:
            delay = self._rng.choice([None, timedelta(seconds=0.2)])
            self._end("nack", jobs, lambda job: queue.nack(job, delay))
        elif how < 0.6:
            self._end("ack", jobs, lambda job: self._call("lease", "ack", job))
        elif how < 0.95:
            self._ack_all(queue, jobs)

    def pop_gated(self) -> None:
        """Take a job with `get`, which ignores limits."""
        self._try("pop_gated", lambda: self._pq[GATED].get(block=False))

    def lease_gated(self) -> None:
        """Lease a job that needs places under limits, or the turn of its group; record its run."""
        queue = self._pq[GATED]
        _, job = self._try("lease_gated", lambda: queue.lease(LEASE, wait=0.05))
        if job is None:
            return

        def record(*, over: bool, end: bool = False) -> None:
            with queue as cursor:
                self._sql(cursor, RECORD, job.id, job.token, over)
                if end:
                    queue.ack(job)
                    time.sleep(self._rng.choice([0.0, 0.1]))

        self._try("record", lambda: record(over=False))
        time.sleep(self._rng.choice([0.0, 0.01, 0.01, 1.2 * LEASE]))
        how = self._rng.random()
        if how < 0.3:
            self._try("ack_gated", lambda: record(over=True, end=True))
            return
        self._try("record", lambda: record(over=True))
        if how < 0.8:
            self._try("ack_gated", lambda: queue.ack(job))
        elif how < 0.9:
            self._try("nack_gated", lambda: queue.nack(job, timedelta(seconds=0.2)))

    def _end(self, act: str, jobs: Sequence[Any], do: Callable[[Any], Any]) -> None:
        for job in jobs:
            facts = {"tokens": [job.data], "attempt": job.token}
            for _ in range(2):  # repeated if it is unknown whether it took effect
                self._tell(act, "begun", **facts)
                outcome, _ = self._try(act, lambda job=job: do(job), **facts)  # type: ignore[misc]
                if outcome != "unknown":
                    break

    def _ack_all(self, queue: Any, jobs: Sequence[Any]) -> None:
        facts = [{"tokens": [job.data], "attempt": job.token} for job in jobs]
        for each in facts:
            self._tell("ack", "begun", **each)
        outcome, lost = self._try("ack_many", lambda: [job.data for job in queue.ack_many(jobs)])
        for each in facts:
            self._tell("ack", outcome if lost is None else "lost" if each["tokens"][0] in lost else "ok", **each)


def _some(job: Any) -> list[Any]:
    return [] if job is None else [job]


def main(backend: str, mode: str, dsn: str, log: str, seed: str) -> None:
    """Run clients in several threads, until the process is killed.

    Args:
        backend: The backend's name.
        mode: ``blocking`` or ``async``.
        dsn: The address of the server, behind the failing proxy.
        log: The path of the log.
        seed: The seed that determines the acts.
    """
    logging.getLogger("pqcore").setLevel(logging.CRITICAL)  # pqcore warns of the injected faults
    portal = Portal() if mode == "async" else None
    options: dict[str, Any] = {"backend": backend, "timeout": 0.05, "pool_timeout": 5}
    pq: Any = PQ(dsn, **options) if portal is None else Blocking(AsyncPQ(dsn, **options), portal)
    written = Log(Path(log))
    clients = [
        Client(pq, portal, written, f"{os.getpid()}-{seed}-{number}", int(seed) + number) for number in range(THREADS)
    ]
    signal.signal(signal.SIGINT, clients[0].interrupt)
    signal.signal(signal.SIGALRM, clients[0].limit)
    for client in clients[1:]:
        threading.Thread(target=client.run, daemon=True).start()
    clients[0].run()


if __name__ == "__main__":
    main(*sys.argv[1:])
