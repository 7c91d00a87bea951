"""The declaration of the pg8000 backend; it imports no driver."""

from __future__ import annotations

from collections.abc import Callable

from pqcore import hookimpl
from pqcore.backend import BackendSpec, Capability

SPEC = BackendSpec(
    name="pg8000",
    mode="blocking",
    load="pqcore_pg8000.backend:Pg8000Backend",
    requires=("pg8000",),
    install="pip install pqcore-pg8000",
    paramstyle="numeric_dollar",
    capabilities=frozenset({Capability.LISTEN, Capability.PREPARED}),
    missing={Capability.POOL: "pg8000 has no pools"},
    connections=("pg8000.dbapi.Connection", "pg8000.legacy.Connection"),
    schemes=("postgresql+pg8000",),
    bare_loop="pqcore_pg8000.bare:BarePg8000",  # the benchmarks compare the backend with it
)


@hookimpl
def pqcore_register_backends(register: Callable[[BackendSpec], None]) -> None:
    register(SPEC)
