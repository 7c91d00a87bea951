"""libpq's DSNs, turned into the arguments of a driver that has no libpq and reads none."""

from __future__ import annotations

import getpass
import os
import socket
import ssl
from typing import Any

from pqcore.backend import CONNECT_TIMEOUT
from pqcore.backend_dsn import dsn_parameters

NAMES = ("user", "password", "host", "port", "sslmode", "connect_timeout")
VARIABLES = {name: f"PG{name.upper()}" for name in NAMES} | {"dbname": "PGDATABASE"}


def arguments(dsn: str) -> dict[str, Any]:
    """Return the arguments of `pg8000.dbapi.connect` for a libpq URL or keyword string; variables give missing parts.

    Instead of a socket it has what `reach` takes to make one.

    Raises:
        ValueError: It is neither; the message has nothing of it, as there may be a password in it.
    """
    given = {key: os.environ.get(name) or "" for key, name in VARIABLES.items()} | dsn_parameters(dsn)
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
