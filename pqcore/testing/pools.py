"""Drivers' own pools, opened as users open them, for the scenarios of the capability POOL."""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from pqcore.errors import ConfigurationError
from pqcore.testing.databases import prepared
from pqcore_backends.pools import OPENERS

if TYPE_CHECKING:
    from pqcore.backend import BackendSpec

Opener: TypeAlias = Callable[[str, int, bool], Any]
"""A function of a DSN, a number of connections, and whether statements may be prepared. If the driver refuses small
pools, the function has an attribute ``smallest``: the lowest number of connections that it takes."""

POOLS = "pqcore.testing.pools"
"""The entry point group with which other backends add a function that opens a pool. The entry point has the backend's
name; for an asynchronous backend of a driver with both faces, ``-async`` follows it."""


async def open_pool(spec: BackendSpec, dsn: str, size: int) -> tuple[Any, int]:
    """Open a pool of a backend's driver.

    Args:
        spec: The backend.
        dsn: The DSN to connect to.
        size: The largest number of connections that the scenario needs.

    Returns:
        The pool, and the number of connections that it has beyond ``size``, because the driver refuses smaller pools.

    Raises:
        ConfigurationError: The kit has no function for this backend.
    """
    opener = _opener_for(spec)
    beyond = max(getattr(opener, "smallest", 1) - size, 0)
    opened = opener(dsn, size + beyond, prepared())
    return await opened if inspect.isawaitable(opened) else opened, beyond


def _opener_for(spec: BackendSpec) -> Opener:
    for name in (f"{spec.name}-async", spec.name)[spec.mode == "blocking" :]:
        for point in importlib.metadata.entry_points(group=POOLS, name=name):
            opener: Opener = point.load()
            return opener
    for (driver, mode), known in OPENERS.items():
        if driver in spec.requires and mode == spec.mode:
            return known
    raise ConfigurationError(
        f"backend {spec.name!r} offers POOL, but the test kit cannot open a pool of its driver: add an entry point in"
        f' the group {POOLS}, as in {spec.name} = "package.module:open_pool". The test kit calls'
        " this function with a DSN, a number of connections, and whether statements may be prepared"
    )
