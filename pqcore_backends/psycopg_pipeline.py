"""Statements of psycopg's that travel together: one round trip, in libpq's pipeline mode.

psycopg's own ``connection.pipeline()`` does the same, and takes more than twice the CPU time for two statements: it
keeps queues of them, and of their results.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import psycopg
from psycopg.generators import fetch_many, send
from psycopg.pq import ConnStatus

# What psycopg keeps as Prepare: whether a statement is not to be prepared, is prepared, or should be now.
from psycopg._preparing import Prepare  # isort: skip

SUPPORTED = psycopg.Pipeline.is_supported()
"""Whether libpq has pipelines: since version 14."""


def together(
    connection: Any, cursor: Any, leading: Sequence[bytes], text: bytes, parameters: Sequence[object], *, prepared: bool
) -> Generator[Any, Any, None]:
    """Run statements without parameters or rows, and one more, whose result the cursor has then.

    A generator as psycopg's connections wait for them; the connection's lock has to be held. psycopg adds no BEGIN. As
    in `psycopg.Cursor.execute`, the statement is prepared once it has run often enough.

    Args:
        connection: psycopg's, which is idle, and in no pipeline.
        cursor: A raw cursor of that.
        leading: The statements that come before.
        text: The last statement, always the same object for the same text.
        parameters: Of the last statement.
        prepared: Whether it may be prepared.
    """
    pgconn, manager = connection.pgconn, connection._prepared
    autocommit = connection._autocommit
    try:
        connection._autocommit = True
        yield from cursor._start_query(text)  # sends nothing, in autocommit
    finally:
        connection._autocommit = autocommit
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
        leave(pgconn)
    if key is not None:
        manager.validate(key, prepare, name, found[-1])
    for results in found:
        cursor._check_results(results)
    cursor._set_results(found[-1])
    cursor._last_query = text
    yield from manager.maintain_gen(connection)


def leave(pgconn: Any) -> None:
    """Leave the pipeline mode, if the connection is in it; may be called again after an interrupt.

    A connection on which that is not possible was cut off in the middle, and is closed.
    """
    if pgconn.status != ConnStatus.OK or not pgconn.pipeline_status:
        return
    try:
        pgconn.exit_pipeline_mode()
    except psycopg.OperationalError:
        pgconn.finish()
