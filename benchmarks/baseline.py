"""Bare loops: the code of a skilled user of a driver who runs the statements without pqcore.

Each starts with the same Python data as pqcore's caller, and ends with the decoded data. It uses the same table,
the same SQL texts, prepared, and the same connection, because it matters much on which core the connection's server
process runs. ``put_many`` uses the driver's fastest way, which is determined at the start of a run, and returns no
ids.

A backend names its bare loop in its spec (`pqcore.backend.BackendSpec.bare_loop`).
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from typing import Any, ClassVar

from pqcore.errors import ConfigurationError

from .backends import Contender
from .operations import DATA, MANY, QUEUE
from .statements import Statements, expect, values

__all__ = ["COLUMNS", "DATA", "MANY", "QUEUE", "BareLoop", "Statements", "SwitchesAutocommit", "values"]

COLUMNS = "q_name, serializer, data"
"""The columns of the table, in the order that `BareLoop.text` uses."""


class BareLoop:
    """The bare loop of a driver: a user's code without pqcore, with one method for each operation.

    A subclass runs the statements through the driver itself, never through the backend's session, and passes the taken
    rows to `keep`. For an asynchronous driver, the methods are coroutine functions.

    Args:
        statements: The texts of the statements, for the measured table.
        batch: The number of jobs in one ``put_many``.
        connection: The driver's connection, the ``connection`` of the backend's session.

    Attributes:
        statements: The argument.
        batch: The argument.
        connection: The argument.
        how: A short description of how the driver is used, for the report; the driver's name comes before the first
            comma.
        targets: The backend's targets, if they differ from `pqcore.benchmarks.bounds.TARGETS`: ``{"put": 0.8}``.
        bulk: The driver's ways to put many jobs together. The fastest one is determined at the start.
        chosen: The way that ``put_many`` uses.
        taken: The ids of the jobs that were taken.
        queue: The parameters of ``get`` and ``get_many``.
        lease: The parameters of ``lease``.
        copy: The COPY statement that puts jobs.
    """

    how: str
    targets: ClassVar[Mapping[str, float]] = {}
    bulk: tuple[str, ...] = ("the statement",)

    def __init__(self, statements: Statements, batch: int, connection: Any) -> None:
        expect(statements.put, "q_name", "data")
        expect(statements.get, "q_name")
        expect(statements.get_many, "q_name")
        expect(statements.ack, "ids", "tokens", "q_name")
        self.statements = statements
        self.batch = batch
        self.connection = connection
        self.taken: list[int] = []
        self.queue = (QUEUE,)
        self.lease = values(statements.lease)
        self.copy = f"COPY {statements.table} ({COLUMNS}) FROM STDIN"
        self.chosen = self.bulk[0]

    def prepare(self) -> Any:
        """Prepare the statements that the driver does not prepare itself; a coroutine for asynchronous drivers."""
        return None

    def put(self) -> Any:
        """Put one job with ``(QUEUE, json.dumps(DATA))``, and read its id."""
        raise NotImplementedError

    def put_many(self) -> Any:
        """Put ``batch`` jobs in the way named by ``chosen``; no ids are needed.

        The statement takes ``values(statements.put_many, items=self.items())``; `copy` and `text` are for COPY.
        """
        raise NotImplementedError

    def get(self) -> Any:
        """Take one job with `queue` as parameters, and call `keep` with the rows."""
        raise NotImplementedError

    def transactional_get(self) -> Any:
        """Take one job in a transaction, and commit."""
        raise NotImplementedError

    def get_many(self) -> Any:
        """Take `MANY` jobs with one statement, with `queue` as parameters, and call `keep` with the rows."""
        raise NotImplementedError

    def lease_ack(self) -> Any:
        """Lease `MANY` jobs with `lease` as parameters, acknowledge them with those of `held`, and `keep` the rows."""
        raise NotImplementedError

    def replan(self) -> Any:
        """Run ``DISCARD PLANS``, so that both sides plan for the present table."""
        raise NotImplementedError

    def enter(self, operation: str) -> Any:
        """Set the connection to the mode that an operation needs; a coroutine for asynchronous drivers."""
        return None

    def leave(self, operation: str) -> Any:
        """Set the connection back to the mode in which pqcore keeps it."""
        return None

    def text(self) -> str:
        """Return the rows of a batch in the format of COPY."""
        line = f"{QUEUE}\tjson\t"
        encoded = (json.dumps(DATA).replace("\\", "\\\\") for _ in range(self.batch))
        return "".join([f"{line}{data}\n" for data in encoded])

    def held(self, rows: Any) -> tuple[Any, ...]:
        """Return the parameters of the statement ``ack`` for the rows that ``lease`` returned."""
        from pqcore.sql.statement import as_array  # some builds that `compare_builds` measures lack it

        return as_array([row[0] for row in rows]), as_array([row[4] for row in rows]), QUEUE

    def items(self) -> str:
        """Return a batch in the form for the statement ``put_many``."""
        return f"[{','.join([json.dumps(DATA) for _ in range(self.batch)])}]"

    def keep(self, rows: Any) -> None:
        """Record the ids of the rows that were taken, and decode their data.

        Args:
            rows: The rows that the statement returned.
        """
        for row in rows:
            self.taken.append(row[0])
            json.loads(row[1])


class SwitchesAutocommit:
    """A mixin for drivers with an attribute for autocommit.

    A transaction begins by itself only where that is measured.
    """

    connection: Any

    def enter(self, operation: str) -> None:
        self.connection.autocommit = operation != "transactional_get"

    def leave(self, operation: str) -> None:
        self.connection.autocommit = True


def loop_class(contender: Contender) -> type[BareLoop] | None:
    """Return the class of a backend's bare loop; None if its spec names none.

    Raises:
        ConfigurationError: The spec names a class that cannot be imported.
    """
    where = contender.spec.bare_loop
    if not where:
        return None
    module, _, attribute = where.partition(":")
    try:
        found: type[BareLoop] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as exc:
        msg = f"backend {contender.name!r} names {where!r} as its bare loop, which cannot be imported: {exc}"
        raise ConfigurationError(msg) from exc
    return found


async def opened(contender: Contender, statements: Statements, batch: int, session: Any) -> BareLoop | None:
    """Return the bare loop of a backend, over the connection of one of its sessions; None if its spec names none.

    Raises:
        ConfigurationError: The spec names a class that cannot be imported.
    """
    kind = loop_class(contender)
    if kind is None:
        return None
    made = kind(statements, batch, session.connection)
    if (preparing := made.prepare()) is not None:
        await preparing
    return made
