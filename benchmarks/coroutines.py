"""Coroutines that never suspend: the benchmarks' own function, because builds differ in its name."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from pqcore.errors import PQError

T = TypeVar("T")


def run_sync(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends, and return its result.

    Raises:
        PQError: The coroutine suspended.
    """
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    coroutine.close()
    raise PQError("a coroutine over a blocking backend suspended")
