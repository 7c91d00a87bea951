"""Names inside statements that would hide a queue's table.

In SQL, the name of a WITH query or of an alias hides a table of the same name, unless the table is written with its
schema. A queue's table may have any name, so this module renames each WITH query or alias that has the table's name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_WITHOUT_SCHEMA = re.compile(r'"([a-z_]+)"')
_WITH_QUERY = re.compile(
    r"(?:\bWITH(?: RECURSIVE)?|,)\s+([a-z_]+)(?:\s*\([\w\s,]+\))?\s+AS\s+(?:(?:NOT )?MATERIALIZED )?\("
)
_QUALIFIER = re.compile(r"\b([a-z_]+)\.[a-z_]")


def rename_clashes(template: str, substitutions: Mapping[str, str]) -> str:
    """Return a template in which no WITH query and no alias has the name of one of the tables.

    Args:
        template: The template, see `pqcore.sql.statement.compile_query`.
        substitutions: The quoted identifiers of the tables.
    """
    tables = {found[1] for name in substitutions.values() if (found := _WITHOUT_SCHEMA.fullmatch(name))}
    if not any(table in template for table in tables):
        return template
    for name in tables & {*_WITH_QUERY.findall(template), *_QUALIFIER.findall(template)}:
        template = re.sub(rf"(?<![\w.:{{'\"]){name}(?![\w'\"}}])", f"{name}_in_query", template)
    return template
