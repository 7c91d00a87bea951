"""The bare loop: pg8000 without pqcore, with which `pqcore bench` compares the backend."""

from __future__ import annotations

import io
import json
from typing import Any

from pg8000.converters import PY_TYPES, make_params

from pqcore.benchmarks.baseline import DATA, QUEUE, BareLoop, Statements, values


class BarePg8000(BareLoop):  # type: ignore[misc]  # pqcore.benchmarks is not seen where pqcore itself is checked
    """Statements that pg8000 prepared, run through its connection."""

    how = "pg8000, prepared statements"
    bulk = ("COPY", "the statement")

    def __init__(self, statements: Statements, batch: int, connection: Any) -> None:
        super().__init__(statements, batch, connection)
        self._prepared = {
            name: (query.sql, connection.prepare_statement(query.sql, ()))
            for name in ("put", "put_many", "get", "get_many", "lease", "ack")
            for query in [getattr(statements, name)]
        }

    def _run(self, name: str, parameters: tuple[Any, ...]) -> Any:
        sql, (statement, columns, readers) = self._prepared[name]
        return self.connection.execute_named(statement, make_params(PY_TYPES, parameters), columns, readers, sql).rows

    def put(self) -> None:
        self._run("put", (QUEUE, json.dumps(DATA)))

    def put_many(self) -> None:
        if self.chosen == "COPY":
            self.connection.execute_unnamed(self.copy, stream=io.BytesIO(self.text().encode()))
        else:
            self._run("put_many", values(self.statements.put_many, items=self.items()))

    def get(self) -> None:
        self.keep(self._run("get", self.queue))

    def transactional_get(self) -> None:
        self.connection.execute_simple("begin")
        self.get()
        self.connection.commit()

    def get_many(self) -> None:
        self.keep(self._run("get_many", self.queue))

    def lease_ack(self) -> None:
        rows = self._run("lease", self.lease)
        self._run("ack", self.held(rows))
        self.keep(rows)

    def replan(self) -> None:
        self.connection.execute_simple("DISCARD PLANS")
