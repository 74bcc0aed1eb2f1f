"""An agent in Python: loaded from a run, acting, copied, pickled."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mudreamer_fast
from mudreamer_fast.agent import Agent
from mudreamer_fast.config import Config, ConfigError
from mudreamer_fast.disk.checkpoint import CheckpointError
from mudreamer_fast.envs.vector_env import ActionSpec, ArraySpec
from mudreamer_fast.evaluate import evaluate
from mudreamer_fast.run import scoring
from mudreamer_fast.run.folder import RunFolder, write_config
from mudreamer_fast.run.stored import _specs
from tests import tiny, tiny_run
from tests.tiny_env import TinyEnv

SEEN = {"image": tiny.IMAGE, "vector": tiny.VECTOR}
ROWS = 2


def made_agent(
    seen: dict[str, ArraySpec] = SEEN, action: ActionSpec = tiny.CONTINUOUS, updates: int = 1
) -> Agent:
    agent = Agent(tiny.config({"batch_norm": "both"}), seen, action, torch.device("cpu"))
    for module in (agent.world_model, agent.behaviour):
        tiny.randomise(module)
    for seed in range(updates):
        agent.update(tiny.batch(seen, action, seed=seed))
    return agent


def observation(seen: dict[str, ArraySpec] = SEEN, seed: int = 0) -> dict[str, np.ndarray]:
    batch = tiny.batch(seen, tiny.CONTINUOUS, ROWS, steps=1, seed=seed)
    return {name: batch[name][:, 0] for name in seen}


def played(policy: Any, steps: int = 4) -> np.ndarray:
    """The actions of some steps, the second of which begins an episode in one environment."""
    firsts = [[True, True], [False, True], *[[False, False]] * (steps - 2)]
    return np.stack(
        [policy(observation(seed=k), np.array(first)) for k, first in enumerate(firsts)]
    )


def same(one: Any, other: Any) -> bool:
    """Whether two states, of tensors in nested containers, are equal bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def test_a_policy_remembers_as_the_agent_does_when_it_is_handed_its_state() -> None:
    agent = made_agent()
    state = agent.initial_state(ROWS, seed=3)

    def handed(seen: Any, is_first: Any) -> np.ndarray:
        nonlocal state
        action, state = agent.act(seen, is_first, state, "mode")
        return action

    expected = played(handed)
    np.testing.assert_array_equal(played(agent.policy(ROWS, "mode", seed=3)), expected)
    # the comparison can fail: it matters what is remembered
    forgetful = agent.policy(ROWS, "mode", seed=3)
    everywhere = [forgetful(observation(seed=k), np.array([True, True])) for k in range(4)]
    assert not np.array_equal(np.stack(everywhere), expected)


