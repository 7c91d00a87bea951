"""The actions of a turn: each warms up, awaits ``go``, and works for some seconds, or until nothing is left to do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from .concurrent_calls import call_of
from .load_generators import Client, ClientReport, Go, clock
from .operations import DATA

WARM = 10
"""Operations before those that count, because some drivers prepare a statement only after a few runs."""


async def put(client: Client, go: Go, *, seconds: float) -> ClientReport:
    """Put jobs one after the other."""
    queue, done = client.queue(), ClientReport()
    for _ in range(WARM):
        done.put.append(await queue.put(DATA))
    await go()
    deadline = clock() + seconds
    while not done.count or clock() < deadline:
        done.put.append(await queue.put(DATA))
        done.count += 1
    return done


async def put_many(client: Client, go: Go, *, seconds: float, size: int) -> ClientReport:
    """Put batches of jobs until the time is over, at least one."""
    queue, done = client.queue(), ClientReport()
    done.put += await queue.put_many([DATA] * WARM)
    await go()
    deadline = clock() + seconds
    while not done.count or clock() < deadline:
        done.put += await queue.put_many([DATA] * size)
        done.count += size
    return done


async def get(client: Client, go: Go, *, seconds: float, every: int = 0) -> ClientReport:
    """Take one job after the other; with ``every``, note the time after each ``every`` jobs."""
    queue, done = client.queue(), ClientReport()
    for _ in range(WARM):
        await _take(queue, done)
    await go()
    done.marks.append((clock(), 0))
    deadline = clock() + seconds
    while (not done.count or clock() < deadline) and await _take(queue, done):
        done.count += 1
        if every and done.count % every == 0:
            done.marks.append((clock(), done.count))
    return done


async def _take(queue: Any, done: ClientReport) -> bool:
    job = await queue.get(block=False)
    if job is None:
        return False
    done.taken.append(job.id)
    _ = job.data
    return True


async def get_in_transaction(client: Client, go: Go, *, seconds: float) -> ClientReport:
    """Take jobs one after the other, each in a transaction."""
    queue, done = client.queue(), ClientReport()

    async def one() -> bool:
        async with queue:
            return await _take(queue, done)

    for _ in range(WARM):
        await one()
    await go()
    deadline = clock() + seconds
    while (not done.count or clock() < deadline) and await one():
        done.count += 1
    return done


async def one_by_one(client: Client, go: Go, *, seconds: float, operation: str) -> ClientReport:
    """Repeat one of `concurrent_calls.CALLS`, and record how long each call took."""
    call, done = call_of(client.queue(), operation), ClientReport()
    jobs = done.put if operation == "put" else done.taken
    jobs += [job for _ in range(WARM) if (job := await call()) is not None]
    await go()
    ended = clock()
    deadline = ended + seconds
    while not done.count or ended < deadline:
        began = ended
        job = await call()
        ended = clock()
        if job is None:
            break
        jobs.append(job)
        done.times.append(ended - began)
        done.count += 1
    return done


async def _in_batches(some: Callable[[], Awaitable[int]], done: ClientReport, go: Go, seconds: float) -> ClientReport:
    """Repeat a call, the first time untimed, until the time is over or nothing is left."""
    await some()
    await go()
    deadline = clock() + seconds
    while (not done.count or clock() < deadline) and (number := await some()):
        done.count += number
    return done


async def get_many(client: Client, go: Go, *, seconds: float, size: int) -> ClientReport:
    """Take batches of jobs."""
    queue, done = client.queue(), ClientReport()

    async def some() -> int:
        jobs = await queue.get_many(size, block=False)
        for job in jobs:
            done.taken.append(job.id)
            _ = job.data
        return len(jobs)

    return await _in_batches(some, done, go, seconds)


async def lease_many(client: Client, go: Go, *, seconds: float, size: int) -> ClientReport:
    """Lease batches of jobs, and acknowledge them."""
    queue, done = client.queue(), ClientReport()

    async def some() -> int:
        jobs = await queue.lease_many(size, block=False)
        lost = await queue.ack_many(jobs) if jobs else []
        if lost:
            msg = f"{len(lost)} leases were lost"
            raise AssertionError(msg)
        for job in jobs:
            done.taken.append(job.id)
            _ = job.data
        return len(jobs)

    return await _in_batches(some, done, go, seconds)


async def get_in_order(client: Client, go: Go, *, seconds: float) -> ClientReport:
    """Take jobs one after the other, and check that their expectations are in order."""
    queue, done = client.queue(), ClientReport()
    last: Any = None

    async def one() -> bool:
        nonlocal last
        job = await queue.get(block=False)
        if job is None:
            return False
        done.taken.append(job.id)
        if last is not None and job.expected_at < last:
            msg = f"job {job.id} came after one that is wanted later"
            raise AssertionError(msg)
        last = job.expected_at
        return True

    for _ in range(WARM):
        await one()
    await go()
    deadline = clock() + seconds
    while (not done.count or clock() < deadline) and await one():
        done.count += 1
    return done


async def over_queues(client: Client, go: Go, *, seconds: float, number: int) -> ClientReport:
    """Put a job and take one, each time on another of many queues."""
    queues = [client.queue(f"jobs-{index}") for index in range(number)]
    done = ClientReport()
    at = 0

    async def one() -> None:
        nonlocal at
        at = (at + 7919) % number  # a prime, so that the steps reach all queues
        done.put.append(await queues[at].put(DATA))
        if not await _take(queues[at], done):
            msg = f"there was a job in {queues[at].name}, and it was not found"
            raise AssertionError(msg)

    for _ in range(WARM):
        await one()
    await go()
    deadline = clock() + seconds
    while not done.count or clock() < deadline:
        await one()
        done.count += 1
    return done


# Waiting for jobs. The clock, and not the consumers, sets the pace of the producers.

END: dict[str, Any] = {"end": True}


async def produce(client: Client, go: Go, *, seconds: float, rate: float) -> ClientReport:
    """Put jobs at a fixed rate, or with rate 0 as fast as possible; the last job is marked as the last.

    Each job holds the time of its put. If the put was late because the previous one took too long, the job
    holds the time at which the put was due.
    """
    queue, done = client.queue(), ClientReport()
    await go()
    began = clock()
    while (now := clock()) < began + seconds:
        due = began + done.count / rate if rate else now
        if now < due:
            await _pause(client, due - now)
            due = clock()
        done.put.append(await queue.put({**DATA, "at": due}))
        done.count += 1
    done.ended = clock()
    done.put.append(await queue.put(END))
    return done


async def consume(client: Client, go: Go, *, patience: float) -> ClientReport:
    """Take jobs as they come, until the last one, and record the time from each job's put."""
    queue, done = client.queue(), ClientReport()
    await queue.get(timeout=0.01)  # the queue starts to listen
    await go()
    last = clock()
    while clock() < last + patience:
        job = await queue.get()
        if job is None:
            continue
        last = clock()
        done.taken.append(job.id)
        if "end" in job.data:
            return done
        done.times.append(last - job.data["at"])
        done.count += 1
        done.ended = last
    msg = f"no job came for {patience} seconds, though more are expected"
    raise AssertionError(msg)


async def _pause(client: Client, seconds: float) -> None:
    if client.blocking:
        time.sleep(seconds)  # noqa: ASYNC251 - stepped, not in a loop
    else:
        await asyncio.sleep(seconds)
