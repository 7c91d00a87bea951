"""The command ``pqcore new-backend``: a project for writing a backend."""

from __future__ import annotations

import importlib.metadata
import json
import keyword
import re
import shlex
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template

import click

from pqcore.backend_registry import importable
from pqcore.cli.errors import CommandFailed, UsageError
from pqcore.cli.options import json_option
from pqcore.cli.output import emit, write
from pqcore.cli.skeleton import Face, bare_module, example, plugin_module, session_module
from pqcore.plugins import plugins

MODES = {"blocking": ("blocking",), "async": ("async",), "both": ("blocking", "async")}
LONGEST = 30
"""The largest number of characters of a backend's name, which is also used in names of files and packages."""
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@click.command("new-backend")
@click.argument("name")
@click.option(
    "--mode", type=click.Choice(list(MODES)), default="blocking", show_default=True, help="The kind of driver."
)
@click.option("--driver", metavar="MODULE", help="The name of the module to import for the driver; by default NAME.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="The folder to write the project to, new or empty; by default pqcore-NAME.",
)
@json_option
def new_backend(name: str, mode: str, driver: str | None, directory: Path | None, as_json: bool) -> None:
    """Create a project for a new backend.

    The project is an installable skeleton, with the conformance suite.

    Users will choose the backend by NAME: backend="NAME".
    """
    _check_name(name)
    driver = name.replace("-", "_") if driver is None else driver
    if not driver.isidentifier() or keyword.iskeyword(driver):
        raise UsageError(f"--driver is {driver!r}; give the name of a module, without dots")
    folder = Path(f"pqcore-{name}") if directory is None else directory
    texts = render(name, mode, driver)
    try:
        _write(folder, texts)
    except FileExistsError as exc:
        raise UsageError(f"{exc.filename} exists already, and was left unchanged: give another --directory") from exc
    except OSError as exc:
        raise CommandFailed(f"the project cannot be written to {folder}: {exc}") from exc
    if as_json:
        emit({"name": name, "mode": mode, "directory": str(folder), "files": sorted(texts)})
        return
    for path in sorted(texts):
        write(str(folder / path))
    write(f"\nNext, as its README.md says:\n\n    cd {shlex.quote(str(folder))}\n    pip install --editable '.[test]'")


def _check_name(name: str) -> None:
    """Raise for a name that makes an invalid package, or that hides an existing one.

    Raises:
        UsageError: The name is refused.
    """
    if not _NAME.fullmatch(name):
        advice = "lower-case letters and digits, beginning with a letter, parts joined by hyphens, as in 'my-driver'"
        raise UsageError(f"{name!r} cannot be the name of a backend: {advice}")
    if len(name) > LONGEST:
        raise UsageError(f"{name!r} has {len(name)} characters; the name of a backend has {LONGEST} at most")
    if name in plugins.backend_names():
        raise UsageError(f"a backend {name!r} is installed already: choose another name")
    if importable(package := _package(name)):
        raise UsageError(f"a package {package} is installed already: choose another name than {name!r}")


def _package(name: str) -> str:
    return f"pqcore_{name.replace('-', '_')}"


def render(name: str, mode: str, driver: str) -> dict[str, str]:
    """Return the texts of a project, by their paths in it.

    Args:
        name: The backend's name, already checked.
        mode: A key of `MODES`.
        driver: The name with which the driver is imported; the driver need not be installed.
    """
    package = _package(name)
    faces = [Face(each, name, package, driver) for each in MODES[mode]]
    source = example()
    named = ", ".join(f'"{face.mode}"' for face in faces)
    check = source.renamed("tests/test_plugin.py", name, package).replace(f'CHECK, "{name}"', f'CHECK, "{driver}"')
    return {
        "pyproject.toml": _pyproject(name, package, driver),
        "README.md": _readme(name, package, driver, faces),
        ".gitignore": source.text(".gitignore"),
        f"{package}/__init__.py": f'"""{driver} as a backend of pqcore."""\n',
        f"{package}/py.typed": "",
        f"{package}/plugin.py": plugin_module(faces),
        **{f"{package}/{face.module}.py": session_module(face) for face in faces},
        **{f"{package}/{face.bare}.py": bare_module(face) for face in faces},
        "tests/test_plugin.py": _set(check, "MODES", f"{{{named}}}"),
    }


def _pyproject(name: str, package: str, driver: str) -> str:
    """Return the example's pyproject.toml, with the names and the driver of the project."""
    text = example().renamed("pyproject.toml", name, package)
    text = re.sub(r"(?m)^(license|license-files|filterwarnings) = .*\n", "", text)
    text = _set(text, "description", f'"{driver} as a backend of pqcore"')
    text = _set(text, "dependencies", json.dumps(_distributions(driver)))
    return f"""{text.rstrip()}

[tool.mypy]
strict = true
files = ["{package}", "tests"]

[[tool.mypy.overrides]]
module = ["{driver}.*"]
ignore_missing_imports = true

[tool.ruff]
line-length = 120
"""


def _set(text: str, name: str, value: str) -> str:
    """Return source text in which a name is assigned another value."""
    return re.sub(rf"(?m)^{name} = .*$", lambda _: f"{name} = {value}", text)


def _readme(name: str, package: str, driver: str, faces: Sequence[Face]) -> str:
    return Template((files("pqcore") / "templates" / "new_backend.md").read_text("utf-8")).substitute(
        name=name,
        driver=driver,
        uses="\n".join(f'    {"AsyncPQ" if face.is_async else "PQ"}(dsn, backend="{name}")' for face in faces),
        modules="\n".join(f"    {package}/{face.module}.py" for face in faces),
    )


def _distributions(driver: str) -> list[str]:
    """Return the distributions that pip must install; guess the name for a driver that is not installed."""
    if driver in sys.stdlib_module_names:
        return ["pqcore"]
    known = importlib.metadata.packages_distributions().get(driver) or [driver.replace("_", "-")]
    return ["pqcore", known[0]]


def _write(folder: Path, texts: dict[str, str]) -> None:
    """Write a project.

    Raises:
        FileExistsError: The folder is not empty, or is a file; nothing was written.
        OSError: The project cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError(17, "not empty", str(folder))
    for path, text in texts.items():
        (folder / path).parent.mkdir(exist_ok=True)
        with (folder / path).open("x", encoding="utf-8") as file:
            file.write(text)


COMMANDS = (new_backend,)
