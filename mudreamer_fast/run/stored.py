"""A trained agent as it lies on disk, and what it sees and does, read off its weights."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mudreamer_fast.config import Config
from mudreamer_fast.disk import checkpoint
from mudreamer_fast.disk.weights import load_weights
from mudreamer_fast.envs import ActionSpec, ArraySpec
from mudreamer_fast.run.folder import RunFolder, read_config


@dataclass(frozen=True)
class StoredAgent:
    """All that an agent is made of."""

    config: Config
    """Of its run."""
    observation_spec: dict[str, ArraySpec]
    """What one environment shows, by name."""
    action_spec: ActionSpec
    """What one environment takes."""
    agent: dict[str, Any]
    """What `Agent.state_dict` gave; of an exported agent, the weights alone."""
    folder: Path
    """Of its run, or of the exported agent."""
    random_scores: list[float]
    """Returns of the random policy, as the run measured them; empty where it did not."""


def read_stored(
    path: str | os.PathLike[str], which: Literal["newest", "best"] = "newest"
) -> StoredAgent:
    """Reads the agent of a run.

    Args:
        path: a run folder; or in it `checkpoint`, `best`, or a data folder of these; or the folder
            of an exported agent.
        which: of a run folder, the newest checkpoint or the one that scored best.

    Raises:
        ConfigError: no run folder, or settings that cannot be read.
        checkpoint.CheckpointError: no checkpoint there, or none that can be read.
    """
    path = Path(path)
    run = next(
        (RunFolder(place) for place in (path, *path.absolute().parents[:2])
         if RunFolder(place).config.exists()),
        RunFolder(path),
    )  # fmt: skip
    config = read_config(run.config)
    state: dict[str, Any]
    if run.root == path and run.weights.exists():
        state, random_scores = {**load_weights(run.weights)}, _random_scores(run.result)
    else:
        if run.root == path:
            path = run.best if which == "best" else run.checkpoint
        saved = checkpoint.load(path, ("agent", "counters"))
        state, random_scores = saved["agent"], saved["counters"]["random_scores"]
    try:
        specs = _specs(config, state)
    except KeyError as missing:
        raise checkpoint.CheckpointError(f"{path} holds no agent: it lacks {missing}") from None
    return StoredAgent(config, *specs, state, run.root, random_scores)


def _random_scores(result: Path) -> list[float]:
    """Those in the `result.json` beside an exported agent, if its run was finished."""
    try:
        return [float(score) for score in json.loads(result.read_text())["random_scores"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _specs(config: Config, state: Mapping[str, Any]) -> tuple[dict[str, ArraySpec], ActionSpec]:
    """What the shapes of an agent's weights say of its environment."""
    world_model = state["world_model"]
    seen = {}
    if (kernel := world_model.get("encoder.image.kernels.0")) is not None:
        seen["image"] = ArraySpec((kernel.shape[1], *config.env.image_shape), np.dtype(np.uint8))
    if (weight := world_model.get("encoder.vector.weights.0")) is not None:
        seen["vector"] = ArraySpec((weight.shape[1],), np.dtype(np.float32))
    latents = config.model.groups * config.model.classes
    actions = world_model["rssm.input.weight"].shape[1] - latents
    # means and deviations, or one logit for each choice
    continuous = len(state["behaviour"]["actor.mlp.out.bias"]) == 2 * actions
    return seen, ActionSpec(actions, continuous)
