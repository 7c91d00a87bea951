"""Records of what producers and consumers did, and a check whether the queue behaved correctly.

Users of the queue record each operation with the instants between which it happened (`History.record`). Afterwards,
`check` looks for observations that no interleaving of these operations explains. Only intervals are compared: if two
operations overlap, either may have been first, and neither order is a violation.

The instants are of ``CLOCK_MONOTONIC``, which all processes of one machine share. So the histories of several processes
can be merged (`History.merged`), but not the histories of several machines.

An empty result proves three things about the *recorded* operations. No operation lost, invented or doubled a job. No
operation finished a job with an older token. Jobs of one key were first taken in the order of their puts. The result
proves nothing about operations that were not recorded. The history of a killed process is lost. So jobs that the
process popped appear lost, and jobs that the process was the first to take appear out of order. A test
that kills a process must let the process take leases, or give the jobs of the process no key.
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
        kind: The kind of operation; ``get`` takes and completes a job, ``lease`` takes it for a time.
        begin: The time in nanoseconds after which the operation took effect.
        end: The time in nanoseconds before which the operation took effect.
        job: The job's id; None if unknown, as for a failed put.
        token: The fencing token with which the job was taken or finished.
        key: A key that jobs share if they must be taken in the order of their puts.
        outcome: ``undone``: the operation was rolled back. ``lost``: it was refused, because the lease was lost.
            ``unknown``: it failed, and may or may not have taken effect.
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
    """An operation in progress; the caller sets the attributes when it knows them.

    Attributes:
        job: The job's id.
        token: The job's fencing token.
        jobs: For an operation on several jobs, the (id, token) of each job, in place of ``job`` and ``token``.
        outcome: The outcome. Set it if no exception shows the outcome: ``"undone"``, before a transaction is rolled
            back.
    """

    job: int | None = None
    token: int | None = None
    jobs: list[tuple[int, int | None]] = field(default_factory=list)
    outcome: Outcome | None = None


class History:
    """Operations that many threads record; the object can be pickled."""

    def __init__(self, operations: Iterable[Operation] = ()) -> None:
        self.operations = list(operations)

    @classmethod
    def merged(cls, histories: Iterable[History]) -> History:
        """Return one history made of several, such as those of several processes."""
        return cls(operation for history in histories for operation in history.operations)

    @contextmanager
    def record(self, kind: Kind, key: object = None, token: int | None = None) -> Iterator[Recording]:
        """Record the operation in the block.

        ``with history.record("put", key="a") as op: op.job = queue.put(...)``. For a get within a transaction, the
        block must include the commit, because the get takes effect with the commit. If a get or lease finds no job,
        leave ``op.job`` unset: the operation is then not recorded.

        Args:
            kind: The kind of operation.
            key: The key of a put; see `Operation`.
            token: The token of an ack or nack; for other kinds, the block may set it.
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
            # All operations are added in a single call, so that threads need no lock, and the object can be pickled.
            self.operations.extend([Operation(kind, begin, end, job, mark, key, outcome) for job, mark in jobs])


def check(history: History, left: Collection[int] = ()) -> list[str]:
    """Return the violations in a history.

    If the outcome of an operation is unknown, the check assumes whichever of the two outcomes leaves fewer violations.
    The check excuses one ghost for each put that failed without telling the job's id, and one loss for each get that
    failed in the same way. Violations are:

    * a loss: a job whose put succeeded is gone, although the job was neither popped nor acknowledged (a lease alone
      finishes nothing);
    * a ghost: a job that was delivered without a put, or before its put;
    * a double delivery: a job that was popped twice, delivered after it was finished, or leased twice with one token;
    * a double acknowledgement, and an acknowledgement of a popped job;
    * an ack or nack that succeeded with an older token;
    * disorder: two jobs of a key were put one after the other, but the first take of the second job had ended before
      the first take of the first job began. A redelivery, or a job that was never taken, is not a violation.

    Args:
        history: The operations of all users of the queue.
        left: The ids of the jobs that are still in the table, waiting or leased.

    Returns:
        One line for each violation.
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
            # An ack finishes the job. So a take with a newer token is a violation, both before and after the ack.
            if held.kind == "ack" or taken.end < held.begin:
                yield f"job {job}: the {held.kind} succeeded though its token was overtaken: {held}, {taken}"


def _disorder(jobs: dict[int, list[Operation]]) -> Iterator[str]:
    keys: dict[object, list[tuple[Operation, Operation]]] = defaultdict(list)
    for operations in jobs.values():
        puts = [put for put in _of(operations, "put") if put.key is not None]
        # The first take may have been rolled back, or its outcome may be unknown.
        takes = _of(operations, "get", "lease", outcome=None)
        first = min(takes, key=lambda take: take.begin, default=None)
        if puts and first is not None and (first.token or 1) == 1:
            keys[puts[0].key].append((puts[0], first))
    for key, pairs in keys.items():
        ended = sorted(pairs, key=lambda pair: pair[0].end)
        latest: tuple[Operation, Operation] | None = None  # of the jobs put earlier, the one that was taken last
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
