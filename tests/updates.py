"""Agents and their twins: the same weights, settings and draws, and batches that test both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mudreamer_fast.agent import Agent
from mudreamer_fast.config import Config, TrainConfig
from tests import tiny
from tests.twin import Twin

SEEN = {
    "pixels": {"image": tiny.IMAGE},
    "vector": {"vector": tiny.VECTOR},
    "both": {"image": tiny.IMAGE, "vector": tiny.VECTOR},
}
ACTIONS = {"continuous": tiny.CONTINUOUS, "discrete": tiny.DISCRETE}

MODEL: dict[str, Any] = {
    "conv": 3,  # layer norm of two channels gives plus and minus one, and gradients near zero
    "unimix": 0.03,
    "norm_eps": 2e-3,
    "batch_norm_momentum": 0.2,
    "free_nats": 0.8,
    "prediction_scale": 0.9,
    "dynamics_scale": 0.7,
    "representation_scale": 0.3,
    "slow_value_decay": 0.9,
    "learning_rate": 0.01,
    "adam_eps": 2e-4,
    "clip_norm": 2.2,
}
BEHAVIOUR: dict[str, Any] = {
    "discount": 0.8,
    "lam": 0.7,
    "entropy_scale": 0.05,
    "return_decay": 0.75,
    "slow_critic_decay": 0.65,
    "slow_critic_scale": 0.4,
    "actor_learning_rate": 0.004,
    "critic_learning_rate": 0.02,
    "adam_eps": 1e-3,
    "clip_norm": 0.55,
}
"""No two of one kind are alike, so that one in another's place shows. Adam's epsilons are large
beside rounding: its first steps would carry that to full length where a gradient is near zero."""

SPREAD = 0.4
"""Of the weights, small enough for returns of order ten."""


@dataclass(frozen=True)
class Case:
    """An agent to hold to its twin."""

    seen: str = "vector"
    action: str = "continuous"
    model: dict[str, Any] = field(default_factory=dict)
    behaviour: dict[str, Any] = field(default_factory=dict)
    backend: str = "reference"
    cuda_graph: str = "off"
    device: str = "cpu"
    rows: int = 3
    steps: int = 4
    dtype: torch.dtype = torch.float64
    seed: int = 1

    @property
    def config(self) -> Config:
        return Config(
            model=tiny.model_config(**(MODEL | self.model)),
            behaviour=tiny.behaviour_config(**(BEHAVIOUR | self.behaviour)),
            train=TrainConfig(
                seed=self.seed,
                backend=self.backend,  # type: ignore[arg-type]
                cuda_graph=self.cuda_graph,  # type: ignore[arg-type]
            ),
        )

    def agent(self) -> Agent:
        """An agent with nothing at zero or one: neither heads, scales nor averages."""
        agent = Agent(self.config, SEEN[self.seen], ACTIONS[self.action], torch.device(self.device))
        agent.generator.manual_seed(self.seed)
        draw = torch.Generator().manual_seed(self.seed)
        for module in (agent.world_model, agent.behaviour):
            module.to(self.dtype)
            for name, value in module.state_dict().items():
                noise = torch.randn(value.shape, generator=draw)
                if name.endswith(("running.var", "scale.high")):
                    value.copy_(1.0 + noise.abs())
                else:
                    centre = 1.0 if "norm" in name and "weight" in name else 0.0
                    value.copy_(centre + SPREAD * noise)
        return agent

    def twin(self, agent: Agent) -> Twin:
        """What starts where the agent stands."""
        state, config, action = agent.state_dict(), self.config, ACTIONS[self.action]
        return Twin(
            state["world_model"], state["behaviour"],
            asdict(config.model), asdict(config.behaviour),
            action.size, action.continuous, state["generator"], self.device,
        )  # fmt: skip

    def batch(self, number: int) -> dict[str, Tensor]:
        """With resets, endings, and actions where none should be seen."""
        rows, steps, action = self.rows, self.steps, ACTIONS[self.action]
        rng = np.random.default_rng([self.seed, number])
        made = tiny.batch(SEEN[self.seen], action, rows, steps, number)
        if action.continuous:
            made["action"] = rng.uniform(-1, 1, (rows, steps, action.size))
        else:
            made["action"] = np.eye(action.size)[rng.integers(0, action.size, (rows, steps))]
        made["is_first"] |= rng.random((rows, steps)) < 0.2
        made["is_terminal"] |= rng.random((rows, steps)) < 0.2
        made["reward"] *= 3.0
        return tiny.tensors(made, self.dtype)


def tensors_of(state: Any, path: str = "") -> dict[str, Tensor]:
    """Every tensor in a nested state, by its path."""
    if isinstance(state, Tensor):
        return {path: state}
    if isinstance(state, Mapping):
        items = list(state.items())
    else:
        items = list(enumerate(state)) if isinstance(state, (list, tuple)) else []
    found: dict[str, Tensor] = {}
    for name, part in items:
        found |= tensors_of(part, f"{path}/{name}".lstrip("/"))
    return found


def assert_same_state(
    agent: Mapping[str, Tensor], twin: Mapping[str, Tensor], limit: float
) -> None:
    """Every tensor of either is in both, and as large an error as `limit` of its largest element.

    So an error is judged beside numbers of its own kind: some moments are near 1e-9 throughout.
    """
    unmatched = sorted(agent.keys() ^ twin.keys())
    assert not unmatched, f"only one of the two holds {unmatched}"
    for name, expected in twin.items():
        found = agent[name].cpu()
        assert found.shape == expected.shape, name
        apart = (found.double() - expected.double()).abs().max().item()
        assert apart <= limit * expected.abs().max().item(), f"{name} is off by {apart}"


def assert_same_metrics(
    agent: Mapping[str, float], twin: Mapping[str, float], limit: float
) -> None:
    """The same names, and each within `limit` of its size, or of 1 where that is less."""
    assert agent.keys() == twin.keys(), sorted(agent.keys() ^ twin.keys())
    for name, expected in twin.items():
        apart = abs(agent[name] - expected)
        assert apart <= limit * max(1.0, abs(expected)), f"{name} is off by {apart}"
