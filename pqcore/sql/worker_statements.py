"""The statements of the list of workers, all of which are in `worker_statements.sql`."""

from __future__ import annotations

from pqcore.sql.statement_set import StatementSet, from_file


class WorkerStatements(StatementSet):
    """The statements of the list of workers."""

    file = "worker_statements.sql"

    announce_worker = from_file(rows=False)
    withdraw_worker = from_file(rows=False)
    sweep_workers = from_file(rows=False)
    find_quiet = from_file()
    set_quiet = from_file()
    list_workers = from_file()
