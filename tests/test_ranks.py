"""Two processes that learn together learn what one learns from their batches joined."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.patience import PATIENCE_SECONDS
from tests.ranks_program import CASES, learned

ROOT = Path(__file__).parents[1]


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have left what they learned."""
    folder = tmp_path_factory.mktemp("ranks")
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.ranks_program", str(rank), "2", str(folder)], cwd=ROOT
        )
        for rank in range(2)
    ]
    assert [process.wait(PATIENCE_SECONDS) for process in processes] == [0, 0]
    return folder


def leaves(state: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(state, dict | list | tuple):
        items = state.items() if isinstance(state, dict) else enumerate(state)
        found: dict[str, Any] = {}
        for name, part in items:
            found |= leaves(part, f"{prefix}/{name}")
        return found
    return {prefix: state}


@pytest.mark.parametrize("number", range(len(CASES)), ids=list(CASES))
def test_two_ranks_learn_what_one_learns_from_the_joined_batches(folder: Path, number: int) -> None:
    torch.manual_seed(number)
    alone = leaves(learned(list(CASES)[number]))
    first, second = (leaves(torch.load(folder / f"{number}-{rank}.pt")) for rank in range(2))
    assert alone.keys() == first.keys() == second.keys()
    worst = {}
    for name, value in alone.items():
        one, other = first[name], second[name]
        if not isinstance(value, Tensor | float):
            assert value == one == other
            continue
        one, other, value = (torch.as_tensor(x).double() for x in (one, other, value))
        assert torch.equal(one, other), f"{name} differs between the ranks"
        worst[name] = float(((one - value) / value.abs().clamp(min=1)).abs().max())
    assert max(worst.values()) <= 1e-5
