"""Where a run's randomness comes from: a seed for each use, and the global generators."""

from __future__ import annotations

import random
from enum import IntEnum
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seeds the global generators of Python, NumPy and PyTorch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries draw from the global generator
    torch.manual_seed(seed)


class SeedUse(IntEnum):
    """Everything that a run's seed is used for; each draws from a seed of its own."""

    COLLECT = 0
    """The environments that the replay is collected in."""
    REPLAY = 1
    """Which sequences are sampled."""
    PREFILL = 2
    """The random actions of the prefill."""
    ACT = 3
    """The agent's latents and actions in these environments."""
    EVALUATION = 4
    """The environments of evaluations: the same episodes for every policy."""
    RANDOM_POLICY = 5
    """The actions of the random policy that the agent is compared with."""
    EVALUATION_POLICY = 6
    """The agent's latents and actions in evaluations."""
    WEIGHTS = 7
    """The weights at the start."""
    LEARN = 8
    """The latents and actions of updates."""
    GLOBAL = 9
    """The global generators of Python, NumPy and PyTorch, which libraries may draw from."""


def derived_seed(seed: int, use: SeedUse, number: int = 0) -> int:
    """A seed below 2^30 for one use of a run's seed, so that uses and neighbouring runs differ.

    Args:
        seed: the run's.
        use: what for.
        number: tells several of one use apart.
    """
    return int(np.random.SeedSequence([seed, use, number]).generate_state(1)[0]) >> 2


def generator_states() -> dict[str, Any]:
    """States of the global generators, for a checkpoint."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_generator_states(states: dict[str, Any]) -> None:
    """Takes back what `generator_states` gave; GPU states only where the GPUs are as many."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
