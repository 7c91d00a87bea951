"""Pools of drivers' own, opened as users of the drivers open them: for the scenarios of the capability POOL."""

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
"""Given a DSN, a number of connections, and whether statements may be prepared."""

POOLS = "pqcore.testing.pools"
"""The group of entry points by which other backends say how to open a pool: each under the backend's name, that of an
asynchronous one with ``-async`` after it where the driver has both faces."""


async def open_pool(spec: BackendSpec, dsn: str, size: int) -> Any:
    """Open a pool of a backend's driver.

    Args:
        spec: The backend.
        dsn: Where to connect.
        size: Connections, at most.

    Raises:
        ConfigurationError: The kit does not know how to.
    """
    opened = _opener_for(spec)(dsn, size, prepared())
    return await opened if inspect.isawaitable(opened) else opened


def _opener_for(spec: BackendSpec) -> Opener:
    for name in (f"{spec.name}-async", spec.name)[spec.mode == "blocking" :]:
        for point in importlib.metadata.entry_points(group=POOLS, name=name):
            opener: Opener = point.load()
            return opener
    for (driver, mode), known in OPENERS.items():
        if driver in spec.requires and mode == spec.mode:
            return known
    raise ConfigurationError(
        f"backend {spec.name!r} offers POOL, and the test kit cannot open a pool of its driver: name a function by an"
        f' entry point in the group {POOLS}, as in {spec.name} = "package.module:open_pool"; it is given a DSN, a'
        " number of connections, and whether statements may be prepared"
    )
