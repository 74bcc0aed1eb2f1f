"""What acts is what learned: copies follow in everything, and draw where they should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mudreamer_fast.acting import Acting
from mudreamer_fast.agent import Agent
from mudreamer_fast.ops.signatures import State
from tests import tiny, tiny_run
from tests.tiny_run import start, step
from tests.tolerances import DRAWN_STD

SEEN = {"image": tiny.IMAGE, "vector": tiny.VECTOR}
ACTIONS = {"continuous": tiny.CONTINUOUS, "discrete": tiny.DISCRETE}
MODES = ("sample", "mode")
ROWS = 3


def made_agent(
    action: str, placement: str = "both", seen: tuple[str, ...] = tuple(SEEN), **model: Any
) -> Agent:
    agent = Agent(
        tiny.config({"batch_norm": placement, "learning_rate": 1e-2} | model),
        {name: SEEN[name] for name in seen},
        ACTIONS[action],
        torch.device("cpu"),
    )
    for module in (agent.world_model, agent.behaviour):
        tiny.randomise(module)
    return agent


def observation(acting: Acting, rows: int) -> dict[str, np.ndarray]:
    shapes = {name: SEEN[name] for name in acting._observations}
    batch = tiny.batch(shapes, tiny.CONTINUOUS, rows, steps=1)
    return {name: batch[name][:, 0] for name in shapes}


def act(acting: Acting, mode: str, seed: int = 0, rows: int = ROWS) -> tuple[np.ndarray, Any]:
    """The second step of an episode, and the state after it."""
    state, given = acting.initial_state(rows, seed), observation(acting, rows)
    for is_first in (True, False):
        action, state = acting.act(given, np.full(rows, is_first), state, mode)  # type: ignore[arg-type]
    return action, state


def everything(acting: Acting) -> dict[str, Tensor]:
    """Copies of all that acting depends on, by name."""
    parts = {"encoder": acting._encoder, "rssm": acting._rssm, "actor": acting._actor}
    return {
        f"{part}.{name}": tensor.clone()
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }


def different(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("placement", ["posterior", "encoder", "both", "none"])
def test_a_copy_keeps_its_weights_until_it_follows_in_every_one(
    action: str, placement: str
) -> None:
    agent = made_agent(action, placement, free_nats=0.0)
    copy = agent.acting.apart()
    before = everything(copy)
    assert not different(before, everything(agent.acting))
    agent.update(tiny.batch(SEEN, ACTIONS[action]))
    # Nothing that acting depends on stayed as it was, running statistics among it.
    assert different(before, everything(agent.acting)) == before.keys()
    assert not different(before, everything(copy))
    copy.follow(agent.acting)
    assert not different(everything(copy), everything(agent.acting))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("action", ACTIONS)
def test_a_copy_acts_as_before_until_it_follows_and_then_as_the_learner(
    action: str, mode: str
) -> None:
    agent = made_agent(action)
    copy = agent.acting.apart()
    old, old_state = act(copy, mode)
    for seed in range(3):
        agent.update(tiny.batch(SEEN, ACTIONS[action], seed=seed))
    again, _ = act(copy, mode)
    np.testing.assert_array_equal(again, old)
    new, new_state = act(agent.acting, mode)
    assert not torch.equal(new_state.deter, old_state.deter)
    copy.follow(agent.acting)
    followed, followed_state = act(copy, mode)
    np.testing.assert_array_equal(followed, new)
    assert torch.equal(followed_state.deter, new_state.deter)
    assert torch.equal(followed_state.stoch, new_state.stoch)


def test_a_copy_that_follows_in_weights_alone_would_act_otherwise() -> None:
    """The comparison above can fail: the running statistics matter to what is done."""
    agent = made_agent("continuous")
    agent.update(tiny.batch(SEEN, tiny.CONTINUOUS))
    copy = agent.acting.apart()
    for name, buffer in copy._parts.named_buffers():
        buffer.fill_(1.0 if name.endswith("var") else 0.0)
    assert not np.array_equal(act(copy, "mode", rows=64)[0], act(agent.acting, "mode", rows=64)[0])


@pytest.mark.parametrize("action", ACTIONS)
def test_only_sampled_actions_depend_on_the_draws_where_the_latents_do_not(action: str) -> None:
    agent = made_agent(action, unimix=0.0)
    with torch.no_grad():  # a posterior that is sure of the first class
        agent.world_model.rssm.posterior_out.bias.view(-1, 5)[:, 0] = 1e3
    sampled, likely = ([act(agent.acting, mode, seed, 8) for seed in (1, 2)] for mode in MODES)
    assert torch.equal(sampled[0][1].stoch, sampled[1][1].stoch)
    assert not np.array_equal(sampled[0][0], sampled[1][0])
    np.testing.assert_array_equal(likely[0][0], likely[1][0])


@pytest.mark.parametrize("mode", MODES)
def test_latents_are_drawn_in_either_mode(mode: str) -> None:
    agent = made_agent("continuous")
    (_, one), (_, again), (_, other) = (act(agent.acting, mode, seed, 8) for seed in (1, 1, 2))
    assert torch.equal(one.stoch, again.stoch)
    assert not torch.equal(one.stoch, other.stoch)


@pytest.mark.parametrize("action", ACTIONS)
def test_evaluation_takes_the_mode_of_the_policy_in_the_state_it_believes(action: str) -> None:
    agent = made_agent(action)
    given, state = act(agent.acting, "mode")
    mode = agent.behaviour.actor(State(state.deter, state.stoch).feature).mode.detach().numpy()
    np.testing.assert_array_equal(given, mode)


def test_sampled_actions_spread_as_the_policy_says() -> None:
    agent = made_agent("continuous", seen=("vector",))
    with torch.no_grad():  # mean 0; std 0.9 sigmoid(q + 2) + 0.1 of q = -4 and -5
        agent.behaviour.actor.mlp.out.weight.zero_()
        agent.behaviour.actor.mlp.out.bias.copy_(torch.tensor([0.0, 0.0, -4.0, -5.0]))
    given, _ = act(agent.acting, "sample", rows=4000)
    expected = [0.9 / (1 + np.exp(2)) + 0.1, 0.9 / (1 + np.exp(3)) + 0.1]
    np.testing.assert_allclose(given.std(0), expected, rtol=DRAWN_STD.relative)
    assert np.abs(given.mean(0)).max() < 5 * max(expected) / 4000**0.5


def test_a_run_acts_with_the_weights_from_before_the_updates_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_run.patch_envs(monkeypatch)
    with start(tiny_run.config(overlap="on"), tmp_path) as run:
        acted: list[dict[str, Tensor]] = []
        record = Acting.act

        def noted(self: Acting, *arguments: Any) -> Any:
            assert self is run.learner.acting
            acted.append(everything(self))
            return record(self, *arguments)

        monkeypatch.setattr(Acting, "act", noted)
        step(run, 9)  # the prefill
        assert acted == []
        at_start = everything(run.agent.acting)
        jobs = 0
        for _ in range(12):
            run.count(run.collector.collect(1))
            assert not different(acted[-1], at_start)
            run.lessons.finish()
            learned = everything(run.agent.acting)
            run.learn(run.agent.update)
            if run.learner._job is not None:
                jobs += 1
                assert different(learned, at_start) or jobs == 1
                at_start = learned
        assert jobs > 3
