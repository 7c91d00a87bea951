"""The operation for Django's migrations that makes pqcore's table, or migrates it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from django.db.migrations.operations.base import Operation
from django.db.migrations.operations.models import CreateModel

from pqcore import schema
from pqcore.db.runtime import run_sync
from pqcore.db.session import Session
from pqcore.integrations.django.configuration import TableConfiguration, configured
from pqcore.integrations.django.queues import pqs
from pqcore.operations import admin
from pqcore.operations.atomic import atomic
from pqcore.schema.offline import write_down


def unmanaged(model: Any) -> CreateModel:
    """Return the state of a model for which Django's migrations make no table."""
    meta = model._meta
    options = {
        "managed": False,
        "db_table": meta.db_table,
        "default_permissions": meta.default_permissions,
        "ordering": meta.ordering,
    }
    return CreateModel(model.__name__, [(field.name, field.clone()) for field in meta.get_fields()], options)


class MigrateTables(Operation):
    """Make the tables of ``PQCORE`` in the database that is being migrated, or migrate them.

    The operation runs pqcore's own migrations on the connection of Django's migration, up to the version that the
    installed pqcore needs. If Django's migration is atomic, pqcore's migrations are part of its transaction, and a
    table with rows is locked while its indexes are built. Otherwise, pqcore's migrations work like `pqcore migrate`,
    and block no session. The reverse operation drops the tables with all jobs if ``creates`` is true; otherwise it
    does nothing.

    Args:
        version: The lowest schema version that the tables must have afterwards.
        creates: Whether this is the first migration, which makes and drops the tables.
    """

    reduces_to_sql = True
    reversible = True

    def __init__(self, version: int, *, creates: bool = False) -> None:
        self.version = version
        self.creates = creates

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Change nothing, because Django's models do not change."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        for table in _tables(schema_editor):
            if not schema_editor.collect_sql:
                run_sync(admin.create(pqs[table.alias].engine))
            elif self.creates:
                # A migration's statements depend on the existing table, so show the statements that make a new table.
                _write_down(schema_editor, partial(schema.create, names=table.names, sleep=_no_sleep))
            else:
                schema_editor.collected_sql.append(f"-- pqcore migrate --table {table.names.table}: see its --sql")

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        for table in _tables(schema_editor) if self.creates else ():
            if schema_editor.collect_sql:
                _write_down(schema_editor, partial(schema.drop, names=table.names))
            else:
                run_sync(_drop(pqs[table.alias].engine))

    def describe(self) -> str:
        return f"Bring pqcore's tables to schema version {self.version}"

    @property
    def migration_name_fragment(self) -> str:
        """Return the name for a migration with this operation."""
        return f"pqcore_{self.version}"


def _tables(schema_editor: Any) -> list[TableConfiguration]:
    return [table for table in configured().values() if table.database == schema_editor.connection.alias]


async def _drop(engine: Any) -> None:
    async def work(s: Session) -> None:
        async with atomic(s):
            await schema.drop(s, engine.names)

    await engine.migrate(work)


async def _no_sleep(_: float) -> None:
    """Do not wait, because nothing is locked."""


def _write_down(schema_editor: Any, work: Callable[[Session], Awaitable[object]]) -> None:
    write_down(lambda sql: schema_editor.collected_sql.append(sql.rstrip(";") + ";"), work)
