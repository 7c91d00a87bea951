"""The targets of each operation, compared with a bare loop over the driver."""

from __future__ import annotations

from collections.abc import Mapping

from pqcore.errors import ConfigurationError

from .backends import Contender
from .baseline import loop_class
from .operations import OPERATIONS

TARGETS: Mapping[str, float] = {
    "put": 0.85,
    "get": 0.85,
    "transactional_get": 0.85,
    "put_many": 0.85,
    "get_many": 0.85,
    "lease_ack": 0.85,
    "worker": 0.25,
}
"""The lowest speed of an operation, as a share of a bare loop over the driver; see docs/benchmark-targets.md."""
CPU: Mapping[str, float] = {
    "put": 2.0,
    "get": 2.3,
    "transactional_get": 2.8,
    "put_many": 1.7,
    "get_many": 1.9,
    "lease_ack": 2.2,
    "worker": 8.0,
}
"""The largest CPU time of the client per job, as a multiple of a bare loop's; see docs/benchmark-targets.md.

Each is a third more than the largest value measured over any driver with both processors busy.
"""
WIRE: Mapping[str, float] = dict.fromkeys(TARGETS, 0.0)
"""How many more round trips, statements and commits per call (for a worker, per job) than the bare loop are allowed.

A worker leases with the statement that acknowledges: it runs one statement for 20 jobs, and the bare loop two. On a
busy machine its jobs do not end together, so it runs more statements.
"""


def targets_of(contender: Contender) -> dict[str, float]:
    """Return a backend's targets: `TARGETS`, overridden by its bare loop (`BareLoop.targets`).

    Raises:
        ConfigurationError: The bare loop cannot be imported, or its targets are invalid.
    """
    kind = loop_class(contender)
    own = {} if kind is None else kind.targets
    if not isinstance(own, Mapping) or not all(_is_target(*each) for each in own.items()):
        msg = (
            f"backend {contender.name!r}: the targets of its bare loop are {own!r};"
            f" give numbers above 0 for {', '.join(TARGETS)}, as in {{'put': 0.8}}"
        )
        raise ConfigurationError(msg)
    return {name: float({**TARGETS, **own}[name]) for name in OPERATIONS}


def _is_target(operation: object, share: object) -> bool:
    return operation in TARGETS and isinstance(share, (int, float)) and share > 0
