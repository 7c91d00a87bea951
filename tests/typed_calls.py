"""Calls of tasks as type checkers see them: a line that ends in ``# wrong`` has to be refused, and no other line."""

from __future__ import annotations

from typing_extensions import assert_type

import pqcore.tasks
from pqcore import PQ, AsyncPQ, Job
from pqcore.tasks import AsyncHandle, Call, Handle

queue = PQ("postgresql://localhost/app")["mails"]
awaited = AsyncPQ("postgresql://localhost/app")["mails"]
pqs = pqcore.tasks.PQ("postgresql://localhost/app")["mails"]


@queue.task
def ship(order: int, fast: bool = False) -> str:
    return f"{order}{fast}"


@queue.task(max_retries=5, timeout="30s", name="shop.pack", aliases=["shop.old.pack"])
async def pack(job: Job, order: int, *, box: str) -> list[str]:
    return [f"{job.id}{order}{box}"]


@awaited.task()
async def count(words: str) -> int:
    return len(words)


@pqs.task(max_retries=2)
def eat(job_id: int, kind: str) -> float:
    return float(job_id) + len(kind)


@queue.periodic("0 3 * * *")
@queue.task()
def nightly() -> None: ...


@queue.task(max_retris=3)  # wrong
def misspelled() -> None: ...


@queue.task(run_in="fiber")  # wrong
def unknown_choice() -> None: ...


assert_type(ship(1), Handle[str])
assert_type(ship(1).result(), str)
assert_type(ship(1, fast=True), Handle[str])
assert_type(pack(1, box="a").result(timeout=5), list[str])
assert_type(ship.call(1), Call)
assert_type(ship.options(schedule_at="1h", priority=5)(42).result(), str)
assert_type(eat("apple", _schedule_at="5m").result(), float)
assert_type(nightly().result(), None)
queue.chain(ship.call(1), pack.call(1, box="b"))

ship()  # wrong
ship("x")  # wrong
ship(1, nonsense=1)  # wrong
ship(1, schedule_at="1h")  # wrong
pack(1)  # wrong
pack(1, box=1)  # wrong
nightly(1)  # wrong
ship.call("x")  # wrong
ship.options(schedul_at="1h")  # wrong
ship.options(schedule_at="1h")("x")  # wrong
ship.delay(1)  # wrong
queue.chain(ship(1))  # wrong
with awaited:  # wrong
    pass


async def main() -> None:
    assert_type(await count("a b"), AsyncHandle[int])
    assert_type(await (await count("a b")).result(), int)
    assert_type(await (await count.options(priority=1)("a b")).result(), int)
    await count(3)  # wrong
    await count()  # wrong
