"""Batches: each batch counts its jobs as they end, and puts a call after the last of them.

A job's headers hold the number of the job's batch, and the batch's token. A role that can only put jobs cannot read
headers or tokens: it can guess the number of another program's batch, but not the token.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pqcore.db.engine import Engine
from pqcore.db.session import Session
from pqcore.errors import AccessDenied
from pqcore.headers import check_link
from pqcore.operations.atomic import atomic
from pqcore.operations.deferred_put import StoredPut
from pqcore.operations.put import insert
from pqcore.operations.put_refusals import not_stored
from pqcore.operations.serialize import encode
from pqcore.settings import QueueSettings

logger = logging.getLogger("pqcore")

P = TypeVar("P", bound=StoredPut)

HOLD = 3_600.0
"""Seconds for which a job taken with `get` may be performed before its batch counts as lost."""
BETWEEN_LOOKS = 0.05
"""Seconds between looks for lost batches, when a worker is about to stop."""
LONGEST_PAUSE = 16
"""The largest number of looks for which a batch is skipped after its jobs were found."""


@dataclass(frozen=True, order=True)
class Membership:
    """The proof that a job belongs to a batch; without it, the batch does not count the job.

    Attributes:
        batch: The number of the batch.
        token: The token of the batch; empty for a batch that older code put.
    """

    batch: int
    token: str

    @classmethod
    def of(cls, headers: Mapping[str, Any]) -> Membership | None:
        """Return the membership in the headers of a job; None if the job belongs to no batch."""
        batch = headers.get("batch")
        return None if batch is None else cls(batch, headers.get("batch_token", ""))

    def mark(self, call: P) -> P:
        """Return the call with headers that name the batch, so that the batch counts the call's job.

        The later calls of a chain get these headers, too: the batch counts the last job of the chain, or the job that
        fails.
        """
        headers: dict[str, Any] = {**call.headers, "batch": self.batch, "batch_token": self.token}
        if "then" in headers:
            headers["then"] = [self.mark(StoredPut.from_json(link)).to_json() for link in headers["then"]]
        return replace(call, headers=headers)


async def open_batch(
    engine: Engine, s: Session, queue: QueueSettings, total: int, callback: StoredPut | None
) -> Membership:
    """Open a batch of ``total`` jobs in the transaction that puts the jobs; return the membership for these jobs."""
    query = s.sql.tasks.open_batch
    token = secrets.token_hex(16)
    after = None if callback is None else json.dumps(callback.to_json())
    values = {"q_name": queue.name, "total": total, "callback": after, "token": token}
    rows = await s.execute(query, query.bind(values))
    if not rows:
        raise await not_stored(engine, s, "open_batch")
    [[batch]] = rows
    return Membership(batch, token)


def without_batch(headers: dict[str, Any]) -> str | None:
    """Return the headers of a job without its batch, because the batch has counted the job and must not count it again.

    Return None if the headers can stay as they are.
    """
    if "batch" not in headers:
        return None
    links = [{**link, "headers": _less_batch(link["headers"])} for link in headers.get("then", [])]
    return json.dumps({**_less_batch(headers), **({"then": links} if links else {})})


def _less_batch(headers: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in headers.items() if name not in ("batch", "batch_token")}


async def count_down(
    engine: Engine, queue: QueueSettings, s: Session, ended: Sequence[tuple[Membership, bool]]
) -> None:
    """Count ended jobs in their batches; when the last job of a batch has ended, put the batch's follow-up.

    Args:
        engine: The engine.
        queue: The queue of the jobs.
        s: A session with an open transaction.
        ended: The membership of each job, and whether the job was done.
    """
    counts: dict[Membership, list[int]] = {}
    for membership, done in ended:
        count = counts.setdefault(membership, [0, 0])
        count[0] += 1
        count[1] += int(not done)
    tasks = s.sql.tasks
    # these statements lock rows of batches; the same order in all callers prevents deadlocks
    for membership, (number, failed) in sorted(counts.items()):
        values = {"id": membership.batch, "token": membership.token or None, "done": number, "failed": failed}
        for row in await s.execute(tasks.batch_progress, tasks.batch_progress.bind(values)):
            await _close_if_over(engine, queue, s, membership.batch, *row)


async def hold_open(s: Session, memberships: Iterable[Membership]) -> None:
    """Keep batches open although `get` finished one of their jobs.

    The caller of `get` still performs the job, and the batch counts the job's end later.
    """
    query = s.sql.tasks.hold_batch
    for membership in sorted(set(memberships)):
        values = {"id": membership.batch, "token": membership.token or None, "hold": HOLD}
        await s.execute(query, query.bind(values))


class Watch:
    """A watch for batches of a queue whose jobs disappeared without being counted; it ends these batches.

    A batch does not count a job that was deleted in SQL, or a job that a process took with `get` before the process
    died. A batch is lost if two looks find none of its jobs, and the batch counted no job between the two looks. One
    look is not enough, because a job taken with `get` is counted a moment later, in a separate transaction.
    """

    def __init__(self) -> None:
        self._seen: dict[int, _Seen] = {}

    async def look(self, engine: Engine, queue: QueueSettings) -> int:
        """Look once for lost batches, and end them; return the number of lost batches.

        A look searches for the jobs of a batch only if the batch has counted no job since the last look. Each search
        that finds jobs doubles the number of looks until the next search, up to `LONGEST_PAUSE`.
        """
        rows = await engine.execute("tasks.open_batches", {"q_name": queue.name}, protect=False)
        before, self._seen = self._seen, {}
        for batch, pending in rows:
            seen = before.get(batch)
            self._seen[batch] = seen if seen is not None and seen.pending == pending else _Seen(pending)
        wanted = [batch for batch, seen in self._seen.items() if seen.count_look()]
        if not wanted:
            return 0
        alive = await self._alive(engine, wanted)
        lost = [batch for batch in wanted if self._seen[batch].note(alive=batch in alive)]
        for batch in lost:
            await _end_lost(engine, queue, batch, self._seen.pop(batch).pending)
        return len(lost)

    @property
    def suspects(self) -> bool:
        """Return whether a later look may find that a batch is lost."""
        return any(seen.alive is not True for seen in self._seen.values())

    @staticmethod
    async def _alive(engine: Engine, batches: list[int]) -> set[int]:
        alive: set[int] = set()
        for statement in ("tasks.held_batches", "tasks.live_batches"):
            rows = await engine.execute(statement, {"ids": batches}, protect=False)
            alive.update(batch for (batch,) in rows)
        return alive


@dataclass
class _Seen:
    """The result of the last look at a batch.

    Attributes:
        pending: How many jobs the batch waited for.
        alive: Whether some of the jobs were found; None if they were not searched for.
        looks: The number of looks since the jobs were searched for.
        pause: The number of looks for which the batch is skipped, after jobs were found.
    """

    pending: int
    alive: bool | None = None
    looks: int = -1
    pause: int = 1

    def count_look(self) -> bool:
        """Count a look; return whether this look must search for the jobs."""
        self.looks += 1
        return self.looks > 0 if self.alive is not True else self.looks >= self.pause

    def note(self, *, alive: bool) -> bool:
        """Record whether jobs were found; return whether the batch is lost."""
        lost = self.alive is False and not alive
        self.alive = alive
        if alive:
            self.looks, self.pause = 0, min(2 * self.pause, LONGEST_PAUSE)
        return lost


async def end_lost(engine: Engine, queue: QueueSettings) -> int:
    """End the batches of a queue that have no jobs left, before a worker stops because it found no jobs.

    Return the number of these batches.
    """
    watch = Watch()
    try:
        ended = await watch.look(engine, queue)
        for _ in range(2):
            if not watch.suspects:
                break
            await engine.runtime.sleep(BETWEEN_LOOKS)
            ended += await watch.look(engine, queue)
    except AccessDenied as exc:
        logger.warning("%r: cannot look for batches that have lost jobs: %s", queue.name, exc)
        return 0
    return ended


async def _end_lost(engine: Engine, queue: QueueSettings, batch: int, pending: int) -> None:
    async def work(s: Session) -> bool:
        query = s.sql.tasks.end_lost_batch
        async with atomic(s):
            rows = await s.execute(query, query.bind({"id": batch, "q_name": queue.name, "pending": pending}))
            for row in rows:
                await _close_if_over(engine, queue, s, batch, *row)
        return bool(rows)

    if await engine.run(work):
        logger.warning(
            "%r: ended batch %d, which has lost %d jobs; the lost jobs count as failed", queue.name, batch, pending
        )


async def _close_if_over(
    engine: Engine,
    queue: QueueSettings,
    s: Session,
    batch: int,
    pending: int,
    total: int,
    failed: int,
    callback: str | None,
) -> None:
    if pending > 0:
        return
    await s.execute(s.sql.tasks.close_batch, s.sql.tasks.close_batch.bind({"id": batch}))
    if callback is not None and (following := _callback(queue, batch, callback)) is not None:
        result = await encode(engine, queue, {"batch": batch, "total": total, "failed": failed})
        last = following.after(queue, result, [])
        await insert(engine, s, last.values(), None)


def _callback(queue: QueueSettings, batch: int, text: str) -> StoredPut | None:
    try:
        check_link(link := json.loads(text))
    except (TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as exc:
        logger.error(  # noqa: TRY400 - a traceback would say no more
            "%r: the callback of batch %d is not a valid call, so no job was put: %s", queue.name, batch, exc
        )
        return None
    return StoredPut.from_json(link)
