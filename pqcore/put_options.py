"""The options of a put: times, dedup key, group, limits, headers, tenant, priority, parents."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from datetime import timedelta
from typing import Any, Literal, TypeAlias

from pqcore.argument_checks import check_job_id, check_limits, check_mapping
from pqcore.errors import ConfigurationError, SerializationError
from pqcore.headers import MOST_PLACES
from pqcore.lanes import Lane, lane_of_gate, lane_values
from pqcore.serializers.plain_json import check_json
from pqcore.sql.identifiers import MAX_KEY, MAX_PRIORITY, check_text
from pqcore.times import TimeSpec, seconds

RESERVED = ("gate", "run", "keep", "then", "batch", "batch_token", "previous", "depends_on")
"""Headers that pqcore itself reads."""

OnConflict: TypeAlias = Literal["keep", "replace", "error"]
OnFailure: TypeAlias = Literal["dead", "cancel", "run"]
MOST_PARENTS = 10_000
"""The largest number of jobs that one job may wait for."""


@dataclass(frozen=True)
class Dedup:
    """A key that only one job of a queue can have at a time.

    Attributes:
        key: The key.
        until: How long the job holds the key. ``"finished"``: while the job waits or runs. ``"started"``: while the job
            waits. A time from the put (seconds, ``'5m'``, a timedelta): for that time, even if the job ends earlier.
        on_conflict: What a put does if another job has the key. ``"keep"`` puts nothing, and returns the id of that
            job. ``"replace"`` gives that job the new data and times, if it still waits. ``"error"`` raises
            `DuplicateJob`.

    Raises:
        ConfigurationError: ``until`` or ``on_conflict`` has another value.
    """

    key: str
    until: str | float | timedelta = "finished"
    on_conflict: OnConflict = "keep"

    def __post_init__(self) -> None:
        check_text(self.key, "dedup key", MAX_KEY)
        if self.on_conflict not in ("keep", "replace", "error"):
            msg = f"on_conflict is {self.on_conflict!r}; choose 'keep', 'replace' or 'error'"
            raise ConfigurationError(msg)
        _ = self.period

    @property
    def period(self) -> float | None:
        """Return for how many seconds the key is held; None if the job's state decides."""
        return None if self.until in ("finished", "started") else seconds(self.until)


@dataclass(frozen=True)
class After:
    """A job for which another job waits, and what happens if this job fails: ``put(data, after=[a, After(b, "run")])``.

    A job fails if it becomes a dead letter, is cancelled or discarded, or is deleted before it ran.

    Attributes:
        job_id: The id of the job, as `Queue.put` or the call of a task returned it.
        on_failure: What happens to the waiting job if this job fails. ``"dead"``: it becomes a dead letter, whose error
            names this job. ``"cancel"``: it is cancelled. ``"run"``: it runs as if this job were done.

    Raises:
        ConfigurationError: The id is not a number that a job can have, or ``on_failure`` has another value.
    """

    job_id: int
    on_failure: OnFailure = "dead"

    def __post_init__(self) -> None:
        check_job_id(self.job_id)
        if self.on_failure not in ("dead", "cancel", "run"):
            msg = f"on_failure is {self.on_failure!r}; choose 'dead', 'cancel' or 'run'"
            raise ConfigurationError(msg)


Parents: TypeAlias = "int | After | Iterable[int | After] | None"
"""The jobs that a job waits for: an id, or several; `After` says what happens if one of them fails."""


def rereadable(after: Any) -> Any:
    """Return the option ``after`` in a form that can be read several times, even if the caller gave a generator."""
    return list(after) if isinstance(after, Iterator) else after


