"""Imagined trajectories: the actor acts in the world model, whose heads judge the states."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mudreamer_fast.config import BehaviourConfig
from mudreamer_fast.networks import ActionHead
from mudreamer_fast.ops.signatures import State
from mudreamer_fast.world_model import WorldModel


@dataclass(frozen=True)
class Trajectory:
    """N imagined trajectories of H steps, the starts included."""

    feature: Tensor
    """(N, H + 1, F), model states."""
    action: Tensor
    """(N, H, A)."""
    policy: Tensor
    """(N, H, 2A or A), raw outputs of the actor on all but the last state."""
    reward: Tensor
    """(N, H + 1)."""
    cont: Tensor
    """(N, H + 1), probability of going on after each state; the first is the data's."""
    weight: Tensor
    """(N, H + 1), how much each state counts: the discounted chance that it is reached."""


def imagine(
    world_model: WorldModel,
    actor: ActionHead,
    start: State,
    is_terminal: Tensor,
    uniforms: Tensor,
    action_noise: Tensor,
    config: BehaviourConfig,
    through_dynamics: bool,
) -> Trajectory:
    """Imagine from given states (DreamerV3, arXiv 2301.04104v1, "Actor critic learning").

    Args:
        world_model: predicts states, rewards and continuations.
        actor: acts.
        start: (N,), without gradient.
        is_terminal: (N,) bool, whether the episode ended there.
        uniforms: (N, H, G), the latents' randomness.
        action_noise: (N, H, A or 1), the actions' randomness.
        config: gives the discount.
        through_dynamics: whether rewards and states carry a gradient to earlier actions.
    """
    rollout = world_model.rssm.imagine(
        start,
        actor.mlp.tensors(),
        uniforms,
        action_noise,
        actor.continuous,
        through_dynamics,
    )
    feature = rollout.state.feature
    reward = world_model.reward.mean(world_model.reward(feature))
    cont = world_model.cont.probability(feature)
    first = 1.0 - is_terminal.to(cont.dtype)
    cont = torch.cat([first[:, None], cont[:, 1:]], dim=1)
    discount = torch.cat([cont[:, :1], config.discount * cont[:, 1:]], dim=1)
    weight = discount.detach().cumprod(1)
    return Trajectory(feature, rollout.action, rollout.policy, reward, cont, weight)
