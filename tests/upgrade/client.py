"""A process that puts or takes jobs until SIGTERM, over whichever build of pqcore it finds, or over pq 1.9.1.

    python client.py LOG NAME JOB QUEUE DSN BACKEND

The file imports nothing of the build that it does not run with: an older build runs it, too. Each line of the log is a
JSON array: what was done, when (seconds since 1970), how many seconds the call took, and the job's name.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

PUT_PAUSE = 0.05
"""Seconds between two puts of one producer."""
POLL_PAUSE = 0.01
"""Seconds between two looks of a consumer that found nothing."""
ANSWER = 1.0
"""Seconds for which a get waits."""
LATE = 1.0
"""Seconds until a job that is put for later is due."""
SLOW = 0.1
"""Seconds after which a look that found nothing is recorded."""
LEASE = 20.0
KEYED: tuple[dict[str, Any], ...] = ({}, {"group": "a"}, {"limits": {"many": 40}}, {"group": "b"})
"""The options of puts that need admission; the producer uses them in turn."""
MODERN: tuple[dict[str, Any], ...] = ({"priority": 1}, {"tenant": "t"})
"""Options that older builds do not have."""


class Ending:
    """Whether the process was told to end. An event will not do: SIGTERM may come while the event's lock is held."""

    def __init__(self) -> None:
        self._told = False

    def set(self) -> None:
        self._told = True

    def is_set(self) -> bool:
        return self._told

    def wait(self, seconds: float) -> bool:
        time.sleep(seconds)
        return self._told


ending = Ending()


class Log:
    """The log of this process."""

    def __init__(self, path: str) -> None:
        self._file = Path(path).open("a", buffering=1, encoding="utf-8")  # noqa: SIM115 - open until the process ends
        self._lock = threading.Lock()

    def note(self, what: str, began: float, job: str) -> None:
        """Write a line.

        Args:
            what: What was done, such as ``put``.
            began: The value of `time.monotonic` at the beginning of the call.
            job: The job's name, or an error.
        """
        took = time.monotonic() - began
        with self._lock:
            self._file.write(json.dumps([what, time.time(), round(took, 4), job]) + "\n")


def timed(log: Log, what: str, call: Callable[[], Any], job: str = "", waits: float = 0.0) -> Any:
    """Call a function; record an error, and slow calls that found nothing.

    Args:
        log: The log.
        what: What the function does.
        call: The function.
        job: The job that it puts; empty if it takes jobs.
        waits: The number of seconds for which it waits for a job.
    """
    began = time.monotonic()
    try:
        found = call()
    except Exception as exc:
        log.note("error", began, f"{what}: {type(exc).__name__}: {exc}")
        time.sleep(0.1)
        return None
    if job:
        log.note(what, began, job)
    elif found is None or found == []:
        if time.monotonic() - began > waits + SLOW:
            log.note("looked", began + waits, "")
    else:
        for each in found if isinstance(found, list) else [found]:
            log.note(what, began, each.data if isinstance(each.data, str) else each.data["args"][0])
    return found


def produce(queue: Any, log: Log, name: str, options: tuple[dict[str, Any], ...], put: Callable[..., Any]) -> None:
    """Put numbered jobs; every tenth for later.

    Args:
        queue: The queue.
        log: The log.
        name: The beginning of the jobs' names.
        options: The options of puts, used in turn.
        put: Puts one job.
    """
    number = 0
    while not ending.wait(PUT_PAUSE):
        number += 1
        job = f"{name}-{number}"
        if number % 10 == 0:
            timed(log, "put later", partial(put, queue, job, {}, f"{LATE:g}s"), job)
        else:
            more = options[number % len(options)]
            timed(log, "put keyed" if more else "put", partial(put, queue, job, more, None), job)


def put_plain(queue: Any, job: str, options: dict[str, Any], schedule_at: Any) -> None:
    """Put a job whose data is its name."""
    if schedule_at is not None:
        options = {**options, "schedule_at": schedule_at}
    queue.put(job, **options)


