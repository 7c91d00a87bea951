"""DSNs, which name a database: reading, writing and hiding them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import quote, unquote, urlencode, urlsplit, urlunsplit

_SCHEME = re.compile(r"([a-z][\w+.-]*)://", re.IGNORECASE)
_SEEKS_PRIMARY = re.compile(r"\btarget_session_attrs\s*=\s*'?(read-write|primary)\b")
_HIDDEN = re.compile(r"://[^/@]*:\*+@")
POSTGRESQL = ("postgresql", "postgres", "cockroachdb")
"""The URL schemes of PostgreSQL, and of servers that resemble it."""

# Reading


def scheme_of(dsn: str) -> str:
    """Return the scheme of a URL in lower case, such as ``postgresql+psycopg``; empty for ``host=... dbname=...``.

    Args:
        dsn: The DSN.
    """
    match = _SCHEME.match(dsn)
    return "" if match is None else match[1].lower()


def of_libpq(dsn: str) -> str:
    """Return a DSN in the form that libpq reads: the URL's scheme without a driver.

    Args:
        dsn: The DSN, whose scheme is one of PostgreSQL's.
    """
    match = _SCHEME.match(dsn)
    return dsn if match is None else f"postgresql://{dsn[match.end() :]}"


def dsn_text(given: Any) -> str | None:
    """Return the DSN that an object represents, with its password; None if the object represents none.

    Args:
        given: Text; a URL of SQLAlchemy, pydantic, yarl, httpx or Starlette; a result of `urllib.parse`; or a secret of
            pydantic that holds one of these.
    """
    if isinstance(given, str):
        return str.__str__(given).strip()
    with suppress(Exception):  # the object may be of any class, and its methods may raise anything
        if callable(reveal := getattr(given, "get_secret_value", None)):
            return dsn_text(reveal())
        text = _written(given)
        if isinstance(text, str) and _SCHEME.match(text) and not _HIDDEN.search(text):
            return text.strip()
    return None


def _written(given: Any) -> object:
    render: Callable[..., object] | None = getattr(given, "render_as_string", None)
    if callable(render):  # SQLAlchemy's method, because its str() hides the password
        return render(hide_password=False)
    join: Callable[[], object] | None = getattr(given, "geturl", None)
    return join() if callable(join) else str(given)


def seeks_primary(dsn: str) -> bool:
    """Return whether ``target_session_attrs``, in a DSN or the environment, asks for a server that takes writes.

    Args:
        dsn: The DSN.
    """
    said = _SEEKS_PRIMARY.search(unquote(dsn))
    return said is not None or os.environ.get("PGTARGETSESSIONATTRS") in ("read-write", "primary")


# Writing


def url_of(parameters: Mapping[str, str]) -> str:
    """Return the URL with these libpq parameters.

    Args:
        parameters: ``user``, ``password`` and ``dbname`` go to their places in the URL. All other parameters go to the
            query, because there ``host`` may also name a socket's directory, or several hosts.
    """
    said = dict(parameters)
    user, password, name = (quote(said.pop(key, ""), safe="") for key in ("user", "password", "dbname"))
    login = f"{user}:{password}@" if password else f"{user}@" if user else ""
    query = urlencode(said, quote_via=quote)
    return f"postgresql://{login}{'/' if login or name else ''}{name}{'?' if query else ''}{query}"


def with_options(dsn: str, **options: str) -> str:
    """Return a URL with additional parameters, such as ``application_name``.

    Args:
        dsn: The URL.
        **options: The parameters.
    """
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in options.items())
    return f"{dsn}{'&' if '?' in dsn else '?'}{query}"


def with_database(dsn: str, name: str) -> str:
    """Return the URL of another database on the same server.

    Args:
        dsn: The URL.
        name: The database's name.
    """
    return urlunsplit(urlsplit(dsn)._replace(path=f"/{quote(name, safe='')}"))


def with_address(dsn: str, host: str, port: int) -> str:
    """Return a URL with another address.

    Args:
        dsn: The URL.
        host: The host's name or IP address.
        port: The port.
    """
    parts = urlsplit(dsn)
    login, at, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{login}{at}{host}:{port}"))


def address_of(dsn: str) -> tuple[str, int]:
    """Return the host and port of a URL; the defaults are 127.0.0.1 and 5432.

    Args:
        dsn: The URL.
    """
    parts = urlsplit(dsn)
    return parts.hostname or "127.0.0.1", parts.port or 5432


# Hiding


def redact(text: str, dsn: str) -> str:
    """Remove a DSN, and the password in it, from a text.

    Args:
        text: The text.
        dsn: The DSN.
    """
    secrets = [dsn]
    for pattern in (r"://[^/@:]*:(.+)@", r"password\s*=\s*'?([^'\s&]+)"):
        for secret in re.findall(pattern, dsn):
            secrets += [secret, unquote(secret)]
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


def has_several_at(dsn: str) -> bool:
    """Return whether a URL has more than one @ before its path.

    A driver may then mistake a part of the password for the name of the host.

    Args:
        dsn: The DSN.
    """
    return re.split("[/?]", dsn.partition("://")[2], maxsplit=1)[0].count("@") > 1


def why_unread(exc: object, dsn: str) -> str:
    """Return the message for a DSN that a driver cannot read, without the password.

    Args:
        exc: The driver's exception, which may quote the DSN.
        dsn: The DSN.
    """
    if has_several_at(dsn):
        return "not a DSN: it has several @ before the host's name; in a user's name or password, write %40"
    said = redact(str(exc).strip(), dsn)
    if any(word in said for word in _secret_words(dsn)):
        return (
            "not a DSN (the driver's message is hidden, because it may quote a password); give a URL,"
            " postgresql://user@host/database, with special characters written as in %40, or keywords,"
            " host=... dbname=..., with quotes around values that have blanks"
        )
    return f"not a DSN: {said}"


def _secret_words(dsn: str) -> set[str]:
    """Return all words of an unreadable DSN that may be part of a password."""
    _, _, named = dsn.partition("password")
    user, at, _ = dsn.partition("://")[2].rpartition("@")
    return set(re.findall(r"\w{2,}", f"{named} {user.partition(':')[2] if at else ''}"))
