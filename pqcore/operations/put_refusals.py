"""The possible causes if the server stored no row for a put, but reported no error."""

from __future__ import annotations

from pqcore.db.engine import Engine
from pqcore.db.session import Session
from pqcore.errors import DatabaseError, InvalidData, NotStored

# The query finds triggers that run before an insert, for each row: in tgtype, bit 1 means ROW, 2 means BEFORE, and 4
# means INSERT. The query also finds rules for INSERT, whose ev_type is 3.
_CAUSES = """
SELECT pg_is_in_recovery(), row_security_active(:table_name::text), current_user::text,
  coalesce((SELECT string_agg(tgname::text, ', ' ORDER BY tgname) FROM pg_trigger
    WHERE tgrelid = to_regclass(:table_name::text) AND NOT tgisinternal AND tgenabled <> 'D' AND tgtype & 7 = 7), ''),
  coalesce((SELECT string_agg(rulename::text, ', ' ORDER BY rulename) FROM pg_rewrite
    WHERE ev_class = to_regclass(:table_name::text) AND ev_type = '3'), '')"""
BALANCED = (
    "a standby, which is behind, answers the statements that read: configure the load balancer to send all statements"
    " to the primary, or connect to the primary"
)

_DIVISION_BY_ZERO = "22012"
_NO_SQUARE_ROOT = "2201F"


async def find_causes(engine: Engine, s: Session) -> list[str]:
    """Return the possible reasons why a row was not stored, or is not visible."""
    from pqcore.operations.schema_info import ask  # imported here, because few programs need this module

    try:
        [[standby, hidden, role, triggers, rules]] = await ask(engine, s, "why_not_stored", _CAUSES)
    except DatabaseError:  # after an error in a transaction, PostgreSQL runs no query
        return []
    found = []
    if triggers:
        found.append(f"a BEFORE INSERT trigger of table {engine.names} returned NULL (check {triggers})")
    if rules:
        found.append(f"a rule of table {engine.names} replaced the INSERT (check {rules})")
    if hidden:
        found.append(f"row-level security hides rows of table {engine.names} from role {role!r}")
    if standby:
        found.append(BALANCED)
    return found


async def not_stored(engine: Engine, s: Session, doing: str) -> NotStored:
    """Return the error for a statement that stored fewer rows than it was given."""
    found = await find_causes(engine, s)
    why = "; or ".join(found) or f"a trigger or rule of table {engine.names} left the row out"
    return NotStored(f"{doing}: the server stored nothing, and reported no error: {why}")


async def refused_rows(engine: Engine, s: Session, error: InvalidData, doing: str) -> NotStored | None:
    """Return the error if a put of many rows failed because rows were dropped or changed; otherwise return None.

    Args:
        engine: The engine.
        s: The session.
        error: The server's error: a division by zero if rows were dropped, the square root of a negative number if the
            numbers that the rows carry were changed.
        doing: The name of the method that puts the rows.
    """
    if error.sqlstate == _DIVISION_BY_ZERO:
        return await not_stored(engine, s, doing)
    if error.sqlstate != _NO_SQUARE_ROOT:
        return None
    return NotStored(
        f"{doing}: nothing was stored: a trigger of table {engine.names} changes enqueued_at, by which the rows are"
        " identified; change the trigger to keep enqueued_at, or put jobs one at a time"
    )