def consume(
    log: Log, take: Callable[[], Any], what: str, end: Callable[[Any], Any] | None = None, waits: float = 0.0
) -> None:
    """Take jobs until the process has to end, and finish each."""
    while not ending.is_set():
        found = timed(log, what, take, waits=waits)
        if not found:
            ending.wait(POLL_PAUSE)
        elif end is not None:
            began = time.monotonic()
            try:
                end(found)
            except Exception as exc:
                log.note("error", began, f"ack: {type(exc).__name__}: {exc}")
            else:
                log.note("acked", began, found.data)


def main(path: str, name: str, job: str, queue_name: str, dsn: str, backend: str) -> None:
    """Put (``put``, ``call``), or take (``get``, ``wait``, ``lease``, ``drain``, ``work``), until SIGTERM.

    Jobs of a producer whose work ends with ``-keyed`` need admission; with ``-modern``, they also have options that
    older builds lack.
    """
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    log = Log(path)
    if backend == "pq":
        import pq
        import psycopg2

        queue = pq.PQ(psycopg2.connect(dsn))[queue_name]
    elif backend == "asyncpg":
        work_async(log, dsn, queue_name)
        return
    else:
        from pqcore.tasks import PQ

        queue = PQ(dsn, backend=backend)[queue_name]
    log.note("begun", time.monotonic(), name)
    options: tuple[dict[str, Any], ...] = ({},)
    if job.startswith(("put-", "call-")):
        options = KEYED if job.endswith("keyed") else KEYED + MODERN
    if job.startswith("put"):
        produce(queue, log, name, options, put_plain)
    elif job.startswith("call"):
        note = declare(queue, log)
        produce(queue, log, name, options, lambda _, text, more, at: put_call(note, text, more, at))
    elif job == "get":
        consume(log, lambda: queue.get(block=False), "got")
    elif job == "wait":
        consume(log, lambda: queue.get(timeout=ANSWER), "got waiting", waits=ANSWER)
    elif job == "lease":
        consume(log, lambda: queue.lease(LEASE, block=False), "leased", lambda found: found.ack())
    elif job == "drain":
        consume(log, lambda: queue.get_many(20, block=False), "got")
    else:
        run_worker(queue, log)
    log.note("ended", time.monotonic(), name)


def put_call(note: Any, text: str, options: dict[str, Any], schedule_at: Any) -> None:
    """Put a call of the task."""
    options = {f"_{name}": value for name, value in options.items()}
    if schedule_at is not None:
        options["_schedule_at"] = schedule_at
    note(text, **options)


def declare(queue: Any, log: Log) -> Any:
    """Declare the task; it has the same name in all builds."""

    def note(job_id: int, text: str) -> None:
        log.note("ran", time.monotonic(), text)

    note.__module__, note.__qualname__ = "client", "note"
    return queue.task()(note)


def run_worker(queue: Any, log: Log) -> None:
    """Run a worker until SIGTERM."""
    from pqcore.worker import Worker

    declare(queue, log)
    asyncio.run(Worker(queue, concurrency=4, lease=LEASE).run(handle_signals=True))


def work_async(log: Log, dsn: str, queue_name: str) -> None:
    """Run a worker over asyncpg until SIGTERM."""
    from pqcore.tasks import AsyncPQ
    from pqcore.worker import Worker

    async def run() -> None:
        pq = AsyncPQ(dsn, backend="asyncpg")
        queue = pq[queue_name]

        async def note(job_id: int, text: str) -> None:
            log.note("ran", time.monotonic(), text)

        note.__module__, note.__qualname__ = "client", "note"
        queue.task()(note)
        log.note("begun", time.monotonic(), queue_name)
        await Worker(queue, concurrency=4, lease=LEASE).run(handle_signals=True)
        await pq.close()
        log.note("ended", time.monotonic(), queue_name)

    asyncio.run(run())


if __name__ == "__main__":
    main(*sys.argv[1:])
