"""The bare loops for psycopg2."""

from __future__ import annotations

import io
import json
from typing import Any

import psycopg2.extras

from .baseline import COLUMNS, BareLoop, SwitchesAutocommit
from .operations import DATA, QUEUE
from .statements import Statements, values


class BarePsycopg2(SwitchesAutocommit, BareLoop):
    """The bare loop with PREPARE and EXECUTE by hand, on a plain cursor in autocommit mode."""

    how = "psycopg2, EXECUTE of a prepared statement"
    bulk = ("COPY", "the statement", "execute_values")

    def __init__(self, statements: Statements, batch: int, connection: Any) -> None:
        super().__init__(statements, batch, connection)
        self._cursor = connection.cursor()
        calls = {}
        for name in ("put", "put_many", "get", "get_many", "lease", "ack"):
            query = getattr(statements, name)
            places = ", ".join(["%s"] * len(query.first))
            self._cursor.execute(f"PREPARE bare_{name} AS {query.numbered}")
            calls[name] = f"EXECUTE bare_{name} ({places})"
        self._put, self._put_many, self._get, self._get_many, self._lease, self._ack = calls.values()

    def put(self) -> None:
        self._cursor.execute(self._put, (QUEUE, json.dumps(DATA)))
        self._cursor.fetchone()

    def put_many(self) -> None:
        if self.chosen == "COPY":
            self._cursor.copy_expert(self.copy, io.StringIO(self.text()))
        elif self.chosen == "the statement":
            self._cursor.execute(self._put_many, values(self.statements.put_many, items=self.items()))
            self._cursor.fetchall()
        else:
            rows = [(QUEUE, "json", json.dumps(DATA)) for _ in range(self.batch)]
            sql = f"INSERT INTO {self.statements.table} ({COLUMNS}) VALUES %s"
            psycopg2.extras.execute_values(self._cursor, sql, rows, page_size=self.batch)

    def get(self) -> None:
        self._cursor.execute(self._get, self.queue)
        self.keep([self._cursor.fetchone()])

    def transactional_get(self) -> None:
        self._cursor.execute(self._get, self.queue)
        self.keep([self._cursor.fetchone()])
        self.connection.commit()

    def get_many(self) -> None:
        self._cursor.execute(self._get_many, self.queue)
        self.keep(self._cursor.fetchall())

    def lease_ack(self) -> None:
        self._cursor.execute(self._lease, self.lease)
        rows = self._cursor.fetchall()
        self._cursor.execute(self._ack, self.held(rows))
        self._cursor.fetchall()
        self.keep(rows)

    def replan(self) -> None:
        self._cursor.execute("DISCARD PLANS")
