"""How the packages are laid out, and what their modules may reach into."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("pqcore", "pqcore_backends")
TESTING = ROOT / "pqcore" / "testing"


def test_modules_reach_into_no_private_attribute_of_another_class() -> None:
    mark = "SLF001"  # the rule of ruff that finds such an access
    marked = [
        f"{path.relative_to(ROOT)}:{number}"
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if TESTING not in path.parents
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if mark in line
    ]
    assert marked == []
