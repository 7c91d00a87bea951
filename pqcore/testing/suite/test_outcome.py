"""A connection that breaks during a commit: the outcome is unknown, and the error says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pqcore.backend import Capability
from pqcore.errors import ConnectionLost, OutcomeUnknown
from pqcore.testing.harness import Harness
from pqcore.testing.portal import unwrapped
from pqcore.testing.proxy import Proxy


@pytest.fixture
def proxy(harness: Harness) -> Iterator[Proxy]:
    proxy = Proxy(harness.dsn)
    yield proxy
    proxy.close()


def put_in_a_block(queue: Any) -> None:
    with queue:
        queue.put("first")
        queue.put("second")


@pytest.mark.parametrize("answered", [False, True], ids=["before", "after"])
def test_unanswered_commit_raises_outcome_unknown(harness: Harness, proxy: Proxy, answered: bool) -> None:
    queue = harness.pq(proxy.dsn)["q"]
    assert queue.count() == 0
    proxy.cut_at("COMMIT", answered=answered)
    with pytest.raises(OutcomeUnknown, match="may have taken effect, or not") as caught:
        put_in_a_block(queue)
    assert caught.value.__cause__ is not None
    assert queue.count() == (2 if answered else 0)


@pytest.mark.parametrize("answered", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("put", [lambda q: q.put("mark"), lambda q: q.put_many(["mark"] * 2)], ids=["put", "put_many"])
def test_unanswered_put_raises_outcome_unknown(
    harness: Harness, proxy: Proxy, put: Callable[[Any], object], answered: bool
) -> None:
    queue = harness.pq(proxy.dsn)["q"]
    assert queue.count() == 0
    proxy.cut_at('"mark"', answered=answered)
    with pytest.raises(OutcomeUnknown, match="put"):
        put(queue)
    assert (queue.count() > 0) is answered


def test_unanswered_statement_in_a_transaction_raises_connection_lost(harness: Harness, proxy: Proxy) -> None:
    queue = harness.pq(proxy.dsn)["q"]
    assert queue.count() == 0
    proxy.cut_at('"second"', answered=True)
    with pytest.raises(ConnectionLost) as caught:
        put_in_a_block(queue)
    assert not isinstance(caught.value, OutcomeUnknown)
    assert queue.count() == 0


def test_unanswered_read_raises_connection_lost(harness: Harness, proxy: Proxy) -> None:
    queue = harness.pq(proxy.dsn)["named"]
    queue.put(1)
    assert len(queue.peek()) == 1
    proxy.cut_at("named", answered=True)
    with pytest.raises(ConnectionLost) as caught:
        queue.peek()
    assert not isinstance(caught.value, OutcomeUnknown)


def test_unanswered_get_raises_outcome_unknown(harness: Harness, proxy: Proxy) -> None:
    queue = harness.pq(proxy.dsn)["named"]
    queue.put(1)
    queue.put(2)
    unwrapped(queue).rule_cache.expires_at = float("inf")  # otherwise the reading of the rules would be cut off
    proxy.cut_at("named", answered=True)
    with pytest.raises(OutcomeUnknown):
        queue.get()
    assert queue.get().data == 2


@pytest.mark.requires(Capability.PREPARED)
@pytest.mark.parametrize("answered", [False, True], ids=["before", "after"])
def test_unanswered_ack_can_be_repeated(harness: Harness, proxy: Proxy, answered: bool) -> None:
    queue = harness.pq(proxy.dsn)["q"]
    queue.put_many(range(5))
    for _ in range(4):
        queue.ack_many([queue.lease(60)])  # so that the statement is prepared, and sent as one message
    job = queue.lease(60)
    proxy.cut_at("", answered=answered)
    with pytest.raises(OutcomeUnknown):
        queue.ack_many([job])
    # A second ack: either the first had no effect and this one has, or the lease is reported as lost.
    assert len(queue.ack_many([job])) == answered
    assert queue.jobs() == []
