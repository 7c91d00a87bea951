"""The pytest plugin: options, the parametrisation over backends, the report, and the guard.

It is imported in every pytest run where pqcore is installed, so it imports
nothing of pqcore until a test of the suite is collected.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pqcore.testing.harness import Harness
    from pqcore.testing.report import Report

SUITE = "pqcore.testing.suite."


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
    config.addinivalue_line("markers", "requires(capability): the scenario needs a capability of the backend")
    config.addinivalue_line("markers", "only(mode): the scenario is about one kind of face: 'blocking' or 'async'")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "harness" not in metafunc.fixturenames:
        return
    specs = _report(metafunc.config).specs
    only = metafunc.definition.get_closest_marker("only")
    if only is not None:
        specs = [spec for spec in specs if spec.mode == only.args[0]]
    names = [spec.name if spec.mode == "blocking" else f"{spec.name}-async" for spec in specs]
    metafunc.parametrize("harness", specs, ids=names, indirect=True)


@pytest.fixture(scope="session")
def pqcore_server(request: pytest.FixtureRequest) -> Iterator[str]:
    """The DSN of the server that all tests share."""
    from pqcore.testing.server import server

    with server() as (dsn, origin):
        if hasattr(request.config, "_pqcore_report"):
            _report(request.config).server = origin
        yield dsn


@pytest.fixture
def harness(request: pytest.FixtureRequest, pqcore_server: str) -> Iterator[Harness]:
    """The backend under test, with a schema of the test's own."""
    from pqcore.testing.harness import Harness

    spec = request.param
    for marker in request.node.iter_markers("requires"):
        capability = marker.args[0]
        if capability not in spec.capabilities:
            request.node.pqcore_missing = capability
            pytest.skip(f"not offered: {capability.name}: {spec.missing[capability]}")
    made = Harness(spec, pqcore_server)
    yield made
    made.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[Any]:
    result = yield
    if _standard(item):
        _report(item.config).add(item, result)
    return result


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # A scenario about the other kind of face is none of a backend's that has one kind only.
    items[:] = [item for item in items if not _standard(item) or _concerned(item)]


def pytest_collection_finish(session: pytest.Session) -> None:
    if any(_standard(item) for item in session.items):
        _report(session.config).collected(session.items)


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


def _concerned(item: pytest.Item) -> bool:
    from pqcore.backend import BackendSpec

    callspec = getattr(item, "callspec", None)
    return callspec is None or isinstance(callspec.params.get("harness"), BackendSpec)


def _standard(item: pytest.Item) -> bool:
    return getattr(getattr(item, "module", None), "__name__", "").startswith(SUITE)


def _report(config: pytest.Config) -> Report:
    report: Report | None = getattr(config, "_pqcore_report", None)
    if report is None:
        from pqcore.testing.report import Report

        report = Report(config.getoption("--pqcore-backend"))
        config._pqcore_report = report  # type: ignore[attr-defined]
    return report
