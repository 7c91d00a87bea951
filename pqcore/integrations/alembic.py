"""pqcore's tables in the migrations of Alembic: `upgrade_queue` and `downgrade_queue`, in place of ``op.create_table``.

Both functions join the migration's transaction, and ``alembic upgrade --sql`` prints the statements of both.
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
    """Make a queue's tables, or migrate them to the version of the installed pqcore; call this in ``upgrade``.

    The function does nothing if the tables are up to date. Indexes of a table with rows are built while the table is
    locked, unless the call is within ``op.get_context().autocommit_block()``.

    Args:
        table: See `pqcore.PQ`.
        schema: See `pqcore.PQ`; the schema is made if it does not exist.

    Raises:
        SchemaTooNew: A newer pqcore made the tables.
    """
    _run(create, TableName(table, schema))


def downgrade_queue(table: str = "queue", schema: str | None = None) -> None:
    """Drop a queue's tables, including jobs; call this in ``downgrade``, if ``upgrade`` has made the tables.

    Args:
        table: See `pqcore.PQ`.
        schema: See `pqcore.PQ`; the schema is not dropped.
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
