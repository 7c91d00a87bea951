"""libpq's DSNs, for a driver that has no libpq and reads none."""

from __future__ import annotations

import getpass
import os
import re
import socket
import ssl
from typing import Any
from urllib.parse import parse_qsl, unquote

from pqcore.backend import CONNECT_TIMEOUT

WORD = re.compile(r"(\w+)\s*=\s*('(?:[^'\\]|\\.)*'|(?:[^\s'\\]|\\.)*)\s*")
URL = re.compile(r"[\w+]+://(?:([^:@/]*)(?::([^@/]*))?@)?(\[[^]]*]|[^:/?]*)(?::(\d*))?(?:/([^?]*))?(?:\?(.*))?")
PLACES = ("user", "password", "host", "port", "dbname")
"""The parts of a URL, as the pattern has them."""
VARIABLES = {name: f"PG{name.upper()}" for name in (*PLACES, "sslmode", "connect_timeout")} | {"dbname": "PGDATABASE"}


def arguments(dsn: str) -> dict[str, Any]:
    """Return the arguments of `pg8000.dbapi.connect` for a libpq URL or keyword string; variables give missing parts.

    Instead of a socket it has what `reach` takes to make one.

    Raises:
        ValueError: It is neither; the message has nothing of it, as there may be a password in it.
    """
    given = {key: os.environ.get(name) or "" for key, name in VARIABLES.items()}
    if found := URL.fullmatch(dsn):
        given |= {key: unquote(part).strip("[]") for key, part in zip(PLACES, found.groups(), strict=False) if part}
        given |= parse_qsl((found[6] or "").replace("+", "%2B"), strict_parsing=bool(found[6]))
    elif "://" not in dsn and not WORD.sub("", dsn.strip()):
        given |= {key: re.sub(r"\\(.)", r"\1", word.strip("'")) for key, word in WORD.findall(dsn)}
    else:
        raise ValueError("neither a URL, postgresql://user@host/database, nor keywords, host=... dbname=...")
    given = {key: value for key, value in given.items() if value}
    host, port = given.pop("host", "localhost"), int(given.pop("port", 5432))
    local, mode, certificates = host.startswith("/"), given.pop("sslmode", "prefer"), given.pop("sslrootcert", None)
    return {
        "address": f"{host}/.s.PGSQL.{port}" if local else (host, port),
        "timeout": float(given.pop("connect_timeout", CONNECT_TIMEOUT)) or None,
        "host": host,  # for TLS
        "user": given.pop("user", None) or getpass.getuser(),
        "password": given.pop("password", None),
        "database": given.pop("dbname", None),
        "application_name": given.pop("application_name", None),
        "ssl_context": False if local else _ssl_context(mode, certificates),
        "startup_params": given,  # the rest is the server's: options, or a setting
    }


def reach(address: str | tuple[str, int], timeout: float | None) -> socket.socket:
    """A socket that is connected; pg8000 leaves one of its own open where it fails."""
    if isinstance(address, tuple):
        sock = socket.create_connection(address, timeout)
    else:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(timeout)
            sock.connect(address)
        except BaseException:
            sock.close()
            raise
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return sock


def _ssl_context(mode: str, certificates: str | None) -> ssl.SSLContext | bool | None:
    if not mode.startswith("verify"):
        return {"disable": False, "require": True}.get(mode)  # None: if the server has it
    context = ssl.create_default_context(cafile=certificates)
    context.check_hostname = mode == "verify-full"
    return context
