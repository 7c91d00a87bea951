"""Isolation levels: pqcore's own transactions run at READ COMMITTED, whatever the settings say."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pqcore.sql.statement import plain

# Other statements are not wrapped, because some cannot run in a transaction block, such as CREATE INDEX CONCURRENTLY.
ON_ROWS = re.compile(r"(?:/\*.*?\*/)?\s*(WITH|SELECT|INSERT|UPDATE|DELETE)\b")
NOT_SERIALIZABLE = "40001"
ABOVE = {
    level: plain("isolation", f"SET TRANSACTION ISOLATION LEVEL {level}", rows=False)
    for level in ("repeatable read", "serializable")
}
# The level is in lower case, because the testing proxy recognizes the end of a transaction by the text COMMIT.
BEGIN = plain("begin", "BEGIN ISOLATION LEVEL read committed", rows=False)
COMMIT = plain("commit", "COMMIT", rows=False)
ROLLBACK = plain("rollback", "ROLLBACK", rows=False)
LOWER = plain("isolation", "SET default_transaction_isolation = 'read committed'", rows=False)
DEFAULT = plain("isolation", "SELECT current_setting('default_transaction_isolation')")


@dataclass(eq=False)
class Defaults:
    """The default settings of connections of one kind, from the server, the database, the role or the DSN.

    Attributes:
        isolation: The default isolation level of transactions, if it is known to be above READ COMMITTED.
    """

    isolation: str | None = None

    def learn(self, level: str) -> None:
        """Remember ``default_transaction_isolation`` if it is above READ COMMITTED.

        pqcore may have set a lower level itself, so a lower level is ignored.
        """
        if level in ABOVE:
            self.isolation = level


def is_above(isolation: str) -> bool:
    """Return whether an isolation level, by the server's name for it, is above READ COMMITTED."""
    return isolation in ABOVE
