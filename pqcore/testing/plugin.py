"""The pytest plugin: fixtures for users' tests, and the options, parameters, report and guard of the suite.

Every pytest run imports this module if pqcore is installed. So the module imports no other module of pqcore before a
fixture is used, or a test of the suite is collected.
"""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pqcore.tasks import PQ, AsyncPQ
    from pqcore.testing.databases import Databases
    from pqcore.testing.harness import Harness
    from pqcore.testing.jobs import Jobs
    from pqcore.testing.report import Report
    from pqcore.testing.schemas import Schemas

pytest.register_assert_rewrite(
    "pqcore.testing.harness", "pqcore.testing.consumers", "pqcore.testing.worker_pool", "pqcore.testing.probes"
)

SUITE = "pqcore.testing.suite."
LONGEST = 180
"""Seconds after which a test of the suite fails, unless pytest-timeout was given another limit."""
MANY = 200
"""The number of tests in a run from which the garbage collector skips the objects of the tests."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pqcore", "pqcore's conformance suite")
    group.addoption(
        "--pqcore-backend",
        action="append",
        metavar="NAME",
        help="test this backend, in all its modes; may be given again (default: all registered)",
    )
    group.addoption(
        "--pqcore-report",
        default="pqcore-conformance",
        metavar="PATH",
        help="write PATH.json and PATH.md when the suite ran (default: %(default)s)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "requires(capability, adopted=False): the scenario needs a capability of the backend; if adopted, then on a"
        " connection of the caller",
    )
    config.addinivalue_line(
        "markers",
        "read_committed: the scenario's transactions must see what others commit, so that is the default isolation of"
        " its connections, whatever the server's is",
    )
    config.addinivalue_line(
        "markers", "utf8: the scenario stores text that a database has no characters for unless its encoding is UTF8"
    )
    config.addinivalue_line("markers", "unpartitioned: the scenario's tables have no partitions, as in other runs")
    config.addinivalue_line("markers", "only(mode): the scenario is about one kind of face: 'blocking' or 'async'")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if not _is_ours(metafunc):
        return
    specs = _report(metafunc.config).specs
    only = metafunc.definition.get_closest_marker("only")
    if only is not None:
        specs = [spec for spec in specs if spec.mode == only.args[0]]
    names = [spec.name if spec.mode == "blocking" else f"{spec.name}-async" for spec in specs]
    metafunc.parametrize("harness", specs, ids=names, indirect=True)


@pytest.fixture(scope="session")
def pqcore_server(request: pytest.FixtureRequest) -> Iterator[str]:
    """Return the DSN of the server that all tests share."""
    from pqcore.testing.server import server

    with server() as (dsn, origin):
        if hasattr(request.config, "_pqcore_report"):
            _report(request.config).server = origin
        yield dsn


@pytest.fixture(scope="session")
def pqcore_prepare() -> Callable[[str], object] | None:
    """Return a function that makes the application's own tables, called once with a DSN; override this fixture."""
    return None


@pytest.fixture(scope="session")
def pqcore_databases(pqcore_server: str, pqcore_prepare: Callable[[str], object] | None) -> Iterator[Databases]:
    """Yield the databases of the tests, from which each test gets its own database."""
    from pqcore.testing.databases import Databases

    with Databases(pqcore_server, pqcore_prepare) as databases:
        yield databases


@pytest.fixture
def pqcore_jobs(pqcore_databases: Databases) -> Iterator[Jobs]:
    """Yield the jobs of the test, in its own database, with methods to check and control them."""
    from pqcore.testing.jobs import Isolated

    with Isolated(lambda: pqcore_databases) as jobs:
        yield jobs


@pytest.fixture
def pqcore_pq(pqcore_jobs: Jobs) -> PQ:
    """Yield a `pqcore.tasks.PQ` over an empty table for this test."""
    return pqcore_jobs.pq()


@pytest.fixture
def pqcore_async_pq(pqcore_jobs: Jobs) -> AsyncPQ:
    """Yield a `pqcore.tasks.AsyncPQ` over an empty table for this test, usable in any event loop."""
    return pqcore_jobs.async_pq()


