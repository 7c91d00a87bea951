"""The documents: everything that they name exists."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from pqcore import hookspecs
from pqcore.backend import AsyncDriverSession, Capability, DriverSession
from pqcore.db import driver_errors
from pqcore.plugins import plugins
from pqcore.testing.report import standard_tests

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def test_hooks_are_documented_with_their_arguments() -> None:
    text = "".join((ROOT / "docs" / page).read_text() for page in ("plugins.md", "reference/event-hooks.md"))
    hooks = [name for name in vars(plugins.manager.hook) if name.startswith("pqcore_")]
    assert hooks
    for name in hooks:
        arguments = ", ".join(inspect.signature(getattr(hookspecs, name)).parameters)
        assert f"## {name}({arguments})" in text


def test_session_methods_and_capabilities_are_documented() -> None:
    text = "".join((ROOT / "docs" / page).read_text() for page in ("backends.md", "reference/backend-contract.md"))
    for protocol in (DriverSession, AsyncDriverSession):
        for name in vars(protocol):
            if not name.startswith("_"):
                assert f"`{name}" in text, name
    for capability in Capability:
        assert f"`{capability.name}`" in text


def test_sqlstates_that_decide_are_documented_for_backends() -> None:
    text = (ROOT / "docs/reference/backend-contract.md").read_text()
    for prefix, _, _ in driver_errors._BY_SQLSTATE:
        assert f"`{prefix}" in text, prefix


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_in_documents_have_targets(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert (document.parent / target).exists(), target


def test_readme_links_are_absolute_and_have_targets() -> None:
    text = (ROOT / "README.md").read_text()
    defined = dict(re.findall(r"^\[([\w-]+)\]: (\S+)$", text, re.MULTILINE))
    assert set(re.findall(r"\]\[([\w-]+)\]", text)) == defined.keys()
    prefixes = ("https://github.com/pqcore/pqcore/blob/main/", "https://raw.githubusercontent.com/pqcore/pqcore/main/")
    for target in [*defined.values(), *re.findall(r"\]\(([^)]+)\)", text)]:
        assert target.startswith("https://"), f"{target}: a relative link leads nowhere on the package index"
        for prefix in prefixes:
            if target.startswith(prefix):
                path, _, anchor = target.removeprefix(prefix).partition("#")
                headings = re.findall(r"^#+ (.*)", (ROOT / path).read_text(), re.MULTILINE)
                anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
                assert not anchor or anchor in anchors, target


def test_readme_names_existing_make_targets() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^ +make (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_suite_has_the_documented_number_of_tests() -> None:
    assert len(standard_tests()) > 300