def test_a_policys_draws_are_those_of_its_seed() -> None:
    agent = made_agent()
    first, again, other = (played(agent.policy(ROWS, seed=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, played(agent.policy(ROWS, "mode", seed=1)))


def test_a_policy_follows_the_agent_that_goes_on_learning() -> None:
    agent = made_agent()
    policy, before = agent.policy(ROWS), played(agent.policy(ROWS))
    agent.update(tiny.batch(SEEN, tiny.CONTINUOUS, seed=5))
    assert not np.array_equal(played(policy), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vector": None}, r"the observation lacks vector; it has \['image'\]"),
        ({"image": np.zeros((1, 3, 64, 64), np.uint8)}, r"image must be uint8 of shape \(2, 3,"),
        ({"image": np.zeros((2, 3, 64, 64))}, r"image must be uint8 .* got float64"),
        ({"vector": [[0.0] * 3] * 2}, r"vector must be float32 of shape \(2, 3\), got list"),
        ({"is_first": np.zeros(2)}, r"is_first must be bool of shape \(2,\), got float64"),
    ],
)
def test_a_policy_refuses_what_it_was_not_made_for(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = observation() | {"is_first": np.ones(2, bool)} | change
    given = {name: array for name, array in given.items() if array is not None}
    is_first = given.pop("is_first")
    with pytest.raises(ValueError, match=message):
        made_agent(updates=0).policy(ROWS)(given, is_first)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_an_agent_and_its_policy_are_copied_whole_and_apart(copied: Any) -> None:
    agent = made_agent()
    policy = agent.policy(ROWS)
    played(policy)
    other, other_policy = copied(agent), copied(policy)
    assert same(other.state_dict(), agent.state_dict())
    np.testing.assert_array_equal(played(other_policy), played(policy))
    before = copy.deepcopy(agent.state_dict())
    batch = tiny.batch(SEEN, tiny.CONTINUOUS, seed=9)
    metrics = other.update(batch)
    assert same(agent.state_dict(), before)
    assert not same(other.state_dict(), before)
    assert agent.update(batch) == metrics
    assert same(agent.state_dict(), other.state_dict())


def test_agents_share_nothing_of_a_state_that_one_took_over_from_the_other() -> None:
    agent, other = made_agent(updates=2), made_agent(updates=0)
    other.load_state_dict(agent.state_dict())
    before = copy.deepcopy(other.state_dict())
    agent.update(tiny.batch(SEEN, tiny.CONTINUOUS, seed=7))
    assert same(other.state_dict(), before)


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny_run.patch_envs(monkeypatch)
    with tiny_run.start(tiny_run.config("both"), tmp_path / "run") as run:
        tiny_run.step(run, 15)
        run.evaluate()
        tiny_run.step(run, 6)
        run.save()
        assert run.agent.updates > 5
    return tmp_path / "run"


def test_an_agent_is_loaded_from_a_run_or_one_of_its_checkpoints(run_folder: Path) -> None:
    agent = Agent.load(run_folder, device="cpu")
    assert (agent.action_spec, set(agent.observation_spec)) == (tiny.CONTINUOUS, set(SEEN))
    best = Agent.load(run_folder, "cpu", checkpoint="best")
    assert 0 < best.updates < agent.updates
    *_, older, newest = sorted((run_folder / "checkpoint").glob("data-*"))
    for place, updates in (
        (run_folder / "checkpoint", agent.updates),
        (newest, agent.updates),
        (older, 0),
        (run_folder / "best", best.updates),
    ):
        assert Agent.load(str(place), "cpu").updates == updates
    # it scores what the command `evaluate` makes of the same checkpoint
    seeds = scoring.evaluation_seed(0), scoring.policy_seed(0)
    env = TinyEnv(2, "both", episode_length=tiny_run.EPISODE_STEPS, seed=seeds[0])
    own = evaluate(env, agent.policy(2, seed=seeds[1]), episodes=3)
    assert own.scores == scoring.score_agent(agent, episodes=3).scores
    with pytest.raises(ConfigError, match="device must be auto"):
        Agent.load(run_folder, device="tpu")


@pytest.mark.parametrize("seen", [("image",), ("vector",), ("image", "vector")])
@pytest.mark.parametrize("action", [tiny.CONTINUOUS, tiny.DISCRETE, ActionSpec(1, True)])
def test_what_an_agent_sees_and_does_is_read_off_its_weights(
    seen: tuple[str, ...], action: ActionSpec
) -> None:
    agent = made_agent({name: SEEN[name] for name in seen}, action, updates=0)
    assert _specs(agent.config, agent.state_dict()) == (agent.observation_spec, action)


@pytest.mark.parametrize(
    ("size", "width"),
    [(64, None), (84, None), (96, None), (128, None), (64, 128), (96, 64), (84, 128)],
)
def test_an_agent_of_any_image_size_learns_draws_and_is_read_off_its_weights(
    size: int, width: int | None
) -> None:
    shape = (3, size, width or size)
    seen = {"image": ArraySpec(shape, np.dtype(np.uint8))}
    config = tiny.config({"batch_norm": "both", "decoder": True})
    env = dataclasses.replace(config.env, image_size=size, image_width=width)
    config = dataclasses.replace(config, env=env)
    agent = Agent(config, seen, tiny.CONTINUOUS, torch.device("cpu"))
    batch = tiny.batch(seen, tiny.CONTINUOUS, rows=2, steps=2)
    assert all(np.isfinite(list(agent.update(batch).values())))
    assert agent.reconstruct(batch).shape == (2, 2, *shape)
    assert _specs(config, agent.state_dict()) == (seen, tiny.CONTINUOUS)


def test_what_is_no_run_is_told_in_one_line(tmp_path: Path) -> None:
    write_config(Config(), RunFolder(tmp_path).config)
    with pytest.raises(ConfigError, match=r"nowhere is not a run folder: it has no config\.json"):
        Agent.load(tmp_path.parent / "nowhere")
    for place in ("", "best", "data-3"):
        with pytest.raises(CheckpointError, match="no checkpoint in"):
            Agent.load(tmp_path / place)


@pytest.mark.parametrize(
    ("name", "home"),
    [("Agent", "agent"), ("Config", "config"), ("PRESETS", "config"), ("ReplayBuffer", "replay"),
     ("make_env", "envs")],
)  # fmt: skip
def test_the_package_gives_its_main_names_when_they_are_asked_for(name: str, home: str) -> None:
    module = importlib.import_module(f"mudreamer_fast.{home}")
    assert getattr(mudreamer_fast, name) is getattr(module, name)


def test_the_package_has_no_other_names() -> None:
    with pytest.raises(AttributeError, match="no attribute 'agents'"):
        _ = mudreamer_fast.agents
