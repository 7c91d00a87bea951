"""Proxies in front of servers: Pgpool-II, which balances load, and HAProxy, which ends idle connections."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from pqcore_backends.embedded import EmbeddedServer
from pqcore_backends.embedded_setup import free_port

from .servers import FAST, PATIENCE, answers, embedded, installed

BEHIND = "200ms"
"""How far the standby is behind."""
CUT = "2s"
"""When HAProxy ends a connection on which nothing is sent."""
_NOBODY = "nobody"


@contextmanager
def replicated() -> Iterator[tuple[EmbeddedServer, EmbeddedServer]]:
    """A primary, and a standby that is always behind."""
    with tempfile.TemporaryDirectory(prefix="pqcore-replicated-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o711)
        with EmbeddedServer(data_dir=folder / "primary", settings=FAST) as primary:
            place = folder / "standby"
            command = [str(primary.programs / "pg_basebackup"), "-D", str(place), "-d", primary.dsn(), "-c", "fast"]
            environment = {**os.environ, "LD_LIBRARY_PATH": str(primary.programs.parent / "lib")}
            subprocess.run([*command, "--no-sync"], check=True, capture_output=True, env=environment, timeout=PATIENCE)
            (place / "standby.signal").touch()
            settings = {**FAST, "primary_conninfo": primary.dsn(), "recovery_min_apply_delay": BEHIND}
            with EmbeddedServer(data_dir=place, settings=settings, binaries=primary.programs) as standby:
                yield primary, standby


@contextmanager
def _running(folder: Path, dsn: str, port: int, *command: str) -> Iterator[str]:
    """Run a proxy in a folder of its own; give its DSN.

    Args:
        folder: The folder, which becomes that of the user nobody if root runs this.
        dsn: Of a server behind the proxy.
        port: Where the proxy listens.
        *command: What to run.
    """
    log, identity = folder / "log", {}
    if os.geteuid() == 0:
        identity = {"user": _NOBODY, "extra_groups": []}
        subprocess.run(["chown", "-R", _NOBODY, str(folder)], check=True)
    with log.open("wb") as told:
        process = subprocess.Popen(command, cwd=folder, stdout=told, stderr=told, start_new_session=True, **identity)  # type: ignore[call-overload]
    try:
        answers(port, process, log)
        yield urlunsplit(urlsplit(dsn)._replace(netloc=f"postgres@127.0.0.1:{port}"))
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(PATIENCE)


@contextmanager
def pgpool() -> Iterator[str]:
    """A primary and a standby behind Pgpool-II, which sends half of the sessions' reads to the standby."""
    program, port, control = installed("pgpool"), free_port(), free_port()
    with replicated() as (primary, standby), tempfile.TemporaryDirectory(prefix="pgpool-", dir="/tmp") as name:
        folder = Path(name)
        settings = {
            "backend_clustering_mode": "streaming_replication",
            "listen_addresses": "127.0.0.1",
            "port": port,
            "pcp_port": control,
            "socket_dir": folder,
            "pcp_socket_dir": folder,
            "pid_file_name": folder / "pid",
            "logdir": folder,
            "load_balance_mode": "on",
            "num_init_children": 100,
            "sr_check_period": 0,
            "health_check_period": 0,
            "failover_on_backend_error": "off",
        }
        for number, (server, flag) in enumerate(((primary, "ALWAYS_PRIMARY|"), (standby, ""))):
            settings |= {
                f"backend_hostname{number}": server.host,
                f"backend_port{number}": server.port,
                f"backend_weight{number}": 1,
                f"backend_flag{number}": f"{flag}DISALLOW_TO_FAILOVER",
            }
        lines = [f"{key} = '{value}'" for key, value in settings.items()]
        (folder / "pgpool.conf").write_text("\n".join(lines) + "\n")
        for other in ("pcp.conf", "pool_hba.conf"):
            (folder / other).touch()
        options = ("-n", "-f", "pgpool.conf", "-F", "pcp.conf", "-a", "pool_hba.conf")
        with _running(folder, primary.dsn(), port, str(program), *options) as dsn:
            yield dsn


@contextmanager
def haproxy_before(servers: Sequence[str], cut: str = CUT) -> Iterator[str]:
    """HAProxy in front of the first server; of the next, if that one does not answer.

    Args:
        servers: Their DSNs.
        cut: When an idle connection is ended.
    """
    program, port = installed("haproxy"), free_port()
    with tempfile.TemporaryDirectory(prefix="haproxy-", dir="/tmp") as name:
        folder = Path(name)
        lines = ["defaults", " mode tcp", " timeout connect 2s", f" timeout client {cut}", f" timeout server {cut}"]
        lines += [f"listen postgresql\n bind 127.0.0.1:{port}"]
        for number, dsn in enumerate(servers):
            check = "check inter 200ms fall 2 rise 1 on-marked-down shutdown-sessions"
            backup = " backup" if number else ""
            lines.append(f" server s{number} 127.0.0.1:{urlsplit(dsn).port} {check}{backup}")
        (folder / "haproxy.cfg").write_text("\n".join(lines) + "\n")
        with _running(folder, servers[0], port, str(program), "-db", "-f", "haproxy.cfg") as dsn:
            yield dsn


@contextmanager
def haproxy() -> Iterator[str]:
    """A server behind HAProxy, which ends idle connections."""
    with embedded() as server, haproxy_before([server]) as dsn:
        yield dsn
