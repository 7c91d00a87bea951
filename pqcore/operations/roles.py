"""Database roles with the privileges that a producer, consumer or administrator of a queue needs."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from pqcore.db.engine import Engine
from pqcore.db.session import Session
from pqcore.errors import AccessDenied, ConfigurationError
from pqcore.operations.atomic import atomic
from pqcore.operations.schema_info import ask
from pqcore.sql.identifiers import PUT_ARGUMENTS, TableName, check_text, fit, quote
from pqcore.sql.statement import plain

KINDS = ("producer", "consumer", "admin")
"""A producer puts jobs but cannot see other jobs; a consumer also takes and finishes jobs; an admin also deletes rows.
"""

_PUT = (
    "q_name, data, payload, serializer, enqueued_at, schedule_at, expected_at, headers, group_key, dedup_key,"
    " parked_on, leased_until, priority"
)
# A producer's statements read these columns to find the holder of a dedup key, or to return an id. No column contains
# the data of jobs.
_FOUND = (
    "id, q_name, enqueued_at, dequeued_at, schedule_at, expected_at, leased_until, group_key, dedup_key, parked_on,"
    " priority"
)
_PUT_FUNCTION = f"GRANT EXECUTE ON FUNCTION {{put_function}}{PUT_ARGUMENTS} TO {{producer}}, {{consumer}}, {{admin}}"
_GRANTS = (
    "GRANT SELECT ON {migrations} TO {producer}, {consumer}, {admin}",
    f"GRANT INSERT ({_PUT}), SELECT ({_FOUND}) ON {{table}} TO {{producer}}",
    "GRANT SELECT, INSERT, UPDATE ON {dedup} TO {producer}",
    _PUT_FUNCTION,
    # INSERT is granted per column, and not for the id. A producer that could choose an id could use the next id of the
    # sequence: then the INSERT of another program's new batch, which draws this id, would fail.
    "REVOKE INSERT ON {batches} FROM {producer}",
    "GRANT INSERT (q_name, total, pending, callback, token), SELECT (id) ON {batches} TO {producer}",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON {table}, {slots}, {results}, {batches} TO {consumer}, {admin}",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON {ticks}, {rates}, {dedup}, {keys}, {workers} TO {consumer}, {admin}",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON {attempts}, {samples}, {schedules} TO {consumer}, {admin}",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON {dependencies}, {blocked} TO {consumer}, {admin}",
    "GRANT SELECT ON {rules} TO {consumer}",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON {rules} TO {admin}",
    "GRANT SELECT, INSERT, UPDATE (id) ON {archive}, {dead} TO {consumer}",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON {archive}, {dead} TO {admin}",
)

_FIND_ROLES = "SELECT rolname::text FROM pg_roles WHERE rolname = ANY (:names::text[])"
_FIND_OWNER = (
    "SELECT pg_has_role(relowner, 'USAGE'), current_user::text FROM pg_class WHERE oid = to_regclass(:table_name::text)"
)
# In a table that pq made, the name of the sequence is unknown.
FIND_SEQUENCES = "SELECT pg_get_serial_sequence(wanted.name, 'id') FROM unnest(:names::text[]) AS wanted (name)"
"""The statement that finds the sequences of tables."""


# pg_shdepend lists the objects of all databases that depend on a role. The query returns other databases with such
# objects; in this database, it returns only tables in other schemas for which the role has privileges.
_FIND_SHARED = """
SELECT role.rolname::text, 'in database ' || quote_ident(base.datname)
FROM pg_roles AS role JOIN pg_shdepend AS d ON d.refobjid = role.oid AND d.refclassid = 'pg_authid'::regclass
JOIN pg_database AS base ON base.oid = d.dbid
WHERE role.rolname = ANY (:names::text[]) AND base.datname <> current_database()
UNION ALL
SELECT role.rolname::text, 'to table ' || c.oid::regclass::text
FROM pg_roles AS role JOIN pg_shdepend AS d ON d.refobjid = role.oid AND d.refclassid = 'pg_authid'::regclass
JOIN pg_database AS base ON base.oid = d.dbid AND base.datname = current_database()
JOIN pg_class AS c ON c.oid = d.objid AND d.classid = 'pg_class'::regclass AND c.relkind IN ('r', 'p')
WHERE role.rolname = ANY (:names::text[])
  AND c.relnamespace <> (SELECT relnamespace FROM pg_class WHERE oid = to_regclass(:table_name::text))
