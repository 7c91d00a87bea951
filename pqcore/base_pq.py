"""The parts that `pqcore.PQ` and `pqcore.AsyncPQ` share: an engine, and the queues that are kept by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast
from weakref import WeakValueDictionary

from pqcore.backend import Mode
from pqcore.db.blocking_runtime import BlockingRuntime
from pqcore.db.engine import Engine
from pqcore.queue_options import OPTIONS, check_option
from pqcore.serializers import Serializer
from pqcore.settings import KEPT_QUEUES, QueueSettings, forget_queues
from pqcore.sql.identifiers import TableName

if TYPE_CHECKING:
    from pqcore.db.asyncio_runtime import AsyncioRuntime  # not imported for `PQ`, as asyncio takes long to import

Q = TypeVar("Q", bound=QueueSettings)


class BasePQ(Generic[Q]):
    """The queues of one table, over a blocking or an asynchronous engine.

    Attributes:
        queue_class: The class of the queues.
        engine: The engine that runs operations on the table.
        options: The settings of the queues.
    """

    queue_class: type[Q]
    _mode: ClassVar[Mode]
    _runtime: ClassVar[type[BlockingRuntime | AsyncioRuntime]]

    def __init__(
        self,
        conn: Any = None,
        pool: Any = None,
        table: str = "queue",
        schema: str | None = None,
        queue_class: type[Q] | None = None,
        *,
        backend: str | None = None,
        max_connections: int = 10,
        pool_timeout: float = 30.0,
        answer_timeout: float | None = 60.0,
        prepared: bool | None = None,
        dialect: str | None = None,
        group_commit: bool | None = None,
        **options: Any,
    ) -> None:
        engine = Engine(
            self._mode,
            self._runtime(),
            TableName(table, schema),
            conn,
            pool,
            backend=backend,
            max_connections=max_connections,
            pool_timeout=pool_timeout,
            answer_timeout=answer_timeout,
            prepared=prepared,
            dialect=dialect,
            group_commit=group_commit,
        )
        self._begin(engine, queue_class, options)

    def _begin(self, engine: Engine, queue_class: type[Q] | None, options: dict[str, Any]) -> None:
        """Store the engine and the options from which queues are made.

        Raises:
            ConfigurationError: An option is unknown, or has an invalid value.
        """
        if queue_class is not None:
            self.queue_class = queue_class
        self.options = options
        self._queues: dict[str, Q] = {}
        self._forgotten: WeakValueDictionary[str, Q] = WeakValueDictionary()
        self.engine = engine
        # Options are checked here, so that a bad option fails now, and not when the first queue is made.
        for option in options:
            check_option(self.queue_class, option)
        QueueSettings("any", engine.names, None, {name: options[name] for name in OPTIONS if name in options})

    @property
    def backend(self) -> str:
        """Return the name of the chosen backend, and why it was chosen."""
        return f"{self.engine.spec.name} ({self.engine.why})"

    def queue(self, name: str, *, serializer: Serializer | str | None = None, **options: Any) -> Q:
        """Return a new queue with its own options.

        Args:
            name: The queue's name; if ``serializer`` is given, ``name`` is used unchanged, even if it has a slash.
            serializer: A serializer, or the name of one.
            **options: Settings of the queue; see `pqcore.PQ`.
        """
        make = cast("Any", self.queue_class)
        return cast("Q", make(name, engine=self.engine, serializer=serializer, options={**self.options, **options}))

    def queues_with_tasks(self) -> list[Q]:
        """Return the queues of `pq[name]` on which tasks are declared, by name."""
        kept = {**self._forgotten, **self._queues}
        return [queue for _, queue in sorted(kept.items()) if getattr(queue, "declares_tasks", False)]

    def __getitem__(self, name: str) -> Q:
        queue = self._queues.get(name)
        if queue is None:
            found = self._forgotten.get(name)
            queue = self._queues.setdefault(name, self.queue(name) if found is None else found)
            if len(self._queues) > KEPT_QUEUES:
                forget_queues(self._queues, self._forgotten, self.queue)
        return queue
