"""The output of commands: JSON for programs, tables for people."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import click

from pqcore.cli.errors import CommandFailed

LONGEST_MESSAGE = 200
"""The largest number of characters of an error's message in a table."""


@contextmanager
def _to_stdout() -> Iterator[None]:
    """Report a failed write as an error of one line; click handles a reader that has closed the pipe.

    Raises:
        CommandFailed: Not all of the output arrived.
    """
    try:
        yield
    except OSError as exc:
        if exc.errno == errno.EPIPE:
            raise
        raise CommandFailed(f"the output cannot be written: {exc.strerror}") from exc


def emit(fields: dict[str, Any]) -> None:
    """Write a JSON object on one line."""
    with _to_stdout():
        click.echo(json.dumps(fields, default=_jsonable))


def _jsonable(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON")


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table; ``>`` before a column's name marks a column of numbers."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD)
    for name in columns:
        made.add_column(name.lstrip(">"), justify="right" if name.startswith(">") else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(shown(value)) for value in row))
    # Outside a terminal, lines keep their full length, because a program or a pager reads them.
    console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 10_000)
    with _to_stdout():
        console.print(made)


def write(text: str) -> None:
    """Write text, and make visible what a terminal would take for commands."""
    with _to_stdout():
        click.echo(printable(text))


def write_facts(facts: Mapping[str, str | None], error: Mapping[str, str]) -> None:
    """Write the facts about a job, one on each line, and the traceback of its last error; leave out empty facts."""
    for name, value in facts.items():
        if value:
            write(f"  {name + ':':<12}{value}")
    if error.get("traceback"):
        write("\n" + error["traceback"].rstrip("\n"))


def json_text(stored: str) -> str:
    """Return stored JSON text for people, with characters in place of their ASCII escapes."""
    if "\\u" not in stored:
        return stored
    try:
        return json.dumps(json.loads(stored), ensure_ascii=False)
    except (ValueError, RecursionError):  # a serializer other than JSON may store text that is not JSON
        return stored


def described(error: Mapping[str, str]) -> str:
    """Return the last error of a job, on one line."""
    if not error:
        return ""
    first = error.get("message", "").partition("\n")[0]
    return printable(": ".join(filter(None, (error.get("type", "").removeprefix("builtins."), first))))


def shown(value: Any) -> str:
    """Return a value as the text of a table's cell."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    return printable(str(value))


def printable(text: str) -> str:
    """Return a text of another program in a form that is safe to show.

    Control characters other than line ends and tabs are escaped, and so are characters that stdout's encoding lacks.
    """
    missing = unencodable(text)
    return "".join(
        each if (each.isprintable() or each in "\n\t") and each not in missing else ascii(each)[1:-1] for each in text
    )


def unencodable(text: str) -> frozenset[str]:
    """Return the characters of a text that stdout cannot write: a terminal may have another encoding than UTF-8."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return frozenset(each for each in set(text) if not each.encode(encoding, "ignore"))
    return frozenset()
