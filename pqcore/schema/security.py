"""Finding out whether row-level security hides rows of a table, because the server does not report hidden rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pqcore.errors import AccessDenied
from pqcore.sql.identifiers import literal
from pqcore.sql.statement import plain

if TYPE_CHECKING:
    from pqcore.db.session import Session

COMMANDS = {"r": "SELECT", "a": "INSERT", "w": "UPDATE", "d": "DELETE"}
"""The commands that a policy may apply to, by their letters in the catalogue."""
UNSUPPORTED = ("cockroachdb",)
"""Dialects of engines without these catalogues."""


@dataclass(frozen=True)
class Security:
    """The effect of row-level security on a table.

    Attributes:
        table: The table's name in SQL.
        role: The connected role, to which row-level security applies.
        lacking: The commands for which the role has no policy, so that it sees no row.
    """

    table: str
    role: str
    lacking: tuple[str, ...]

    def refuse(self, *commands: str) -> None:
        """Raise if row-level security hides all rows from one of the commands.

        Args:
            *commands: Commands that are needed in addition to SELECT.

        Raises:
            AccessDenied: The role has no policy for one of these commands.
        """
        if {"SELECT", *commands} & set(self.lacking):
            raise AccessDenied(f"{self.message}: {self.advice}")

    @property
    def message(self) -> str:
        """Return a sentence that says which rows are hidden, and from which role."""
        hidden = "all rows" if "SELECT" in self.lacking else "rows"
        return (
            f"row-level security hides {hidden} of table {self.table} from role {self.role!r}: it has no policy for"
            f" {', '.join(self.lacking)}"
        )

    @property
    def advice(self) -> str:
        """Return a sentence that says how to make the rows visible."""
        return (
            f"ALTER TABLE {self.table} DISABLE ROW LEVEL SECURITY, or CREATE POLICY ... ON {self.table} for the role,"
            " or connect as the owner, or as a role with BYPASSRLS"
        )


def binds(session: Session, table: str) -> str:
    """Return an SQL expression that is true if row-level security applies to the role; the table must exist."""
    return "false" if session.sql.name in UNSUPPORTED else f"row_security_active(to_regclass({literal(table)})::oid)"


async def look(session: Session, table: str) -> Security | None:
    """Return the effect of row-level security on a table for the connected role.

    Return None if row-level security does not apply, or there is no table.

    Args:
        session: The session.
        table: The table's name, quoted.
    """
    if session.sql.name in UNSUPPORTED:
        return None
    rows = await session.execute(
        plain(
            "row_security",
            "SELECT current_user::text, ARRAY(SELECT p.polcmd::text FROM pg_policy AS p WHERE p.polrelid = c.oid"
            " AND p.polpermissive AND EXISTS (SELECT FROM unnest(p.polroles) AS r (oid)"
            " WHERE r.oid = 0 OR pg_has_role(current_user, r.oid, 'USAGE')))"
            f" FROM pg_class AS c WHERE c.oid = to_regclass({literal(table)}) AND row_security_active(c.oid)",
        )
    )
    if not rows:
        return None
    [[role, commands]] = rows
    lacking = [name for letter, name in COMMANDS.items() if not {letter, "*"} & set(commands)]
    return Security(table, role, tuple(lacking))
