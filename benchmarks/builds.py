"""Processes of builds of pqcore: of this build, and of another that it is compared with."""

from __future__ import annotations

import atexit
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from pqcore.errors import ConfigurationError, PQError

from .backends import Contender, Location
from .measurement import Table, dropped, schema_name
from .observer import Observer, named

PATIENCE = 120.0
"""Seconds that an answer may take."""
TABLE = "queue"
_BOOT = """
import importlib.util, sys
import pqcore
file, *folders = f"{sys.argv[1]}/__init__.py", sys.argv[1]
spec = importlib.util.spec_from_file_location("pqcore.benchmarks", file, submodule_search_locations=folders)
sys.modules["pqcore.benchmarks"] = pqcore.benchmarks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pqcore.benchmarks)
from pqcore.benchmarks.build_process import main
main()
"""


class BuildFailed(PQError):
    """A build could not answer a request."""


Interpreter: TypeAlias = tuple[Sequence[str], dict[str, str]]
"""A command that runs Python with a build, and its environment variables."""


@cache
def _bytecode_folder() -> str:
    """Return a folder for the bytecode of all builds, which is deleted when this process ends.

    Code that a process has compiled itself is elsewhere in memory than code from a bytecode file. A build without such
    files was up to 13 % faster than the same build with files. So both builds use files of this folder.
    """
    folder = tempfile.mkdtemp(prefix="pqcore-bytecode-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


class Build:
    """A process that measures one build."""

    def __init__(self, command: Sequence[str], variables: dict[str, str], folder: str) -> None:
        self._process = subprocess.Popen(
            [*command, "-c", _BOOT, str(Path(__file__).parent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=folder,
            env={
                **{name: value for name, value in variables.items() if name != "PYTHONDONTWRITEBYTECODE"},
                "PYTHONHASHSEED": "0",
                "PYTHONPYCACHEPREFIX": _bytecode_folder(),
            },
        )
        self._buffer = b""
        try:
            self.about = self._hear()
        except BaseException:
            self.close()
            raise

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Return the answer to a request; see `build_process.BuildProcess`.

        Raises:
            BuildFailed: The build raised an error, ended, or did not answer for `PATIENCE` seconds.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as exc:
            msg = f"the process of the build {self.about['file']} ended"
            raise BuildFailed(msg) from exc
        answer = self._hear()
        if "error" in answer:
            raise BuildFailed(answer["error"])
        return answer

    def open(self, backend: str, place: Location) -> None:
        """Let the build make its table over a backend, and use that table."""
        self.ask("open", backend=backend, dsn=place.dsn, schema=place.schema, table=place.table)

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        deadline = time.monotonic() + PATIENCE
        while b"\n" not in self._buffer:
            if not select.select([self._process.stdout], [], [], max(deadline - time.monotonic(), 0))[0]:
                msg = f"the process of a build has not answered for {PATIENCE:.0f} s"
                raise BuildFailed(msg)
            if not (read := os.read(self._process.stdout.fileno(), 65_536)):
                msg = "the process of a build ended"
                raise BuildFailed(msg)
            self._buffer += read
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(30)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


@contextmanager
def own_tables(contender: Contender, dsn: str, number: int) -> Iterator[list[Table]]:
    """Yield new tables, one for each build, in separate schemas; drop them at the end.

    Args:
        contender: The backend that inspects the tables.
        dsn: The DSN of the server.
        number: The number of tables.
    """
    schemas = [schema_name(f"{os.getpid()}_{index}_{time.time_ns() % 10**9}") for index in range(number)]
    server_observer = Observer(contender, dsn)
    try:
        yield [Table(server_observer, Location(named(dsn), schema, TABLE)) for schema in schemas]
    finally:
        with suppress(PQError):
            for schema in schemas:
                dropped(server_observer, schema)
        server_observer.close()


def interpreters(other: Path) -> list[Interpreter]:
    """Return the commands that run the other build, and this one.

    Args:
        other: A Python interpreter, a virtual environment, or a checkout.

    Raises:
        ConfigurationError: The path is none of these.
    """
    here = [str(Path(place).absolute()) for place in sys.path]
    own = own_interpreter()
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    python = next((path for path in (other, other / "bin" / "python") if path.is_file()), None)
    if python is not None:
        return [([str(python.absolute())], bare), own]
    if (other / "pqcore" / "__init__.py").is_file():
        paths = os.pathsep.join([str(other.absolute()), *here])
        return [([sys.executable], {**os.environ, "PYTHONPATH": paths}), own]
    msg = f"{other} is no Python interpreter, no virtual environment and no checkout of pqcore"
    raise ConfigurationError(msg)


def own_interpreter() -> Interpreter:
    """Return the command that runs this build."""
    here = [str(Path(place).absolute()) for place in sys.path]
    return [sys.executable], {**os.environ, "PYTHONPATH": os.pathsep.join(here)}


@contextmanager
def started(interpreter: Interpreter) -> Iterator[Build]:
    """Yield a process of a build, for the length of a block.

    Raises:
        ConfigurationError: The process cannot be started.
    """
    command, variables = interpreter
    with tempfile.TemporaryDirectory() as folder:
        try:
            build = Build(command, variables, folder)
        except (OSError, BuildFailed) as exc:
            msg = f"the build of {command[0]} cannot be measured: {exc}; is pqcore[bench] installed there?"
            raise ConfigurationError(msg) from exc
        with closing(build):
            yield build


@contextmanager
def builds_of(pythons: Sequence[Interpreter]) -> Iterator[list[Build]]:
    """Yield a process of each build, for the length of a block; see `interpreters`."""
    with ExitStack() as stack:
        yield [stack.enter_context(started(python)) for python in pythons]
