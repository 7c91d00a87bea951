"""A short run of `tests.chaos`: whatever fails, clients are told the truth, and no job is lost."""

from __future__ import annotations

import pytest
from chaos.run import run


@pytest.mark.timeout(120)
def test_nothing_is_lost_whatever_fails() -> None:
    verdict, injected = run(6.0, seed=3)
    assert verdict.losses == []
    assert len(injected) >= 5
    for told in ("put ok", "take ok", "lease ok", "pop ok"):
        assert verdict.counts[told] > 0, told
