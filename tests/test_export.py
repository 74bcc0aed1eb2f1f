"""A policy that was exported acts as the agent does, drawing nothing itself."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mudreamer_fast import export
from mudreamer_fast.agent import Agent
from mudreamer_fast.config import ConfigError
from mudreamer_fast.export import OUTPUTS, PolicyStep, export_onnx, export_policy
from tests import tiny
from tests.test_policy import SEEN, made_agent
from tests.tolerances import REORDERED, assert_close

Step = Callable[[dict[str, Tensor]], tuple[Tensor, ...]]
ROWS, STEPS, SEED = 3, 4, 11


@pytest.fixture(autouse=True)
def _no_log_records() -> Iterator[None]:
    """PyTorch logs thousands while it traces, which pytest would keep."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def check_acts_alike(agent: Agent, step: Step, same: Callable[[Tensor, Tensor], None]) -> None:
    """Compare a few steps, in the third of which an episode begins in one environment."""
    state, draws = agent.initial_state(ROWS, SEED), torch.Generator().manual_seed(SEED)
    inputs = PolicyStep(agent).example_inputs("sample", ROWS)
    for number in range(STEPS):
        seen = tiny.batch(SEEN, tiny.CONTINUOUS, ROWS, steps=1, seed=number)
        observation = {name: seen[name][:, 0] for name in SEEN}
        is_first = np.array([number == 0, number in (0, 2), number == 0])
        expected, state = agent.act(observation, is_first, state)
        inputs |= {name: torch.from_numpy(array) for name, array in observation.items()}
        inputs["is_first"] = torch.from_numpy(is_first)
        inputs["uniforms"] = torch.rand(ROWS, agent.config.model.groups, generator=draws)
        inputs["action_noise"] = agent.behaviour.actor.draw_noise(draws, ROWS)
        inputs |= dict(zip(OUTPUTS, step(inputs), strict=True))
        same(inputs["action"], torch.from_numpy(expected))
        same(inputs["deter"], state.deter)
        same(inputs["stoch"], state.stoch)


def equal(one: Tensor, other: Tensor) -> None:
    assert torch.equal(one, other)


def close(one: Tensor, other: Tensor) -> None:
    assert_close(one, other, REORDERED)


def test_a_program_of_one_step_gives_the_agents_actions_bit_for_bit() -> None:
    """Discrete actions, drawn; examples/ exports the most likely of continuous ones."""
    agent = made_agent(action=tiny.DISCRETE)
    check_acts_alike(agent, PolicyStep(agent), equal)
    # made with two environments, it serves three
    check_acts_alike(agent, export_policy(agent).module(), equal)


def test_the_step_of_a_policy_has_weights_of_its_own() -> None:
    agent = made_agent(updates=0)
    step = PolicyStep(agent)
    inputs = step.example_inputs()
    before = step(inputs)
    agent.update(tiny.batch(SEEN, tiny.CONTINUOUS))
    assert all(map(torch.equal, step(inputs), before))
    assert not any(weight.requires_grad for weight in step.parameters())


@pytest.mark.parametrize("action", [tiny.CONTINUOUS, tiny.DISCRETE], ids=["normal", "one-hot"])
def test_an_onnx_file_gives_the_agents_actions(action: object, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    agent, path = made_agent(action=action), tmp_path / "policy.onnx"  # type: ignore[arg-type]
    export_onnx(agent, path)
    session = runtime.InferenceSession(str(path))

    def step(inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        given = {name: tensor.numpy() for name, tensor in inputs.items()}
        names = [f"next_{name}" for name in OUTPUTS]
        return tuple(map(torch.from_numpy, session.run(names, given)))

    check_acts_alike(agent, step, close)


def test_a_missing_onnx_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "find_spec", lambda _: None)
    message = r"ONNX files need onnx and onnxscript, .*pip install 'mudreamer-fast\[export\]'"
    with pytest.raises(ConfigError, match=message):
        export_onnx(made_agent(updates=0), tmp_path / "policy.onnx")
