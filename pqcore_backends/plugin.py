"""The declarations of the built-in backends and serializers. This module imports no driver."""

from __future__ import annotations

from collections.abc import Callable

from pqcore.backend import BackendSpec, Capability
from pqcore.hookspecs import hookimpl
from pqcore.serializers import Json, Pickle, Serializer

_ALL = frozenset(Capability)
_PSYCOPG = {"psycopg": "3.2", "psycopg-pool": "3.2"}

PSYCOPG2 = BackendSpec(
    name="psycopg2",
    mode="blocking",
    load="pqcore_backends.psycopg2:Psycopg2Backend",
    requires=("psycopg2",),
    install="pip install 'pqcore[psycopg2]'",
    paramstyle="format",
    capabilities=_ALL,
    connections=("psycopg2.extensions.connection",),
    pools=("psycopg2.pool.AbstractConnectionPool",),
    bare_loop="pqcore.benchmarks.bare_psycopg2:BarePsycopg2",
    lowest={"psycopg2": "2.9.9", "psycopg2-binary": "2.9.9"},
)

PSYCOPG = BackendSpec(
    name="psycopg",
    mode="blocking",
    load="pqcore_backends.psycopg:PsycopgBackend",
    requires=("psycopg",),
    install="pip install 'pqcore[psycopg]'",
    paramstyle="numeric_dollar",
    capabilities=_ALL,
    connections=("psycopg.Connection",),
    pools=("psycopg_pool.pool.ConnectionPool",),
    bare_loop="pqcore.benchmarks.bare_psycopg:BarePsycopg",
    lowest=_PSYCOPG,
)

PSYCOPG_ASYNC = BackendSpec(
    name="psycopg",
    mode="async",
    load="pqcore_backends.psycopg:AsyncPsycopgBackend",
    requires=("psycopg",),
    install="pip install 'pqcore[psycopg]'",
    paramstyle="numeric_dollar",
    capabilities=_ALL,
    connections=("psycopg.AsyncConnection",),
    pools=("psycopg_pool.pool_async.AsyncConnectionPool",),
    bare_loop="pqcore.benchmarks.bare_psycopg:BareAsyncPsycopg",
    schemes=("postgresql+psycopg_async",),  # the scheme that SQLAlchemy uses for this driver
    lowest=_PSYCOPG,
)

ASYNCPG = BackendSpec(
    name="asyncpg",
    mode="async",
    load="pqcore_backends.asyncpg:AsyncpgBackend",
    requires=("asyncpg",),
    install="pip install 'pqcore[asyncpg]'",
    paramstyle="numeric_dollar",
    capabilities=_ALL,
    connections=("asyncpg.connection.Connection", "asyncpg.pool.PoolConnectionProxy"),
    pools=("asyncpg.pool.Pool",),
    bare_loop="pqcore.benchmarks.bare_asyncpg:BareAsyncpg",
    lowest={"asyncpg": "0.29"},
)


@hookimpl
def pqcore_register_backends(register: Callable[[BackendSpec], None]) -> None:
    for spec in (PSYCOPG2, PSYCOPG, PSYCOPG_ASYNC, ASYNCPG):
        register(spec)


@hookimpl
def pqcore_register_serializers(register: Callable[[Serializer], None]) -> None:
    register(Json())
    register(Pickle())
