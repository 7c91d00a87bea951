"""The check of the privileges of the role."""

from __future__ import annotations

from collections.abc import Sequence

from pqcore.doctor.context import CheckContext
from pqcore.doctor.findings import Finding
from pqcore.doctor.table_checks import TABLES_OF_JOBS
from pqcore.operations.roles import FIND_SEQUENCES, roles_of
from pqcore.sql.identifiers import quote

_ALL = ("SELECT", "INSERT", "UPDATE", "DELETE")
_MEMBER = """
SELECT wanted.name FROM unnest(:names::text[]) WITH ORDINALITY AS wanted (name, place)
JOIN pg_roles AS role ON role.rolname = wanted.name
WHERE pg_has_role(role.oid, 'USAGE') ORDER BY place DESC LIMIT 1"""


async def check_privileges(context: CheckContext) -> list[Finding]:
    """Check that the role has all privileges of workers and operators, or those of one of the table's own roles."""
    names = context.engine.names
    [[role, may_look]] = await context.ask(
        "role",
        "SELECT quote_ident(current_user), coalesce(has_schema_privilege(:schema::text, 'USAGE'), true)",
        schema=names.schema,
    )
    missing, unread = [], []
    if not may_look:  # without USAGE, the server cannot look the tables up by their names
        missing.append(f"GRANT USAGE ON SCHEMA {quote(names.schema or '')} TO {role}")
    places = names.substitutions()
    wanted = {places[place]: _ALL for place in TABLES_OF_JOBS} | {places["migrations"]: _ALL[:1]}
    for quoted, kinds in wanted.items():
        lacking: Sequence[str] = kinds
        if may_look:
            allowed = ", ".join(f"has_table_privilege(:of::text, '{kind}')" for kind in kinds)
            [answers] = await context.ask("privileges", f"SELECT {allowed}", of=quoted)
            lacking = [kind for kind, yes in zip(kinds, answers, strict=True) if not yes]
        if "SELECT" in lacking:
            unread.append(quoted)
        if lacking:
            missing.append(f"GRANT {', '.join(lacking)} ON {quoted} TO {role}")
    tables = [names.related(suffix) for suffix in ("", "_batches")]
    found = await context.ask("find_sequences", FIND_SEQUENCES, names=tables) if may_look else ()
    for sequence in (name for (name,) in found if name is not None):
        [[usable]] = await context.ask("usable", "SELECT has_sequence_privilege(:of::text, 'USAGE')", of=sequence)
        if not usable:
            missing.append(f"GRANT USAGE ON SEQUENCE {sequence} TO {role}")
    if not missing:
        return [Finding("privileges", "ok", "the role may read and write the tables")]
    roles = roles_of(names)
    member = await context.ask("member", _MEMBER, names=[roles.producer, roles.consumer, roles.admin])
    if member and (member[0][0] == roles.producer or not unread):
        return [Finding("privileges", "ok", f"the role is a member of {member[0][0]}, and has no further privileges")]
    if member:
        message = f"{member[0][0]} lacks privileges on {', '.join(unread)}, which a later version added"
        return [Finding("privileges", "problem", message, "pqcore create --roles, as the owner of the tables")]
    return [Finding("privileges", "problem", f"role {role} lacks privileges", "; ".join(missing))]
