"""The pools that the test kit opens for the scenarios of POOL."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pqcore.db.runtime import run_sync
from pqcore.errors import ConfigurationError
from pqcore.testing.pools import open_pool
from pqcore_backends.plugin import PSYCOPG2

ACME = dataclasses.replace(PSYCOPG2, name="acme", requires=("acme",))


@pytest.fixture
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that says how to open pools of a driver with both faces."""
    about = tmp_path / "pqcore_acme-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: pqcore-acme\nVersion: 1\n")
    points = "acme = acme_pools:open_pool\nacme-async = acme_pools:open_pool_async\n"
    (about / "entry_points.txt").write_text(f"[pqcore.testing.pools]\n{points}")
    (tmp_path / "acme_pools.py").write_text(
        "def open_pool(dsn, size, prepared):\n    return 'blocking', dsn, size\n\n\n"
        "async def open_pool_async(dsn, size, prepared):\n    return 'async', dsn, size\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize("mode", ["blocking", "async"])
def test_pool_of_another_backend_is_opened_by_its_entry_point(mode: str) -> None:
    spec = dataclasses.replace(ACME, mode=mode)  # type: ignore[arg-type]
    assert run_sync(open_pool(spec, "postgresql://", 3)) == (mode, "postgresql://", 3)


def test_pool_of_an_unknown_driver_is_refused_with_advice() -> None:
    with pytest.raises(
        ConfigurationError, match=r"backend 'acme' offers POOL.*entry point in the group pqcore\.testing\.pools"
    ):
        run_sync(open_pool(ACME, "postgresql://", 3))