@pytest.fixture(scope="session")
def pqcore_schemas(request: pytest.FixtureRequest, pqcore_server: str) -> Iterator[Schemas | None]:
    """Yield the schemas that tests of the suite leave to later tests; None if each test makes its own schema."""
    from pqcore.testing.schemas import Schemas

    schemas = Schemas.of_run()
    yield schemas
    if schemas is not None:
        from pqcore.testing.harness import Harness

        harness = Harness(_report(request.config).specs[0], pqcore_server)
        schemas.drop(harness.sql)
        harness.close()


@pytest.fixture
def harness(request: pytest.FixtureRequest, pqcore_server: str, pqcore_schemas: Schemas | None) -> Iterator[Harness]:
    """Yield a harness for the tested backend, with a schema for this test."""
    from pqcore.testing.harness import Harness

    spec = request.param
    for marker in request.node.iter_markers("requires"):
        capability = marker.args[0]
        if capability not in spec.capabilities:
            request.node.pqcore_missing = capability.name
            pytest.skip(f"not offered: {capability.name}: {spec.missing[capability]}")
        if marker.kwargs.get("adopted") and capability in spec.missing_on_adopted:
            request.node.pqcore_missing = f"{capability.name} on the caller's connection"
            pytest.skip(f"not offered: {request.node.pqcore_missing}: {spec.missing_on_adopted[capability]}")
    made = Harness(spec, pqcore_server, lambda what: setattr(request.node, "pqcore_missing", what), pqcore_schemas)
    try:
        if request.node.get_closest_marker("read_committed"):
            made.dsn = made.committed_dsn()
        if request.node.get_closest_marker("unpartitioned"):
            made.partitions = None
        if request.node.get_closest_marker("utf8"):
            made.needs_utf8()
        yield made
    finally:
        made.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[Any]:
    result = yield
    if _standard(item):
        _report(item.config).add(item, result)
    return result


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # A scenario about one face is left out for a backend that has only the other face.
    items[:] = [item for item in items if not _standard(item) or _concerned(item)]
    if _has_no_timeout(config):  # without a timeout, a driver's call that never returns would hang the run
        for item in items:
            if _standard(item) and item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(LONGEST))


def pytest_collection_finish(session: pytest.Session) -> None:
    if any(_standard(item) for item in session.items):
        _report(session.config).collected([item for item in session.items if _standard(item)])
        spare_collected_tests(session)


def spare_collected_tests(session: pytest.Session) -> None:
    """Keep the garbage collector from looking at hundreds of tests and their sources each time that it runs."""
    if len(session.items) >= MANY:
        with suppress(ImportError):
            importlib.import_module("hypothesis")  # before the freeze, because the import uses gc.get_referrers
        gc.collect()
        gc.freeze()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if getattr(config, "_pqcore_report", None) is not None:
        _report(config).summarize(terminalreporter)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if getattr(session.config, "_pqcore_report", None) is not None:
        report = _report(session.config)
        report.write(session.config.getoption("--pqcore-report"))
        if report.violations() and session.exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _has_no_timeout(config: pytest.Config) -> bool:
    """Return whether pytest-timeout is installed, but no time limit is set."""
    if not config.pluginmanager.hasplugin("timeout"):
        return False
    said = (config.getoption("timeout"), os.environ.get("PYTEST_TIMEOUT"), config.getini("timeout"))
    return all(limit in (None, "") for limit in said)


def _is_ours(metafunc: pytest.Metafunc) -> bool:
    """Return whether a test uses pqcore's ``harness``, and not another fixture with this name."""
    if "harness" not in metafunc.fixturenames:
        return False
    found = metafunc.definition._fixtureinfo.name2fixturedefs.get("harness", ())
    return bool(found) and found[-1].func.__module__ == __name__


def _concerned(item: pytest.Item) -> bool:
    from pqcore.backend import BackendSpec

    callspec = getattr(item, "callspec", None)
    if callspec is None or "harness" not in callspec.params:
        return True
    return isinstance(callspec.params["harness"], BackendSpec)


def _standard(item: pytest.Item) -> bool:
    return getattr(getattr(item, "module", None), "__name__", "").startswith(SUITE)


def _report(config: pytest.Config) -> Report:
    report: Report | None = getattr(config, "_pqcore_report", None)
    if report is None:
        from pqcore.testing.report import Report

        report = Report(config.getoption("--pqcore-backend"))
        config._pqcore_report = report  # type: ignore[attr-defined]
    return report
