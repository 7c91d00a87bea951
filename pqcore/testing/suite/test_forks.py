"""Processes that are forked without Python's knowledge, as uWSGI forks its workers."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from pqcore.backend import Capability
from pqcore.errors import TransactionOrderError
from pqcore.testing.harness import PATIENCE, Harness

pytestmark = pytest.mark.only("blocking")


def forked_in_c() -> int:
    """Fork as uWSGI does, bypassing `os.register_at_fork`.

    No thread may ask for the GIL then, which would hang the child.
    """
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)  # threads that come now ask later
    try:
        time.sleep(0.05)  # threads that have already asked get the GIL
        return int(ctypes.PyDLL(None).fork())
    finally:
        sys.setswitchinterval(interval)


def in_child(work: Callable[[], object]) -> None:
    """Run a function in a child that was forked in C, and raise here what it raised."""
    read, write = os.pipe()
    child = forked_in_c()
    if child == 0:
        said = b""
        try:
            work()
        except BaseException as exc:
            said = f"{type(exc).__name__}: {exc}".encode()[:1000]
        os.write(write, b"." + said)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    assert said == b"."


def backends_of(harness: Harness) -> list[int]:
    found = harness.sql(f"SELECT pid FROM pg_stat_activity WHERE application_name = '{harness.application}'")
    return sorted(pid for [pid] in found)


def test_child_forked_in_c_opens_its_own_connections(harness: Harness) -> None:
    harness.needs_sessions()
    queue = harness.queue(max_connections=1)
    queue.put("parent")
    before = backends_of(harness)

    def child() -> None:
        queue.put("child")
        with queue:
            queue.put("child, in a block")
        queue.close()

    in_child(child)
    queue.put("parent again")
    harness.eventually(lambda: backends_of(harness) == before)
    assert [job.data for job in queue.peek(10)] == ["parent", "child", "child, in a block", "parent again"]


@pytest.mark.requires(Capability.LISTEN)
def test_child_forked_in_c_listens_on_its_own_connection(harness: Harness) -> None:
    harness.needs_sessions()
    queue = harness.queue(poll_interval=3600, max_connections=1)
    other = harness.queue(create=False)
    assert queue.get(timeout=0.05) is None  # from now on, LISTEN is in force for its channel

    def child() -> None:
        assert queue.get(timeout=0.05) is None
        other.put("for the child")
        assert queue.get(timeout=PATIENCE) is not None

    in_child(child)
    with harness.thread(lambda: queue.get(timeout=PATIENCE)) as join:
        harness.eventually(harness.waiting)
        other.put("for the parent")
        assert join() is not None


def test_block_of_the_parent_is_not_ended_by_a_forked_child(harness: Harness) -> None:
    queue = harness.queue()

    def child() -> None:
        queue.put("child")  # by itself, not in the block
        with suppress(TransactionOrderError):
            queue.__exit__(None, None, None)
            msg = "the child ended its parent's block"
            raise AssertionError(msg)

    with queue:
        queue.put("parent")
        in_child(child)
        assert [tuple(row) for row in harness.sql("SELECT data::text FROM {table}")] == [('"child"',)]
    assert sorted(job.data for job in queue.peek(10)) == ["child", "parent"]


def test_parents_connections_stay_open_when_a_forked_child_drops_its_sessions(harness: Harness) -> None:
    harness.needs_sessions()
    queue = harness.queue()
    with queue:
        queue.put("parent")

        def child() -> None:
            for session in queue.engine._openers[harness.spec.name].sessions():
                session.abort()
                session.drop()
            queue.close()

        in_child(child)
    assert [job.data for job in queue.peek(10)] == ["parent"]