def parents_of(after: Any) -> dict[int, After]:
    """Return the jobs that a new job must wait for, by id, in the order given.

    Args:
        after: The option of a put; see `Parents`.

    Raises:
        ConfigurationError: The value is no id and no iterable of ids, an id occurs with two policies, or there are more
            than `MOST_PARENTS`.
    """
    if after is None:
        return {}
    if isinstance(after, (str, bytes, Mapping)) or not isinstance(after, (int, After, Iterable)):
        msg = f"after is {after!r}; give the id of a job, or a list of ids or After(id, on_failure=...)"
        raise ConfigurationError(msg)
    found: dict[int, After] = {}
    for each in [after] if isinstance(after, (int, After)) else after:
        parent = each if isinstance(each, After) else After(each)
        other = found.setdefault(int(parent.job_id), parent)
        if other.on_failure != parent.on_failure:
            msg = f"after has job {int(parent.job_id)} with on_failure={other.on_failure!r} and {parent.on_failure!r}"
            raise ConfigurationError(f"{msg}: name each job once")
        if len(found) > MOST_PARENTS:
            msg = f"after has more than {MOST_PARENTS:,} jobs: let another job wait for some, and name that job here"
            raise ConfigurationError(msg)
    return found


@dataclass(frozen=True)
class NewJob:
    """A job for `Queue.put_many` with its own options.

    If an option is None, the job gets the value that the call of `put_many` gives for this option.

    Attributes:
        data: Any value that the queue's serializer can encode.
        schedule_at: The earliest time at which the job may run; see `Queue.put`.
        expected_at: The time by which the job is wanted; see `Queue.put`.
        dedup: A key that only one job can have at a time: a string, or a `Dedup`.
        group: The job's FIFO group.
        limits: How many leased jobs of a name all workers together may run concurrently: ``{"reports": 3}``.
        headers: JSON values that are stored with the job's data. Headers of the call of `put_many` are added, unless
            the job has a header of the same name.
        tenant: The share that the job belongs to.
        priority: A whole number; jobs with higher numbers are taken first.
        after: Jobs that the job waits for: an id, or ids and `After`; see `Queue.put`. They must exist before the call.
    """

    data: Any
    schedule_at: TimeSpec = None
    expected_at: TimeSpec = None
    _: KW_ONLY
    dedup: Dedup | str | None = None
    group: str | None = None
    limits: Mapping[str, int] | None = None
    headers: Mapping[str, Any] | None = None
    tenant: str | None = None
    priority: int | None = None
    after: Parents = None

    def __post_init__(self) -> None:
        if self.after is not None:
            object.__setattr__(self, "after", rereadable(self.after))


@dataclass(frozen=True)
class PutOptions:
    """The options of a put, checked.

    Attributes:
        dedup: The key, or None.
        group: The job's group; workers run the jobs of one group one at a time, in the order in which they were put.
        headers: The job's headers, as JSON; None for no headers.
        lane: The lane that has to admit the job; None if the job needs no admission.
        parents: The jobs that the job waits for, by id.
    """

    dedup: Dedup | None
    group: str | None
    headers: str | None
    lane: Lane | None = None
    parents: Mapping[int, After] = field(default_factory=dict)

    def values(self) -> dict[str, object]:
        """Return the values for the statements that put a job."""
        return {"headers": self.headers, "group_key": self.group, **lane_values(self.lane)}


def given(
    dedup: Dedup | str | None = None,
    group: str | None = None,
    limits: Mapping[str, int] | None = None,
    headers: Mapping[str, Any] | None = None,
    tenant: str | None = None,
    priority: int = 0,
    after: Parents = None,
) -> dict[str, Any] | None:
    """Return the options given to a put, for `put_options` to check; None without options, which is the usual case."""
    if dedup is None and group is None and not limits and not headers and tenant is None and priority == 0:
        return None if after is None else {"after": after}
    return {
        "after": after,
        "dedup": dedup,
        "group": group,
        "limits": limits,
        "headers": headers,
        "tenant": tenant,
        "priority": priority,
    }


