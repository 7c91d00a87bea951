"""Log lines of a listener: why it cannot listen, and that it lost its connection."""

from __future__ import annotations

import logging

from pqcore.errors import PQError

logger = logging.getLogger("pqcore")

IDLE_SESSION = "57P05"
"""The SQLSTATE of a session that the server's idle_session_timeout ended."""


REASONS = 5
"""The largest number of reasons that are logged until the listener can listen: the messages of some drivers contain a
number that differs each time."""


class ListenerLog:
    """A log of the reasons why a listener cannot listen; each reason is logged only once, even if reasons alternate."""

    def __init__(self) -> None:
        self._refused: set[str] = set()

    def forget(self) -> None:
        """Allow each reason to be logged once more, because the listener has listened since the last log line."""
        self._refused.clear()

    def warn_refused(self, error: Exception) -> None:
        """Warn that the listener cannot listen."""
        text = _text(error)
        if text not in self._refused and len(self._refused) < REASONS:
            self._refused.add(text)
            logger.warning("cannot listen, so waiters poll: %s", text, exc_info=_is_unexpected(error))

    def tell_loss(self, error: Exception) -> None:
        """Log that the listening connection was lost."""
        if getattr(error, "sqlstate", None) == IDLE_SESSION:
            logger.info("idle_session_timeout ended the listening connection; the next waiter opens another: %s", error)
        else:
            logger.warning("lost the listening connection: %s", _text(error), exc_info=_is_unexpected(error))


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, PQError) else f"{type(error).__name__}: {error}"


def _is_unexpected(error: Exception) -> bool:
    """Return whether an exception is of an unexpected kind, whose traceback is logged."""
    return not isinstance(error, PQError)
