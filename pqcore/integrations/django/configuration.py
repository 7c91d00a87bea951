"""The setting ``PQCORE``, which names the tables and their databases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings

from pqcore.errors import ConfigurationError
from pqcore.sql.identifiers import TableName

KEYS = ("DATABASE", "TABLE", "SCHEMA", "PREPARED", "OPTIONS", "QUEUES")
_TAKEN = {"conn", "pool", "table", "schema", "backend", "prepared", "max_connections", "pool_timeout"}
_TAKEN |= {"answer_timeout", "queue_class"}


@dataclass(frozen=True)
class TableConfiguration:
    """The configuration of a table under an alias in ``PQCORE``.

    Attributes:
        alias: The alias of the table.
        database: The alias of its database, in ``DATABASES``.
        names: The table.
        prepared: Whether statements may be prepared; None to follow what the database's settings say about poolers.
        options: Settings of all queues; see `pqcore.settings.QueueSettings`.
        queues: Settings of single queues, by name.
    """

    alias: str
    database: str
    names: TableName
    prepared: bool | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    queues: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def configured() -> dict[str, TableConfiguration]:
    """Return all tables by alias; without the setting, the table ``queue`` in the database ``default``.

    Raises:
        ConfigurationError: The setting is invalid.
    """
    setting: Any = getattr(settings, "PQCORE", {"default": {}})
    if not isinstance(setting, Mapping) or not all(isinstance(entry, Mapping) for entry in setting.values()):
        raise ConfigurationError("PQCORE must be a dictionary of dictionaries, such as {'default': {'TABLE': 'queue'}}")
    if "default" not in setting:
        only = ", ".join(map(repr, setting)) or "nothing"
        raise ConfigurationError(f"PQCORE has no 'default', only {only}: add an entry, such as 'default': {{}}")
    return {alias: _read(alias, entry) for alias, entry in setting.items()}


def _read(alias: str, entry: Mapping[str, Any]) -> TableConfiguration:
    where = f"PQCORE[{alias!r}]"
    for key in entry:
        if key not in KEYS:
            raise ConfigurationError(f"{where} has an unknown key {key!r}; choose among {', '.join(KEYS)}")
    options = entry.get("OPTIONS", {})
    if not isinstance(options, Mapping):
        raise ConfigurationError(f"{where}['OPTIONS'] is {options!r}; give a dictionary")
    if wrong := sorted(_TAKEN.intersection(options)):
        raise ConfigurationError(f"{where}['OPTIONS'] has {wrong[0]!r}, which is not an option of queues; leave it out")
    prepared = entry.get("PREPARED")
    if prepared not in (None, True, False):
        raise ConfigurationError(f"{where}['PREPARED'] is {prepared!r}; give True or False, or leave it out")
    return TableConfiguration(
        alias,
        entry.get("DATABASE", "default"),
        TableName(entry.get("TABLE", "queue"), entry.get("SCHEMA")),
        prepared,
        options,
        _queues(where, entry.get("QUEUES", {})),
    )


def _queues(where: str, entry: object) -> Mapping[str, Mapping[str, Any]]:
    if isinstance(entry, Mapping) and all(isinstance(options, Mapping) for options in entry.values()):
        return entry
    if isinstance(entry, Iterable) and not isinstance(entry, (str, Mapping)):
        names = list(entry)
        if all(isinstance(name, str) for name in names):
            return {name: {} for name in names}
    raise ConfigurationError(
        f"{where}['QUEUES'] is {entry!r}; give a list of names, or a dictionary of options by name"
    )
