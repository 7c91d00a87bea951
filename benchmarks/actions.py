"""What is done in a turn: each warms up, awaits ``go``, and works for some seconds, or until nothing is left to do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from .load_generators import Desk, Done, Go, clock

DATA: dict[str, Any] = {"order": 12345, "to": "ann@example.com"}
"""What a job holds."""
WARM = 10
"""Operations before those that count: drivers prepare a statement after some."""


async def put(desk: Desk, go: Go, *, seconds: float) -> Done:
    """Put one after the other."""
    queue, done = desk.queue(), Done()
    for _ in range(WARM):
        done.put.append(await queue.put(DATA))
    await go()
    deadline = clock() + seconds
    while not done.count or clock() < deadline:
        done.put.append(await queue.put(DATA))
        done.count += 1
    return done


async def put_many(desk: Desk, go: Go, *, seconds: float, size: int) -> Done:
    """Put many at once, as often as there is time, at least once."""
    queue, done = desk.queue(), Done()
    done.put += await queue.put_many([DATA] * WARM)
    await go()
    deadline = clock() + seconds
    while not done.count or clock() < deadline:
        done.put += await queue.put_many([DATA] * size)
        done.count += size
    return done


async def get(desk: Desk, go: Go, *, seconds: float, every: int = 0) -> Done:
    """Take one after the other; with ``every``, note the time after so many."""
    queue, done = desk.queue(), Done()
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


async def _take(queue: Any, done: Done) -> bool:
    job = await queue.get(block=False)
    if job is None:
        return False
    done.taken.append(job.id)
    _ = job.data
    return True


async def get_in_transaction(desk: Desk, go: Go, *, seconds: float) -> Done:
    """Take one after the other, each in a transaction."""
    queue, done = desk.queue(), Done()

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


async def _in_batches(some: Callable[[], Awaitable[int]], done: Done, go: Go, seconds: float) -> Done:
    """Do so again and again, the first time untimed, until the time is over or nothing is left."""
    await some()
    await go()
    deadline = clock() + seconds
    while (not done.count or clock() < deadline) and (number := await some()):
        done.count += number
    return done


async def get_many(desk: Desk, go: Go, *, seconds: float, size: int) -> Done:
    """Take many at once."""
    queue, done = desk.queue(), Done()

    async def some() -> int:
        jobs = await queue.get_many(size, block=False)
        for job in jobs:
            done.taken.append(job.id)
            _ = job.data
        return len(jobs)

    return await _in_batches(some, done, go, seconds)


async def lease_many(desk: Desk, go: Go, *, seconds: float, size: int) -> Done:
    """Lease many at once, and acknowledge them."""
    queue, done = desk.queue(), Done()

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


async def get_in_order(desk: Desk, go: Go, *, seconds: float) -> Done:
    """Take one after the other, and see that none is wanted later than the next."""
    queue, done = desk.queue(), Done()
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


async def over_queues(desk: Desk, go: Go, *, seconds: float, number: int) -> Done:
    """Put a job and take one, each time over another of many queues."""
    queues = [desk.queue(f"jobs-{index}") for index in range(number)]
    done = Done()
    at = 0

    async def one() -> None:
        nonlocal at
        at = (at + 7919) % number  # a prime: it comes to all of them
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


# Waiting for jobs. Those that put them are paced by the clock, not by those that take them.

END: dict[str, Any] = {"end": True}


async def produce(desk: Desk, go: Go, *, seconds: float, rate: float) -> Done:
    """Put jobs at a fixed rate, or with rate 0 as fast as it goes; the last says that it is the last.

    Each holds the time at which it was put; of one that was put late, as the one before took too long,
    the time at which it was due.
    """
    queue, done = desk.queue(), Done()
    await go()
    began = clock()
    while (now := clock()) < began + seconds:
        due = began + done.count / rate if rate else now
        if now < due:
            await _pause(desk, due - now)
            due = clock()
        done.put.append(await queue.put({**DATA, "at": due}))
        done.count += 1
    done.ended = clock()
    done.put.append(await queue.put(END))
    return done


async def consume(desk: Desk, go: Go, *, patience: float) -> Done:
    """Take jobs as they come, and note how long each took from its being put; until the last."""
    queue, done = desk.queue(), Done()
    await queue.get(timeout=0.01)  # it listens
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
    msg = f"no job came for {patience} seconds, and there are to be more"
    raise AssertionError(msg)


async def _pause(desk: Desk, seconds: float) -> None:
    if desk.blocking:
        time.sleep(seconds)  # noqa: ASYNC251 - stepped, not in a loop
    else:
        await asyncio.sleep(seconds)
