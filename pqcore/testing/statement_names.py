"""The names of the statements that pqcore sends in a scenario."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pqcore.db.session import Session


def noted_statements(
    monkeypatch: pytest.MonkeyPatch,
    *,
    chosen: Callable[[str], bool] = lambda _: True,
    then: Callable[[str, Any], None] = lambda _, __: None,
) -> list[str]:
    """Return a list to which the names of all later statements of this process are added, before they are sent.

    Args:
        monkeypatch: The fixture; at its end, no more names are added.
        chosen: Whether a name is added.
        then: Called with each name and its rows, when the statement has ended.
    """
    names: list[str] = []
    execute = Session.execute

    async def noted(session: Session, query: Any, parameters: Any = ()) -> Any:
        if chosen(query.name):
            names.append(query.name)
        rows = await execute(session, query, parameters)
        then(query.name, rows)
        return rows

    monkeypatch.setattr(Session, "execute", noted)
    return names
