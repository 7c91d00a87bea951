"""A process that makes or migrates the table of each DSN that it reads, and says so."""

from __future__ import annotations

import sys

from pqcore import PQ


def say(what: str) -> None:
    sys.stdout.write(what + "\n")
    sys.stdout.flush()


say("ready")
for line in sys.stdin:
    with PQ(line.strip(), backend="psycopg") as pq:
        pq.create()
    say("done")
