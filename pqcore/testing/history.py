"""What producers and consumers saw, and whether a queue may have done that.

Those who use the queue record each operation with the instants between which it
happened (`History.record`); afterwards `check` looks for what no interleaving of
those operations explains.  Only intervals are compared: of two operations that
overlapped, either may have been first, and neither order is a violation.

The instants are of ``CLOCK_MONOTONIC``, which all processes of one machine
share, so the histories of several processes can be put together
(`History.merged`); those of several machines cannot.

What an empty answer proves: of the operations *recorded*, none lost, invented or
doubled a job, none finished one under an overtaken lease, and jobs of one key
were first taken in the order they were put.  What it does not prove: anything of
operations that were not recorded.  The history of a process that was killed dies
with it, so what it popped appears lost, and what it took first appears to be
taken out of order; let such a process take leases, or give its jobs no key.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from pqcore.errors import LeaseLost

Kind: TypeAlias = Literal["put", "get", "lease", "ack", "nack"]
Outcome: TypeAlias = Literal["ok", "undone", "lost", "unknown"]


@dataclass(frozen=True)
class Operation:
    """One operation on one job.

    Attributes:
        kind: ``get`` is the taking of a job for good, ``lease`` for a time.
        begin: Nanoseconds; the operation took effect after this,
        end: and before this.
        job: The job's id; None if it is not known, as of a put that failed.
        token: The job's ``token`` under which it was taken, or finished.
        key: What jobs share that are to be taken in the order they were put.
        outcome: ``undone``: rolled back.  ``lost``: refused, as the lease was lost.
            ``unknown``: it failed, and may have happened or not.
    """

    kind: Kind
    begin: int
    end: int
    job: int | None
    token: int | None = None
    key: object = None
    outcome: Outcome = "ok"

    def __str__(self) -> str:
        token = "" if self.token is None else f" token {self.token}"
        outcome = "" if self.outcome == "ok" else f" {self.outcome}"
        return f"{self.kind}{token}{outcome} [{self.begin}..{self.end}]"


@dataclass
class Recording:
    """An operation under way, to be told what it did.

    Attributes:
        job: The job's id.
        token: Its fencing token.
        jobs: Instead, the (id, token) of each job of a batch.
        outcome: To be set where it is known better than by the exception:
            ``"undone"``, before a transaction is rolled back.
    """

    job: int | None = None
    token: int | None = None
    jobs: list[tuple[int, int | None]] = field(default_factory=list)
    outcome: Outcome | None = None


class History:
    """Operations, recorded by many threads; may be pickled."""

    def __init__(self, operations: Iterable[Operation] = ()) -> None:
        self.operations = list(operations)

    @classmethod
    def merged(cls, histories: Iterable[History]) -> History:
        """One history of several, as of several processes."""
        return cls(operation for history in histories for operation in history.operations)

    @contextmanager
    def record(self, kind: Kind, key: object = None, token: int | None = None) -> Iterator[Recording]:
        """Record what the block does.

        ``with history.record("put", key="a") as op: op.job = queue.put(...)``.
        A get within a transaction is to be recorded with its commit inside of the
        block: it happens when that does.  A get or lease that is told no job is
        forgotten: it found none.

        Args:
            kind: What is done.
            key: With a put; see `Operation`.
            token: With an ack or nack; with others it may be set in the block.
        """
        recording = Recording(token=token)
        begin = time.monotonic_ns()
        outcome: Outcome = "ok"
        try:
            yield recording
        except LeaseLost:
            outcome = "lost"
            raise
        except BaseException:
            outcome = "unknown"
            raise
        finally:
            end = time.monotonic_ns()
            outcome = recording.outcome or outcome
            jobs: list[tuple[int | None, int | None]] = [*recording.jobs]
            if recording.job is not None or (not jobs and outcome == "unknown"):
                jobs.append((recording.job, recording.token))
            # One call, so that threads need no lock, and a pickle has none.
            self.operations.extend([Operation(kind, begin, end, job, mark, key, outcome) for job, mark in jobs])


def check(history: History, left: Collection[int] = ()) -> list[str]:
    """Look for violations.

    Of an operation with an unknown outcome either is believed, whatever explains
    more; with each put or get that failed without a job's id, one ghost or one loss
    is.  Violations are:

    * a loss: a put that was acknowledged, of a job that is neither left, nor was
      popped or acknowledged by anybody (a lease alone finishes nothing);
    * a ghost: a job that was delivered, and never put, or before it was put;
    * a double delivery: a job popped twice, given again after it was finished,
      or leased twice with one token;
    * a double acknowledgement, and one of a job that was popped;
    * an ack or nack that succeeded with an overtaken token;
    * disorder: of two jobs of a key, put one after the other, the first take of
      the second was over before that of the first began.  Redeliveries do not
      count, neither do jobs that were never taken.

    Args:
        history: Of everybody who used the queue.
        left: The ids of the jobs that are still in the table, waiting or leased.

    Returns:
        A line for each violation.
    """
    jobs: dict[int, list[Operation]] = defaultdict(list)
    for operation in history.operations:
        if operation.job is not None:
            jobs[operation.job].append(operation)
    nameless = [operation.kind for operation in history.operations if operation.job is None]
    violations: list[str] = []
    ghosts: list[str] = []
    losses: list[str] = []
    remaining = frozenset(left)
    for job, operations in sorted(jobs.items()):
        ghosts += _ghosts(job, operations)
        losses += _losses(job, operations, left=job in remaining)
        violations += _finished_once(job, operations)
        violations += _fenced(job, operations)
    violations += ghosts if len(ghosts) > nameless.count("put") else []
    violations += losses if len(losses) > nameless.count("get") else []
    violations += _disorder(jobs)
    return violations


def _of(operations: Iterable[Operation], *kinds: Kind, outcome: Outcome | None = "ok") -> list[Operation]:
    return [o for o in operations if o.kind in kinds and outcome in (None, o.outcome)]


def _losses(job: int, operations: list[Operation], *, left: bool) -> Iterator[str]:
    finished = [o for o in _of(operations, "get", "ack", outcome=None) if o.outcome in ("ok", "unknown")]
    if _of(operations, "put") and not finished and not left:
        history = ", ".join(map(str, operations))
        yield f"job {job} was lost: it was put, is not left, and nobody finished it: {history}"


def _ghosts(job: int, operations: list[Operation]) -> Iterator[str]:
    puts = [o for o in _of(operations, "put", outcome=None) if o.outcome != "undone"]
    for taken in _of(operations, "get", "lease"):
        if not puts:
            yield f"job {job} is a ghost: it was never put: {taken}"
        elif taken.end < min(put.begin for put in puts):
            yield f"job {job} is a ghost: it was taken before it was put: {taken}, {puts[0]}"


def _finished_once(job: int, operations: list[Operation]) -> Iterator[str]:
    pops, acks = _of(operations, "get"), _of(operations, "ack")
    if len(pops) > 1:
        yield f"job {job} was delivered twice: {', '.join(map(str, pops))}"
    if len(acks) > 1:
        yield f"job {job} was acknowledged twice: {', '.join(map(str, acks))}"
    if pops and acks:
        yield f"job {job} was popped and acknowledged: {pops[0]}, {acks[0]}"
    finished = min((o.end for o in pops + acks), default=None)
    for lease in _of(operations, "lease"):
        if finished is not None and lease.begin > finished:
            yield f"job {job} was delivered after it was finished at {finished}: {lease}"
    tokens: dict[int | None, Operation] = {}
    for lease in _of(operations, "lease"):
        if lease.token in tokens:
            yield f"job {job} was delivered twice with one token: {tokens[lease.token]}, {lease}"
        if lease.token is not None:
            tokens[lease.token] = lease


def _fenced(job: int, operations: list[Operation]) -> Iterator[str]:
    for held in _of(operations, "ack", "nack"):
        for taken in _of(operations, "get", "lease"):
            if held.token is None or taken.token is None or taken.token <= held.token:
                continue
            # After an ack there is no further token, so the two exclude each other in either order.
            if held.kind == "ack" or taken.end < held.begin:
                yield f"job {job}: the {held.kind} succeeded though its token was overtaken: {held}, {taken}"


def _disorder(jobs: dict[int, list[Operation]]) -> Iterator[str]:
    keys: dict[object, list[tuple[Operation, Operation]]] = defaultdict(list)
    for operations in jobs.values():
        puts = [put for put in _of(operations, "put") if put.key is not None]
        # One that was rolled back, or maybe happened, was maybe the first.
        takes = _of(operations, "get", "lease", outcome=None)
        first = min(takes, key=lambda take: take.begin, default=None)
        if puts and first is not None and (first.token or 1) == 1:
            keys[puts[0].key].append((puts[0], first))
    for key, pairs in keys.items():
        ended = sorted(pairs, key=lambda pair: pair[0].end)
        latest: tuple[Operation, Operation] | None = None  # taken last, of those put before
        place = 0
        for put, take in sorted(pairs, key=lambda pair: pair[0].begin):
            while place < len(ended) and ended[place][0].end < put.begin:
                if latest is None or ended[place][1].begin > latest[1].begin:
                    latest = ended[place]
                place += 1
            if latest is not None and take.end < latest[1].begin:
                yield (
                    f"key {key!r}: job {put.job} was put after job {latest[0].job}, and taken before it: "
                    f"{latest[0]}, {put}; {take}, {latest[1]}"
                )
