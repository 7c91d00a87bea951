"""pqcore's tables in the migrations of Alembic: `upgrade_queue` and `downgrade_queue`, in place of ``op.create_table``.

Both take part in the transaction of the migration, and are written out by ``alembic upgrade --sql``.
"""

from __future__ import annotations

try:
    from alembic import op
except ImportError as exc:
    msg = f"pqcore.integrations.alembic needs {exc.name}: pip install 'pqcore[sqlalchemy]'"
    raise ImportError(msg) from exc
import sqlalchemy

from pqcore.errors import ConfigurationError
from pqcore.integrations.sqlalchemy_schema import Operation, create, run_on
from pqcore.schema import drop
from pqcore.schema.offline import write_down
from pqcore.sql.identifiers import TableName


def upgrade_queue(table: str = "queue", schema: str | None = None) -> None:
    """Make a queue's tables, or bring them up to what the installed pqcore needs; to be called in ``upgrade``.

    Does nothing where they are up to date. Indexes of a table that has rows are built while it is locked, unless it
    is called within ``op.get_context().autocommit_block()``.

    Args:
        table: As for `pqcore.PQ`.
        schema: As for `pqcore.PQ`; made if it is not there.

    Raises:
        SchemaTooNew: A newer pqcore made them.
    """
    _run(create, TableName(table, schema))


def downgrade_queue(table: str = "queue", schema: str | None = None) -> None:
    """Drop a queue's tables, jobs included; to be called in ``downgrade``, where ``upgrade`` has made them.

    Args:
        table: As for `pqcore.PQ`.
        schema: As for `pqcore.PQ`; it is left.
    """
    _run(drop, TableName(table, schema))


def _run(operation: Operation, names: TableName) -> None:
    context = op.get_context()
    if context.dialect.name != "postgresql":
        msg = f"the migration runs on {context.dialect.name}; pqcore's tables can only be in PostgreSQL"
        raise ConfigurationError(msg)
    if context.as_sql:
        write_down(_write, lambda session: operation(session, names))
    else:
        run_on(op.get_bind(), operation, names)


def _write(sql: str) -> None:
    op.execute(sqlalchemy.text(sql.replace(":", "\\:")))
