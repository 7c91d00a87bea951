"""What pqcore relies on before the driver is imported."""

from __future__ import annotations

import subprocess
import sys

from pqcore.plugins import plugins

NAME = "pg8000"
MODES = {"blocking"}
CHECK = "import sys, pqcore_pg8000.plugin; sys.exit(sys.argv[1] in sys.modules)"


def test_backend_is_found_by_name() -> None:
    assert {spec.mode for spec in plugins.backend_specs() if spec.name == NAME} == MODES


def test_declaring_the_backend_imports_no_driver() -> None:
    assert subprocess.run([sys.executable, "-c", CHECK, "pg8000"], check=False).returncode == 0
