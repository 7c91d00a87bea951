"""Servers whose clients all share one session, such as PGlite: how pqcore recognizes them, and what it warns of.

Such a server runs in one process, without a session for each connection. So settings, advisory locks and prepared
statements of one client apply to all clients, and row locks do not exclude other clients.
"""

from __future__ import annotations

_MARKS = ("PGlite", "Emscripten")  # earlier versions of PGlite only name the compiler
ONE_CLIENT = "all clients of this server (PGlite) share one session, so only one client at a time is safe"
SHARED = (
    f"{ONE_CLIENT}: pqcore opens one connection, prepares nothing, sets nothing on the session, and waiters poll;"
    " let no other program connect meanwhile"
)
"""The warning that is logged once for each `PQ`."""


def shares_session(version: str) -> bool:
    """Return whether all clients of a server share one session.

    Args:
        version: What the server's function ``version()`` returns.
    """
    return any(mark in version for mark in _MARKS)
