#!/usr/bin/env bash
# All clients of PGlite's socket server are one session of the server: settings, advisory locks, temporary tables and
# prepared statements of one are those of all.
#
# Versions: @electric-sql/pglite 0.5.14 (PostgreSQL 18.6), @electric-sql/pglite-socket 0.2.17, psycopg 3.3.4.
# Seen: with --max-connections=5, two connections report the same pg_backend_pid(). What one sets with SET, the other
#   reads with SHOW. Both get the same exclusive advisory lock. A temporary table and a prepared statement of one can be
#   used by the other, which would fail with "already exists" if it made its own under the same name.
# One would have guessed: several connections are several sessions, as behind any other server that speaks the protocol,
#   so that locks exclude and names do not collide.
set -euo pipefail
work=$(mktemp -d)
server=
cleanup() { [ -z "$server" ] || kill "$server" 2> /dev/null || true; wait; rm -rf "$work"; }
trap cleanup EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check psycopg==3.3.4 psycopg-binary==3.3.4
cd "$work"
npm install --silent --no-fund --no-audit @electric-sql/pglite@0.5.14 @electric-sql/pglite-socket@0.2.17 > npm.log 2>&1
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
node node_modules/@electric-sql/pglite-socket/dist/scripts/server.js --port="$port" --max-connections=5 > server.log 2>&1 &
server=$!
export DSN="postgresql://postgres:postgres@127.0.0.1:$port/postgres?sslmode=disable"
"$work/venv/bin/python" - <<'EOF'
import os
import time

import psycopg

until = time.monotonic() + 60
while True:
    try:
        one = psycopg.connect(os.environ["DSN"], autocommit=True)
        break
    except psycopg.OperationalError:
        if time.monotonic() > until:
            raise
        time.sleep(0.1)
other = psycopg.connect(os.environ["DSN"], autocommit=True)


def ask(connection: psycopg.Connection, statement: str) -> object:
    row = connection.execute(statement).fetchone()
    return row and row[0]


pids = [ask(connection, "SELECT pg_backend_pid()") for connection in (one, other)]
one.execute("SET application_name = 'one'")
setting = ask(other, "SHOW application_name")
locks = [ask(connection, "SELECT pg_try_advisory_lock(1)") for connection in (one, other)]
one.execute("CREATE TEMPORARY TABLE notes AS SELECT 7 AS number")
table = ask(other, "SELECT number FROM notes")
one.execute("PREPARE answer AS SELECT 42")
prepared = ask(other, "EXECUTE answer")
try:
    other.execute("PREPARE answer AS SELECT 43")
    collides = False
except psycopg.errors.DuplicatePreparedStatement:
    collides = True
seen = (pids[0] == pids[1], setting, locks, table, prepared, collides)
print(ask(one, "SELECT version()"))
print("same pid, setting, locks, temporary table, prepared statement, names collide:", seen)
assert seen == (True, "one", [True, True], 7, 42, True), seen
EOF
