"""Statements that psycopg has prepared, sent without a cursor.

`psycopg.Cursor.execute` converts the query, looks for it among the prepared statements twice, and stores the result for
methods that pqcore does not call. Without these steps, a statement takes about half as much CPU time. psycopg itself
still prepares the statements and forgets them: see `psycopg._preparing.PrepareManager`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from psycopg.adapt import PyFormat, Transformer
from psycopg.generators import execute, fetch_many, send
from psycopg.pq import ExecStatus, TransactionStatus

from pqcore.backend import Row
from pqcore.sql.statement import Query
from pqcore_backends.psycopg_pipeline import is_left

# psycopg's Prepare says whether a statement is prepared.
from psycopg._preparing import Prepare  # isort: skip

TUPLES, IDLE, PREPARED = ExecStatus.TUPLES_OK, TransactionStatus.IDLE, Prepare.YES


class _Statement:
    """A statement, with psycopg's converters of its parameters and rows.

    Attributes:
        query: The text; psycopg's manager reads this attribute and the next one.
        types: The OIDs of the parameters' types.
        name: The name of the prepared statement whose rows the converters were chosen for.
        formats: The formats of the parameters, as psycopg has chosen them.
        converters: psycopg's converters.
    """

    __slots__ = ("converters", "formats", "name", "query", "types")

    def __init__(self, query: Query, cursor: Any) -> None:
        self.query = query.encoded
        self.types: tuple[int, ...] = ()
        self.name = b""
        self.formats = [PyFormat.AUTO] * len(query.order)
        self.converters: Any = Transformer(cursor)


class PreparedStatements:
    """The prepared statements of a connection.

    Args:
        cursor: A raw cursor of the connection, whose adapters are used.
    """

    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor
        self._connection = cursor.connection
        self._statements: dict[bytes, _Statement] = {}
        self._encoding: bytes | None = None

    def run(
        self, query: Query, parameters: Sequence[object], leading: Sequence[bytes] = ()
    ) -> Generator[Any, Any, Sequence[Row]] | None:
        """Return a generator that runs a prepared statement; None if the statement is not prepared, or needs a cursor.

        Give the generator to the connection's own ``wait``, while holding the connection's lock.

        Args:
            query: The statement.
            parameters: Its parameters.
            leading: Statements without parameters or rows to run before it, in the same round trip. They include BEGIN
                if a transaction must begin. The connection is then in no pipeline.
        """
        connection = self._connection
        pgconn = connection.pgconn
        if not leading and (
            # inlined from `pqcore_backends.psycopg_common.Common`, because each operation runs this
            connection._pipeline is not None or (not connection._autocommit and pgconn.transaction_status == IDLE)
        ):
            return None  # a cursor is needed in a caller's pipeline, and where psycopg would send BEGIN
        encoding = pgconn.parameter_status(b"client_encoding")
        if encoding != self._encoding:  # a converter keeps the encoding that it was made for
            self._encoding = encoding
            self._statements.clear()
        statement = self._statements.get(query.encoded)
        if statement is None:
            statement = self._statements[query.encoded] = _Statement(query, self._cursor)
        converters = statement.converters
        values = converters.dump_sequence(parameters, statement.formats)
        statement.types = converters.types
        prepare, name = connection._prepared.get(statement)
        if prepare is not PREPARED:
            return None
        if leading:
            return self._exchange_behind(pgconn, leading, statement, name, values)
        return self._exchange(pgconn, statement, name, values)

    def _exchange(
        self, pgconn: Any, statement: _Statement, name: bytes, values: Sequence[Any]
    ) -> Generator[Any, Any, Sequence[Row]]:
        pgconn.send_query_prepared(name, values, param_formats=statement.converters.formats)
        return self._rows(statement, name, (yield from execute(pgconn)))

    def _exchange_behind(
        self, pgconn: Any, leading: Sequence[bytes], statement: _Statement, name: bytes, values: Sequence[Any]
    ) -> Generator[Any, Any, Sequence[Row]]:
        before: list[Any] = []
        try:
            pgconn.enter_pipeline_mode()
            for text in leading:
                pgconn.send_query_params(text, None)
            pgconn.send_query_prepared(name, values, param_formats=statement.converters.formats)
            pgconn.pipeline_sync()
            yield from send(pgconn)
            for _ in leading:
                before += yield from fetch_many(pgconn)
            results = yield from fetch_many(pgconn)
            yield from fetch_many(pgconn)  # the answer to Sync
        finally:
            is_left(pgconn)
        self._cursor._check_results(before)
        return self._rows(statement, name, results)

    def _rows(self, statement: _Statement, name: bytes, results: Sequence[Any]) -> Sequence[Row]:
        converters = statement.converters
        [result] = results
        if result.status != TUPLES:
            self._cursor._check_results(results)
            return ()
        converters.set_pgresult(result, set_loaders=statement.name is not name)
        statement.name = name
        rows: Sequence[Row] = converters.load_rows(0, result.ntuples, tuple)
        # Without this call, `converters` would keep the result in memory until the next statement.
        converters.set_pgresult(None, set_loaders=False)
        return rows
