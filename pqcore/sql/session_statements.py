"""The statements of a session, all of which are in `session_statements.sql`."""

from __future__ import annotations

from pqcore.sql.statement_set import StatementSet, from_file


class SessionStatements(StatementSet):
    """The statements of a session: for LISTEN, and for settings."""

    file = "session_statements.sql"

    ping = from_file()
    identify = from_file()
    register = from_file()
    unregister = from_file()
    session_settings = from_file()
    listening = from_file()
    notify_always = from_file()
    notify_waiters = from_file()
    read_only = from_file()
    notification_usage = from_file()
    replan = from_file(rows=False)
    discard_plans = from_file(rows=False)
