"""The documents: the code blocks of README.md and of all Markdown under docs/ are run.

The conventions for authors of documents:

- Blocks are run in order, from the top of the document to its end. The first block that fails makes its test fail, and
  the tests of all later blocks. Only fenced blocks with a language are run.
- ``python`` blocks share one namespace; ``await``, ``async with`` and ``async for`` may stand at top level, and all
  are run on one event loop. Warnings are errors.
- ``bash`` blocks are run by ``bash -e -o pipefail``, each by a shell of its own. ``PATH`` begins with the directory of
  this Python's programs, so ``pqcore``, ``python`` and ``pytest`` are those of the tests. A program that a block leaves
  in the background (``pqcore worker app:queue &``) is killed at the end of the document. A program that must end by
  itself needs an option or ``timeout`` for that (``pqcore worker app:queue --burst``).
- ``sql`` blocks are run through psycopg, in autocommit; their results are dropped.
- All other languages are not run: ``console``, ``text``, ``toml``, ``ini``, ``yaml``, ``json``, ``dockerfile``...
  They are for output, for files, and for commands that cannot be run here: ``pip install``, ``systemctl``. A block
  without a language, and ``py`` or ``sh``, are refused.
- Each document has its own process, empty directory and empty database, which are removed at the end. (A document must
  make the table itself: ``pq.create()``, or ``pqcore create``.)
- ``postgresql://localhost/app`` stands for that database, in blocks of all languages, and with a driver too:
  ``postgresql+psycopg://localhost/app``. In ``sql``, so does ``DATABASE app``. The variable ``PQCORE_DSN`` has the
  DSN, for ``bash`` and for ``python``, so commands need no ``--dsn``; so has ``PQCORE_TEST_DSN``, for ``pytest``.
  Variables ``PG...`` are not set.
- A block whose first line is a comment with a file's name, and nothing else, shows what that file holds:
  ``# app.py``, ``# shop/models.py``, ``# settings.toml``, ``-- tables.sql``. It is written there, of whatever
  language it is. The next block of the same file continues it. A ``python`` block is also run, as the module of that
  file (``app``, so that functions have the path ``app.send``). Its names are in the document's namespace from then on.
  So ``pqcore worker app:queue`` in a ``bash`` block finds what readers have in their ``app.py``, and jobs that the
  document put. A function that a worker of another process is to run must be in such a file.
- A block that readers need not see is an HTML comment, with a blank line before and after it::

      <!-- invisible-code-block: python
      pq.create()
      -->

  for ``python``, ``bash`` and ``sql``. Use it for set-up, and to ``assert`` results that the text promises.
- A block that takes more than a minute fails; a document should take a second or two. Starting a command takes half
  a second, so one ``bash`` block with what belongs together. Ports, and what lies outside of the directory, are
  shared with others.
- Within lists, blocks and paragraphs are indented by four spaces, and a list has a blank line before it: else the
  site shows something other than a code host does.

Run one document with ``pytest tests/test_documents.py -k docs/tasks.md``; the tests are named by document and line.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import psycopg
import pytest
from markdown_it import MarkdownIt

from pqcore.db.dsn import with_database
from pqcore.testing.commands import environment, group

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
PROCESS = Path(__file__).parent / "document_process.py"

RUN = ("python", "bash", "sql")
NOT_THESE = ("", "py", "python3", "pycon", "sh", "shell", "postgresql", "pgsql")
"""Other names of those, or none, by which a block would not be run and nobody would notice."""
HIDDEN = re.compile(r"<!-- invisible-code-block: (\w+)\n(.*?)-->", re.DOTALL)
FILE = re.compile(r"(?:#|--|//|;) ([\w./-]*\w\.\w+)\n")
DSN = re.compile(r"\b(postgresql(?:\+\w+)?)://localhost/app(?![\w-])")


MEASURED = re.compile(r"<!-- measured: .*?<!-- /measured -->", re.DOTALL)
LONGEST = 2_000
"""The most words of a page, outside of code and of measured figures: what a person reads in ten minutes."""
LONG = {"docs/plans.md": "`make plans` writes it: it is looked up, not read"}
"""Pages that may be longer, with the reason."""


class Block(NamedTuple):
    """A code block.

    Attributes:
        language: As the document says.
        text: What it holds.
        line: Where that begins in the document, from 1.
        file: The file that it shows, if it does.
    """

    language: str
    text: str
    line: int
    file: str | None

    def over(self, dsn: str) -> Block:
        """The same, over a database."""
        text = DSN.sub(lambda match: match[1] + dsn[dsn.index("://") :], self.text)
        if self.language == "sql":
            text = re.sub(r"\bDATABASE app\b", f"DATABASE {urlsplit(dsn).path[1:]}", text)
        return self._replace(text=text)


def blocks(document: Path) -> Iterator[Block]:
    """The blocks of a document that a test runs, or writes.

    Raises:
        ValueError: A block would not be run, and looks as if it were to be.
    """
    for token in MarkdownIt().parse(document.read_text("utf-8")):
        if token.map is None:
            continue
        if token.type == "fence":
            language, text, line = token.info.strip().partition(" ")[0], token.content, token.map[0] + 2
            if language in NOT_THESE:
                msg = f"{document}:{line - 1}: the block's language is {language!r}; give python, bash, sql, text..."
                raise ValueError(msg)
        elif token.type == "html_block" and token.content.lstrip().startswith("<!-- invisible"):
            hidden = HIDDEN.match(token.content.lstrip())
            if hidden is None or hidden[1] not in RUN:
                msg = f"{document}:{token.map[0] + 1}: not <!-- invisible-code-block: and one of {', '.join(RUN)}"
                raise ValueError(msg)
            language, text, line = hidden[1], hidden[2], token.map[0] + 2
        else:
            continue
        shown = FILE.match(text) if language != "bash" else None
        if shown or language in RUN:
            yield Block(language, text, line, shown and shown[1])


class Run:
    """A document that was run.

    Args:
        document: Its path.
        folder: An empty one, to run in.
        dsn: An empty database.
    """

    def __init__(self, document: Path, folder: Path, dsn: str) -> None:
        self._document = document
        self.errors: dict[int, str | None] = {}
        work, ends, log = (folder.with_suffix(suffix) for suffix in (".json", ".ends", ".log"))
        here = [block.over(dsn)._asdict() for block in blocks(document)]
        work.write_text(json.dumps({"path": str(document), "blocks": here}))
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        variables = {"PATH": programs, "PQCORE_TEST_DSN": dsn}
        with log.open("w") as output:
            command = [sys.executable, "-W", "error", str(PROCESS), str(work), str(ends)]
            with group(
                command,
                cwd=folder,
                env=environment(dsn, variables),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            ) as process:
                process.wait()
        self.output = log.read_text("utf-8", "replace")
        if ends.exists():
            told = map(json.loads, ends.read_text().splitlines())
            self.errors = {end["line"]: end["error"] for end in told}

    def check(self, line: int) -> None:
        """Fail if the block that begins there did."""
        __tracebackhide__ = True
        failed = [number for number, error in self.errors.items() if error is not None]
        where = f"{self._document}:{line}"
        if line in self.errors:
            if self.errors[line] is not None:
                pytest.fail(f"{where}: the block failed\n{self.errors[line]}\n{self._tail()}", pytrace=False)
        elif failed:
            pytest.fail(f"{where}: not run, as the block in line {failed[0]} failed", pytrace=False)
        else:
            pytest.fail(f"{where}: the process ended in this block, or before it\n{self._tail()}", pytrace=False)

    def _tail(self) -> str:
        return "What was written:\n" + "\n".join(self.output.splitlines()[-60:])


@pytest.fixture(scope="module")
def run(
    request: pytest.FixtureRequest, pqcore_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Path], Run]]:
    """Runs a document, once: a document of the project at the same time as the tests of those before it."""
    runs: dict[Path, Future[Run]] = {}

    def started(document: Path) -> Future[Run]:
        if document not in runs:
            folder = tmp_path_factory.mktemp("documents") / "folder"
            folder.mkdir()
            runs[document] = pool.submit(in_database, document, folder, f"document_{os.getpid()}_{len(runs)}")
        return runs[document]

    def in_database(document: Path, folder: Path, name: str) -> Run:
        admin.execute(f"CREATE DATABASE {name}".encode())
        try:
            return Run(document, folder, with_database(pqcore_server, name))
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())

    with psycopg.connect(pqcore_server, autocommit=True) as admin, ThreadPoolExecutor(2) as pool:
        for item in request.session.items:
            if isinstance(item, pytest.Function) and item.originalname == "test_document_block_runs":
                document = item.callspec.params["document"]
                assert isinstance(document, Path)
                started(document)
        yield lambda document: started(document).result()
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize(
    ("document", "line"),
    [
        pytest.param(document, block.line, id=f"{document.relative_to(ROOT)}:{block.line}")
        for document in DOCUMENTS
        for block in blocks(document)
    ],
)
def test_document_block_runs(run: Callable[[Path], Run], document: Path, line: int) -> None:
    run(document).check(line)


def words(document: Path) -> int:
    """Return the number of words that a person reads: in paragraphs, lists, headings and tables."""
    text = MEASURED.sub("", document.read_text("utf-8"))
    inline = [token for token in MarkdownIt().enable("table").parse(text) if token.type == "inline"]
    parts = [part for token in inline for part in token.children or () if part.type in ("text", "code_inline")]
    return sum(len(part.content.split()) for part in parts)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_document_is_read_in_ten_minutes(document: Path) -> None:
    if str(document.relative_to(ROOT)) not in LONG:
        assert words(document) <= LONGEST, "split the page into pages with one job each, or shorten it"


def test_document_words_leave_out_code_and_figures(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    read = "# A title\n\nTwo [linked words](page.md) and `some code`.\n\n| a | b |\n| --- | --- |\n| c | d |\n\n"
    skipped = "    pip install nothing\n\n```python\nx = 1\n```\n\n<!-- hidden -->\n\n"
    figures = "<!-- measured: get -->\n\n| 1/s |\n| --- |\n| 2/s |\n\n<!-- /measured -->\n"
    page.write_text(read)
    assert words(page) == 13
    page.write_text(read + skipped + figures)
    assert words(page) == 13


PAGE = """# Title

    pip install nothing-of-this

