"""Actor and critic find the known optimum of a world that is written out here."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mudreamer_fast import reference
from mudreamer_fast.actor_critic import ActorCritic
from mudreamer_fast.imagination import Trajectory
from mudreamer_fast.ops.distributions import bound_action
from mudreamer_fast.optim import move_average
from tests import tiny
from tests.learning.training import MARGIN, adam
from tests.tolerances import KNOWS_BEST_ACTION, KNOWS_RETURN

Gradient = Literal["dynamics", "reinforce"]
DISCOUNT = 0.8
UPDATES = 250
STAKES = (1.0, 3.0)
"""What rewards are multiplied by, all along a trajectory."""
RADIUS = 0.8
"""Of the circle that the best continuous actions lie on."""
WAYS: list[tuple[bool, Gradient]] = [
    (True, "dynamics"),
    (True, "reinforce"),
    (False, "dynamics"),
    (False, "reinforce"),
]


class World:
    """Each step shows an angle; the next one pays for what the action made of it.

    Features (N, 6 + A): the angle now, the angle before and the last action, and the stakes. The
    best action is the point at twice the angle, or the one of three arms that is nearest to it.

    Args:
        continuous: points of the plane, or three arms.
    """

    def __init__(self, continuous: bool) -> None:
        self.continuous = continuous
        self.actions = 2 if continuous else 3
        self.features = 6 + self.actions
        self.best_reward = 1.0 if continuous else 3 / math.pi * math.sin(math.pi / 3)

    def start(self, rows: int) -> Tensor:
        stake = F.one_hot(torch.arange(rows) % 2, 2).float()
        return torch.cat([self.angle(rows), torch.zeros(rows, 2 + self.actions), stake], -1)

    def angle(self, rows: int) -> Tensor:
        angle = torch.rand(rows) * 2 * math.pi
        return torch.stack([angle.cos(), angle.sin()], -1)

    def step(self, feature: Tensor, action: Tensor) -> Tensor:
        return torch.cat([self.angle(len(feature)), feature[:, :2], action, feature[:, -2:]], -1)

    def payoff(self, angle: Tensor, action: Tensor) -> Tensor:
        """What an action (..., A) is worth at an angle (..., 2), at stakes of one."""
        if self.continuous:
            x, y = angle.unbind(-1)
            best = RADIUS * torch.stack([x * x - y * y, 2 * x * y], -1)
            return 1 - (action - best).square().sum(-1) / RADIUS**2
        arm = torch.arange(3) * (2 * math.pi / 3)
        return (action * (angle @ torch.stack([arm.cos(), arm.sin()]))).sum(-1)

    def reward(self, feature: Tensor) -> Tensor:
        """Reward (...) of arriving at features (..., F)."""
        stake = feature[..., -2:] @ torch.tensor(STAKES)
        return stake * self.payoff(feature[..., 2:4], feature[..., 4 : 4 + self.actions])


def roll_out(world: World, behaviour: ActorCritic, rows: int, steps: int) -> Trajectory:
    """What `imagine` gives, of the world itself."""
    actor = behaviour.actor
    feature, action, policy = [world.start(rows)], [], []
    noise = actor.draw_noise(torch.default_generator, rows, steps)
    for t in range(steps):
        policy.append(actor.mlp(feature[-1].detach()))
        action.append(actor.distribution(policy[-1]).sample(noise[:, t]))
        taken = bound_action(action[-1])
        feature.append(
            world.step(feature[-1], taken if behaviour.through_dynamics else taken.detach())
        )
    features = torch.stack(feature, 1)
    weight = DISCOUNT ** torch.arange(steps + 1.0).expand(rows, -1)
    return Trajectory(
        features,
        torch.stack(action, 1),
        torch.stack(policy, 1),
        world.reward(features),
        torch.ones(rows, steps + 1),
        weight,
    )


class Errors(NamedTuple):
    """What is wrong with a behaviour."""

    action: float
    """What the most likely action misses, as a share of what the best action is worth."""
    value: float
    """Squared error of the critic, as a share of its target's variance."""


def errors(
    continuous: bool, gradient: Gradient, scrambled: Literal["", "actor", "critic"] = ""
) -> Errors:
    """Train actor and critic as the agent does, and see what they know of new states."""
    world = World(continuous)
    behaviour = ActorCritic(
        tiny.model_config(hidden=32, bins=41),
        tiny.behaviour_config(actor_gradient=gradient, discount=DISCOUNT, slow_critic_decay=0.9),
        world.features,
        world.actions,
        continuous,
        reference,
    )
    actor, critic = (
        adam([part], 1e-2, [part] if scrambled == name else [])
        for name, part in (("actor", behaviour.actor), ("critic", behaviour.critic))
    )
    for _ in range(UPDATES):
        loss = behaviour.loss(roll_out(world, behaviour, 64, 3))
        actor_gradients = actor.gradients(loss.actor, retain_graph=True)
        critic.step(loss.critic)
        actor.apply(actor_gradients)
        move_average(behaviour.slow_critic, behaviour.critic, behaviour.config.slow_critic_decay)
    with torch.no_grad():
        feature = roll_out(world, behaviour, 512, 2).feature[:, 1]
        gained = world.payoff(feature[:, :2], behaviour.actor(feature).mode).mean()
        known = (feature[:, -2:] @ torch.tensor(STAKES)) * world.best_reward / (1 - DISCOUNT)
        value = behaviour.critic.mean(behaviour.critic(feature))
    return Errors(
        1 - (gained / world.best_reward).item(),
        (F.mse_loss(value, known) / known.var()).item(),
    )


@pytest.mark.parametrize(("continuous", "gradient"), WAYS)
def test_actor_finds_the_best_actions_and_critic_what_they_are_worth(
    continuous: bool, gradient: Gradient
) -> None:
    found = errors(continuous, gradient)
    assert found.action < KNOWS_BEST_ACTION
    assert found.value < KNOWS_RETURN


def test_actor_with_scrambled_gradients_does_not() -> None:
    assert errors(True, "dynamics", scrambled="actor").action > MARGIN * KNOWS_BEST_ACTION


def test_critic_with_scrambled_gradients_does_not() -> None:
    assert errors(False, "reinforce", scrambled="critic").value > MARGIN * KNOWS_RETURN
