from __future__ import annotations

from typing import Any

import pytest
import torch

from mudreamer_fast import reference
from mudreamer_fast.actor_critic import ActorCritic
from mudreamer_fast.config import BehaviourConfig
from mudreamer_fast.imagination import Trajectory, imagine
from mudreamer_fast.ops.signatures import State
from mudreamer_fast.world_model import WorldModel
from tests import tiny
from tests.tolerances import HAND, assert_close

F64 = torch.float64
STARTS, HORIZON, DISCOUNT = 5, 4, 0.9
BEHAVIOUR = tiny.behaviour_config(discount=DISCOUNT)


def made_parts(
    continuous: bool = True, behaviour: BehaviourConfig = BEHAVIOUR
) -> tuple[WorldModel, ActorCritic]:
    """A float64 world model, actor and critics with random weights everywhere."""
    config = tiny.model_config()
    size = (tiny.CONTINUOUS if continuous else tiny.DISCRETE).size
    shapes = {"vector": tiny.VECTOR.shape}
    model = WorldModel(config, behaviour, shapes, size, continuous, reference).double()
    width = model.rssm.feature_size
    actor_critic = ActorCritic(config, behaviour, width, size, continuous, reference).double()
    tiny.randomise(model)
    tiny.randomise(actor_critic)
    return model, actor_critic


def starts(continuous: bool = True) -> dict[str, Any]:
    """States, endings and noise; the same every time."""
    draw = torch.Generator().manual_seed(11)
    config = tiny.model_config()
    index = torch.randint(config.classes, (STARTS, config.groups), generator=draw)
    deter = torch.randn(STARTS, config.dimensions.deter, generator=draw, dtype=F64)
    noise = (
        torch.randn(STARTS, HORIZON, tiny.CONTINUOUS.size, generator=draw, dtype=F64)
        if continuous
        else torch.rand(STARTS, HORIZON, 1, generator=draw, dtype=F64)
    )
    return {
        "deter": deter.tanh(),
        "stoch": torch.eye(config.classes, dtype=F64)[index],
        "is_terminal": torch.tensor([False, True, False, False, False]),
        "uniforms": torch.rand(STARTS, HORIZON, config.groups, generator=draw, dtype=F64),
        "action_noise": noise,
    }


def trajectory_of(
    model: WorldModel,
    actor_critic: ActorCritic,
    continuous: bool = True,
    through_dynamics: bool = True,
) -> Trajectory:
    given = starts(continuous)
    return imagine(
        model,
        actor_critic.actor,
        State(given.pop("deter"), given.pop("stoch")),
        **given,
        config=BEHAVIOUR,
        through_dynamics=through_dynamics,
    )


def test_imagine_weights_each_state_by_the_discounted_chance_of_reaching_it() -> None:
    model, actor_critic = made_parts()
    with torch.no_grad():  # a head that always says 3/4
        model.cont.mlp.out.weight.zero_()
        model.cont.mlp.out.bias.fill_(torch.log(torch.tensor(3.0, dtype=F64)))
    trajectory = trajectory_of(model, actor_critic)
    goes_on = torch.tensor([1.0, 0.75, 0.75, 0.75, 0.75], dtype=F64)
    weight = torch.tensor([1.0, 0.675, 0.675**2, 0.675**3, 0.675**4], dtype=F64)
    for row in range(STARTS):
        # The second start is a real ending: the data, not the head, says so.
        alive = 0.0 if row == 1 else 1.0
        expected = goes_on.clone()
        expected[0] = alive
        assert_close(trajectory.cont[row].detach(), expected, HAND)
        assert_close(trajectory.weight[row], alive * weight, HAND)


def test_imagine_asks_the_heads_at_every_state() -> None:
    model, actor_critic = made_parts()
    trajectory = trajectory_of(model, actor_critic)
    assert trajectory.feature.shape == (STARTS, HORIZON + 1, model.rssm.feature_size)
    for t in range(HORIZON + 1):
        feature = trajectory.feature[:, t]
        reward = reference.two_hot_mean(model.reward(feature))
        assert_close(trajectory.reward[:, t].detach(), reward.detach(), HAND)
        if t:
            assert_close(
                trajectory.cont[:, t].detach(), model.cont(feature).sigmoid().detach(), HAND
            )


def test_imagine_starts_at_the_states_it_is_given() -> None:
    model, actor_critic = made_parts()
    given = starts()
    expected = torch.cat([given["deter"], given["stoch"].flatten(1)], 1)
    assert torch.equal(trajectory_of(model, actor_critic).feature[:, 0], expected)


@pytest.mark.parametrize("continuous", [True, False])
@pytest.mark.parametrize("through_dynamics", [True, False])
def test_imagine_gives_the_actor_a_gradient_only_through_the_dynamics(
    continuous: bool, through_dynamics: bool
) -> None:
    model, actor_critic = made_parts(continuous)
    trajectory = trajectory_of(model, actor_critic, continuous, through_dynamics)
    # The heads are not the actor's to move, but the dynamics are in the graph only if asked.
    assert trajectory.feature.requires_grad is through_dynamics
    assert trajectory.action.requires_grad is through_dynamics
    assert trajectory.policy.requires_grad
    assert not trajectory.weight.requires_grad
    gradients = torch.autograd.grad(
        trajectory.reward.sum(), list(actor_critic.actor.parameters()), allow_unused=True
    )
    assert all((gradient is not None) is through_dynamics for gradient in gradients)
    rssm = torch.autograd.grad(
        trajectory_of(model, actor_critic, continuous, through_dynamics).reward.sum(),
        list(model.rssm.parameters()),
        allow_unused=True,
    )
    assert all(gradient is None for gradient in rssm)