<!-- invisible-code-block: bash
pqcore create
-->

```python
# shop/app.py
from pqcore.tasks import PQ

queue = PQ("postgresql://localhost/app")["default"]


@queue.task(keep_result="1h")
def add(job_id, a, b):
    return a + b
```

1.  A list:

    ```python
    from pqcore import AsyncPQ

    job = add(1, 2)
    async with AsyncPQ("postgresql://localhost/app", backend="asyncpg") as pq:
        assert await pq["default"].count() == 1
    ```

```toml
# settings.toml
works = true
```

```bash
pqcore worker shop.app:queue --burst
grep works settings.toml
sleep 600 &
echo $! > pid
```

```sql
ALTER DATABASE app SET work_mem = '5MB';
CREATE TABLE noted (word text);
```

```console
$ this is not run
```

<!-- invisible-code-block: python
import os, psycopg
assert job.result() == 3
with psycopg.connect(os.environ["PQCORE_DSN"]) as connection:
    assert connection.execute("SHOW work_mem").fetchone() == ("5MB",)
    assert connection.execute("SELECT count(*) FROM noted").fetchone() == (0,)
sleeper = int(open("pid").read())
os.kill(sleeper, 0)
print("the sleeper is", sleeper)
-->

"""


def test_document_blocks_follow_the_documented_rules(run: Callable[[Path], Run], tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    done = run(page)
    lines = [block.line for block in blocks(page)]
    for line in lines:
        done.check(line)
    assert list(done.errors) == lines
    assert [block.language for block in blocks(page)] == ["bash", "python", "python", "toml", "bash", "sql", "python"]
    [sleeper] = re.findall(r"the sleeper is (\d+)", done.output)
    with suppress(FileNotFoundError):  # a zombie has ended, too
        assert ") Z " in Path(f"/proc/{sleeper}/stat").read_text()


@pytest.mark.parametrize(
    ("language", "text", "said"),
    [
        ("python", "a = 1\na.b", r'page.md", line 9, in <module>\n(?s:.*)AttributeError'),
        ("python", "a = 1\nawait a", r'page.md", line 9, in <module>\n(?s:.*)TypeError'),
        ("python", "# app.py\n1 / 0", r'page.md", line 9, in <module>\n(?s:.*)ZeroDivisionError'),
        ("python", "import warnings\nwarnings.warn('old')", r"UserWarning: old"),
        ("bash", "false | true", "bash ended with exit code 1"),
        ("bash", "echo heard\nexit 7", r"bash ended with exit code 7\n(?s:.*)heard"),
        ("sql", "SELECT * FROM nowhere", 'relation "nowhere" does not exist'),
    ],
)
def test_document_block_that_fails_names_its_line_and_error(
    run: Callable[[Path], Run], tmp_path: Path, language: str, text: str, said: str
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n```python\nb = 1\n```\n\n```{language}\n{text}\n```\n\n```python\nprint(b)\n```\n")
    good, bad, behind = [block.line for block in blocks(page)]
    done = run(page)
    done.check(good)
    with pytest.raises(pytest.fail.Exception, match=rf"page.md:8: the block failed\n(?s:.*){said}"):
        done.check(bad)
    with pytest.raises(pytest.fail.Exception, match=r"page.md:\d+: not run, as the block in line 8 failed"):
        done.check(behind)


def test_document_that_ends_its_process_fails(run: Callable[[Path], Run], tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nimport os\n```\n\n```python\nprint('here', flush=True)\nos._exit(0)\n```\n")
    done = run(page)
    done.check(2)
    with pytest.raises(
        pytest.fail.Exception, match=r"page.md:6: the process ended in this block, or before it\n(?s:.*)here"
    ):
        done.check(6)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "<!-- invisible-code-block: pyhton\nx = 1\n-->",
            "not <!-- invisible-code-block: and one of python, bash, sql",
        ),
        ("<!-- invisible-codeblock: python\nx = 1\n-->", "not <!-- invisible-code-block: and one of python, bash, sql"),
        ("```py\nx = 1\n```", "the block's language is 'py'; give python, "),
        ("```\nx = 1\n```", "the block's language is ''; give python, "),
    ],
)
def test_document_block_that_would_not_run_is_refused(tmp_path: Path, text: str, said: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{text}\n")
    with pytest.raises(ValueError, match=f"page.md:3: {said}"):
        list(blocks(page))
