"""The translation of drivers' exceptions to pqcore's exceptions, by SQLSTATE. No other module translates exceptions."""

from __future__ import annotations

import re

from pqcore.errors import (
    AccessDenied,
    ConnectionLost,
    DatabaseError,
    IdTaken,
    InvalidData,
    SchemaOutdated,
    StatementCancelled,
    TableMissing,
    TransactionAborted,
    TransientError,
)

# Longest prefix first. https://www.postgresql.org/docs/current/errcodes-appendix.html
_BY_SQLSTATE: tuple[tuple[str, type[DatabaseError], str], ...] = (
    ("0A000", DatabaseError, "not supported; if the types of the table's columns have just changed, try again"),
    (
        "25006",
        DatabaseError,
        "the server is a standby, or read-only: connect to the primary, as with target_session_attrs=read-write",
    ),
    ("25P02", TransactionAborted, "an earlier statement of this transaction failed: roll it back first"),
    ("40", TransientError, "try the transaction again"),
    ("55P03", TransientError, "a lock could not be acquired in time: try again"),
    ("57014", StatementCancelled, "the statement was cancelled (see statement_timeout)"),
    ("57P", ConnectionLost, "the server ended the connection"),
    ("08", ConnectionLost, "the connection is lost"),
    ("53300", ConnectionLost, "the server accepts no more connections (see max_connections)"),
    ("42501", AccessDenied, "the database role may not do this: see GRANT"),
    ("3D000", DatabaseError, "make the database, or correct its name"),
    ("28", AccessDenied, "the server does not accept these credentials"),
    ("22", InvalidData, "the server cannot store this value"),
    ("23", InvalidData, "a constraint of the table forbids this value"),
    (
        "54",
        DatabaseError,
        "a limit of the server was reached: make the value smaller, or ask the administrator of the server",
    ),
)
READ_ONLY = "25006"
"""The SQLSTATE with which a server refuses a statement because the server takes no writes."""
_UNIQUE = "23505"
_ID = re.compile(r"\(id(?:, q_name)?\)=\((-?\d+)")  # the error's detail has this form in any language
_BEHIND = (
    "a sequence is behind the stored ids, as after logical replication, a restore, or TRUNCATE ... RESTART IDENTITY:"
    " run pqcore create --set-sequences"
)
NOTIFICATIONS_FULL = "54000"
"""The SQLSTATE of the `TransientError` for a full notification queue of the server."""
_FULL = (
    "the server's queue of notifications is full, because a listening session has had a transaction open for a long"
    " time: end that transaction, which pqcore doctor shows, and try again"
)


def translate(exc: BaseException, doing: str, *, lost: bool = False) -> Exception:
    """Translate a driver's exception to an exception of pqcore.

    Args:
        exc: The driver's exception.
        doing: The name of the statement, for the message.
        lost: Whether the connection turned out to be unusable.
    """
    sqlstate: str | None = getattr(exc, "sqlstate", None) or getattr(exc, "pgcode", None)
    reason = str(exc).strip() or type(exc).__name__
    if sqlstate in ("42P01", "3F000"):
        return TableMissing(f"{doing}: {_first(reason)}: call create() to make the queue's table, or run pqcore create")
    if sqlstate in ("42703", "42883", "42P10"):
        advice = "call create() to bring the queue's table up to date, or run pqcore create"
        return SchemaOutdated(f"{doing}: {_first(reason)}: {advice}")
    if sqlstate == _UNIQUE and (taken := _ID.search(f"{reason} {getattr(exc, 'detail', '')}")):
        return IdTaken(f"{doing}: id {taken[1]} is taken ({_BEHIND})", sqlstate)
    if sqlstate == NOTIFICATIONS_FULL and "NOTIFY" in reason:  # the message has this word in any language of the server
        return TransientError(f"{doing}: {reason} ({_FULL})", sqlstate)
    if sqlstate == "42501":
        reason = _first(reason)
    for prefix, kind, advice in _BY_SQLSTATE:
        if sqlstate and sqlstate.startswith(prefix):
            return kind(f"{doing}: {reason} ({advice})", sqlstate)
    if isinstance(exc, UnicodeError):
        return InvalidData(
            f"{doing}: {reason} (the connection's client_encoding lacks some of the characters: set it to UTF8)"
        )
    if doing == "connect" and (lost or isinstance(exc, OSError)):
        return ConnectionLost(f"{doing}: the server cannot be reached, or refuses the connection: {reason}", sqlstate)
    if lost or isinstance(exc, OSError):
        return ConnectionLost(f"{doing}: the connection is lost, or the server cannot be reached: {reason}", sqlstate)
    return DatabaseError(f"{doing}: {reason}", sqlstate)


def _first(reason: str) -> str:
    """Return the first line of a message; the other lines of psycopg and psycopg2 show a part of the statement."""
    return reason.partition("\n")[0]


def is_refusal(error: DatabaseError) -> bool:
    """Return whether the server refused a statement and keeps the connection.

    Some errors announce that the server ends the connection; for these, return False.
    """
    return error.sqlstate is not None and not error.sqlstate.startswith("57P")
