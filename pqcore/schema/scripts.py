"""The text of the migrations, as in their files; see `pqcore.schema`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources

RECORD = (
    "CREATE TABLE IF NOT EXISTS {migrations} (table_name text, version integer,"
    " applied_at timestamptz NOT NULL DEFAULT now(), needs integer, PRIMARY KEY (table_name, version))"
)
"""The table that records versions, as a template."""


@lru_cache(maxsize=1)
def _scripts() -> tuple[str, ...]:
    folder = resources.files(__package__)
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return tuple((folder / name).read_text("utf-8") for name in names)


@lru_cache(maxsize=1)
def migrations() -> tuple[tuple[str, ...], ...]:
    """Return the statements of each version, as templates."""
    return tuple(_statements(script) for script in _scripts())


def needs(number: int) -> int | None:
    """Return the oldest version whose code can use a table of this version.

    Return None if only code of this version or of later versions can use the table.
    """
    found = re.match(r"-- needs (\d+)\n", _scripts()[number - 1])
    return found and int(found[1])


def latest() -> int:
    """Return the latest version, which is the version that this pqcore makes and needs."""
    return len(migrations())


def builds_indexes(number: int) -> bool:
    """Return whether a version only builds indexes, which does not block users of the table."""
    return all("INDEX {concurrently} " in statement for statement in migrations()[number - 1])


def statements_naming(place: str, substitutions: Mapping[str, str]) -> list[str]:
    """Return the statements of all versions that name an object, each on one line.

    Args:
        place: The placeholder of the object, such as ``ready_index``.
        substitutions: The names for all placeholders.
    """
    return [
        " ".join(statement.format_map(substitutions).split())
        for statements in migrations()
        for statement in statements
        if f"{{{place}}}" in statement
    ]


def _statements(script: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in re.split(r"(?m)^(?:---.*\n)+", script)[1:])
