"""Actor and critic, on what the world model imagines."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.twin.maths import (
    draw,
    lambda_return,
    margin,
    mixed,
    percentile,
    two_hot_loss,
    two_hot_mean,
)
from tests.twin.networks import Settings, Weights, mlp, prior, recur, state
from tests.twin.policy import Policy


@dataclass(frozen=True)
class Imagined:
    states: Tensor
    """(N, H + 1, F)."""
    actions: Tensor
    """(N, H, A)."""
    outputs: Tensor
    """(N, H, 2A or A), the actor's."""
    margin: float
    """Of the draw that came nearest to another class."""


@dataclass(frozen=True)
class Judged:
    """Losses of actor and critic, and what else an update makes of the rollouts."""

    actor_loss: Tensor
    critic_loss: Tensor
    low: Tensor
    high: Tensor
    metrics: dict[str, Tensor]
    imagined: Imagined


def through_dynamics(behaviour: Settings, continuous: bool) -> bool:
    chosen = behaviour["actor_gradient"]
    return continuous if chosen == "auto" else chosen == "dynamics"


def imagine(
    world: Weights,
    w: Weights,
    deter: Tensor,
    stoch: Tensor,
    draws: dict[str, Tensor],
    model: Settings,
    behaviour: Settings,
    continuous: bool,
) -> Imagined:
    """`a_t ~ pi(a | sg(s_t))`, `s_{t+1} ~ p(s | s_t, a_t)`, from N starts."""
    h, z = deter, stoch
    states, actions, outputs, margins = [state(h, z)], [], [], []
    for t in range(behaviour["horizon"]):
        out = mlp(w, "actor", states[-1].detach(), model)
        policy = Policy(out, continuous, model["unimix"])
        noise, uniforms = draws["action_noise"][:, t], draws["imagined_uniforms"][:, t]
        action = policy.sample(noise)
        if not through_dynamics(behaviour, continuous):
            action = action.detach()
        h = recur(world, h, z, action, model)
        probs = mixed(prior(world, h, model), model["unimix"])
        z = draw(probs, uniforms)
        states.append(state(h, z))
        actions.append(action)
        outputs.append(out)
        margins += [policy.margin(noise), margin(probs, uniforms)]
    return Imagined(
        torch.stack(states, 1), torch.stack(actions, 1), torch.stack(outputs, 1), min(margins)
    )


def behaviour_losses(
    world: Weights,
    w: Weights,
    imagined: Imagined,
    is_terminal: Tensor,
    model: Settings,
    behaviour: Settings,
    continuous: bool,
) -> Judged:
    """Losses on rollouts; `world` and `w` are the weights of the world model and the behaviour.

    Args:
        is_terminal: (N,), whether the episode ended where a rollout starts.
    """
    s = imagined.states
    reward = two_hot_mean(mlp(world, "reward", s, model))
    cont = torch.sigmoid(mlp(world, "cont", s, model)[..., 0])
    cont = torch.cat([1 - is_terminal.double()[:, None], cont[:, 1:]], 1)
    value = two_hot_mean(mlp(w, "critic", s, model))
    never = torch.zeros_like(cont, dtype=torch.bool)
    discount = behaviour["discount"]
    returns = lambda_return(reward, cont, value, never, discount, behaviour["lam"])[:, :-1]
    weight = [cont[:, 0].detach()]
    for t in range(1, behaviour["horizon"]):
        weight.append(weight[-1] * discount * cont[:, t].detach())
    weights = torch.stack(weight, 1)

    decay = behaviour["return_decay"]
    low = decay * w["scale.low"] + (1 - decay) * percentile(returns, 0.05)
    high = decay * w["scale.high"] + (1 - decay) * percentile(returns, 0.95)
    scale = (high - low).clamp(min=1)
    advantage = (returns - value[:, :-1]) / scale

    policy = Policy(imagined.outputs, continuous, model["unimix"])
    if through_dynamics(behaviour, continuous):
        gain = advantage
    else:
        gain = policy.log_prob(imagined.actions.detach()) * advantage.detach()
    entropy = policy.entropy()
    actor_loss = -(weights * (gain + behaviour["entropy_scale"] * entropy)).mean()

    own = mlp(w, "critic", s.detach(), model)[:, :-1]
    slow = two_hot_mean(mlp(w, "slow_critic", s.detach(), model))[:, :-1]
    each = two_hot_loss(own, returns) + behaviour["slow_critic_scale"] * two_hot_loss(own, slow)
    critic_loss = (weights * each).mean()
    metrics = {
        "actor_loss": actor_loss,
        "critic_loss": critic_loss,
        "entropy": entropy.mean(),
        "return": returns.mean(),
        "return_scale": scale,
        "value": value.mean(),
        "imagined_reward": reward.mean(),
        "advantage": advantage.mean(),
    }
    return Judged(actor_loss, critic_loss, low, high, metrics, imagined)
