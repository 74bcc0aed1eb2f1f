"""What an update costs by objective: MuDreamer, without its predictors, and DreamerV3, in turns.

All in the same code, on the same batches: DreamerV3's settings are those of the preset
`dmc_vision_dreamerv3`. At the size of the preset `quick` on the CPU, of `dmc_vision` on a GPU. Run
under the allocator of a training run: `python -m mudreamer_fast.machine.allocator -m pytest
bench/bench_objectives.py --benchmark-only -s`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.profile_update import ACTIONS, WARM_UPS, batch, synchronize
from bench.profile_update import SHORT as SHORT_CONFIG
from bench.surroundings import DEVICE, GPU, SHORT, sized, surroundings
from bench.turns import take_turns
from mudreamer_fast.agent import Agent
from mudreamer_fast.config import PRESETS, Config, TrainConfig
from mudreamer_fast.envs import ActionSpec, ArraySpec

pytestmark = pytest.mark.usefixtures("cpu_threads")
ROUNDS = sized(40, 20, 1)
UPDATES = sized(50, 10, 1)
PRESET = "dmc_vision" if GPU else "quick"
BASE = (
    replace(SHORT_CONFIG, train=TrainConfig(backend="reference")) if SHORT else PRESETS[PRESET][1]
)


def changed(**model: Any) -> Config:
    """The preset with another model."""
    return replace(BASE, model=replace(BASE.model, **model))


MUDREAMER, DREAMERV3 = (vars(PRESETS[f"dmc_vision{name}"][1].model) for name in ("", "_dreamerv3"))
OBJECTIVES = {
    "MuDreamer": BASE,
    "no value predictor": changed(value_predictor=False),
    "no action predictor": changed(action_predictor=False),
    "neither predictor": changed(value_predictor=False, action_predictor=False),
    "DreamerV3": changed(
        **{name: value for name, value in DREAMERV3.items() if value != MUDREAMER[name]}
    ),
}


def updates(config: Config) -> Callable[[], None]:
    """So many updates of an agent."""
    spec = {"image": ArraySpec((3, 64, 64), np.dtype(np.uint8))}
    agent = Agent(config, spec, ActionSpec(ACTIONS, continuous=True), DEVICE)
    sequences = batch(config)
    for _ in range(WARM_UPS):
        agent.update(sequences)

    def call() -> None:
        for _ in range(UPDATES):
            agent.update(sequences)
        synchronize()

    return call


def bench_objectives(benchmark: BenchmarkFixture) -> None:
    """Updates a second of each objective."""
    contenders = {name: updates(config) for name, config in OBJECTIVES.items()}
    take_turns(benchmark, contenders, "MuDreamer", ROUNDS, ("updates/s", UPDATES))
    benchmark.extra_info |= surroundings() | {
        "preset": PRESET,
        "threads": torch.get_num_threads(),
    }
