from __future__ import annotations

import random

import numpy as np
import torch

from mudreamer_fast.machine.seeds import (
    SeedUse,
    derived_seed,
    generator_states,
    restore_generator_states,
    seed_everything,
)


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


def test_generators_go_on_where_they_were_saved() -> None:
    seed_everything(3)
    draw()
    states = generator_states()
    expected = [draw() for _ in range(3)]
    seed_everything(4)
    restore_generator_states(states)
    assert [draw() for _ in range(3)] == expected


def test_seeds_differ_between_uses_neighbours_and_resumes() -> None:
    seeds = {
        derived_seed(seed, use, number)
        for seed in range(20)
        for use in SeedUse
        for number in range(3)
    }
    assert len(seeds) == 20 * len(SeedUse) * 3
    assert derived_seed(1, SeedUse.ACT) == derived_seed(1, SeedUse.ACT)
    assert all(0 <= seed < 2**30 for seed in seeds)
