"""What says where a database is: a DSN as text, or one of the objects that libraries have for it."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_SCHEME = re.compile(r"([a-z][\w+.-]*)://", re.IGNORECASE)
_HIDDEN = re.compile(r"://[^/@]*:\*+@")
POSTGRESQL = ("postgresql", "postgres", "cockroachdb")
"""The schemes of URLs that lead to PostgreSQL, or to a server like it."""


def scheme_of(dsn: str) -> str:
    """Return the scheme of a URL in small letters, such as ``postgresql+psycopg``; nothing for ``host=... dbname=...``.

    Args:
        dsn: The DSN.
    """
    match = _SCHEME.match(dsn)
    return "" if match is None else match[1].lower()


def of_libpq(dsn: str) -> str:
    """Return a DSN as libpq reads it: the scheme of a URL names no driver.

    Args:
        dsn: The DSN, of a scheme that leads to PostgreSQL.
    """
    match = _SCHEME.match(dsn)
    return dsn if match is None else f"postgresql://{dsn[match.end() :]}"


def dsn_text(given: Any) -> str | None:
    """Return the DSN that an object stands for, with its password; None if it stands for none.

    Args:
        given: Text; a URL of SQLAlchemy, pydantic, yarl, httpx or Starlette; what `urllib.parse` makes of one; or a
            secret of pydantic's that holds one of these.
    """
    if isinstance(given, str):
        return str.__str__(given).strip()
    with suppress(Exception):  # of whatever function this is
        if callable(reveal := getattr(given, "get_secret_value", None)):
            return dsn_text(reveal())
        text = _written(given)
        if isinstance(text, str) and _SCHEME.match(text) and not _HIDDEN.search(text):
            return text.strip()
    return None


def _written(given: Any) -> object:
    render: Callable[..., object] | None = getattr(given, "render_as_string", None)
    if callable(render):  # SQLAlchemy's: str() of it hides the password
        return render(hide_password=False)
    join: Callable[[], object] | None = getattr(given, "geturl", None)
    return join() if callable(join) else str(given)
