"""Reading DSNs in libpq's forms, for backends of drivers that do not read these forms."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote

_URL = ("postgresql://", "postgres://")
_HOST = re.compile(r"(\[[^]]*]|[^:]*)(?::(\d*))?")
_KEYWORD = re.compile(r"\s*(\w+)\s*=\s*('(?:[^'\\]|\\.)*'|(?!')(?:[^\s\\]|\\.)*)(?=\s|$)\s*", re.DOTALL)


def dsn_parameters(dsn: str) -> dict[str, str]:
    """Read a DSN as libpq does, for a driver that cannot read it.

    Args:
        dsn: A URL or a keyword string; see `pqcore.backend.Backend.connect`.

    Returns:
        The parameters that the DSN names, by libpq's names, such as ``user``, ``password``, ``host``, ``port``,
        ``dbname`` and ``connect_timeout``. Several hosts or ports are separated by commas. Environment variables such
        as ``PGHOST`` are left to the caller.

    Raises:
        ValueError: The text is not a DSN; the message contains nothing of the text, which may hold a password.
    """
    found = _url_parameters(dsn) if dsn.startswith(_URL) else _keyword_parameters(dsn)
    if found is None:
        raise ValueError("DSN is neither a URL (postgresql://user@host/database) nor keywords (host=... dbname=...)")
    return found


def _url_parameters(url: str) -> dict[str, str] | None:
    place, _, query = url.partition("://")[2].partition("?")
    authority, _, name = place.partition("/")
    login, _, servers = authority.rpartition("@")
    user, _, password = login.partition(":")
    hosts = [_HOST.fullmatch(server) for server in servers.split(",")]
    if "@" in login or None in hosts:
        return None
    parts = [(unquote(host[1]).strip("[]"), host[2] or "") for host in hosts if host is not None]
    ports = ",".join(port for _, port in parts)
    given = {
        "user": unquote(user),
        "password": unquote(password),
        "host": ",".join(host for host, _ in parts).strip(","),
        "port": ports if ports.strip(",") else "",
        "dbname": unquote(name),
    }
    try:
        named = dict(parse_qsl(query.replace("+", "%2B"), keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError:
        return None
    return {name: value for name, value in given.items() if value} | named


def _keyword_parameters(text: str) -> dict[str, str] | None:
    if _KEYWORD.sub("", text).strip():
        return None
    words = [(name, word[1:-1] if word.startswith("'") else word) for name, word in _KEYWORD.findall(text)]
    return {name: re.sub(r"\\(.)", r"\1", word, flags=re.DOTALL) for name, word in words}
