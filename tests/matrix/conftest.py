"""The fixture of the modules of tests that cells of the matrix run instead of the suite."""

from __future__ import annotations

import pytest

from .faces import DRIVERS


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "driver" in metafunc.fixturenames:
        wanted = metafunc.config.getoption("--pqcore-backend")
        metafunc.parametrize("driver", [name for name in DRIVERS if not wanted or name.partition("-")[0] in wanted])
