"""System checks: whether the settings are valid, and whether the tables exist and are up to date."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.core.checks import CheckMessage, Error, Tags, Warning, register  # noqa: A004 - Django's name
from django.db import Error as DatabaseError

from pqcore import schema
from pqcore.db.runtime import run_sync
from pqcore.errors import PQError, SchemaTooNew
from pqcore.integrations.django.configuration import configured
from pqcore.integrations.django.queues import pqs
from pqcore.operations import schema_info


def check_settings(**_: Any) -> list[CheckMessage]:
    """Return the faults of the setting ``PQCORE``, without querying a database."""
    found: list[CheckMessage] = []
    try:
        for alias in configured():
            pqs[alias]
    except (PQError, LookupError, TypeError, ValueError) as exc:
        found.append(Error(f"PQCORE cannot be used: {exc}", id="pqcore.E001"))
    return found


def check_tables(*, databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """Return the faults of the tables of the given databases."""
    found: list[CheckMessage] = []
    if not databases or check_settings():
        return found
    for alias, table in configured().items():
        if table.database not in databases:
            continue
        try:
            version = run_sync(schema_info.version(pqs[alias].engine))
        except (PQError, DatabaseError) as exc:
            found.append(Error(f"table {table.names} cannot be checked: {exc}", id="pqcore.E002"))
            continue
        latest = schema.latest()
        hint = f"Run: manage.py migrate pqcore --database {table.database}"
        if version is None:
            found.append(Warning(f"table {table.names} of PQCORE[{alias!r}] does not exist.", hint, id="pqcore.W001"))
        elif version < latest:
            message = f"table {table.names} has schema version {version}; this version of pqcore needs {latest}."
            found.append(Warning(message, hint, id="pqcore.W002"))
        elif version > latest and not _works_on(alias):
            message = f"table {table.names} has schema version {version}; this version of pqcore knows {latest}."
            found.append(Error(message, "Upgrade pqcore.", id="pqcore.E003"))
    return found


def _works_on(alias: str) -> bool:
    """Return whether this pqcore can use a newer table, according to the table's record."""
    try:
        run_sync(schema_info.is_current(pqs[alias].engine))
    except SchemaTooNew:
        return False
    return True


def register_all() -> None:
    """Register the checks with Django; tables are checked only if databases are named, as `migrate` does."""
    register(check_settings)
    register(check_tables, Tags.database)