LIMIT 1"""
MOST_PREFIX = 50
"""The largest number of bytes in the prefix of the roles' names; a name has at most 63 bytes."""


@dataclass(frozen=True)
class Roles:
    """The names of the roles of a table, in PostgreSQL's form."""

    producer: str
    consumer: str
    admin: str


def roles_of(names: TableName, prefix: str | None = None) -> Roles:
    """Return the names of a table's roles, such as ``queue_producer``, ``queue_consumer`` and ``queue_admin``.

    Args:
        names: The table.
        prefix: The beginning of the names, if it is not the table's name.

    Raises:
        InvalidName: A name cannot contain the prefix.
    """
    begin = names.table if prefix is None else check_text(prefix, "prefix of roles", MOST_PREFIX)
    return Roles(*(fit(f"{begin}_{kind}") for kind in KINDS))


async def statements(engine: Engine, s: Session, prefix: str | None = None) -> list[str]:
    """Return the statements that make missing roles and grant the privileges; they may be run again.

    The roles cannot log in. A statement such as ``GRANT queue_producer TO shop`` gives an application's role the
    privileges of one of these roles. Only the owner of the tables can change the schema.

    Args:
        engine: The engine.
        s: A session.
        prefix: The beginning of the names; see `roles_of`.
    """
    names = engine.names
    roles = asdict(roles_of(names, prefix))
    there = {name for (name,) in await ask(engine, s, "find_roles", _FIND_ROLES, names=list(roles.values()))}
    made = [f"CREATE ROLE {quote(name)} NOLOGIN" for name in roles.values() if name not in there]
    quoted = {kind: quote(name) for kind, name in roles.items()}
    everybody = ", ".join(quoted.values())
    if names.schema is not None:
        made.append(f"GRANT USAGE ON SCHEMA {quote(names.schema)} TO {everybody}")
    substitutions = {**names.substitutions(), **quoted}
    left_out = _PUT_FUNCTION if "put function" in engine.dialect.unsupported else None
    made += [grant.format_map(substitutions) for grant in _GRANTS if grant != left_out]
    tables = [names.related(suffix) for suffix in ("", "_batches")]
    sequences = await ask(engine, s, "find_sequences", FIND_SEQUENCES, names=tables)
    made += [f"GRANT USAGE ON SEQUENCE {sequence} TO {everybody}" for (sequence,) in sequences]
    return made


async def script(engine: Engine, prefix: str | None = None) -> list[str]:
    """Return the statements as a script, for another user to run.

    Args:
        engine: The engine.
        prefix: The beginning of the names; see `roles_of`.

    Raises:
        TableMissing: The table does not exist.
    """
    return await engine.run(lambda s: statements(engine, s, prefix))


async def grant(engine: Engine, prefix: str | None = None) -> Roles:
    """Make the roles of the table, and grant them their privileges; all or nothing.

    Args:
        engine: The engine.
        prefix: The beginning of the names; see `roles_of`.

    Raises:
        AccessDenied: The connected role may not make roles (CREATEROLE), or does not own the tables.
        ConfigurationError: Roles with these names belong to another table, in this or another database.
        TableMissing: The table does not exist.
    """
    roles = roles_of(engine.names, prefix)

    async def work(s: Session) -> None:
        # Check the owner first: if a role without the right to grant runs GRANT, the server only sends a warning.
        [[owner, role]] = await ask(engine, s, "find_owner", _FIND_OWNER)
        if not owner:
            raise AccessDenied(
                f"role {role!r} does not own table {engine.names}: only its owner can GRANT rights to it"
            )
        found = await ask(
            engine, s, "find_shared", _FIND_SHARED, names=list(asdict(roles).values()), table_name=str(engine.names)
        )
        if found:
            [[name, where]] = found
            raise ConfigurationError(
                f"role {name!r} exists, and has rights {where}: its members would get the rights to both tables. "
                "Roles belong to the whole server; give the roles of this table other names, with --role-prefix"
            )
        async with atomic(s):
            for statement in await statements(engine, s, prefix):
                await s.execute(plain("grant_roles", statement, rows=False))

    await engine.run(work)
    return roles
