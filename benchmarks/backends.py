"""The backends to measure: the installed ones, each with a queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from pqcore.backend import BackendSpec, Mode
from pqcore.errors import BackendNotInstalled
from pqcore.plugins import plugins
from pqcore.tasks import PQ, AsyncPQ

from .coroutines import run_sync

T = TypeVar("T")
METHODS = ("put", "put_many", "get", "get_many", "lease", "lease_many", "ack_many", "put_calls", "count")


@dataclass(frozen=True)
class Location:
    """The place of the table."""

    dsn: str
    schema: str
    table: str


@dataclass(frozen=True)
class Contender:
    """A backend by name, in a form that can be sent to a process.

    Attributes:
        label: The label of the backend in the report.
        name, mode: The name and the mode of the backend.
    """

    label: str
    name: str
    mode: Mode

    @property
    def spec(self) -> BackendSpec:
        return plugins.backend_spec(self.name, self.mode)

    @property
    def blocking(self) -> bool:
        return self.mode == "blocking"

    def open(self, place: Location, **options: Any) -> Any:
        """Return a new `PQ` or `AsyncPQ`; call this in the thread or loop that uses it."""
        face: Any = PQ if self.blocking else AsyncPQ
        options = {"retention": "delete", **options}
        return face(place.dsn, backend=self.name, schema=place.schema, table=place.table, **options)

    def run(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine that uses only awaitables of this kind of backend: step it, or run it in a loop."""
        return run_sync(make()) if self.blocking else asyncio.run(make())


def contenders(names: Sequence[str] = ()) -> list[Contender]:
    """Return the backends with these names, in both modes; without names, all whose drivers are installed.

    Raises:
        UnknownBackend, PluginError: No backend has a name, or its plugin is broken.
        BackendNotInstalled: The driver of a named backend is missing.
    """
    specs = plugins.backend_specs()
    for name in names:
        if name not in {spec.name for spec in specs}:
            plugins.backend_spec(name, "blocking")  # raises the reason why it is broken
    chosen = []
    for spec in specs:
        if names and spec.name not in names:
            continue
        try:
            plugins.make(spec, prepared=True)
        except BackendNotInstalled:
            if names:
                raise
            continue
        except Exception:  # noqa: BLE001 - the run says what is wrong with it, and measures the others
            pass
        both = sum(other.name == spec.name for other in specs) > 1
        label = f"{spec.name}-async" if both and spec.mode == "async" else spec.name
        chosen.append(Contender(label, spec.name, spec.mode))
    return chosen


class Stepped:
    """A blocking queue whose methods are coroutine functions that never suspend, so that workloads are written once.

    It costs a tenth of a microsecond for each call.
    """

    def __init__(self, queue: Any) -> None:
        self.name = queue.name
        self._queue = queue
        for method in METHODS:
            if hasattr(queue, method):
                setattr(self, method, partial(_called, getattr(queue, method)))

    async def __aenter__(self) -> Any:
        return self._queue.__enter__()

    async def __aexit__(self, *exc: object) -> None:
        self._queue.__exit__(*exc)


async def _called(method: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    return method(*args, **kwargs)


def awaitable(contender: Contender, pq: Any, name: str) -> Any:
    """Return a queue of the `PQ` that can be awaited."""
    return Stepped(pq[name]) if contender.blocking else pq[name]


async def closed(contender: Contender, pq: Any) -> None:
    """Close a `PQ`."""
    if contender.blocking:
        pq.close()
    else:
        await pq.close()
