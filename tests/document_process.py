"""Run the code blocks of one document in a separate process; see test_documents.py."""

from __future__ import annotations

import ast
import asyncio
import faulthandler
import importlib
import inspect
import json
import os
import subprocess
import sys
import traceback
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, TextIO

SECONDS = 60
"""A block that takes longer ends the process."""


class Document:
    """The state that the blocks of a document share.

    Args:
        path: The document's, for tracebacks.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._module = ModuleType("document")
        sys.modules["document"] = self._module
        self._loop = asyncio.new_event_loop()

    def run(self, language: str, text: str, line: int, file: str | None) -> None:
        """Run a block.

        Args:
            language: The language of the block.
            text: The content of the block.
            line: The line in the document where the content begins, from 1.
            file: The file that the block shows, or a part of it.
        """
        if file is not None:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            with Path(file).open("a", encoding="utf-8") as stream:
                stream.write(("\n\n" if stream.tell() else "") + text)
        if language == "python":
            self._python(text, line, file)
        elif language == "bash":
            code = subprocess.run(["bash", "-e", "-o", "pipefail", "-c", text], check=False).returncode
            if code:
                msg = f"bash ended with exit code {code}"
                raise RuntimeError(msg)
        elif language == "sql":
            import psycopg

            with psycopg.connect(os.environ["PQCORE_DSN"], autocommit=True) as connection:
                connection.execute(text.encode())

    def _python(self, text: str, line: int, file: str | None) -> None:
        module = self._module if file is None else _module(file)
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code = compile("\n" * (line - 1) + text, self._path, "exec", flags, dont_inherit=True)
        result = eval(code, vars(module))
        if code.co_flags & inspect.CO_COROUTINE:
            self._loop.run_until_complete(result)
        if file is not None:
            names = {name: value for name, value in vars(module).items() if not name.startswith("__")}
            vars(self._module).update(names)


def _module(file: str) -> ModuleType:
    """Return the module that a file defines; create the module if it does not exist yet."""
    path = Path(file)
    parts = path.with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    if name not in sys.modules:
        module = ModuleType(name)
        module.__file__ = str(path.absolute())
        module.__spec__ = ModuleSpec(name, None, origin=module.__file__)
        module.__package__ = name.rpartition(".")[0]
        if parts[-1] == "__init__":
            module.__package__, module.__path__ = name, [str(path.absolute().parent)]
        sys.modules[name] = module
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(importlib.import_module(parent), last, module)
    return sys.modules[name]


def _said(error: BaseException, path: str) -> str:
    """Return the error, with the part of its traceback that lies in the document."""
    found: TracebackType | None = error.__traceback__
    while found is not None and found.tb_frame.f_code.co_filename != path:
        found = found.tb_next
    return "".join(traceback.format_exception(type(error), error, found))


def main(work: Path, ends: TextIO) -> None:
    """Run all blocks, and write how each one ended; stop after the first that failed."""
    sys.path[0] = str(Path.cwd())
    given: dict[str, Any] = json.loads(work.read_text())
    document = Document(given["path"])
    for block in given["blocks"]:
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        sys.stdout.write(f"--- line {block['line']}\n")
        sys.stdout.flush()
        error = None
        try:
            document.run(**block)
        except BaseException as exc:
            error = _said(exc, given["path"])
        faulthandler.cancel_dump_traceback_later()
        sys.stdout.flush()
        ends.write(json.dumps({"line": block["line"], "error": error}) + "\n")
        ends.flush()
        if error is not None:
            break
    os._exit(0)  # blocks may leave connections open


if __name__ == "__main__":
    with Path(sys.argv[2]).open("w") as stream:
        main(Path(sys.argv[1]), stream)
