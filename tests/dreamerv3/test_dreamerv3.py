"""The whole update beside DreamerV3's own program, on the same weights, batches and draws.

What that program made of them is recorded (`record.py`). Nobody here wrote it, and the objective
`dmc_vision_dreamerv3` shares the encoder, the RSSM, the heads, imagination, actor, critic and
optimisers with MuDreamer's.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mudreamer_fast.agent import Agent
from mudreamer_fast.config import PRESETS, Config, TrainConfig
from mudreamer_fast.envs import ActionSpec, ArraySpec
from mudreamer_fast.imagination import imagine
from tests.dreamerv3 import given

RECORDED = Path(__file__).parent / "recorded.json"
ROUNDING = 1e-5
"""Both compute in float32, in another order."""
SPREAD = 3e-5
"""Of a gradient's elements, by its norm."""


class Given(Agent):
    """An agent of the preset with the given weights and draws."""

    def __init__(self, kind: given.Kind) -> None:
        preset = PRESETS["dmc_vision_dreamerv3"][1]
        config = Config(
            model=replace(preset.model, **given.SIZES),  # type: ignore[arg-type]
            behaviour=replace(preset.behaviour, horizon=given.HORIZON, discount=1 - 1 / 333),
            train=TrainConfig(backend="reference"),
        )
        spec = {
            "image": ArraySpec((3, 64, 64), np.dtype(np.uint8)),
            "vector": ArraySpec((given.VECTOR,), np.dtype(np.float32)),
        }
        action = ActionSpec(given.ACTIONS, continuous=kind == "continuous")
        super().__init__(config, spec, action, torch.device("cpu"))
        with torch.no_grad():
            for name, parameter in self.weights().items():
                parameter.copy_(torch.from_numpy(given.weight(name, tuple(parameter.shape))))
        self.behaviour.slow_critic.load_state_dict(self.behaviour.critic.state_dict())

    def weights(self) -> dict[str, torch.nn.Parameter]:
        """All that is trained, by name."""
        modules = {"world_model": self.world_model, "behaviour": self.behaviour}
        return {
            f"{part}.{name}": parameter
            for part, module in modules.items()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }

    def _draw(self, rows: int, steps: int) -> dict[str, Tensor]:
        draws = super()._draw(rows, steps)
        for name, values in draws.items():
            normal = name == "action_noise" and self.action_spec.continuous
            values.fill_(given.NOISE if normal else given.HALF)
        return draws

    def losses(self, batch: dict[str, np.ndarray]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Metrics and gradients by name, of weights as they are."""
        inputs = {name: torch.from_numpy(batch[name]) for name in self.batch_shapes}
        inputs |= self._draw(given.ROWS, given.STEPS)
        model, behaviour = self.world_model.train(), self.behaviour
        seen = model.loss(inputs, inputs["uniforms"])
        trajectory = imagine(
            model,
            behaviour.actor,
            seen.state.rows(),
            inputs["is_terminal"].flatten(),
            inputs["imagined_uniforms"],
            inputs["action_noise"],
            self.config.behaviour,
            behaviour.through_dynamics,
        )
        judged = behaviour.loss(trajectory)
        gradients = {}
        for part, loss in {
            "world_model": seen.total,
            "behaviour.actor": judged.actor,
            "behaviour.critic": judged.critic,
        }.items():
            own = {n: p for n, p in self.weights().items() if n.startswith(f"{part}.")}
            found = torch.autograd.grad(loss, list(own.values()), retain_graph=True)
            gradients |= dict(zip(own, found, strict=True))
        metrics = {f"world_model/{name}": value for name, value in seen.metrics.items()}
        metrics |= {f"behaviour/{name}": value for name, value in judged.metrics.items()}
        return metrics, gradients


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RECORDED.read_text())
    return found


def far(name: str, value: Any, expected: list[float]) -> float:
    """How far an array is from a recorded one, by its norm."""
    mine = given.digest(name, value)
    return max(abs(mine[0] - expected[0]), abs(mine[1] - expected[1])) / expected[0]


@pytest.mark.parametrize("kind", given.KINDS)
def test_losses_and_all_gradients_are_those_of_dreamerv3(
    kind: given.Kind, recorded: dict[str, Any]
) -> None:
    metrics, gradients = Given(kind).losses(given.batch(0, kind))
    for name, expected in recorded[kind]["losses"].items():
        assert metrics[name].item() == pytest.approx(expected, rel=ROUNDING), name
    assert set(gradients) == set(recorded[kind]["gradients"])
    apart = {
        name: distance
        for name, expected in recorded[kind]["gradients"].items()
        if (distance := far(name, gradients[name], expected)) > SPREAD
    }
    assert not apart


@pytest.mark.parametrize("kind", given.KINDS)
def test_three_updates_are_those_of_dreamerv3(kind: given.Kind, recorded: dict[str, Any]) -> None:
    agent = Given(kind)
    before = {name: weight.detach().clone() for name, weight in agent.weights().items()}
    for number, expected in enumerate(recorded[kind]["updates"]):
        metrics = agent.update(given.batch(number, kind))
        for name, value in expected.items():
            assert metrics[name] == pytest.approx(value, rel=ROUNDING), (number, name)
    apart = {
        # Adam's first steps are of full length, also where a gradient is all rounding.
        name: distance
        for name, expected in recorded[kind]["moved"].items()
        if (distance := far(name, (agent.weights()[name] - before[name]).detach(), expected)) > 0.01
    }
    assert not apart
