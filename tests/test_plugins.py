"""Plugins: their discovery and choice, the isolation of bad ones, and the core without drivers."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

import pqcore
from pqcore import PQ, AsyncJob, AsyncPQ, AsyncQueue, AsyncQueueIterator, Job, Queue, QueueIterator, hookimpl
from pqcore.backend import PLUGIN_API, BackendSpec, Capability, Mode
from pqcore.backend_registry import PREFERENCE
from pqcore.db.runtime import run_sync
from pqcore.errors import BackendNotInstalled, PluginError, UnknownBackend, UnknownSerializer
from pqcore.events import PutEvent
from pqcore.hook_dispatch import call_hook
from pqcore.plugins import Plugins, plugins

DRIVERS = {"psycopg2", "psycopg", "psycopg_pool", "asyncpg", "sqlalchemy", "django"}
CORE = Path(pqcore.__file__).parent
DSN = "postgresql://nobody@127.0.0.1:1/nowhere"  # nothing is sent before the first operation


def run(code: str, *folders: Path, **environment: str) -> Any:
    """Run code in a fresh process; return the values that the code gives to ``report``."""
    paths = [*map(str, folders), str(CORE.parent)]
    begin = "import json\ndef report(*results): print(json.dumps(results))\n"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", begin + textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def hide(*modules: str) -> str:
    """Return code that makes modules look as if they were not installed."""
    return textwrap.dedent(f"""
        import sys
        from importlib.machinery import PathFinder

        class Hiding(PathFinder):
            @classmethod
            def find_spec(cls, name, path=None, target=None):
                return None if name in {modules!r} else super().find_spec(name, path, target)

        sys.meta_path[:] = [Hiding if finder is PathFinder else finder for finder in sys.meta_path]
    """)


def distribute(folder: Path, name: str, points: dict[str, str], group: str = "pqcore.backends") -> None:
    """Make a folder look as if a distribution were installed there."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"[{group}]", *(f"{point} = {value}" for point, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def spec(name: str = "acme", mode: Mode = "blocking", **changes: Any) -> BackendSpec:
    """A backend's declaration."""
    lacking = dict.fromkeys(Capability, "it does not exist")
    fields: dict[str, Any] = {
        "load": f"{name}_driver:Backend",
        "requires": (),
        "install": f"pip install {name}",
        "paramstyle": "format",
        "capabilities": frozenset(),
        "missing": lacking,
        **changes,
    }
    return BackendSpec(name=name, mode=mode, **fields)


class Brings:
    """A plugin with backends."""

    def __init__(self, *specs: BackendSpec) -> None:
        self._specs = specs

    @hookimpl
    def pqcore_register_backends(self, register: Callable[[BackendSpec], None]) -> None:
        for each in self._specs:
            register(each)


class BringsSerializers:
    """A plugin with serializers."""

    def __init__(self, *serializers: Any) -> None:
        self._serializers = serializers

    @hookimpl
    def pqcore_register_serializers(self, register: Callable[[Any], None]) -> None:
        for each in self._serializers:
            register(each)


class NothingBackend:
    """A backend that can be constructed, and nothing else."""

    errors = ()

    def __init__(self, *, prepared: bool = True) -> None:
        self.prepared = prepared


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[object], None]]:
    """Register plugins with the process for the length of a test."""
    monkeypatch.setattr(plugins, "_specs", dict(plugins._specs))
    registered: list[object] = []

    def add(plugin: object) -> None:
        plugins.register(plugin)
        registered.append(plugin)

    yield add
    for plugin in registered:
        plugins.manager.unregister(plugin)


@pytest.fixture(autouse=True)
def _without_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PQCORE_BACKEND", raising=False)


# The core and the drivers


def core_modules() -> list[str]:
    """Return the names of the core's modules, without integrations, the suite and the demo."""
    names = []
    for path in CORE.rglob("*.py"):
        parts = ("pqcore", *path.relative_to(CORE).with_suffix("").parts)
        name = ".".join(parts).removesuffix(".__init__")
        if (
            not name.startswith(("pqcore.integrations", "pqcore.testing.suite", "pqcore.demo"))
            and parts[-1] != "__main__"
        ):
            names.append(name)
    return sorted(names)


def test_importing_the_core_imports_no_driver() -> None:
    names = core_modules()
    assert {"pqcore", "pqcore.queue", "pqcore.async_queue", "pqcore.schema", "pqcore.testing.plugin"} <= set(names)
    [found, imported] = run(f"""
        import importlib, sys
        imported = [importlib.import_module(name).__name__ for name in {names!r}]
        report(sorted({DRIVERS!r} & sys.modules.keys()), imported)
    """)
    assert found == []
    assert imported == names


def test_listing_backends_imports_no_driver() -> None:
    [found, backends, serializers] = run(f"""
        import sys
        from pqcore.plugins import plugins
        specs = [f"{{spec.name}} {{spec.mode}}" for spec in plugins.backend_specs()]
        report(sorted({DRIVERS!r} & sys.modules.keys()), specs, plugins.serializer_names())
    """)
    assert found == []
    assert backends == ["psycopg blocking", "psycopg async", "asyncpg async", "psycopg2 blocking"]
    assert {"json", "pickle", "msgpack", "zstd"} <= set(serializers)


def test_importing_pqcore_imports_no_backend() -> None:
    [found] = run("""
        import sys
        import pqcore
        report(sorted(name for name in sys.modules if name.startswith("pqcore_backends")))
    """)
    assert found == []


def test_blocking_face_imports_no_asyncio() -> None:
    [names] = run("""
        import sys
        from pqcore import PQ
        report(sorted(name for name in sys.modules if name.partition(".")[0] == "asyncio"))
    """)
    assert names == []


