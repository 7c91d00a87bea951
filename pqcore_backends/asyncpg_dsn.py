"""Converting libpq's DSNs for asyncpg, which reads only URLs and takes unknown parameters for server settings."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from pqcore.backend import CONNECT_TIMEOUT
from pqcore.backend_dsn import dsn_parameters

_URL = ("postgresql://", "postgres://")
"""The prefixes by which libpq recognizes a URL."""
_VARIABLES = {"service": "PGSERVICE", "application_name": "PGAPPNAME", "options": "PGOPTIONS"}
"""Environment variables that asyncpg does not read."""
_UNUSED = (
    *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"),
    *("client_encoding", "gssdelegation", "load_balance_hosts", "sslcompression", "sslsni"),
)
"""Parameters that asyncpg lacks, or whose values it does not let a user choose, and that affect only speed."""
_OPTIONAL = {
    "channel_binding": ("disable", "prefer"),
    "gssencmode": ("disable", "prefer", "allow"),
    "sslcertmode": ("disable", "allow"),
    "requirepeer": (),
    "require_auth": (),
}
"""Parameters that asyncpg lacks, and the values with which they can be ignored."""


def arguments(dsn: str) -> dict[str, Any]:
    """Return arguments for `asyncpg.connect` from a libpq URL or keyword string.

    Environment variables give the values of missing parameters.

    Raises:
        ValueError: The DSN cannot be read, or requires a safeguard that asyncpg lacks. The message quotes only the
            safeguard, because the DSN may contain a password.
    """
    place, given = _read(dsn)
    for name, variable in _VARIABLES.items():
        given.setdefault(name, os.environ.get(variable, ""))
    given["application_name"] = given["application_name"] or given.get("fallback_application_name", "")
    timeout = given.get("connect_timeout") or os.environ.get("PGCONNECT_TIMEOUT") or CONNECT_TIMEOUT
    for name, accepted in _OPTIONAL.items():
        if given.get(name) and given[name] not in accepted:
            raise ValueError(f"asyncpg does not support {name}={given[name]}; leave {name} out, or use psycopg")
    for name in (*_UNUSED, *_OPTIONAL, "fallback_application_name", "connect_timeout"):
        given.pop(name, None)
    if address := given.pop("hostaddr", ""):
        scheme, _, rest = place.partition("://")
        user, at, where = rest.rpartition("@")
        server, slash, database = where.partition("/")
        given["port"] = given.get("port") or server.rpartition("]")[2].partition(":")[2]
        given["host"], place = address, f"{scheme}://{user}{at}{slash}{database}"
    if "host" in given:
        hosts = given["host"].split(",")
        given["host"] = ",".join(f"[{host}]" if host.count(":") > 1 and host[0] != "[" else host for host in hosts)
    said = urlencode({name: value for name, value in given.items() if value}, quote_via=quote)
    return {"dsn": f"{place}?{said}" if said else place, "timeout": float(timeout) if float(timeout) > 0 else None}


def _read(dsn: str) -> tuple[str, dict[str, str]]:
    """Return a URL up to its question mark, and the named parameters."""
    if dsn.startswith(_URL):
        place, _, said = dsn.partition("?")
        if place.count("/") == 3:
            place = place.removesuffix("/")  # asyncpg would take the slash for a database with an empty name
        return place, dict(parse_qsl(said.replace("+", "%2B"), keep_blank_values=True, strict_parsing=bool(said)))
    return "postgresql://", dsn_parameters(dsn)
