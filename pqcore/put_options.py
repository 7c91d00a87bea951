"""What may be said of a job when it is put: dedup key, group, limits, headers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeAlias

from pqcore.errors import ConfigurationError, SerializationError
from pqcore.lanes import Lane, lane_of_gate, lane_values
from pqcore.serializers.plain_json import check_json
from pqcore.sql.identifiers import MAX_KEY, MAX_PRIORITY, check_text
from pqcore.times import seconds

RESERVED = ("gate", "run", "keep", "then", "batch", "batch_token", "previous")
"""Headers that have a meaning to pqcore."""

OnConflict: TypeAlias = Literal["keep", "replace", "error"]


@dataclass(frozen=True)
class Dedup:
    """A key that one job of a queue has at a time.

    Attributes:
        key: The key.
        until: How long the job holds it: ``"finished"`` while it waits or runs;
            ``"started"`` while it waits; or a time from when it is put (seconds,
            ``'5m'``, a timedelta), whatever becomes of the job.
        on_conflict: What becomes of a put whose key is taken: ``"keep"`` puts nothing
            and returns the id of the job that has it; ``"replace"`` gives that
            job the new data and times, if it still waits; ``"error"`` raises `DuplicateJob`.

    Raises:
        ConfigurationError: ``until`` or ``on_conflict`` is none of these.
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
        """For how many seconds the key is held; None if by the job."""
        return None if self.until in ("finished", "started") else seconds(self.until)


@dataclass(frozen=True)
class PutOptions:
    """All of it, checked.

    Attributes:
        dedup: The key, or None.
        group: Jobs of one group are run by workers in the order that they were put, one at a time.
        headers: The job's headers, as JSON; None without any.
        lane: What the job has to be admitted for; None if nothing.
    """

    dedup: Dedup | None
    group: str | None
    headers: str | None
    lane: Lane | None = None

    def values(self) -> dict[str, object]:
        """Return the values of the statements that put a job."""
        return {"headers": self.headers, "group_key": self.group, **lane_values(self.lane)}


def given(
    dedup: Dedup | str | None = None,
    group: str | None = None,
    limits: Mapping[str, int] | None = None,
    headers: Mapping[str, Any] | None = None,
    tenant: str | None = None,
    priority: int = 0,
) -> dict[str, Any] | None:
    """The options of a put, to be checked by `put_options`; None without any, as most puts are."""
    if dedup is None and group is None and not limits and not headers and tenant is None and priority == 0:
        return None
    return {
        "dedup": dedup,
        "group": group,
        "limits": limits,
        "headers": headers,
        "tenant": tenant,
        "priority": priority,
    }


def put_options_of(headers: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a put of a job like the one that has these headers, but for the dedup key."""
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
) -> PutOptions:
    """Check the options of a put.

    Args:
        headers: The user's.
        group: See `PutOptions`.
        limits: How many jobs may be worked on at once, by key.
        dedup: A `Dedup`, or its key.
        own: Headers of pqcore's.
        tenant: Whose share the job is counted to.
        priority: Higher first; None for that of most, 0.

    Raises:
        ConfigurationError, InvalidName: A key, limit or header cannot be one.
        SerializationError: The headers are not JSON.
    """
    if dedup is not None and not isinstance(dedup, Dedup):
        dedup = Dedup(dedup)
    for name in headers or ():
        if name in RESERVED:
            msg = f"header {name!r} is pqcore's own; choose another name"
            raise ConfigurationError(msg)
    gate: dict[str, Any] = {}
    if group is not None:
        gate["group"] = check_text(group, "group", MAX_KEY)
    if limits:
        for key, places in limits.items():
            check_text(key, "limit", MAX_KEY)
            if not isinstance(places, int) or isinstance(places, bool) or places < 1:
                msg = f"limit {key!r} is {places!r}; give the number of jobs that may run at once, at least 1"
                raise ConfigurationError(msg)
        gate["limits"] = dict(limits)
    if tenant is not None:
        gate["share"] = check_text(tenant, "tenant", MAX_KEY)
    if priority:
        if not isinstance(priority, int) or isinstance(priority, bool) or not -MAX_PRIORITY <= priority <= MAX_PRIORITY:
            msg = f"priority is {priority!r}; give a whole number from {-MAX_PRIORITY:,} to {MAX_PRIORITY:,}"
            raise ConfigurationError(msg)
        gate["priority"] = priority
    if dedup is not None and dedup.until == "started":
        gate["dedup"] = "started"
    merged = {**(headers or {}), **(own or {})}
    if gate:
        merged["gate"] = gate
    try:
        encoded = json.dumps(merged, allow_nan=False, separators=(",", ":")) if merged else None
        if headers and encoded is not None:
            check_json(headers, encoded)
        if encoded is not None and "\\ud" in encoded:
            json.dumps(merged, ensure_ascii=False).encode()  # half a pair is no text: readers would stumble over it
    except (TypeError, ValueError, RecursionError) as exc:
        raise SerializationError(f"the job's headers are not JSON: {exc}") from exc
    if encoded is not None and "\\u0000" in encoded:
        raise SerializationError("the job's headers contain a NUL, which PostgreSQL's text cannot hold")
    return PutOptions(dedup, group, encoded, lane_of_gate(gate))
