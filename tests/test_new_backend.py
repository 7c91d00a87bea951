"""``pqcore new-backend``: its project installs, lists the methods to write, and works after they are written."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pqcore import backend as contract
from pqcore.benchmarks.bounds import TARGETS
from pqcore.testing.commands import invoke, run

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "pqcore-pg8000" / "pqcore_pg8000"
LONGEST = "a-driver-with-the-longest-name"
PROTOCOLS = {
    "backend.py": (contract.DriverSession, contract.Backend),
    "aio.py": (contract.AsyncDriverSession, contract.AsyncBackend),
}
OPTIONAL = {"through", "direct", "unlisten", "cancel", "busy", "fileno", "execute_behind", "pool_size"}
"""Methods that a session or a backend may leave out."""
Install = Callable[[Path], dict[str, str]]


def new_backend(folder: Path, *arguments: str) -> Path:
    """Write a project; return its folder."""
    done = invoke("new-backend", *arguments, "--directory", str(folder), "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert sorted(said["files"]) == sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
    )
    return folder


def tool(*command: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a Python module in a folder."""
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def methods(source: Path, name: str) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
    """Return the methods of a class by name."""
    [found] = [
        node
        for node in ast.parse(source.read_text("utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == name
    ]
    return {node.name: node for node in found.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("name", ["x", LONGEST])
@pytest.mark.parametrize("mode", ["blocking", "async", "both"])
def test_new_backend_passes_ruff(tmp_path: Path, mode: str, name: str) -> None:
    folder = new_backend(tmp_path / "made", name, "--mode", mode)
    rules = "--extend-select=I,UP,B,N,RUF,W,E501"
    for command in (["check", rules, "--no-cache", "."], ["format", "--no-cache", "--diff", "."]):
        done = tool("ruff", *command, folder=folder)
        assert done.returncode == 0, done.stdout + done.stderr


def test_new_backend_passes_mypy(tmp_path: Path) -> None:
    folder = new_backend(tmp_path / "made", "acme", "--mode", "both")
    types = tmp_path / "types"  # as installed: the benchmarks are a part of the package
    (types / "pqcore").mkdir(parents=True)
    for path in (ROOT / "pqcore").iterdir():
        (types / "pqcore" / path.name).symlink_to(path)
    (types / "pqcore" / "benchmarks").symlink_to(ROOT / "benchmarks")
    command = ("mypy", "--cache-dir", str(tmp_path / "cache"), "--no-error-summary")
    done = tool(*command, folder=folder, MYPYPATH=str(types))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("mode", ["blocking", "async"])
def test_new_backend_has_all_methods_of_the_contract(tmp_path: Path, mode: str) -> None:
    folder = new_backend(tmp_path / "made", "acme", "--mode", mode)
    [module] = [path for path in (folder / "pqcore_acme").iterdir() if path.name in PROTOCOLS]
    bare = methods(folder / "pqcore_acme" / {"backend.py": "bare.py", "aio.py": "bare_aio.py"}[module.name], "Bare")
    for name in ("replan", *TARGETS):
        if name != "worker":
            assert isinstance(bare[name], ast.AsyncFunctionDef) == (mode == "async")
    for name, protocol in zip(("Session", "Backend"), PROTOCOLS[module.name], strict=True):
        written = methods(module, name)
        wanted: dict[str, Any] = {
            key: value
            for key, value in vars(protocol).items()
            if not key.startswith("_") and value is not None and key not in OPTIONAL
        }
        assert set(written) - {"__init__"} == set(wanted)
        for key, method in wanted.items():
            assert ast.get_docstring(written[key]), f"{name}.{key} says nothing"
            if isinstance(method, property):
                continue
            assert isinstance(written[key], ast.AsyncFunctionDef) == inspect.iscoroutinefunction(method), key
            arguments = written[key].args
            assert [one.arg for one in arguments.args] == [
                one.name
                for one in inspect.signature(method).parameters.values()
                if one.kind is one.POSITIONAL_OR_KEYWORD
            ]


def test_new_backend_once_installed_is_listed_and_its_suite_runs(tmp_path: Path, install: Install) -> None:
    folder = new_backend(tmp_path / "made", "acme", "--mode", "both", "--driver", "pg8000")
    variables = install(folder)
    seen = run("backends", "--json", variables=variables)
    found = [spec for spec in map(json.loads, seen.stdout.splitlines()) if spec["name"] == "acme"]
    assert [spec["mode"] for spec in found] == ["blocking", "async"]
    for spec in found:
        assert spec["usable"], spec["why_not"]
        assert spec["missing"] == {
            "LISTEN": "not written yet",
            "POOL": "not written yet",
            "PREPARED": "not written yet",
        }

    own = tool("pytest", "-q", "-p", "no:cacheprovider", "tests", folder=folder, **variables)
    assert own.returncode == 0, own.stdout
    suite = tool("pytest", "-q", "-p", "no:cacheprovider", "--collect-only", folder=folder, **variables)
    assert suite.returncode == 0, suite.stdout
    for test in ("test_basics.py", "test_worker.py"):
        for label in ("acme", "acme-async"):
            assert any(test in line and f"[{label}" in line for line in suite.stdout.splitlines()), (test, label)
    assert "psycopg" not in suite.stdout


@pytest.mark.parametrize(("mode", "module"), [("blocking", "backend.py"), ("async", "aio.py")])
def test_new_backend_names_each_method_that_is_missing(
    tmp_path: Path, pqcore_server: str, install: Install, mode: str, module: str
) -> None:
    folder = new_backend(tmp_path / "made", "acme", "--mode", mode, "--driver", "pg8000")
    source = folder / "pqcore_acme" / module
    variables = {**install(folder), "PQCORE_TEST_DSN": pqcore_server}
    variables["PYTHONPATH"] = os.pathsep.join([str(folder), variables["PYTHONPATH"]])  # so that edits are used

    def missing() -> str:
        done = tool(
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            "pqcore.testing.suite.test_basics",
            folder=folder,
            **variables,
        )
        assert done.returncode == 1, done.stdout
        [line, *_] = [line for line in done.stdout.splitlines() if line.startswith("E ")]
        return line

    assert "NotImplementedError: to be written: Backend.errors" in missing()
    text = source.read_text("utf-8")
    line = next(line for line in text.splitlines() if "to be written: Backend.errors" in line)
    source.write_text(text.replace(line, "        return (OSError,)"), "utf-8")
    assert "NotImplementedError: to be written: Backend.connect" in missing()


def test_new_backend_names_a_missing_driver(tmp_path: Path, pqcore_server: str, install: Install) -> None:
    folder = new_backend(tmp_path / "made", "acme", "--driver", "no_such_driver")
    variables = {**install(folder), "PQCORE_TEST_DSN": pqcore_server}
    done = tool(
        "pytest", "-q", "-x", "-p", "no:cacheprovider", "pqcore.testing.suite.test_basics", folder=folder, **variables
    )
    assert done.returncode == 1
    assert "backend 'acme' needs no_such_driver: pip install pqcore-acme" in done.stdout


def test_new_backend_once_written_passes_the_suite(tmp_path: Path, pqcore_server: str, install: Install) -> None:
    """The example's code completes the project."""
    folder = new_backend(tmp_path / "made", "acme", "--driver", "pg8000")
    package = folder / "pqcore_acme"
    for name in ("backend.py", "dsn.py"):
        text = (EXAMPLE / name).read_text("utf-8").replace("pqcore_pg8000", "pqcore_acme")
        (package / name).write_text(text.replace("class Pg8000Backend:", "class Backend:"), "utf-8")
    plugin = (package / "plugin.py").read_text("utf-8")
    for old, new in (
        ("frozenset()", "frozenset({Capability.LISTEN, Capability.PREPARED})"),
        ('        Capability.LISTEN: "not written yet",\n', ""),
        ('        Capability.PREPARED: "not written yet",\n', ""),
        ("connections=(),", 'connections=("pg8000.dbapi.Connection",),'),
    ):
        assert plugin.count(old) == 1
        plugin = plugin.replace(old, new)
    (package / "plugin.py").write_text(plugin, "utf-8")
    variables = {**install(folder), "PQCORE_TEST_DSN": pqcore_server}
    modules = [f"pqcore.testing.suite.test_{name}" for name in ("basics", "prepared")]
    done = tool("pytest", "-q", "-p", "no:cacheprovider", "tests", *modules, folder=folder, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((folder / "pqcore-conformance.json").read_text("utf-8"))["backends"]["acme"]["results"]
    assert {test.partition("::")[0] for test in results} == {"test_basics", "test_prepared"}
    assert set(results.values()) == {"passed"}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "cannot be the name of a backend"),
        ("Acme", "cannot be the name of a backend"),
        ("1acme", "cannot be the name of a backend"),
        ("my_driver", "parts joined by hyphens"),
        ("my driver", "cannot be the name of a backend"),
        ("../acme", "cannot be the name of a backend"),
        ("acme-", "cannot be the name of a backend"),
        ("acme\n", "cannot be the name of a backend"),
        ("dri\N{LATIN SMALL LETTER V WITH TILDE}er", "cannot be the name of a backend"),
        (f"{LONGEST}s", "30 at most"),
        ("psycopg", "a backend 'psycopg' is installed already"),
        ("backends", "a package pqcore_backends is installed already"),
    ],
)
def test_new_backend_refuses_a_bad_name_before_writing(tmp_path: Path, name: str, why: str) -> None:
    done = invoke("new-backend", name, folder=tmp_path)
    assert done.returncode == 2
    assert why in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("driver", ["", "a b", "class", "a.b", "a-b", "1a", "a\nb"])
def test_new_backend_refuses_a_driver_that_is_no_module_name(tmp_path: Path, driver: str) -> None:
    done = invoke("new-backend", "acme", "--driver", driver, folder=tmp_path)
    assert done.returncode == 2
    assert "give the name of a module, without dots" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_new_backend_overwrites_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "pqcore-acme"
    folder.mkdir()
    assert invoke("new-backend", "acme", folder=tmp_path).returncode == 0  # an empty folder may be used
    (folder / "pyproject.toml").write_text("mine", "utf-8")
    again = invoke("new-backend", "acme", folder=tmp_path)
    assert again.returncode == 2
    assert "pqcore-acme exists already, and was left unchanged" in again.stderr
    assert (folder / "pyproject.toml").read_text("utf-8") == "mine"

    (tmp_path / "file").write_text("mine", "utf-8")
    for directory, code in (("file", 2), ("file/within", 1)):
        done = invoke("new-backend", "acme", "--directory", directory, folder=tmp_path)
        assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert (tmp_path / "file").read_text("utf-8") == "mine"


def test_new_backend_output_says_which_commands_come_next(tmp_path: Path) -> None:
    done = invoke("new-backend", "acme", folder=tmp_path)
    assert "pqcore-acme/pqcore_acme/backend.py\n" in done.stdout
    assert done.stdout.endswith("    cd pqcore-acme\n    pip install --editable '.[test]'\n")
    readme = (tmp_path / "pqcore-acme" / "README.md").read_text("utf-8")
    assert "pqcore conformance --backend acme" in readme
    assert "pqcore bench --backend acme" in readme
    extras = re.search(r'test = \["pqcore\[(.*)]"]', (tmp_path / "pqcore-acme" / "pyproject.toml").read_text("utf-8"))
    assert extras is not None
    assert {"cli", "testing", "bench", "embedded"} <= set(extras[1].split(","))  # extras that both commands need


def test_new_backend_requires_no_module_of_the_standard_library(tmp_path: Path) -> None:
    for driver, dependencies in (("sqlite3", '["pqcore"]'), ("no_such_driver", '["pqcore", "no-such-driver"]')):
        folder = new_backend(tmp_path / driver, "x", "--driver", driver)
        assert f"\ndependencies = {dependencies}\n" in (folder / "pyproject.toml").read_text("utf-8")


def test_installed_command_writes_what_the_checkout_writes(tmp_path: Path) -> None:
    copy, site = tmp_path / "copy", tmp_path / "site"
    copy.mkdir()
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("pqcore", "pqcore_backends", "benchmarks", "examples"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = ("pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir")
    done = tool(*command, str(tmp_path / "wheels"), str(copy), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    [wheel] = (tmp_path / "wheels").iterdir()
    zipfile.ZipFile(wheel).extractall(site)
    arguments = ("-m", "pqcore", "new-backend", "acme", "--mode", "both", "--directory")
    made = subprocess.run(
        [sys.executable, *arguments, str(tmp_path / "installed")],
        env={**os.environ, "PYTHONPATH": str(site)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    here = new_backend(tmp_path / "checkout", "acme", "--mode", "both")
    assert _texts(tmp_path / "installed") == _texts(here)
    assert (site / "pqcore" / "example_backend" / "pyproject.toml").is_file()


def _texts(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text("utf-8") for path in folder.rglob("*") if path.is_file()}


def test_example_and_the_project_have_the_same_shape(tmp_path: Path) -> None:
    folder = new_backend(tmp_path / "made", "acme")
    example = {
        str(path.relative_to(EXAMPLE.parent)).replace("pg8000", "acme")
        for path in EXAMPLE.parent.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    own = {"LICENSE", "pqcore_acme/dsn.py", "tests/test_acme_dsn.py"}  # files that only the example has
    assert {name for name in example if ".egg-info" not in name and "cache" not in name} - own == _texts(folder).keys()
