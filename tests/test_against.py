"""Two versions that collect in turns: what is told of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench import against


class Steady:
    """Takes the same time for each step."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.opened: list[str] = []
        self.turns = 0

    def open(self, task: str) -> None:
        self.opened.append(task)

    def seconds(self, steps: int) -> float:
        self.turns += 1
        return steps * self._seconds


def test_a_version_of_twice_the_speed_is_said_to_have_it() -> None:
    versions = {"before": Steady(0.02), "now": Steady(0.01)}
    rng = np.random.default_rng(0)
    found = against.compare(versions, "dmc/hopper_hop", rng)  # type: ignore[arg-type]
    assert found["policy_steps"] == round(against.TURN_SECONDS / 0.02)
    assert found["now over before"]["median"] == pytest.approx(2)
    assert found["now over before"]["quartiles"] == pytest.approx([2, 2])
    assert found["simulator steps/s"] == {"before": 400, "now": 800}
    for version in versions.values():
        assert version.opened == ["dmc/hopper_hop"]
        assert version.turns == 2 + against.ROUNDS


def test_what_is_missing_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="expected a folder with another version and a file"):
        against.main([])
    out = tmp_path / "out.json"
    with pytest.raises(SystemExit, match=f"no built mudreamer_fast in {tmp_path}|has ended at"):
        against.main([str(tmp_path), str(out)])
    assert not out.exists()
