from __future__ import annotations

import pytest

from mudreamer_fast.report import comparison


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bootstrap of a tenth of the draws, enough for all but its accuracy."""
    monkeypatch.setattr(comparison, "REPEATS", comparison.REPEATS // 10)
