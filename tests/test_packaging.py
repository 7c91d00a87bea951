"""The distributions: content and metadata; and the installed package, without extras and with all of them."""

from __future__ import annotations

import email
import json
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from email.message import Message
from importlib.metadata import requires
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_documents import DSN, PROCESS, blocks

import pqcore
from pqcore.testing.commands import environment, group

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "pqcore": "pqcore",
    "pqcore_backends": "pqcore_backends",
    "benchmarks": "pqcore/benchmarks",
    "examples/pqcore-pg8000": "pqcore/example_backend",
}
"""Folders of the project, and where they are installed."""
OTHERS = ("benchmarks", "peers")
"""A package that measures other queues, and needs the repository."""
BESIDE = {"CHANGELOG.md", "LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}
"""Files of the source distribution in addition to those of `PACKAGES`."""
PATIENCE = 170


class Built(NamedTuple):
    """The distributions.

    Attributes:
        source: The source distribution.
        wheel: The wheel that was built from it.
        files: The files of the project that git tracks, or would track.
        log: What the build wrote.
    """

    source: Path
    wheel: Path
    files: list[PurePosixPath]
    log: str


def done(*command: str | Path, folder: Path | None = None, dsn: str | None = None, code: int = 0) -> str:
    """Run a command until it ends, and kill processes that it leaves behind; return its output."""
    with group(
        [*map(str, command)],
        cwd=folder,
        env=environment(dsn),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        written: str = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == code, written
    return written


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The distributions, built from a copy of the project, so that no file of an earlier build is included."""
    folder = tmp_path_factory.mktemp("packaging")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )
    files = [name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]
    for name in files:
        copy = folder / "project" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((ROOT / name).read_bytes())
    command = (sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "project")
    log = done(*command, folder=folder)
    [source], [wheel] = (list((folder / "dist").glob(pattern)) for pattern in ("*.tar.gz", "*.whl"))
    return Built(source, wheel, [PurePosixPath(name) for name in files], log)


@pytest.fixture(scope="module")
def metadata(built: Built) -> Message:
    with zipfile.ZipFile(built.wheel) as wheel:
        [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_string(wheel.read(name).decode())


def installed(built: Built) -> dict[str, PurePosixPath]:
    """Return the files that must be installed, by their place in the project."""
    return {
        str(path): PurePosixPath(package, *path.parts[len(PurePosixPath(folder).parts) :])
        for path in built.files
        for folder, package in PACKAGES.items()
        if path.is_relative_to(folder) and path.parts[:2] != OTHERS
    }


# What they hold


def test_wheel_holds_exactly_the_packages(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        found = {name for name in wheel.namelist() if ".dist-info/" not in name}
        [licence] = [name for name in wheel.namelist() if name.endswith("/licenses/LICENSE")]
        assert wheel.read(licence) == (ROOT / "LICENSE").read_bytes()
    expected = {str(path) for path in installed(built).values()}
    assert found == expected
    assert {
        "pqcore/py.typed",
        "pqcore_backends/py.typed",
        "pqcore/schema/0001_table.sql",
        "pqcore/sql/citus.sql",
    } <= found
    for kind in ("*.md", "*.html", "*.css", "*.js"):
        assert any(PurePosixPath(name).match(kind) for name in found), kind


def test_source_distribution_holds_exactly_its_files(built: Built) -> None:
    with tarfile.open(built.source) as archive:
        names = (PurePosixPath(*PurePosixPath(each.name).parts[1:]) for each in archive if each.isfile())
        found = {str(name) for name in names if not name.parts[0].endswith(".egg-info")}
    assert found == installed(built).keys() | BESIDE


def test_build_prints_no_warning(built: Built) -> None:
    complaints = [line for line in built.log.splitlines() if re.search(r"warning|deprecat", line, re.IGNORECASE)]
    # What Python is told in tests: to write no bytecode; and that a pattern found nothing more to leave out.
    known = re.compile(r"byte-compiling is disabled|no (previously-included )?(files|directories) found")
    assert [line for line in complaints if not known.search(line)] == []


# What they say


def test_metadata_of_the_distribution_is_right(metadata: Message) -> None:
    assert (metadata["Name"], metadata["Version"]) == ("pqcore", pqcore.__version__)
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload() == (ROOT / "README.md").read_text("utf-8")
    required = [each for each in metadata.get_all("Requires-Dist", []) if "extra ==" not in each]
    assert required == ["pluggy>=1.5"]
    urls = dict(each.split(", ") for each in metadata.get_all("Project-URL", []))
    assert {"Homepage", "Documentation", "Changelog", "Issues", "Source"} == urls.keys()
    assert all(url.startswith("https://") for url in urls.values())


def test_metadata_names_the_tested_python_versions(metadata: Message) -> None:
    versions = [f"3.{minor}" for minor in range(10, 15)]
    classified = "\n".join(metadata.get_all("Classifier", []))
    assert re.findall(r"Python :: (3\.\d+)$", classified, re.MULTILINE) == versions
    workflow = (ROOT / ".github/workflows/checks.yml").read_text()
    assert f"python: [{', '.join(repr(each) for each in versions)}]".replace("'", '"') in workflow


def test_metadata_has_every_extra_that_messages_name(metadata: Message) -> None:
    extras = set(metadata.get_all("Provides-Extra", []))
    assert {"all", "cli", "mcp", "testing", *("psycopg2", "psycopg", "asyncpg")} <= extras
    named = {
        extra.strip()
        for path in ROOT.glob("pqcore*/**/*.py")
        for names in re.findall(r"pip install 'pqcore\[([\w, -]+)\]'", path.read_text("utf-8"))
        for extra in names.split(",")
    }
    assert named
    assert named <= extras


def test_entry_points_lead_to_what_is_installed(built: Built) -> None:
    files = {str(path) for path in installed(built).values()}
    with zipfile.ZipFile(built.wheel) as wheel:
        [name] = [name for name in wheel.namelist() if name.endswith("/entry_points.txt")]
        text = wheel.read(name).decode()
    groups = set(re.findall(r"^\[(.*)\]$", text, re.MULTILINE))
    assert groups >= {"console_scripts", "pytest11", "pqcore.backends", "pqcore.serializers", "pqcore.plugins"}
    modules = re.findall(r"^\S+ = ([\w.]+)", text, re.MULTILINE)
    assert len(modules) > 15
    for module in modules:
        path = module.replace(".", "/")
        assert {f"{path}.py", f"{path}/__init__.py"} & files, module


# What they install


def environment_with(folder: Path, *requirements: str) -> Path:
    """Return the Python of a virtual environment with these requirements alone."""
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    command = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--disable-pip-version-check")
    done(*command, "--no-compile", *requirements)
    return python


def test_wheel_without_extras_needs_only_pluggy(built: Built, tmp_path: Path) -> None:
    python = environment_with(tmp_path / "venv", str(built.wheel))
    program = """
        import importlib.metadata, json, sys
        before = set(sys.modules)
        import pqcore
        from pqcore import PQ, AsyncPQ, tasks
        from pqcore.plugins import plugins
        modules = {name.partition(".")[0] for name in sys.modules.keys() - before}
        foreign = sorted(name for name in modules - sys.stdlib_module_names if not name.startswith("_sysconfigdata"))
        try:
            PQ("postgresql://nowhere")
        except pqcore.PQError as exc:
            said = str(exc)
        names = sorted(found.metadata["Name"] for found in importlib.metadata.distributions())
        json.dump([foreign, names, said, plugins.backend_names(), str(pqcore.__file__)], sys.stdout)
    """
    code = "\n".join(line[8:] for line in program.splitlines())
    [foreign, names, said, backends, file] = json.loads(done(python, "-W", "error", "-c", code, folder=tmp_path))
    assert foreign == ["pluggy", "pqcore"]
    assert names == ["pluggy", "pqcore"]
    assert "pip install 'pqcore[psycopg]'" in said
    assert backends == ["psycopg", "asyncpg", "psycopg2"]
    assert Path(file).is_relative_to(tmp_path)
    assert "pip install 'pqcore[cli]'" in done(python, "-m", "pqcore", "stats", folder=tmp_path, code=2)


@pytest.mark.timeout(2 * PATIENCE)
def test_wheel_with_all_extras_runs_the_tutorial(built: Built, dsn: str, tmp_path: Path) -> None:
    python = environment_with(tmp_path / "venv", f"{built.wheel}[all]")
    found = [
        block._replace(text=DSN.sub(lambda match: dsn.replace("postgresql", match[1], 1), block.text))
        for block in blocks(ROOT / "docs/tutorial.md")
    ]
    work, ends, folder = tmp_path / "work.json", tmp_path / "ends", tmp_path / "shop"
    folder.mkdir()
    work.write_text(json.dumps({"path": "docs/tutorial.md", "blocks": [block._asdict() for block in found]}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{python.parent}{os.pathsep}{os.environ['PATH']}")
        log = done(python, "-W", "error", PROCESS, work, ends, folder=folder, dsn=dsn)
    told = [json.loads(line) for line in ends.read_text().splitlines()]
    assert [each["error"] for each in told] == [None] * len(found), log
    assert len(found) > 20
    listed = done(python, "-m", "pqcore", "plugins", "--json", folder=folder)
    plugins = [json.loads(line) for line in listed.splitlines()]
    assert [each for each in plugins if not each["ok"]] == []
    assert {each["distribution"] for each in plugins} == {"pqcore"}


# What checks and publishes them


def loaded(path: str) -> Any:
    """Read a YAML file; a key that occurs twice is an error."""

    class Strict(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            made: dict[Any, Any] = super().construct_mapping(node, deep)
            assert len(made) == len(node.value), f"{path}:{node.start_mark.line + 1}: a key is there twice"
            return made

    return yaml.load((ROOT / path).read_text("utf-8"), Strict)


def steps(workflow: Any) -> Iterator[dict[str, Any]]:
    for job in workflow["jobs"].values():
        assert job["runs-on"] == "ubuntu-latest"
        assert job["timeout-minutes"] <= 60
        yield from job["steps"]


WORKFLOWS = ["checks", "distributions"]


def test_workflows_are_exactly_the_listed_ones() -> None:
    assert sorted(path.name for path in (ROOT / ".github/workflows").iterdir()) == [f"{name}.yml" for name in WORKFLOWS]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflow_runs_existing_targets_with_minimal_permissions(name: str) -> None:
    workflow = loaded(f".github/workflows/{name}.yml")
    assert workflow["name"] == name
    assert workflow[True].keys() <= {"push", "pull_request"}  # YAML 1.1 takes the key "on" for a truth value
    assert workflow["permissions"] == {"contents": "read"}
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    ours = 0
    for step in steps(workflow):
        if "uses" in step:
            assert re.fullmatch(r"(actions/[\w-]+@v\d+|pypa/gh-action-pypi-publish@release/v1)", step["uses"])
            assert not step["uses"].startswith("actions/checkout") or step["with"]["persist-credentials"] is False
            continue
        assert "${{" not in step["run"]  # text from outside must not become part of a script
        for target in re.findall(r"\bmake ([\w-]+)", step["run"]):
            assert target in targets
            ours += 1
        for program in re.findall(r"^\.ci/\w+", step["run"], re.MULTILINE):
            assert os.access(ROOT / program, os.X_OK), program
            ours += 1
    assert ours
    for job_name, job in workflow["jobs"].items():
        assert job.get("permissions") == ({"id-token": "write"} if job_name == "publish" else None)
        for needed in [job["needs"]] if "needs" in job else []:
            assert needed in workflow["jobs"]


def test_workflow_publishes_only_tags_that_were_installed() -> None:
    publish = loaded(".github/workflows/distributions.yml")["jobs"]["publish"]
    assert publish["if"] == "${{ github.ref_type == 'tag' }}"
    assert (publish["needs"], publish["environment"]) == ("install", "pypi")


def test_issue_forms_are_valid() -> None:
    paths = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
    assert [path.name for path in paths] == ["bug.yml", "config.yml", "idea.yml"]
    for path in paths:
        form = loaded(str(path.relative_to(ROOT)))
        if path.name == "config.yml":
            assert all(link.keys() == {"name", "url", "about"} for link in form["contact_links"])
            continue
        assert {"name", "description", "body"} <= form.keys()
        ids = [field["id"] for field in form["body"] if field["type"] != "markdown"]
        assert len(ids) == len(set(ids))
        assert {field["type"] for field in form["body"]} <= {"markdown", "textarea", "input"}


def test_pre_commit_hooks_run_the_tools_of_make() -> None:
    [repository] = loaded(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    required = (ROOT / "requirements-dev.txt").read_text()
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert lint is not None
    for hook in repository["hooks"]:
        assert hook["language"] == "system"
        program = re.match(r"\.venv/bin/(\w+)", hook["entry"])
        assert program is not None
        assert re.search(rf"^{program[1]}[>=[]", required, re.MULTILINE), hook["entry"]
        assert f"$(BIN)/{program[1]}" in lint[1]
    assert len(repository["hooks"]) == 4


def test_lock_file_has_all_requirements_with_hashes() -> None:
    locked: dict[str, set[str]] = {}
    for pinned in re.split(r"\n(?! )", (ROOT / "requirements-lock.txt").read_text().strip()):
        assert "--hash=sha256:" in pinned, pinned
        name, version = re.match(r"([\w.-]+)(?:\[[^]]*\])?==([^\s;\\]+)", pinned).groups()  # type: ignore[union-attr]
        locked.setdefault(canonicalize_name(name), set()).add(version)
    written = (ROOT / "requirements-dev.txt").read_text().splitlines()
    wanted = [Requirement(line.partition(" #")[0]) for line in written if line and line[0] not in "#-"]
    wanted += [Requirement(line) for line in requires("pqcore") or ()]
    for requirement in wanted:
        name = canonicalize_name(requirement.name)
        if name != "pqcore":
            found = locked.get(name, set())
            assert [version for version in found if requirement.specifier.contains(version)], (
                f"{requirement}: make lock"
            )