def put_options_of(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that give another job these headers, without the dedup key."""
    gate = headers.get("gate", {})
    own = {name: value for name, value in headers.items() if name in RESERVED and name != "gate"}
    users = {name: value for name, value in headers.items() if name not in RESERVED}
    return {
        "headers": users,
        "own": own,
        "group": gate.get("group"),
        "limits": gate.get("limits"),
        "tenant": gate.get("share"),
        "priority": gate.get("priority", 0),
    }


def put_options(
    headers: Mapping[str, Any] | None,
    group: str | None,
    limits: Mapping[str, int] | None,
    dedup: Dedup | str | None,
    own: Mapping[str, Any] | None = None,
    tenant: str | None = None,
    priority: int | None = 0,
    after: Parents = None,
) -> PutOptions:
    """Check the options of a put.

    Args:
        headers: The headers that the caller gave.
        group: See `PutOptions`.
        limits: How many jobs may run concurrently, by key.
        dedup: A `Dedup`, or a key.
        own: Headers that pqcore adds.
        tenant: The share that the job belongs to.
        priority: Jobs with higher numbers are taken first; None for 0, the usual priority.
        after: The jobs that the job waits for.

    Raises:
        ConfigurationError, InvalidName: A key, limit, header or id has an invalid value, or ``after`` cannot be used
            with the dedup key.
        SerializationError: JSON cannot hold the headers.
    """
    if dedup is not None and not isinstance(dedup, Dedup):
        dedup = Dedup(dedup)
    if headers is not None:
        check_mapping(headers, "headers", "a dict of names and values that JSON has")
    for name in headers or ():
        if name in RESERVED:
            msg = f"header {name!r} is pqcore's own; choose another name"
            raise ConfigurationError(msg)
    gate: dict[str, Any] = {}
    if group is not None:
        gate["group"] = check_text(group, "group", MAX_KEY)
    if limits is not None and (chosen := check_limits(limits)):
        for key, places in chosen.items():
            check_text(key, "limit", MAX_KEY)
            if not isinstance(places, int) or isinstance(places, bool) or not 1 <= places <= MOST_PLACES:
                number = f"the number of jobs that may run concurrently, from 1 to {MOST_PLACES:,}"
                msg = f"limit {key!r} is {places!r}; give {number}"
                raise ConfigurationError(msg)
        gate["limits"] = chosen
    if tenant is not None:
        gate["share"] = check_text(tenant, "tenant", MAX_KEY)
    if priority:
        if not isinstance(priority, int) or isinstance(priority, bool) or not -MAX_PRIORITY <= priority <= MAX_PRIORITY:
            msg = f"priority is {priority!r}; give a whole number from {-MAX_PRIORITY:,} to {MAX_PRIORITY:,}"
            raise ConfigurationError(msg)
        gate["priority"] = priority
    if dedup is not None and dedup.until == "started":
        gate["dedup"] = "started"
    parents = parents_of(after)
    if parents and dedup is not None and dedup.on_conflict == "replace":
        msg = "after cannot be used with on_conflict='replace': jobs that the replaced job waits for could wait for it"
        raise ConfigurationError(f"{msg}; use 'keep' or 'error'")
    merged = {**(headers or {}), **(own or {}), **({"depends_on": list(parents)} if parents else {})}
    if gate:
        merged["gate"] = gate
    try:
        encoded = json.dumps(merged, allow_nan=False, separators=(",", ":")) if merged else None
        if headers and encoded is not None:
            check_json(headers, encoded)
        if encoded is not None and "\\ud" in encoded:
            json.dumps(merged, ensure_ascii=False).encode()  # refuse lone surrogates, which readers could not decode
    except (TypeError, ValueError, RecursionError) as exc:
        raise SerializationError(f"the job's headers are not JSON: {exc}") from exc
    if encoded is not None and "\\u0000" in encoded:
        raise SerializationError("the job's headers contain a NUL, which PostgreSQL's text cannot hold")
    return PutOptions(dedup, group, encoded, lane_of_gate(gate), parents)
