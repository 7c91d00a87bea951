"""Queues over Django's connections: `queue` returns a queue, and `pqs` has a PQ for each alias of ``PQCORE``."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from typing import Any

from django.core.signals import setting_changed
from django.db import connections, transaction

from pqcore.errors import ConfigurationError
from pqcore.integrations.django.configuration import TableConfiguration, configured
from pqcore.integrations.django.connections import DjangoConnections
from pqcore.serializers import Serializer
from pqcore.sql.identifiers import split_queue_name
from pqcore.tasks import PQ, Queue


class DjangoQueue(Queue):
    """A queue that puts and takes jobs on Django's connection of the running thread.

    Within ``transaction.atomic()``, puts and takes are part of that transaction. ``with queue as cursor`` is like
    ``atomic()``, with a cursor of Django.
    """

    database: str
    """The alias of the queue's database."""

    def __enter__(self) -> Any:
        block = transaction.atomic(using=self.database)
        block.__enter__()
        try:
            cursor = connections[self.database].cursor()
        except BaseException:
            block.__exit__(*sys.exc_info())
            raise
        _blocks().append((block, cursor))
        return cursor

    def __exit__(self, kind: object, value: object, traceback: object) -> None:
        block, cursor = _blocks().pop()
        try:
            cursor.close()
        finally:
            block.__exit__(kind, value, traceback)


_open = threading.local()


def _blocks() -> list[tuple[Any, Any]]:
    """Return the open blocks of the running thread, each with its cursor."""
    blocks: list[tuple[Any, Any]] = _open.__dict__.setdefault("blocks", [])
    return blocks


class DjangoPQ(PQ):
    """The queues of one table, over Django's connections.

    Threads may share the object; each uses its own connection of Django. A `pqcore.worker.Worker` opens its own
    connections.

    Args:
        configuration: The table, and the settings of its queues.

    Raises:
        ConfigurationError: The database is not PostgreSQL, or an option is invalid.
    """

    queue_class = DjangoQueue

    def __init__(self, configuration: TableConfiguration) -> None:
        self.configuration = configuration
        lender = DjangoConnections(configuration.database)
        names = configuration.names
        prepared = configuration.prepared
        super().__init__(
            lender,
            table=names.table,
            schema=names.schema,
            prepared=False if prepared is None and lender.behind_a_pooler else prepared,
            **configuration.options,
        )
        self.lender = lender
        for name in configuration.queues:  # a bad option must fail here
            self.queue(name)

    def queue(self, name: str, *, serializer: Serializer | str | None = None, **options: Any) -> DjangoQueue:
        """Return a queue with its own options, in addition to those in ``QUEUES``."""
        plain, suffix = split_queue_name(name) if serializer is None else (name, None)
        chosen = {**self.configuration.queues.get(plain, {}), **options}
        of_settings = chosen.pop("serializer", None)
        if serializer is None and suffix is None and of_settings is not None:
            name, serializer = plain, of_settings
        queue = super().queue(name, serializer=serializer, **chosen)
        assert isinstance(queue, DjangoQueue)  # noqa: S101 - for the type checker
        queue.database = self.configuration.database
        return queue

    def __getitem__(self, name: str) -> DjangoQueue:
        queue = super().__getitem__(name)
        assert isinstance(queue, DjangoQueue)  # noqa: S101 - for the type checker
        return queue


class _PQs:
    """The tables of ``PQCORE``, by alias; each is made on first use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[str, DjangoPQ] = {}

    def __getitem__(self, alias: str) -> DjangoPQ:
        made = self._made.get(alias)
        if made is not None:
            return made
        tables = configured()
        if alias not in tables:
            raise ConfigurationError(
                f"PQCORE has no {alias!r}; it has {', '.join(map(repr, tables))}: use one of these, or add an entry"
            )
        with self._lock:
            if alias not in self._made:
                self._made[alias] = DjangoPQ(tables[alias])
            return self._made[alias]

    def __iter__(self) -> Iterator[str]:
        return iter(configured())

    def forget(self, *, setting: str, **_: object) -> None:
        """Forget the tables, because a test has changed the settings."""
        if setting in ("PQCORE", "DATABASES"):
            with self._lock:
                self._made.clear()


pqs = _PQs()
"""The tables of ``PQCORE``, by alias."""
setting_changed.connect(pqs.forget)


def queue(name: str, using: str = "default") -> DjangoQueue:
    """Return a queue: always the same object, so that workers know the periodic tasks that are declared on it.

    Args:
        name: The name of the queue.
        using: The alias of the queue's table in ``PQCORE``.

    Raises:
        ConfigurationError: The alias does not exist, or the settings are invalid.
    """
    return pqs[using][name]
