"""The id of the process, which pqcore remembers instead of asking the system each time."""

from __future__ import annotations

import os

import pytest

from pqcore.db import process_id
from pqcore.testing.suite.test_forks import in_child


def check() -> None:
    """Fail if the remembered id differs from the system's."""
    assert process_id.process_id() == process_id.current.id == os.getpid()


def check_here_and_in_child() -> None:
    check()
    in_child(check)
    check()


def test_process_id_is_new_in_a_child_and_grandchild_that_are_forked_in_c() -> None:
    check()
    in_child(check_here_and_in_child)
    check()


def test_process_id_is_known_without_a_system_call(monkeypatch: pytest.MonkeyPatch) -> None:
    check()
    monkeypatch.setattr(os, "getpid", lambda: 0)
    assert process_id.process_id() != 0


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_process_id_is_asked_for_each_time_where_no_page_tells_of_a_fork(
    monkeypatch: pytest.MonkeyPatch, platform: str
) -> None:
    monkeypatch.setattr(process_id, "_WIPE_ON_FORK", -1)  # an advice that no kernel supports
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr(process_id, "unforked_page", process_id._wiped_page())
    assert process_id.unforked_page[0] == 0
    check_here_and_in_child()
