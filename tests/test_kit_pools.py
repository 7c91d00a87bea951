"""The pools that the test kit opens for the scenarios of POOL."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from psycopg2.pool import ThreadedConnectionPool

from pqcore.db.runtime import run_sync
from pqcore.errors import ConfigurationError, PoolTimeout
from pqcore.testing import pools
from pqcore.testing.harness import Harness
from pqcore.testing.pools import open_pool
from pqcore_backends.plugin import PSYCOPG2

ACME = dataclasses.replace(PSYCOPG2, name="acme", requires=("acme",))


@pytest.fixture
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that has functions to open pools of a driver with both faces."""
    about = tmp_path / "pqcore_acme-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: pqcore-acme\nVersion: 1\n")
    points = "acme = acme_pools:open_pool\nacme-async = acme_pools:open_pool_async\n"
    (about / "entry_points.txt").write_text(f"[pqcore.testing.pools]\n{points}")
    (tmp_path / "acme_pools.py").write_text(
        "def open_pool(dsn, size, prepared):\n    return 'blocking', dsn, size\n\n\n"
        "async def open_pool_async(dsn, size, prepared):\n    return 'async', dsn, size\n\n\n"
        "open_pool_async.smallest = 2\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize("mode", ["blocking", "async"])
def test_pool_of_another_backend_is_opened_by_its_entry_point(mode: str) -> None:
    spec = dataclasses.replace(ACME, mode=mode)  # type: ignore[arg-type]
    assert run_sync(open_pool(spec, "postgresql://", 3)) == ((mode, "postgresql://", 3), 0)


@pytest.mark.usefixtures("_installed")
def test_pool_that_cannot_be_small_is_opened_with_its_smallest_size() -> None:
    spec = dataclasses.replace(ACME, mode="async")
    assert run_sync(open_pool(spec, "postgresql://", 1)) == (("async", "postgresql://", 2), 1)


def test_scenario_gets_no_more_connections_of_a_pool_than_it_asked_for(
    pqcore_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at_least_two(dsn: str, size: int, prepared: bool) -> object:
        return ThreadedConnectionPool(2, size, dsn)  # raises for a size below 2

    monkeypatch.setattr(at_least_two, "smallest", 2, raising=False)
    monkeypatch.setattr(pools, "_opener_for", lambda spec: at_least_two)
    harness = Harness(PSYCOPG2, pqcore_server)
    try:
        pool = harness.pool(1)
        session = harness.wait_for(lambda: harness.opener.call("acquire", pool))
        assert harness.connections() == 1
        with pytest.raises(PoolTimeout):
            harness.wait_for(lambda: harness.opener.call("acquire", pool))
        harness.wait_for(lambda: harness.opener.call("release", pool, session))
    finally:
        harness.close()


def test_pool_of_an_unknown_driver_is_refused_with_advice() -> None:
    with pytest.raises(
        ConfigurationError, match=r"backend 'acme' offers POOL.*entry point in the group pqcore\.testing\.pools"
    ):
        run_sync(open_pool(ACME, "postgresql://", 3))
