"""The guard of an embedded server: the parent process that stops the server and removes its folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import subprocess


def guard(roots: list[str], ending: int, identity: dict[str, Any]) -> None:
    """Be a server's parent, follow the commands on stdin, and clean up when stdin closes.

    The server's folders are removed when stdin closes; the first folder has the log.

    A new interpreter runs the source of this function, so it uses nothing outside itself.
    """
    import contextlib
    import ctypes
    import json
    import os
    import shutil
    import signal
    import subprocess
    import sys
    import time
    from pathlib import Path

    libc = ctypes.CDLL(None)
    prctl: Any = getattr(libc, "prctl", lambda *_: None)
    # PR_SET_CHILD_SUBREAPER (Linux only): the sessions of a dead server become children of this process.
    prctl(36, 1, 0, 0, 0)
    server: subprocess.Popen[bytes] | None = None

    def die_with_guard() -> None:
        prctl(1, int(signal.SIGQUIT), 0, 0, 0)  # PR_SET_PDEATHSIG

    def run(argv: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with Path(roots[0], "server.log").open("ab") as log:
            return subprocess.Popen(
                argv,
                env=environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_guard,  # safe, because the guard has no other threads
                **identity,
            )

    def sweep(server: subprocess.Popen[bytes]) -> None:
        """Kill the remaining processes of a server and its sessions, and free its System V shared memory."""
        server.kill()
        server.wait()
        with contextlib.suppress(ChildProcessError):  # no more children
            while True:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
                for status in Path("/proc").glob("[0-9]*/stat"):
                    with contextlib.suppress(OSError):
                        if int(status.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                            os.kill(int(status.parent.name), signal.SIGKILL)
                time.sleep(0.005)
        with contextlib.suppress(OSError, ValueError, IndexError):
            arguments: Any = server.args
            lines = Path(arguments[2], "postmaster.pid").read_text().splitlines()
            if lines[0] == str(server.pid):
                libc.shmctl(int(lines[6].split()[1]), 0, None)  # IPC_RMID

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit())
    try:
        for line in sys.stdin:
            request, *arguments = json.loads(line)
            answer: int | None = None
            failure = ""
            if request == "end":
                ending = arguments[0]
            elif server is not None and request == "look":
                answer = server.poll()
            elif server is not None and request == "signal":
                server.send_signal(arguments[0])
            elif server is not None:
                sweep(server)
            if request == "run":
                try:
                    server = run(*arguments)
                    answer = server.pid
                except (OSError, subprocess.SubprocessError) as error:
                    failure = str(error)
            print(json.dumps([answer, failure]), flush=True)
    finally:
        if server is not None:
            server.send_signal(ending)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(30)
            sweep(server)
        for root in roots:
            shutil.rmtree(root, ignore_errors=True)
