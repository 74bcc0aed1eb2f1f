"""What operands of fewer bits do to updates of the quick preset, beside float32.

    python -m bench.precisions bench/results/cpu-precisions.json

Agents learn from the same batches, which a random policy has collected, and the same draws. Before
each update one of each precision takes over everything of the float32 agent, so that the update
alone is compared: its losses, and its gradients by their cosine and their difference. Another one
of each learns on its own; its losses are compared over the last fifth. On a CPU operands are
rounded and multiplied in float32 (`mudreamer_fast/backend/precision.py`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.profile_update import FEWER_BITS
from bench.surroundings import surroundings
from mudreamer_fast.agent import Agent
from mudreamer_fast.collect import Collector, random_policy, replay_fields
from mudreamer_fast.config import PRESETS, Config
from mudreamer_fast.envs import make_env
from mudreamer_fast.machine.device import resolve_device
from mudreamer_fast.replay import ReplayBuffer
from mudreamer_fast.run.folder import write_json

UPDATES, COLLECTED = 200, 500
LOSSES = (
    "world_model/loss", "world_model/loss_reward", "world_model/loss_value",
    "world_model/loss_action", "world_model/kl", "behaviour/actor_loss", "behaviour/critic_loss",
)  # fmt: skip
"""Of an update, with the names of its metrics."""


class Watched(Agent):
    """An agent whose gradients of its last update are kept."""

    def keep_gradients(self) -> Watched:
        """Keeps them from now on, by optimiser; gives itself."""
        self.kept: dict[str, Tensor] = {}
        for name, adam in self.optimisers.items():
            adam.apply = self._keeping(name, adam.apply)  # type: ignore[method-assign]
        return self

    def _keeping(self, name: str, apply: Any) -> Any:
        def kept(gradients: Iterable[Tensor | None]) -> Tensor:
            given = list(gradients)
            parts = [grad.flatten().double() for grad in given if grad is not None]
            self.kept[name] = torch.cat(parts)
            norm: Tensor = apply(given)
            return norm

        return kept


def collected(config: Config) -> tuple[ReplayBuffer, Any, Any]:
    """A random policy's steps, and what the environment shows and takes."""
    env = make_env(config.env, config.env.num_envs, 0)
    fields = replay_fields(env.observation_spec, env.action_spec)
    replay = ReplayBuffer(fields, 100_000, config.env.num_envs, seed=0)
    policy = random_policy(env.action_spec, config.env.num_envs, 0)
    Collector(env, replay, policy).collect(COLLECTED)
    env.close()
    return replay, env.observation_spec, env.action_spec


def compare(updates: int) -> dict[str, Any]:
    """Losses and gradients of all precisions."""
    config = PRESETS["quick"][1]
    replay, seen, action = collected(config)
    device = resolve_device("auto")

    def agent(precision: Any) -> Watched:
        train = replace(config.train, precision=precision)
        return Watched(replace(config, train=train), seen, action, device).keep_gradients()

    exact = agent("float32")
    beside, alone = ({name: agent(name) for name in FEWER_BITS} for _ in range(2))
    losses: dict[str, list[dict[str, float]]] = {name: [] for name in ("float32", *FEWER_BITS)}
    apart: dict[str, dict[str, list[float]]] = {name: {} for name in FEWER_BITS}
    for number in range(updates):
        batch = {
            name: np.array(array)
            for name, array in replay.sample(
                config.replay.batch_size, config.replay.batch_length
            ).items()
        }
        for other in beside.values():
            other.load_state_dict(exact.state_dict())
        metrics = dict(exact.update(batch))
        losses["float32"].append(metrics)
        for name in FEWER_BITS:
            losses[name].append(dict(alone[name].update(batch)))
            found, note = dict(beside[name].update(batch)), apart[name]
            for loss in LOSSES:
                note.setdefault(f"loss {loss}", []).append(abs(found[loss] - metrics[loss]))
            for part, mine in exact.kept.items():
                theirs = beside[name].kept[part]
                cosine = torch.cosine_similarity(mine, theirs, dim=0).item()
                off = ((mine - theirs).norm() / mine.norm()).item()
                note.setdefault(f"cosine {part}", []).append(cosine)
                note.setdefault(f"difference {part}", []).append(off)
        if (number + 1) % 50 == 0:
            print(f"{number + 1} updates", flush=True)
    last = max(1, updates // 5)
    return {
        "updates": updates,
        "each_update_from_the_same_state": {
            name: {
                what: {"median": median(values), "worst": _worst(what, values)}
                for what, values in note.items()
            }
            for name, note in apart.items()
        },
        "learning_alone_last_fifth": {
            name: {loss: fmean(row[loss] for row in rows[-last:]) for loss in LOSSES}
            for name, rows in losses.items()
        },
    }


def _worst(what: str, values: list[float]) -> float:
    return min(values) if what.startswith("cosine") else max(values)


def main() -> int:
    """Compares, writes and prints."""
    if len(sys.argv) not in (2, 3):
        print("usage: python -m bench.precisions FILE [UPDATES]", file=sys.stderr)
        return 2
    found = compare(int(sys.argv[2]) if len(sys.argv) == 3 else UPDATES)
    write_json(Path(sys.argv[1]), surroundings() | found)
    for name, note in found["each_update_from_the_same_state"].items():
        for what, values in note.items():
            print(f"{name}, {what}: {values['median']:.6g}, at worst {values['worst']:.6g}")
    for name, means in found["learning_alone_last_fifth"].items():
        print(name, ", ".join(f"{loss} {mean:.4f}" for loss, mean in means.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
