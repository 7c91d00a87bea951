"""Statements of psycopg that share one round trip, in libpq's pipeline mode.

psycopg's own ``connection.pipeline()`` does the same, but needs more than twice the CPU time for two statements,
because it keeps queues of statements and of their results.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from typing import Any

import psycopg
from psycopg.adapt import Transformer
from psycopg.generators import fetch_many, send
from psycopg.pq import ConnStatus, TransactionStatus

from pqcore.backend import wait_readable

# psycopg's Prepare says whether a statement must not be prepared, is prepared, or should be prepared now.
from psycopg._preparing import Prepare  # isort: skip

SUPPORTED = psycopg.Pipeline.is_supported()
"""Whether libpq supports pipelines, as it does from version 14 on."""


def together(
    connection: Any, cursor: Any, leading: Sequence[bytes], text: bytes, parameters: Sequence[object], *, prepared: bool
) -> Generator[Any, Any, None]:
    """Run statements without parameters or rows, and then a last statement, whose result the cursor receives.

    Give the generator to the connection's own ``wait``, while holding the connection's lock. psycopg adds no BEGIN.
    As in `psycopg.Cursor.execute`, the statement is prepared after it has run often enough.

    Args:
        connection: A connection of psycopg, which is idle and in no pipeline.
        cursor: A raw cursor of the connection.
        leading: The statements to run before the last one.
        text: The last statement, always as the same object for the same text.
        parameters: The parameters of the last statement.
        prepared: Whether the last statement may be prepared.
    """
    pgconn, manager = connection.pgconn, connection._prepared
    cursor._reset()  # the next lines repeat the steps of `_start_query`, which would also send BEGIN
    if cursor._last_query is not text:
        cursor._last_query = None
        cursor._tx = Transformer(cursor)
    query = cursor._query_cls(cursor._tx)
    query.convert(text, parameters or None)
    prepare, name = manager.get(query, None if prepared else False)
    try:
        pgconn.enter_pipeline_mode()
        for statement in leading:
            pgconn.send_query_params(statement, None)
        if prepare is Prepare.SHOULD:
            cursor._send_prepare(name, query)
        if prepare is Prepare.NO:
            pgconn.send_query_params(query.query, query.params, param_formats=query.formats, param_types=query.types)
        else:
            cursor._send_query_prepared(name, query)
        pgconn.pipeline_sync()
        key = manager.maybe_add_to_cache(query, prepare, name)
        yield from send(pgconn)
        found = []
        for _ in range(len(leading) + (prepare is Prepare.SHOULD) + 1):
            found.append((yield from fetch_many(pgconn)))  # noqa: PERF401 - a comprehension cannot yield
        yield from fetch_many(pgconn)  # the answer to Sync
    finally:
        is_left(pgconn)
    if key is not None:
        manager.validate(key, prepare, name, found[-1])
    for results in found:
        cursor._check_results(results)
    cursor._set_results(found[-1])
    cursor._last_query = text
    yield from manager.maintain_gen(connection)


def is_left(pgconn: Any) -> bool:
    """Leave the pipeline mode, if the connection is in it; return False if the server still has to send answers."""
    if pgconn.status != ConnStatus.OK:
        return True
    if pgconn.pipeline_status:
        try:
            pgconn.exit_pipeline_mode()
        except psycopg.OperationalError:
            return False
    return bool(pgconn.transaction_status != TransactionStatus.ACTIVE)


def drain(pgconn: Any, seconds: float) -> None:
    """Read the answers to an interrupted exchange, and leave the pipeline mode; close a connection that is too slow.

    Args:
        pgconn: The connection object of libpq.
        seconds: How long to wait for the answers.
    """
    deadline = time.monotonic() + seconds
    with suppress(psycopg.OperationalError):
        if pgconn.pipeline_status:
            pgconn.pipeline_sync()  # the interrupt may have come before the first Sync; a second Sync is harmless
        while (left := deadline - time.monotonic()) > 0:
            pgconn.flush()
            pgconn.consume_input()
            while not pgconn.is_busy():
                pgconn.get_result()
                if is_left(pgconn):
                    return
            wait_readable(pgconn.socket, left)
    pgconn.finish()
