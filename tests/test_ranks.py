"""Two processes that learn together learn what one learns from their batches joined."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mudreamer_fast.config import ConfigError
from mudreamer_fast.machine.ranks import is_first, joined_ranks
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


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE must be a number of processes, got 'two'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE must be a number of processes, got '0'"),
        (
            {"WORLD_SIZE": "2", "RANK": "0"},
            "WORLD_SIZE is 2 and LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set",
        ),
    ],
)
def test_what_torchrun_would_have_set_is_asked_for(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=expected), joined_ranks(torch.device("cpu")):
        pass


def test_a_process_of_its_own_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined_ranks(torch.device("cpu")) as ranks:
        x = torch.arange(6.0).view(3, 2)
        for same in (ranks.own(x), ranks.joined(x), ranks.total(x), ranks.mean(x)):
            assert torch.equal(same, x)
        assert ranks.average([x, None]) == (x, None)
        assert ranks.tell([1, 2.5]) == [[1.0, 2.5]]
        assert ranks.all_say(True)
        assert not ranks.all_say(False)
        assert ranks.firsts("word") == "word"
        assert is_first()
        assert ranks.device(torch.device("cuda:1")) == torch.device("cuda:1")
        assert copy.deepcopy(ranks) is ranks
