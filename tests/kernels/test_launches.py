"""How many launches an update takes: each costs a GPU some microseconds, whatever it does."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import InterpretedFunction

from mudreamer_fast import agent as agent_module
from mudreamer_fast.agent import Agent
from mudreamer_fast.config import Config, TrainConfig
from mudreamer_fast.envs import ActionSpec, ArraySpec
from mudreamer_fast.kernels import tiles
from mudreamer_fast.kernels.device import INTERPRETED

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="counts instead of interpreting")

LAUNCHES = {
    # backend: of a sequence's step, of an imagined step, of an update of 64 and 15 of them
    "fused": (22, 26, 2345),
    "persistent": (0, 26, 949),
}
OF_PYTORCH = 6
"""Launches of an update that some versions of PyTorch add, 2.11 to 2.14."""
FREE = {
    "_local_scalar_dense", "_reshape_alias", "_unsafe_view", "alias", "as_strided", "chunk",
    "detach", "diagonal", "empty", "empty_like", "empty_strided", "expand", "is_same_size",
    "lift_fresh", "new_empty", "new_empty_strided", "permute", "resize_", "select", "slice",
    "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unflatten", "unsqueeze",
    "view",
}  # fmt: skip
"""Operations that launch nothing."""


class Count(TorchDispatchMode):
    """Counts PyTorch's operations."""

    def __init__(self, launches: Counter[str]) -> None:
        super().__init__()
        self.launches = launches

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in FREE:
            self.launches[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Kernels that are counted and not run: how often does not depend on values."""
    found: Counter[str] = Counter()

    def launcher(self: Any, grid: Any) -> Any:
        def launch(*args: Any, **kwargs: Any) -> None:
            assert kwargs.items() >= tiles.launch(kwargs["num_warps"]).items()
            found.update([self.fn.__name__])

        return launch

    monkeypatch.setattr(InterpretedFunction, "__getitem__", launcher)
    # Metrics are sent to the host behind an update.
    monkeypatch.setattr(agent_module, "LateValues", lambda names, values: {})
    return found


def launches(kernels: Counter[str], backend: Any, steps: int, horizon: int) -> int:
    config = Config(train=TrainConfig(backend=backend))
    config = replace(
        config,
        model=replace(config.model, deter=16, hidden=16, conv=2, groups=4, classes=4, layers=2),
        behaviour=replace(config.behaviour, horizon=horizon),
    )
    spec = {"image": ArraySpec((3, 64, 64), np.dtype(np.uint8))}
    agent = Agent(config, spec, ActionSpec(6, continuous=True), torch.device("cpu"))
    batch = {
        "image": np.zeros((2, steps, 3, 64, 64), np.uint8),
        "action": np.zeros((2, steps, 6), np.float32),
        "reward": np.zeros((2, steps), np.float32),
        "is_first": np.eye(2, steps) > 0,
        "is_terminal": np.zeros((2, steps), np.bool_),
    }
    agent.update(batch)  # the first makes Adam's moments
    kernels.clear()
    others: Counter[str] = Counter()
    with Count(others):
        agent.update(batch)
    return kernels.total() + others.total()


@pytest.mark.parametrize("backend", LAUNCHES)
def test_an_update_takes_no_more_launches_than_it_did(kernels: Counter[str], backend: str) -> None:
    steps, horizon = 3, 2
    base = launches(kernels, backend, steps, horizon)
    step = launches(kernels, backend, steps + 1, horizon) - base
    imagined = launches(kernels, backend, steps, horizon + 1) - base
    whole = base + (64 - steps) * step + (15 - horizon) * imagined
    *inner, least = LAUNCHES[backend]
    assert [step, imagined] == inner
    assert least <= whole <= least + OF_PYTORCH