def imports(source: str, *, by_call: bool = True) -> Iterator[str]:
    """Return the modules that a source imports anywhere, also by a call of a function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""
        elif (
            by_call and isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__"))
        ):
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str))


def test_core_imports_no_driver() -> None:
    sources = sorted(path for path in CORE.rglob("*.py") if "integrations" not in path.parts)
    assert len(sources) > 25
    found = [
        f"{path.relative_to(CORE)}: {module}"
        for path in sources
        for module in imports(
            path.read_text("utf-8"), by_call="demo" not in path.parts
        )  # the demo reads its tables by a driver
        if module.partition(".")[0] in DRIVERS
    ]
    assert found == []


def test_core_imports_no_integration() -> None:
    sources = sorted(path for path in CORE.rglob("*.py") if "integrations" not in path.parts)
    found = [
        f"{path.relative_to(CORE)}: {module}"
        for path in sources
        for module in imports(path.read_text("utf-8"))
        if module.startswith("pqcore.integrations")
    ]
    assert found == []


def test_import_search_finds_imports_at_any_level() -> None:
    source = """
        if TYPE_CHECKING:
            import psycopg.rows
        def f():
            from asyncpg import connect
            importlib.import_module("psycopg2")
    """
    assert sorted(imports(textwrap.dedent(source))) == ["asyncpg", "psycopg.rows", "psycopg2"]


# Drivers that are missing


def test_missing_driver_fails_only_where_it_is_chosen() -> None:
    code = """
        from pqcore import PQ, AsyncPQ
        from pqcore.errors import BackendNotInstalled
        results = [PQ("dbname=x").backend]
        for face, backend in ((PQ, "psycopg2"), (AsyncPQ, "asyncpg")):
            for dsn, options in (("dbname=x", {"backend": backend}), (f"postgresql+{backend}://x/y", {})):
                try:
                    face(dsn, **options)
                except BackendNotInstalled as exc:
                    results.append([str(exc), isinstance(exc, ImportError)])
        report(*results)
    """
    [chosen, *errors] = run(hide("psycopg2", "asyncpg") + textwrap.dedent(code))
    assert chosen.startswith("psycopg ")
    assert [is_import_error for _, is_import_error in errors] == [True] * 4
    for message, _ in errors[:2]:
        assert "pip install 'pqcore[psycopg2]'" in message
    for message, _ in errors[2:]:
        assert "pip install 'pqcore[asyncpg]'" in message


def test_backend_chosen_by_default_is_the_first_installed() -> None:
    code = """
        from pqcore import PQ, AsyncPQ
        report(PQ("dbname=x").backend, AsyncPQ("dbname=x").backend)
    """
    for hidden, blocking, asynchronous in [
        ((), "psycopg", "psycopg"),
        (("psycopg",), "psycopg2", "asyncpg"),
        (("psycopg2",), "psycopg", "psycopg"),
    ]:
        found = run(hide(*hidden) + textwrap.dedent(code))
        assert [why.partition(" ")[0] for why in found] == [blocking, asynchronous]
        assert all("the first installed of" in why for why in found)


def test_backend_error_without_any_driver_says_what_to_install() -> None:
    code = """
        from pqcore import PQ, AsyncPQ
        from pqcore.errors import BackendNotInstalled
        for face in (PQ, AsyncPQ):
            try:
                face("dbname=x")
            except BackendNotInstalled as exc:
                results.append(str(exc))
        report(*results)
    """
    [blocking, asynchronous] = run(hide(*DRIVERS) + "results = []" + textwrap.dedent(code))
    assert "pip install 'pqcore[psycopg]'" in blocking
    assert "pip install 'pqcore[psycopg2]'" in blocking
    assert "pip install 'pqcore[asyncpg]'" in asynchronous


def test_incomplete_driver_does_not_hide_a_complete_one() -> None:
    [blocking, asynchronous] = run(
        hide("psycopg_pool")
        + textwrap.dedent("""
            from pqcore import PQ, AsyncPQ
            report(PQ("dbname=x").backend, AsyncPQ("dbname=x").backend)
        """)
    )
    assert blocking
    assert asynchronous


# Drivers that are too old


def release(folder: Path, **versions: str) -> None:
    """Make distributions look as if other versions were installed."""
    for name, version in versions.items():
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_driver_that_is_too_old_is_named_and_passed_over(tmp_path: Path) -> None:
    release(tmp_path, psycopg="3.1.18")
    [chosen, other, errors, logged] = run(
        """
        import logging
        import psycopg
        from pqcore import PQ, AsyncPQ
        from pqcore.errors import BackendNotInstalled
        logged = []
        handler = logging.Handler()
        handler.emit = lambda record: logged.append(record.getMessage())
        logging.getLogger("pqcore").addHandler(handler)
        chosen = [PQ("dbname=x").backend for _ in range(2)][0]
        other = AsyncPQ("dbname=x").backend
        errors = []
        for make in (
            lambda: PQ("dbname=x", backend="psycopg"),
            lambda: PQ("postgresql+psycopg://x/y"),
            lambda: AsyncPQ("postgresql+psycopg_async://x/y"),
            lambda: PQ(psycopg.Connection.__new__(psycopg.Connection)),
        ):
            try:
                make()
            except BackendNotInstalled as exc:
                errors.append(str(exc))
        report(chosen, other, errors, logged)
        """,
        tmp_path,
    )
    assert chosen.startswith("psycopg2 ")
    assert other.startswith("asyncpg ")
    says = "needs psycopg 3.2 or newer, 3.1.18 is installed: pip install 'pqcore[psycopg]'"
    assert errors == [f"backend 'psycopg' {says}"] * 4
    assert logged == [f"backend 'psycopg' is skipped, because it cannot be used: {says}"]


def test_drivers_that_are_all_too_old_are_all_named(tmp_path: Path) -> None:
    old = {
        "psycopg": "3.2",
        "psycopg_pool": "3.1.9",
        "psycopg2_binary": "2.9.3",
        "psycopg2": "2.8.6",
        "asyncpg": "0.28.0",
    }
    release(tmp_path, **old)
    [messages, listed] = run(
        """
        import click.testing
        from pqcore import PQ, AsyncPQ
        from pqcore.cli.app import app
        from pqcore.errors import BackendNotInstalled
        messages = []
        for face in (PQ, AsyncPQ):
            try:
                face("dbname=x")
            except BackendNotInstalled as exc:
                messages.append(str(exc))
        done = click.testing.CliRunner().invoke(app, ["backends", "--json"])
        report(messages, [json.loads(line) for line in done.output.splitlines()])
        """,
        tmp_path,
    )
    pool = "psycopg: needs psycopg-pool 3.2 or newer, 3.1.9 is installed: pip install 'pqcore[psycopg]'"
    for part in (
        pool,
        "psycopg2: needs psycopg2 2.9.9 or newer, 2.8.6 is installed",
        "psycopg2-binary 2.9.9 or newer, 2.9.3",
    ):
        assert part in messages[0]
    for part in (pool, "asyncpg: needs asyncpg 0.29 or newer, 0.28.0 is installed: pip install 'pqcore[asyncpg]'"):
        assert part in messages[1]
    assert [each["usable"] for each in listed] == [False] * 4
    assert "needs asyncpg 0.29 or newer, 0.28.0 is installed" in listed[2]["why_not"]


@pytest.mark.parametrize(
    ("version", "fits"),
    [
        *(("3.2", True), ("3.2.0", True), ("3.10", True), ("4", True), ("3.2.1.dev1", True), ("v3.2.post1", True)),
        *(("3.1.99", False), ("2.9", False), ("3", False), ("3.2rc1", False), ("3.2.0b2", False), ("3.2.dev3", False)),
        *(("3.2+local.1", True), ("1!1.0", False), ("unknown", True)),
    ],
)
def test_driver_versions_are_compared_as_releases(tmp_path: Path, version: str, fits: bool) -> None:
    from pqcore import versions

    assert versions._older(version, "3.2") is not fits


def test_backend_lowest_versions_equal_those_of_the_extras() -> None:
    pattern = re.compile(r"([\w-]+)(?:\[.*\])?>=([\d.]+); extra == [\"'](\w+)[\"']")
    required = [match for each in importlib.metadata.requires("pqcore") or () if (match := pattern.fullmatch(each))]
    for each in plugins.backend_specs():
        wanted = {match[1].replace("_", "-"): match[2] for match in required if match[3] == each.name}
        assert wanted
        assert wanted.items() <= each.lowest.items()


# Bad plugins

BOOM = "raise ZeroDivisionError('boom')"
HOOK = "from pqcore import hookimpl\n@hookimpl\ndef pqcore_register_{}s(register):\n    {}\n"
BROKEN = {
    "raises when imported": (BOOM, "ZeroDivisionError"),
    "ends the process": ("raise SystemExit(3)", "SystemExit"),
    "panics": ("class PanicException(BaseException): pass\nraise PanicException('at the disco')", "PanicException"),
    "ends the process in its hook": (HOOK.format("backend", "raise SystemExit"), "SystemExit"),
    "registers a word": (HOOK.format("backend", "register('acme')"), "NoneType"),
    "imports what is missing": ("import nowhere_to_be_found", "ModuleNotFoundError"),
    "is no Python": ("def (:", "SyntaxError"),
    "raises in its hook": (HOOK.format("backend", BOOM), "ZeroDivisionError"),
    "misspells a hook": (HOOK.format("backendz", "pass"), "PluginValidationError"),
}


@pytest.mark.parametrize(("source", "cause"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_backend_fails_only_where_it_is_chosen(tmp_path: Path, source: str, cause: str) -> None:
    distribute(tmp_path, "acme", {"acme": "acme_plugin"})
    (tmp_path / "acme_plugin.py").write_text(source)
    [names, chosen, adopted, broken, errors] = run(
        """
        import psycopg2.pool
        from pqcore import PQ
        from pqcore.errors import PluginError
        from pqcore.plugins import plugins
        chosen = PQ("dbname=x").backend
        adopted = PQ(pool=psycopg2.pool.SimpleConnectionPool(0, 1, "dbname=x")).backend
        errors = []
        for _ in range(2):
            try:
                PQ("dbname=x", backend="acme")
            except PluginError as exc:
                errors.append([str(exc), type(exc.__cause__).__name__])
        report(sorted({spec.name for spec in plugins.backend_specs()}), chosen, adopted, list(plugins.broken), errors)
        """,
        tmp_path,
    )
    assert names == ["asyncpg", "psycopg", "psycopg2"]
    assert chosen.startswith("psycopg ")
    assert adopted.startswith("psycopg2 ")
    assert broken == ["acme"]
    assert [kind for _, kind in errors] == [cause, cause]
    assert all("acme" in message and "acme_plugin" in message for message, _ in errors)


def test_broken_serializer_fails_only_where_it_is_chosen(tmp_path: Path) -> None:
    distribute(tmp_path, "acme", {"acme": "acme_plugin", "psycopg2": "acme_plugin"}, "pqcore.serializers")
    (tmp_path / "acme_plugin.py").write_text(BOOM)
    [names, errors, chosen] = run(
        """
        from pqcore import PQ
        from pqcore.errors import PluginError
        from pqcore.plugins import plugins
        pq = PQ("dbname=x")
        pq["q"], pq["q/json"], pq["q/pickle"]
        errors = []
        for name in ("acme", "acme", "psycopg2"):
            try:
                pq[f"q/{name}"]
            except PluginError as exc:
                errors.append(type(exc.__cause__).__name__)
        report(plugins.serializer_names(), errors, PQ("dbname=x", backend="psycopg2").backend)
        """,
        tmp_path,
    )
    assert {"acme", "json", "pickle", "psycopg2"} <= set(names)
    assert errors == ["ZeroDivisionError"] * 3
    assert chosen.startswith("psycopg2 ")  # a backend of that name is another thing


def test_plugin_for_another_api_version_is_refused() -> None:
    for api in (PLUGIN_API + 1, 0):
        fresh = Plugins()
        with pytest.raises(PluginError, match=f"acme.*plugin API {api};.* {PLUGIN_API}"):
            fresh.register(Brings(spec(api=api)))
        with pytest.raises(UnknownBackend):
            fresh.backend_spec("acme", "blocking")


def test_plugin_found_for_another_api_version_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribute(tmp_path, "acme", {"acme": "test_plugins_acme:plugin"})
    (tmp_path / "test_plugins_acme.py").write_text(
        f"import dataclasses, sys\nplugin = sys.modules[{__name__!r}].Brings(sys.modules[{__name__!r}].spec(api=99))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    fresh = Plugins()
    assert "acme" in fresh.backend_names()
    assert {each.name for each in fresh.backend_specs()} == set(PREFERENCE)
    with pytest.raises(PluginError, match="plugin API 99"):
        fresh.backend_spec("acme", "blocking")


@pytest.mark.parametrize(
    ("api", "says"),
    [
        (PLUGIN_API + 1, f"was made for plugin API {PLUGIN_API + 1}; this pqcore has {PLUGIN_API}: upgrade pqcore, or"),
        (PLUGIN_API - 1, f"was made for plugin API {PLUGIN_API - 1}; this pqcore has {PLUGIN_API}: upgrade the plugin"),
        ("1", "has the plugin API version '1'; give a number, 1"),
        (True, "has the plugin API version True; give a number, 1"),
    ],
)
def test_plugin_that_declares_another_api_version_is_not_registered(api: Any, says: str) -> None:
    class Plugin(Brings):
        pqcore_plugin_api = api

    class WithANewHook:
        pqcore_plugin_api = api

        @hookimpl
        def pqcore_hook_of_the_future(self, event: Any) -> None:
            pytest.fail("called")

    fresh = Plugins()
    for plugin in (Plugin(spec()), WithANewHook()):  # whatever else would be wrong with it
        with pytest.raises(PluginError) as caught:
            fresh.register(plugin, "acme")
        assert str(caught.value).startswith(f"plugin 'acme' {says}")
        assert not fresh.manager.is_registered(plugin)
    assert fresh.broken == {}
    with pytest.raises(UnknownBackend):
        fresh.backend_spec("acme", "blocking")


def test_plugin_that_declares_this_api_version_or_none_is_registered() -> None:
    class Plugin(Brings):
        pqcore_plugin_api = PLUGIN_API

    fresh = Plugins()
    fresh.register(Plugin(spec()))
    fresh.register(Brings(spec("other")))
    assert {fresh.backend_spec(name, "blocking").api for name in ("acme", "other")} == {1}


class Wrappers:
    """Hook implementations that pluggy accepts, and pqcore would never run."""

    @hookimpl(wrapper=True)
    def pqcore_job_put(self, event: Any) -> Iterator[None]:
        yield

    @hookimpl(hookwrapper=True, specname="pqcore_job_succeeded")
    def succeeded(self, event: Any) -> Iterator[None]:
        yield

    @hookimpl(wrapper=True)
    def pqcore_around_run(self, event: Any) -> Iterator[None]:
        yield

    @hookimpl(wrapper=True)
    def pqcore_register_serializers(self, register: Any) -> Iterator[None]:
        yield

    @hookimpl
    def pqcore_job_dead(self, event: Any) -> Iterator[None]:
        yield

    @hookimpl
    async def pqcore_job_lost(self, event: Any) -> AsyncIterator[None]:
        yield

    @hookimpl
    async def pqcore_around_put(self, event: Any) -> None:
        """Not awaited."""

    @hookimpl(tryfirst=True)
    def pqcore_register_backends(self, register: Any) -> None:
        """In no order."""


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("pqcore_job_put", "wrapper=True, and would never run; .* from pqcore_around_put or pqcore_around_run"),
        ("succeeded", "pqcore_job_succeeded is marked hookwrapper=True, and would never run"),
        ("pqcore_around_run", "wrapper=True, and would never run; return a context manager: .* @contextmanager"),
        ("pqcore_register_serializers", "wrapper=True, and would never run; write a function that calls register"),
        ("pqcore_job_dead", "is a generator, and would never run"),
        ("pqcore_job_lost", "is a generator, and would never run"),
        ("pqcore_around_put", "is a coroutine function, and would never run; write it with def"),
        ("pqcore_register_backends", "tryfirst=True, which has no effect"),
    ],
)
def test_hook_that_would_never_run_is_refused_at_registration(name: str, says: str) -> None:
    plugin = type("Plugin", (), {name: vars(Wrappers)[name]})()
    fresh = Plugins()
    for register in (fresh.register, fresh.manager.register):
        with pytest.raises(PluginError, match=f"plugin 'acme': .*{says}"):
            register(plugin, "acme")
        assert not fresh.manager.is_registered(plugin)


def test_hook_wrapper_of_unwrap_runs() -> None:
    class Plugin:
        @hookimpl(wrapper=True)
        def pqcore_unwrap(self, target: Any) -> Generator[None, None, str]:
            yield
            return f"inside of {target}"

    fresh = Plugins()
    fresh.register(Plugin())
    assert fresh.manager.hook.pqcore_unwrap(target="a session") == "inside of a session"


def test_plugins_are_called_in_their_requested_order() -> None:
    called = []

    def plugin(name: str, *, first: bool = False, last: bool = False) -> object:
        def pqcore_job_put(event: Any) -> None:
            called.append(name)

        mark = hookimpl(tryfirst=first, trylast=last)
        return type("Plugin", (), {"pqcore_job_put": staticmethod(mark(pqcore_job_put))})()

    made = [plugin("last", last=True), plugin("first", first=True), plugin("between")]
    for each in made:
        plugins.register(each)
    try:
        run_sync(call_hook("pqcore_job_put", PutEvent("q", None, None, {}), blocking=True))
    finally:
        for each in made:
            plugins.manager.unregister(each)
    assert called == ["first", "between", "last"]


def test_plugins_of_another_api_version_are_reported_and_others_work(tmp_path: Path) -> None:
    """Return the names of each group, in the order in which they are found."""
    groups = ("backends", "serializers", "plugins", "instruments")
    hook = "from pqcore import hookimpl\npqcore_plugin_api = 2\n@hookimpl\ndef pqcore_{}(event): raise SystemExit\n"
    for group in groups:
        distribute(tmp_path, f"late_{group}", {"late": f"late_{group}"}, f"pqcore.{group}")
        (tmp_path / f"late_{group}.py").write_text(hook.format("hook_of_the_future"))
    distribute(tmp_path, "good", {"good": "good_plugin"}, "pqcore.plugins")
    (tmp_path / "good_plugin.py").write_text(hook.format("job_put").replace("2", "1").replace("SystemExit", "OSError"))
    [listed, code, heard, broken, chosen] = run(
        f"""
        import contextlib, io
        from pqcore import PQ
        from pqcore.cli import main
        from pqcore.plugins import plugins
        with contextlib.redirect_stdout(io.StringIO()) as written:
            code = main(["plugins", "--json"])
        listed = [json.loads(line) for line in written.getvalue().splitlines()]
        report(listed, code, plugins.has_impl("pqcore_job_put"), list(plugins.broken), PQ({DSN!r}).backend)
        """,
        tmp_path,
    )
    assert (code, heard, broken) == (0, True, ["late"])
    assert chosen.startswith("psycopg (")
    late = {each["group"]: each for each in listed if each["name"] == "late"}
    assert late.keys() == {f"pqcore.{group}" for group in groups}
    for each in late.values():
        assert not each["ok"]
        assert f"was made for plugin API 2; this pqcore has {PLUGIN_API}: upgrade pqcore" in each["error"]
    assert all(each["ok"] for each in listed if each["name"] in ("good", "psycopg", "json", "frameworks", "logging"))
    assert {"good", "psycopg", "json", "frameworks", "logging"} <= {each["name"] for each in listed}


def test_hooks_all_have_an_example_in_the_documents() -> None:
    """Which `test_documents` runs."""
    text = "\n".join((CORE.parent / "docs" / page).read_text() for page in ("plugins.md", "reference/event-hooks.md"))
    for name in vars(plugins.manager.hook):
        if name.startswith("pqcore_"):
            [section] = re.findall(rf"^## {name}\(.*\n((?:(?!^## ).*\n)*)", text, re.MULTILINE)
            assert re.match(r"\npqcore calls this hook (once|for|when|before|after) ", section), name
            example = rf"^```python\n(?:(?!^```).*\n)*@hookimpl\n(?:@.*\n)?(?:async )?def {name}\("
            assert re.search(example, section, re.MULTILINE), name
            assert f"install({name})\n" in section, name


def test_backends_of_one_name_are_refused() -> None:
    fresh = Plugins()
    first = Brings(spec())
    fresh.register(first)
    second = Brings(spec(load="rival_driver:Backend"))
    with pytest.raises(PluginError, match=r"'acme'.*acme_driver:Backend.*rival_driver:Backend"):
        fresh.register(second)
    assert not fresh.manager.is_registered(second)
    assert fresh.manager.is_registered(first)
    assert fresh.backend_spec("acme", "blocking").load == "acme_driver:Backend"
    fresh.register(Brings(spec(mode="async")))  # the other face is a separate backend
    fresh.backend_specs()
    with pytest.raises(PluginError, match="'psycopg2'"):
        fresh.register(Brings(spec("psycopg2")))


def test_backends_of_one_name_in_two_distributions_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribute(tmp_path / "a", "first-acme", {"acme": "first_acme"})
    distribute(tmp_path / "b", "second-acme", {"acme": "second_acme"})
    for folder in ("a", "b"):
        monkeypatch.syspath_prepend(tmp_path / folder)
    fresh = Plugins()
    with pytest.raises(PluginError) as caught:
        fresh.backend_spec("acme", "blocking")
    for part in ("'acme'", "first_acme", "first-acme", "second_acme", "second-acme"):
        assert part in str(caught.value)
    assert {each.name for each in fresh.backend_specs()} == set(PREFERENCE)
    assert list(fresh.broken) == ["acme"]


def test_backend_name_of_two_packages_is_refused(tmp_path: Path) -> None:
    distribute(tmp_path, "acme-psycopg", {"psycopg": "acme_plugin"})
    (tmp_path / "acme_plugin.py").write_text("")
    [errors, named, adopted, listed] = run(
        """
        import os
        import click.testing
        import psycopg
        from pqcore import PQ, AsyncPQ
        from pqcore.cli.app import app
        from pqcore.errors import PQError
        errors = []
        for make in (
            lambda: PQ("dbname=x"),
            lambda: AsyncPQ("dbname=x"),
            lambda: PQ("dbname=x", backend="psycopg"),
            lambda: PQ("postgresql+psycopg://x/y"),
        ):
            try:
                make()
            except PQError as exc:
                errors.append(f"{type(exc).__name__}: {exc}")
        named = [PQ("dbname=x", backend="psycopg2").backend, AsyncPQ("postgresql+asyncpg://x/y").backend]
        os.environ["PQCORE_BACKEND"] = "psycopg2,asyncpg"
        named += [PQ("dbname=x").backend, AsyncPQ("dbname=x").backend]
        try:
            PQ(psycopg.Connection.__new__(psycopg.Connection))
        except PQError as exc:
            adopted = str(exc)
        done = click.testing.CliRunner().invoke(app, ["backends", "--json"])
        report(errors, named, adopted, [json.loads(line) for line in done.output.splitlines()])
        """,
        tmp_path,
    )
    assert len(set(errors)) == 1
    for part in (
        "PluginError: two plugins bring 'psycopg'",
        "pqcore_backends.plugin of pqcore ",
        "acme_plugin of acme-psycopg 1.0",
        "uninstall one",
    ):
        assert part in errors[0]
    assert len(errors) == 4
    assert [each.partition(" ")[0] for each in named] == ["psycopg2", "asyncpg"] * 2
    assert "two plugins bring 'psycopg'" in adopted
    rows = {(each["name"], each["mode"]): each for each in listed}
    assert sorted(rows, key=str) == [("asyncpg", "async"), ("psycopg", None), ("psycopg2", "blocking")]
    assert "acme_plugin of acme-psycopg 1.0" in rows["psycopg", None]["why_not"]


def test_plugin_cannot_register_anothers_backend_under_its_own_name(tmp_path: Path) -> None:
    distribute(tmp_path, "acme-backend", {"acme": "acme_plugin"})
    fields = (
        "mode='blocking', load='a:B', requires=(), install='x', paramstyle='format', capabilities=frozenset(Capability)"
    )
    (tmp_path / "acme_plugin.py").write_text(
        "from pqcore import hookimpl\nfrom pqcore.backend import BackendSpec, Capability\n"
        "@hookimpl\ndef pqcore_register_backends(register):\n"
        f"    register(BackendSpec('acme', {fields}))\n    register(BackendSpec('psycopg', {fields}))\n"
    )
    [names, error, chosen] = run(
        """
        from pqcore import PQ
        from pqcore.plugins import plugins
        error = str(plugins.fault("pqcore.backends", "acme"))  # before those of pqcore's are loaded
        names = sorted({spec.name for spec in plugins.backend_specs()})
        report(names, error, PQ("dbname=x").backend)
        """,
        tmp_path,
    )
    assert names == ["asyncpg", "psycopg", "psycopg2"]
    assert (
        "acme_plugin of acme-backend 1.0 registers a backend 'psycopg', a name that belongs to pqcore_backends.plugin"
        in error
    )
    assert chosen.startswith("psycopg ")


def test_plugin_that_exits_breaks_only_itself_and_is_named(tmp_path: Path) -> None:
    for group in ("backends", "serializers", "dialects", "plugins", "instruments"):
        distribute(tmp_path, f"acme_{group}", {f"acme-{group}": f"acme_{group}"}, f"pqcore.{group}")
        (tmp_path / f"acme_{group}.py").write_text("import sys\nsys.exit('goodbye')\n")
    [listed, raised, heard] = run(
        """
        import click.testing
        from pqcore import PQ
        from pqcore.cli.app import app
        from pqcore.errors import PluginError
        from pqcore.instruments import instrument
        from pqcore.plugins import plugins
        done = click.testing.CliRunner().invoke(app, ["plugins", "--json"])
        assert done.exit_code == 0, done.output
        raised = []
        for make in (
            lambda: PQ("dbname=x", backend="acme-backends"),
            lambda: PQ("dbname=x", dialect="acme-dialects"),
            lambda: PQ("dbname=x")["q/acme-serializers"],
            lambda: instrument("acme-instruments"),
        ):
            try:
                make()
            except PluginError as exc:
                raised.append(str(exc))
        report([json.loads(line) for line in done.output.splitlines()], raised, plugins.has_impl("pqcore_job_put"))
        """,
        tmp_path,
    )
    broken = {each["name"]: each["error"] for each in listed if not each["ok"]}
    assert set(broken) == {"acme-backends", "acme-serializers", "acme-plugins", "acme-instruments"}
    assert all("SystemExit: goodbye" in error for error in (*broken.values(), *raised))
    assert len(raised) == 4
    assert heard is False


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"paramstyle": "pyformat"}, "paramstyle is 'pyformat'; give 'format' or 'numeric_dollar'"),
        ({"mode": "sync"}, "mode is 'sync'; give 'blocking' or 'async'"),
        ({"name": "a driver"}, "name is 'a driver'; give letters"),
        ({"load": "acme.backend"}, "load is 'acme.backend'; give where the class is, as in 'package.module:Class'"),
        ({"bare_loop": "acme.bare"}, "bare_loop is 'acme.bare'; give where its class is"),
        ({"requires": "acme"}, "requires is 'acme'; give a tuple of names, as in"),
        ({"requires": ("acme==1",)}, "requires is"),
        ({"install": "", "requires": ("acme",)}, "install is ''; give how to get the driver"),
        ({"connections": "acme.Connection"}, "connections is 'acme.Connection'; give a tuple"),
        ({"pools": (object,)}, "pools is"),
        ({"schemes": ("PostgreSQL+acme://",)}, "schemes is"),
        ({"capabilities": {"LISTEN"}}, "capabilities is"),
        ({"missing": {"LISTEN": "no"}}, "missing is"),
        ({"missing_on_adopted": {Capability.LISTEN: "deaf"}}, "missing_on_adopted is"),
        ({"capabilities": set(Capability), "missing_on_adopted": {Capability.LISTEN: ""}}, "give a reason for LISTEN"),
        ({"capabilities": set(Capability), "missing_on_adopted": {Capability.POOL: "no"}}, "missing_on_adopted is"),
        ({"missing": dict.fromkeys(Capability, "")}, "lacks LISTEN, POOL, PREPARED and gives no reason"),
        ({"lowest": "1.0"}, "lowest is '1.0'; give versions of distributions"),
        ({"lowest": {"acme": "latest"}}, "lowest is"),
    ],
)
def test_backend_spec_is_checked_at_registration(changes: dict[str, Any], says: str) -> None:
    fresh = Plugins()
    wrong = spec(changes.pop("name", "acme"), **changes)
    with pytest.raises(PluginError, match=re.escape(says)):
        fresh.register(Brings(spec("first"), wrong))
    assert not {each.name for each in fresh.backend_specs()} & {"acme", "first"}  # nothing of the plugin remains
    with pytest.raises(PluginError, match="a plugin registers a str as a backend; register a BackendSpec"):
        fresh.register(Brings("acme"))  # type: ignore[arg-type]


def test_serializers_of_one_name_are_refused() -> None:
    class First:
        name = "acme"
        binary = False
        dumps = loads = staticmethod(str)

    class Second(First):
        pass

    fresh = Plugins()
    fresh.register(BringsSerializers(First()))
    rival = BringsSerializers(Second())
    with pytest.raises(PluginError, match=r"'acme'.*First.*Second"):
        fresh.register(rival)
    assert not fresh.manager.is_registered(rival)
    known: Any = fresh.serializer("acme")
    assert type(known) is First
    with pytest.raises(UnknownSerializer, match=r"installed: acme, .*json, .*pickle"):
        fresh.serializer("nonsense")


def test_backend_spec_needs_a_reason_for_each_missing_capability() -> None:
    fresh = Plugins()
    fresh.register(Brings(spec()))
    for lacking in Capability:
        missing = {cap: "why" for cap in Capability if cap is not lacking}
        with pytest.raises(PluginError, match=f"acme.*lacks {lacking.name} .*BackendSpec.missing"):
            Plugins().register(Brings(spec(missing=missing)))
    Plugins().register(Brings(spec(capabilities=frozenset(Capability), missing={})))


def test_hook_that_is_misspelt_is_refused() -> None:
    class Misspelt:
        @hookimpl
        def pqcore_register_backend(self, register: Any) -> None:
            pytest.fail("called")

    class WrongArgument:
        @hookimpl
        def pqcore_register_backends(self, registrar: Any) -> None:
            pytest.fail("called")

    for plugin, name in ((Misspelt(), "pqcore_register_backend"), (WrongArgument(), "registrar")):
        fresh = Plugins()
        with pytest.raises(PluginError, match=name) as caught:
            fresh.register(plugin)
        assert caught.value.__cause__ is not None
        assert not fresh.manager.is_registered(plugin)
        fresh.register(Brings(spec()))  # and nothing remains that would refuse the next plugin


def test_plugin_cannot_be_registered_twice() -> None:
    fresh = Plugins()
    plugin = Brings(spec())
    fresh.register(plugin)
    with pytest.raises(PluginError):
        fresh.register(plugin)


def test_backend_class_that_cannot_be_loaded_raises_an_error() -> None:
    fresh = Plugins()
    missing = spec(load="nowhere_to_be_found:Backend")
    with pytest.raises(BackendNotInstalled, match=r"acme.*nowhere_to_be_found.*pip install acme") as caught:
        fresh.make(missing, prepared=True)
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    with pytest.raises(PluginError, match="has no Nothing"):
        fresh.make(spec(load="json:Nothing"), prepared=True)
    with pytest.raises(BackendNotInstalled, match=r"needs nowhere_at_all: pip install acme"):
        fresh.make(spec(requires=("nowhere_at_all",)), prepared=True)


# The choice


@pytest.mark.parametrize(
    ("dsn", "options", "variable", "chosen", "why"),
    [
        (DSN, {"backend": "psycopg2"}, None, "psycopg2", "named by the caller"),
        (DSN, {"backend": "psycopg2"}, "psycopg", "psycopg2", "named by the caller"),
        (DSN.replace(":", "+psycopg:", 1), {"backend": "psycopg2"}, "psycopg", "psycopg2", "named by the caller"),
        (DSN.replace(":", "+psycopg2:", 1), {}, None, "psycopg2", "named by the scheme postgresql+psycopg2://"),
        (DSN.replace(":", "+psycopg2:", 1), {}, "psycopg", "psycopg2", "named by the scheme"),
        (DSN, {}, "psycopg2", "psycopg2", "named by PQCORE_BACKEND"),
        ("host=127.0.0.1 port=1", {}, "psycopg2", "psycopg2", "named by PQCORE_BACKEND"),
        (DSN, {}, "", "psycopg", "the first installed of psycopg, psycopg2"),
        (DSN, {}, None, "psycopg", "the first installed of psycopg, psycopg2"),
        (DSN.replace("postgresql", "postgres"), {}, None, "psycopg", "the first installed"),
        ("dbname=x options='a://b'", {}, None, "psycopg", "the first installed"),
        (DSN, {}, "asyncpg, psycopg2", "psycopg2", "named by PQCORE_BACKEND"),
        (DSN.replace("postgresql:", "POSTGRESQL+Psycopg2:"), {}, None, "psycopg2", "the scheme postgresql+psycopg2://"),
        (DSN.replace("postgresql:", "PostgreS:"), {}, None, "psycopg", "the first installed"),
        (DSN.replace(":", "+asyncpg:", 1), {"backend": "psycopg2"}, None, "psycopg2", "named by the caller"),
    ],
)
def test_backend_choice_follows_its_order(
    monkeypatch: pytest.MonkeyPatch, dsn: str, options: dict[str, Any], variable: str | None, chosen: str, why: str
) -> None:
    if variable is not None:
        monkeypatch.setenv("PQCORE_BACKEND", variable)
    found = PQ(dsn, **options).backend
    assert found.partition(" ")[0] == chosen
    assert why in found


def test_backend_choice_of_the_async_face_follows_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    assert AsyncPQ(DSN).backend == "psycopg (the first installed of psycopg, asyncpg)"
    assert AsyncPQ(DSN.replace(":", "+asyncpg:", 1)).backend.startswith("asyncpg (named by the scheme")
    assert AsyncPQ(DSN.replace(":", "+psycopg_async:", 1)).backend.startswith("psycopg (named by the scheme")
    for variable in ("asyncpg", "psycopg2,asyncpg"):
        monkeypatch.setenv("PQCORE_BACKEND", variable)
        assert AsyncPQ(DSN).backend == "asyncpg (named by PQCORE_BACKEND)"
    with pytest.raises(
        UnknownBackend, match="driver that only PQ supports: give the URL to PQ; for AsyncPQ, write postgresql://"
    ):
        AsyncPQ(DSN.replace(":", "+psycopg2:", 1))


@pytest.mark.parametrize(
    ("dsn", "options", "variable", "message"),
    [
        (DSN, {"backend": "nonsense"}, None, "unknown backend 'nonsense'; installed: psycopg, asyncpg, psycopg2"),
        (DSN, {}, "nonsense", "unknown backend 'nonsense'"),
        (DSN.replace(":", "+nonsense:", 1), {}, None, r"postgresql\+nonsense://; installed: psycopg"),
        (DSN, {"backend": "asyncpg"}, None, "async only: use AsyncPQ"),
        (DSN, {}, "asyncpg", "async only: use AsyncPQ"),
        (DSN, {}, "asyncpg,nonsense", "PQCORE_BACKEND: unknown backend 'nonsense'"),
        (
            DSN,
            {},
            "asyncpg",
            "or set PQCORE_BACKEND=asyncpg,psycopg: each face takes the first that it supports",
        ),
        (
            DSN.replace(":", "+asyncpg:", 1),
            {},
            None,
            "driver that only AsyncPQ supports: give the URL to AsyncPQ; for PQ, write ",
        ),
        (DSN.replace(":", "+psycopg_async:", 1), {}, None, r"for PQ, write postgresql://, or postgresql\+psycopg://"),
    ],
)
def test_backend_choice_that_cannot_be_met_raises_unknown_backend(
    monkeypatch: pytest.MonkeyPatch, dsn: str, options: dict[str, Any], variable: str | None, message: str
) -> None:
    if variable is not None:
        monkeypatch.setenv("PQCORE_BACKEND", variable)
    with pytest.raises(UnknownBackend, match=message):
        PQ(dsn, **options)


@pytest.mark.parametrize("backend", ["psycopg2", "psycopg"])
def test_dsn_scheme_that_names_the_backend_reaches_the_server(dsn: str, backend: str) -> None:
    with PQ(dsn.replace("postgresql:", f"postgresql+{backend}:", 1)) as pq:
        pq.create()
        pq["q"].put(1)
        job = pq["q"].get()
    assert job is not None
    assert job.data == 1


def test_plugin_registered_late_is_used(register: Callable[[object], None]) -> None:
    with pytest.raises(UnknownBackend):
        PQ(DSN, backend="acme")
    register(
        Brings(spec(load=f"{__name__}:NothingBackend", schemes=("acmesql+fast",), connections=(f"{__name__}.Brings",)))
    )
    assert PQ(DSN, backend="acme").backend == "acme (named by the caller)"
    assert PQ("postgresql+acme://x/y").backend.startswith("acme (named by the scheme")
    assert PQ("acmesql+fast://x/y").backend.startswith("acme (named by the scheme")
    assert PQ(DSN).backend.startswith("psycopg (")  # names in the fixed order come first
    assert plugins.backend_for(Brings(), "blocking") == (plugins.backend_spec("acme", "blocking"), False)


def test_backend_receives_whether_to_prepare(register: Callable[[object], None]) -> None:
    register(Brings(spec(load=f"{__name__}:NothingBackend")))
    for prepared in (True, False):
        made: Any = plugins.make(plugins.backend_spec("acme", "blocking"), prepared=prepared)
        assert isinstance(made, NothingBackend)
        assert made.prepared is prepared


# The two faces

PAIRS: list[tuple[type, type]] = [
    (PQ, AsyncPQ),
    (Queue, AsyncQueue),
    (Job, AsyncJob),
    (QueueIterator, AsyncQueueIterator),
]
SPECIAL = {"__enter__": "__aenter__", "__exit__": "__aexit__", "__iter__": "__aiter__", "__next__": "__anext__"}
NOT_AWAITED = {"queue", "transaction"}
BLOCKING_ALONE = {"fail", "perform", "popped", "work"}
"""Methods that run a queue's jobs in the calling thread, as pq does; a worker runs the jobs of an `AsyncQueue`."""


