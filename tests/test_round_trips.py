"""The table of the serializers' round trips is correct."""

from __future__ import annotations

from round_trips import DOCUMENT, written


def test_table_of_round_trips_is_current(dsn: str) -> None:
    assert DOCUMENT.read_text("utf-8") == written(dsn), "python -m tests.round_trips writes it"
