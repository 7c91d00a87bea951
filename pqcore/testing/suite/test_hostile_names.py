"""Names, keys, headers and data that hypothesis generates.

Each comes back unchanged, or is refused and nothing is written.

``PQCORE_NAMES_EXAMPLES`` sets the number of examples for each test; the default is low, because the suite runs often.
"""

from __future__ import annotations

import os
import unicodedata
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pqcore import Dedup
from pqcore.errors import PQError
from pqcore.testing.harness import Harness

EXAMPLES = int(os.environ.get("PQCORE_NAMES_EXAMPLES", "15"))
some = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
WIDE_A, CYRILLIC_A = "\uff41", "\u0430"
PIECES = st.sampled_from(
    (
        *(
            "'",
            '"',
            "\\",
            "\0",
            "%",
            "%s",
            "%(x)s",
            ":x",
            "$1",
            "$$",
            "{}",
            "{table}",
            "\n",
            "/",
            ".",
            " ",
            "--",
            "/*",
            ";",
        ),
        *("a", WIDE_A, CYRILLIC_A, "\u00e9", "e\u0301", "\u202e", "\ud800", "\U0001f34e", "NULL", "DROP TABLE queue"),
        *("x" * 62, "\u00e9" * 32, "n" * 10_000),
    )
)
TEXTS = st.lists(PIECES | st.text(st.characters(), max_size=5), max_size=6).map("".join)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | TEXTS,
    lambda each: st.lists(each, max_size=3) | st.dictionaries(TEXTS, each, max_size=3),
    max_leaves=8,
)


def rows(harness: Harness) -> int:
    [[number]] = harness.sql("SELECT count(*) FROM {table}")
    return int(number)


def refused(harness: Harness, exc: PQError) -> None:
    """Check that the refused value was not written, and is not quoted at length."""
    assert rows(harness) == 0
    brief(exc)


def brief(exc: PQError) -> None:
    assert len(str(exc)) < 2_000


@some
@given(names=st.lists(TEXTS, min_size=2, max_size=3, unique=True))
@example(names=["\u00e9", "e\u0301"])
@example(names=["x" * 70 + "1", "x" * 70 + "2"])
@example(names=["a", "A", CYRILLIC_A, WIDE_A])
@example(names=["a", "a/" + "n" * 10_000])
def test_queue_name_of_any_text_is_its_own_queue_or_is_refused(harness: Harness, names: list[str]) -> None:
    pq = opened(harness)
    taken = []
    for number, name in enumerate(names):
        try:
            pq[name].put(number)
        except PQError as exc:
            brief(exc)
        else:
            taken.append((name, number))
    assert rows(harness) == len(taken)
    for name, number in taken:
        assert pq[name].count() == 1
        job = pq[name].lease(60, block=False)
        assert job.data == number
        pq[name].ack(job)
        assert (pq[name].count(), pq[name].get(block=False)) == (0, None)
    harness.sql("DELETE FROM {table}", rows=False)


@some
@given(key=TEXTS, group=TEXTS, limit=TEXTS, headers=st.dictionaries(TEXTS, JSON, max_size=2))
@example(key="\u00e9", group="e\u0301", limit="%s", headers={"x": "\ud83c\udf4e"})
@example(key="k", group="g", limit="l", headers={"x": "\ud83c"})
def test_keys_and_headers_of_any_text_come_back_or_are_refused(
    harness: Harness, key: str, group: str, limit: str, headers: dict[str, Any]
) -> None:
    queue = opened(harness)["q"]
    try:
        job_id = queue.put(1, dedup=Dedup(key), group=group, limits={limit: 1}, headers=headers)
    except PQError as exc:
        refused(harness, exc)
        return
    other = unicodedata.normalize("NFD" if unicodedata.is_normalized("NFC", key) else "NFC", key)
    again = queue.put(2, dedup=Dedup(key))
    different = queue.put(3, dedup=Dedup(other)) if other != key else None
    assert again == job_id != different
    job = queue.lease(60, block=False)
    assert job.id == job_id
    assert {name: value for name, value in job.headers.items() if name != "gate"} == headers
    queue.ack(job)
    harness.sql("DELETE FROM {table}", rows=False)


@some
@given(data=JSON)
@example(data="\0")
@example(data={"\ud800": 1})
@example(data=float("nan"))
@example(data=10**400)
def test_data_of_any_json_value_come_back_or_are_refused(harness: Harness, data: Any) -> None:
    queue = opened(harness)["q"]
    try:
        queue.put(data)
    except PQError as exc:
        refused(harness, exc)
        return
    found = queue.get(block=False).data
    assert found == data or found != found  # otherwise it is NaN
    harness.sql("DELETE FROM {table}", rows=False)


_opened: dict[Harness, Any] = {}


def opened(harness: Harness) -> Any:
    """Yield one `PQ` for each test, whatever the number of its examples."""
    if harness not in _opened:
        _opened.clear()
        _opened[harness] = harness.pq()
    return _opened[harness]


@pytest.mark.only("blocking")  # the kit's own wrapper looks through the arguments
def test_data_nested_too_deeply_are_refused(harness: Harness) -> None:
    queue = opened(harness)["q"]
    nested: Any = []
    for _ in range(100_000):
        nested = [nested]
    for options in ({}, {"headers": {"x": nested}}):
        with pytest.raises(PQError) as caught:
            queue.put(1 if options else nested, **options)
        refused(harness, caught.value)
