"""Puts on connections and pools as they are under a tracer, which patches drivers for good: run by `test_tracers`.

The process prints the faults, and the statements that the tracer saw.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

_DATADOG = ("DD_INSTRUMENTATION_TELEMETRY_ENABLED", "DD_REMOTE_CONFIGURATION_ENABLED", "DD_TRACE_STARTUP_LOGS")
seen: list[str] = []


def datadog() -> None:
    os.environ.update(dict.fromkeys(_DATADOG, "false"), DD_DBM_PROPAGATION_MODE="full")  # comments in statements
    import ddtrace
    from ddtrace.trace import TraceFilter, tracer

    class Keep(TraceFilter):
        def process_trace(self, trace: Any) -> None:
            seen.extend(span.resource for span in trace)

    tracer.configure(trace_processors=[Keep()])
    ddtrace.patch(psycopg=True, asyncpg=True, sqlalchemy=True, django=True)


def xray() -> None:
    from aws_xray_sdk.core import patch, xray_recorder

    xray_recorder.configure(sampling=False, context_missing="IGNORE_ERROR", plugins=())
    xray_recorder.configure(streaming_threshold=1_000_000)  # nothing is sent before the segment ends
    patch(["psycopg2", "psycopg"])
    xray_recorder.begin_segment("test")


def elastic() -> None:
    import elasticapm

    elasticapm.instrument()
    client = elasticapm.Client(service_name="test", disable_send=True, central_config=False, cloud_provider="none")
    client.begin_transaction("test")  # it looks at statements within one alone


def _opentelemetry() -> None:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    class Keep(InMemorySpanExporter):
        def export(self, spans: Any) -> Any:
            seen.extend(str((span.attributes or {}).get("db.statement")) for span in spans)
            return super().export(spans)

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(Keep()))
    trace.set_tracer_provider(provider)


def dbapi() -> None:
    import psycopg
    import psycopg2
    from opentelemetry.instrumentation.dbapi import trace_integration

    _opentelemetry()
    modules: tuple[Any, ...] = (psycopg, psycopg2)
    for module in modules:
        trace_integration(module, "connect", "postgresql", enable_commenter=True)


def opentelemetry() -> None:
    from opentelemetry.instrumentation.asyncpg import AsyncPGInstrumentor
    from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
    from opentelemetry.instrumentation.psycopg2 import Psycopg2Instrumentor

    _opentelemetry()
    for instrumentor in (AsyncPGInstrumentor, PsycopgInstrumentor, Psycopg2Instrumentor):
        instrumentor().instrument(skip_dep_check=True)


def proxies() -> None:
    """A tracer that does the least that DB-API allows: its cursors accept every call, and return nothing."""
    import asyncpg
    import psycopg
    import psycopg2
    import wrapt

    proxy: Any = wrapt.ObjectProxy  # generic since wrapt 2

    class Cursor(proxy):  # type: ignore[misc]
        def execute(self, statement: Any, parameters: Any = None) -> Any:
            seen.append(str(statement))
            found = self.__wrapped__.execute(statement, parameters)
            return found if hasattr(found, "__await__") else None

    class Connection(proxy):  # type: ignore[misc]
        def cursor(self, *args: Any, **named: Any) -> Any:
            return Cursor(self.__wrapped__.cursor(*args, **named))

    def patch(owner: Any) -> None:
        connect = owner.connect
        owner.connect = lambda *args, **named: Connection(connect(*args, **named))

    def patch_async(owner: Any) -> None:
        connect = owner.connect

        async def connected(*args: Any, **named: Any) -> Any:
            return Connection(await connect(*args, **named))

        owner.connect = connected

    for blocking in (psycopg2, psycopg, psycopg.Connection):
        patch(blocking)
    for asynchronous in (psycopg.AsyncConnection, asyncpg):
        patch_async(asynchronous)


TRACERS: dict[str, Callable[[], None]] = {
    each.__name__: each for each in (datadog, xray, elastic, dbapi, opentelemetry, proxies)
}


class Trial:
    """Puts on connections inside a tracer's proxies.

    Args:
        dsn: Where the queue's table is.
    """

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.wrong: list[str] = []
        self.statements: dict[str, list[str]] = {}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Record exceptions of the block, and the statements that the tracer sees."""
        seen.clear()
        try:
            yield
        except Exception as exc:
            self.wrong.append(f"{name}: {type(exc).__name__}: {exc}")
        self.statements[name] = seen.copy()

    def blocking(self) -> None:
        import psycopg
        import psycopg2
        import psycopg2.pool
        import psycopg_pool
        import sqlalchemy
        from sqlalchemy.orm import Session

        makers: dict[str, Callable[[], Any]] = {
            "psycopg2": lambda: psycopg2.connect(self.dsn),
            "psycopg": lambda: psycopg.connect(self.dsn),
            "psycopg.Connection": lambda: psycopg.Connection.connect(self.dsn),
        }
        for name, make in makers.items():
            with self.of(f"{name} connection="):
                self._put_on(connection := make(), connection)
                connection.close()
            with self.of(f"{name} given"):
                self._run_alone(connection := make())
                connection.close()
        with self.of("psycopg2 pool"):
            self._run_alone(pool := psycopg2.pool.ThreadedConnectionPool(1, 3, self.dsn))
            pool.closeall()
        with self.of("psycopg pool"), psycopg_pool.ConnectionPool(self.dsn, min_size=1, max_size=3, open=True) as given:
            self._run_alone(given)
        for driver in ("psycopg", "psycopg2"):
            if driver == "psycopg2" and TRACERS[sys.argv[1]] in (dbapi, proxies):
                continue  # SQLAlchemy hands the proxy to a function of psycopg2's in C, which refuses it
            engine = sqlalchemy.create_engine(self.dsn.replace("postgresql:", f"postgresql+{driver}:"))
            with self.of(f"sqlalchemy {driver}"), Session(engine) as session:
                self._put_on(session, session)
            engine.dispose()
        with self.of("django"):
            self._django()

    def _put_on(self, connection: Any, owner: Any) -> None:
        from pqcore import PQ

        with PQ(self.dsn, backend="psycopg") as pq:
            queue = pq["q"]
            queue.put("undone", connection=connection)
            owner.rollback()
            seen.clear()
            queue.put("kept", connection=connection)
            queue.put_many(["kept", "kept"], connection=connection)
            assert len(queue) == 0, "the job is there before the commit"
            owner.commit()
            assert [job.data for job in queue.get_many(4)] == ["kept"] * 3

    def _run_alone(self, given: Any) -> None:
        from pqcore import PQ

        pq = PQ(given)
        queue = pq["q"]
        for number in range(8):  # frequent statements get prepared
            queue.put(number)
            job = queue.get()
            assert job is not None
            assert job.data == number
        with queue as cursor:
            queue.put("in a block")
            cursor.execute("SELECT 'the caller'")
            assert cursor.fetchone() == ("the caller",)
        leased = queue.lease()
        assert leased is not None
        leased.ack()
        assert queue.get(timeout=0.05) is None  # waits, and listens if the driver can

    def _django(self) -> None:
        import django
        import psycopg.conninfo
        from django.conf import settings
        from django.db import connection, transaction

        from pqcore import PQ

        said = psycopg.conninfo.conninfo_to_dict(self.dsn)
        names = {"NAME": "dbname", "HOST": "host", "PORT": "port", "USER": "user", "PASSWORD": "password"}
        database = {name: str(said.get(of, "")) for name, of in names.items()}
        settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", **database}})
        django.setup()
        with PQ(self.dsn, backend="psycopg") as pq:
            with transaction.atomic():
                pq["q"].put("kept", connection=connection)
                assert len(pq["q"]) == 0, "the job is there before the commit"
            job = pq["q"].get()
            assert job is not None
        connection.close()

    async def awaited(self) -> None:
        import asyncpg
        import psycopg
        import psycopg_pool
        from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

        makers: dict[str, Callable[[], Awaitable[Any]]] = {
            "asyncpg": lambda: asyncpg.connect(self.dsn),
            "psycopg async": lambda: psycopg.AsyncConnection.connect(self.dsn),
        }
        for name, make in makers.items():
            connection = await make()
            with self.of(f"{name} connection="):
                transaction = connection.transaction()
                await (transaction.start() if name == "asyncpg" else transaction.__aenter__())
                await self._put_on_async(connection)
                await (transaction.commit() if name == "asyncpg" else transaction.__aexit__(None, None, None))
                if name != "asyncpg":
                    await connection.commit()
                await self._took(1)
            with self.of(f"{name} given"):
                await self._use_async(connection)
            await connection.close()
        with self.of("asyncpg pool"):
            async with asyncpg.create_pool(self.dsn, min_size=1, max_size=3) as pool:
                await self._use_async(pool)
        with self.of("psycopg async pool"):
            given: Any = psycopg_pool.AsyncConnectionPool(self.dsn, min_size=1, max_size=3, open=False)
            async with given:
                await self._use_async(given)
        for driver in ("asyncpg", "psycopg"):
            engine = create_async_engine(self.dsn.replace("postgresql:", f"postgresql+{driver}:"))
            with self.of(f"sqlalchemy async {driver}"):
                async with AsyncSession(engine) as session:
                    await self._put_on_async(session)
                    await session.rollback()
                    await self._took(0)
                    await self._put_on_async(session)
                    await session.commit()
                    await self._took(1)
            await engine.dispose()

    async def _put_on_async(self, connection: Any) -> None:
        from pqcore import AsyncPQ

        async with AsyncPQ(self.dsn, backend="asyncpg") as pq:
            seen.clear()
            await pq["q"].put("kept", connection=connection)
            assert await pq["q"].get(block=False) is None, "the job is there before the commit"

    async def _took(self, number: int) -> None:
        from pqcore import AsyncPQ

        async with AsyncPQ(self.dsn, backend="asyncpg") as pq:
            assert len(await pq["q"].get_many(2, block=False)) == number

    async def _use_async(self, given: Any) -> None:
        from pqcore import AsyncPQ

        queue = AsyncPQ(given)["q"]
        for number in range(8):
            await queue.put(number)
            job = await queue.get()
            assert job is not None
            assert job.data == number
        async with queue as cursor:
            await queue.put("in a block")
            await cursor.execute("SELECT 'the caller'")
        leased = await queue.lease()
        assert leased is not None
        await leased.ack()
        assert await queue.get(timeout=0.05) is None


def main() -> None:
    TRACERS[sys.argv[1]]()
    trial = Trial(sys.argv[2])
    trial.blocking()
    asyncio.run(trial.awaited())
    sys.stdout.write(json.dumps([trial.wrong, trial.statements]))


if __name__ == "__main__":
    main()
