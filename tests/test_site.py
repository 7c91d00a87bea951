"""The site of the documents is built without a warning, shows all of them, and needs no network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pqcore
import pqcore.errors
import pqcore.tasks
import pqcore.worker

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does."""
    folder = tmp_path_factory.mktemp("built") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_site_has_a_page_for_every_document(site: Path) -> None:
    documents = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").glob("**/*.md")]
    assert documents
    for document in documents:
        name = "index.html" if document.name == "README.md" else f"{document.stem}.html"
        page = (site / document.parent / name).read_text("utf-8")
        assert "invisible-code-block" not in page


def test_site_pages_fetch_nothing_from_other_hosts(site: Path) -> None:
    for page in site.glob("**/*.html"):
        text = page.read_text("utf-8")
        fetched = re.findall(r"<(?:script|img|iframe)[^>]+src=\"?([^\" >]+)", text)
        fetched += re.findall(r"<link[^>]+rel=\"?stylesheet[^>]+href=\"?([^\" >]+)", text)
        assert fetched
        for address in fetched:
            assert "//" not in address, f"{page.relative_to(site)}: {address}"
        assert 'class="mermaid"' not in text  # the theme would fetch what draws it


def test_site_links_out_of_the_docs_folder_have_targets(site: Path) -> None:
    page = (site / "backends.html").read_text("utf-8")
    assert 'href="project/examples/pqcore-pg8000/index.html"' in page
    example = (site / "project/examples/pqcore-pg8000/index.html").read_text("utf-8")
    assert "pg8000" in example


def test_site_charts_are_drawn(site: Path) -> None:
    drawn = 0
    for document in (ROOT / "docs/performance").glob("*.md"):
        written = document.read_text("utf-8").count("```mermaid")
        page = (site / "performance" / f"{document.stem}.html").read_text("utf-8")
        assert page.count("<polyline") >= page.count("<figcaption") == written
        drawn += written
    assert drawn


def test_site_reference_has_every_exported_name(site: Path) -> None:
    reference = "".join(page.read_text("utf-8") for page in (site / "reference").glob("*.html"))
    for module in (pqcore, pqcore.tasks, pqcore.worker, pqcore.errors):
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        exported = getattr(module, "__all__", None) or own
        assert exported
        for name in exported:
            if name[0].isupper():
                assert re.search(rf'id="[\w.]*\.{name}"', reference), f"{module.__name__}.{name}"