def public(cls: type) -> set[str]:
    """Return the names of both faces that users see."""
    return {name for name in dir(cls) if not name.startswith("_")} - BLOCKING_ALONE


def shape(function: Any) -> tuple[Any, ...]:
    """Return the parameters and the result of a function of either face."""
    signature = inspect.signature(function)
    parameters = [
        (name, parameter.kind, parameter.default, str(parameter.annotation).replace("Async", ""))
        for name, parameter in signature.parameters.items()
    ]
    return parameters, str(signature.return_annotation).replace("Async", "")


@pytest.mark.parametrize(("blocking", "asynchronous"), PAIRS)
def test_faces_have_the_same_names(blocking: type, asynchronous: type) -> None:
    more = {"update"} if blocking is Job else set()  # in place of assigning to data
    assert public(asynchronous) - public(blocking) == more
    assert public(blocking) - public(asynchronous) == set()
    special = {"__len__", "__getitem__", "__repr__", *SPECIAL}
    for name in special & vars(blocking).keys() - {"__len__"}:
        assert SPECIAL.get(name, name) in vars(asynchronous), name
    assert not hasattr(asynchronous, "__len__")


@pytest.mark.parametrize(("blocking", "asynchronous"), PAIRS)
def test_faces_take_the_same_arguments(blocking: type, asynchronous: type) -> None:
    names = [name for name in public(blocking) if callable(getattr(blocking, name)) and name != "queue_class"]
    names += ["__init__"]
    for name in names:
        assert shape(getattr(blocking, name)) == shape(getattr(asynchronous, name)), name


@pytest.mark.parametrize(("blocking", "asynchronous"), PAIRS)
def test_async_face_awaits_only_methods_that_wait(blocking: type, asynchronous: type) -> None:
    for name, function in vars(asynchronous).items():
        if name.startswith("_") or not inspect.isfunction(function):
            continue
        assert inspect.iscoroutinefunction(function) is (name not in NOT_AWAITED), name
        assert not inspect.iscoroutinefunction(getattr(blocking, name, None)), name


def test_faces_have_the_same_properties() -> None:
    for blocking, asynchronous in PAIRS:
        for name in public(blocking):
            mine, theirs = (inspect.getattr_static(cls, name) for cls in (blocking, asynchronous))
            assert isinstance(mine, property) is isinstance(theirs, property), name
    data, read_only = (inspect.getattr_static(cls, "data") for cls in (Job, AsyncJob))
    assert data.fset is not None
    assert read_only.fset is None
