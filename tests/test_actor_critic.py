from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mudreamer_fast.actor_critic import ActorCritic, ReturnScale
from mudreamer_fast.imagination import Trajectory
from mudreamer_fast.world_model import WorldModel
from tests import tiny
from tests.reference import plain_rssm
from tests.test_imagination import DISCOUNT, HORIZON, made_parts, starts, trajectory_of
from tests.tolerances import FINITE_DIFFERENCE, HAND, PLAIN_LOOP, assert_close

F64 = torch.float64


def configured(**behaviour: object) -> Callable[[bool], tuple[WorldModel, ActorCritic]]:
    config = tiny.behaviour_config(discount=DISCOUNT, **behaviour)
    return lambda continuous: made_parts(continuous, config)


def returns_of(trajectory: Trajectory, value: Tensor, lam: float = 0.95) -> Tensor:
    """Lambda-returns (N, H), row by row in plain numbers that keep their gradient."""
    returns = [value[:, -1]]
    for t in reversed(range(value.shape[1] - 1)):
        future = (1 - lam) * value[:, t + 1] + lam * returns[0]
        discounted = DISCOUNT * trajectory.cont[:, t + 1] * future
        returns.insert(0, trajectory.reward[:, t + 1] + discounted)
    return torch.stack(returns[:-1], 1)


def scale_of(returns: Tensor) -> float:
    """`max(1, P95 - P5)` after one update from zero, with decay 0.99."""
    ordered = returns.detach().flatten().sort().values

    def percentile(share: float) -> float:
        place = share * (len(ordered) - 1)
        below = math.floor(place)
        low, high = ordered[below].item(), ordered[min(below + 1, len(ordered) - 1)].item()
        return low + (place - below) * (high - low)

    return max(1.0, 0.01 * (percentile(0.95) - percentile(0.05)))


@pytest.mark.parametrize("continuous", [True, False])
def test_reinforce_gradient_is_the_weighted_advantage_times_the_score(continuous: bool) -> None:
    model, behaviour = configured(actor_gradient="reinforce", entropy_scale=0.3)(continuous)
    trajectory = trajectory_of(model, behaviour, continuous, through_dynamics=False)
    loss = behaviour.loss(trajectory).actor
    parameters = list(behaviour.actor.parameters())
    ours = torch.autograd.grad(loss, parameters, retain_graph=True)

    value = behaviour.critic.mean(behaviour.critic(trajectory.feature)).detach()
    returns = returns_of(trajectory, value).detach()
    advantage = (returns - value[:, :-1]) / scale_of(returns)
    out = behaviour.actor.mlp(trajectory.feature[:, :-1])
    if continuous:
        mean, std = out.chunk(2, -1)
        std = 0.9 * (std + 2).sigmoid() + 0.1
        yardstick = torch.distributions.Independent(torch.distributions.Normal(mean.tanh(), std), 1)
    else:
        probs = 0.99 * out.softmax(-1) + 0.01 / 3
        yardstick = torch.distributions.OneHotCategorical(probs=probs)
    gain = yardstick.log_prob(trajectory.action) * advantage + 0.3 * yardstick.entropy()
    expected_loss = -(trajectory.weight[:, :-1] * gain).mean()
    assert_close(loss.detach(), expected_loss.detach(), PLAIN_LOOP)
    expected = torch.autograd.grad(expected_loss, parameters)
    for (name, _), a, b in zip(behaviour.actor.named_parameters(), ours, expected, strict=True):
        assert_close(a, b, PLAIN_LOOP, name)


@pytest.mark.parametrize("continuous", [True, False])
def test_dynamics_gradient_equals_that_of_rollouts_written_out(continuous: bool) -> None:
    model, behaviour = configured(actor_gradient="dynamics", entropy_scale=0.3)(continuous)
    loss = behaviour.loss(trajectory_of(model, behaviour, continuous)).actor
    parameters = list(behaviour.actor.parameters())
    ours = torch.autograd.grad(loss, parameters, retain_graph=True)

    given = starts(continuous)
    rollout = plain_rssm.imagine(
        given["deter"], given["stoch"], model.rssm.tensors(), behaviour.actor.mlp.tensors(),
        given["uniforms"], given["action_noise"], continuous, True, 0.01, 1e-3,
    )  # fmt: skip
    feature = torch.cat([rollout["deter"], rollout["stoch"].flatten(2)], 2)
    expected_loss = dynamics_loss(model, behaviour, feature, rollout["policy"], continuous)
    assert_close(loss.detach(), expected_loss.detach(), PLAIN_LOOP)
    expected = torch.autograd.grad(expected_loss, parameters)
    for (name, _), a, b in zip(behaviour.actor.named_parameters(), ours, expected, strict=True):
        assert (b != 0).any(), name
        assert_close(a, b, PLAIN_LOOP, name)


def dynamics_loss(
    model: WorldModel,
    behaviour: ActorCritic,
    feature: Tensor,
    policy: Tensor,
    continuous: bool,
    scale: float | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """The actor's loss of states and raw policies; scale and weights may be held."""
    bins = torch.linspace(-20, 20, 21, dtype=F64)

    def mean(logits: Tensor) -> Tensor:
        y = (logits.softmax(-1) * bins).sum(-1)
        return y.sign() * (y.abs().exp() - 1)

    value = mean(behaviour.critic(feature))
    first = 1.0 - starts()["is_terminal"].to(F64)
    cont = torch.cat([first[:, None], torch.sigmoid(model.cont(feature))[:, 1:]], 1)
    trajectory = Trajectory(
        feature, policy, policy, mean(model.reward(feature)), cont, torch.empty(0)
    )
    returns = returns_of(trajectory, value)
    if weight is None:
        steps = [first]
        for t in range(1, HORIZON):
            steps.append(steps[-1] * DISCOUNT * cont[:, t].detach())
        weight = torch.stack(steps, 1)
    if continuous:
        std = 0.9 * torch.sigmoid(policy.chunk(2, -1)[1] + 2) + 0.1
        entropy = (std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)
    else:
        probs = 0.99 * policy.softmax(-1) + 0.01 / 3
        entropy = -(probs * probs.log()).sum(-1)
    advantage = (returns - value[:, :-1]) / (scale or scale_of(returns))
    return -(weight * (advantage + 0.3 * entropy)).mean()


@pytest.mark.parametrize("continuous", [True, False])
def test_dynamics_gradient_equals_finite_differences_of_the_smooth_surrogate(
    continuous: bool,
) -> None:
    """Holds the draws, and differentiates numerically what the straight-through rule claims.

    With draws `d`, base probabilities `p0` and base inputs of the actor held, the latents
    `d + p - p0` are smooth in the actor's weights, equal the draws at the base, and have there
    the straight-through derivative.
    """
    model, behaviour = configured(actor_gradient="dynamics", entropy_scale=0.3)(continuous)
    trajectory = trajectory_of(model, behaviour, continuous)
    result = behaviour.loss(trajectory)
    parameters = list(behaviour.actor.parameters())
    gradients = torch.autograd.grad(result.actor, parameters)
    given, groups = starts(continuous), model.config.groups
    weights, actor = model.rssm.tensors(), behaviour.actor.mlp.tensors()
    seen = trajectory.feature.detach()
    deter_size = model.rssm.deter_size
    draws = seen[..., deter_size:].unflatten(-1, (groups, -1))
    scale = result.metrics["return_scale"].item()
    base: dict[str, list[Tensor]] = {"latent": [], "action": []}

    def surrogate(record: bool = False) -> Tensor:
        h, z = given["deter"], given["stoch"]
        states, policies = [seen[:, 0]], []
        for t in range(HORIZON):
            out = plain_rssm.mlp(seen[:, t], actor, 1e-3)
            policies.append(out)
            if continuous:
                mean, std = out.chunk(2, -1)
                std = 0.9 * torch.sigmoid(std + 2) + 0.1
                action = mean.tanh() + std * given["action_noise"][:, t]
                if record:
                    base["action"].append(action)
                # The bound's scale carries no gradient, so it is held as well.
                action = action / base["action"][t].abs().clamp(min=1.0)
            else:
                probs = plain_rssm.probabilities(out, 0.01)
                if record:
                    base["action"].append(probs)
                action = trajectory.action[:, t].detach() + probs - base["action"][t]
            h = plain_rssm.recur(h, z, action, weights, 1e-3)
            probs = plain_rssm.probabilities(
                plain_rssm.prior_logits(h, weights, groups, 1e-3), 0.01
            )
            if record:
                base["latent"].append(probs)
            z = draws[:, t + 1] + probs - base["latent"][t]
            states.append(torch.cat([h, z.flatten(1)], 1))
        feature, policy = torch.stack(states, 1), torch.stack(policies, 1)
        return dynamics_loss(
            model, behaviour, feature, policy, continuous, scale, trajectory.weight[:, :-1]
        )

    with torch.no_grad():
        assert_close(surrogate(record=True), result.actor.detach(), PLAIN_LOOP)
        for _ in range(5):
            direction = [torch.randn_like(parameter) for parameter in parameters]
            size = torch.stack([part.square().sum() for part in direction]).sum().sqrt()
            direction = [part / size for part in direction]
            slope = torch.stack(
                [(g * d).sum() for g, d in zip(gradients, direction, strict=True)]
            ).sum()
            step, values = 1e-5, []
            for sign in (1, -1):
                for parameter, part in zip(parameters, direction, strict=True):
                    parameter.add_(part, alpha=sign * step)
                values.append(surrogate())
                for parameter, part in zip(parameters, direction, strict=True):
                    parameter.sub_(part, alpha=sign * step)
            assert_close(slope, (values[0] - values[1]) / (2 * step), FINITE_DIFFERENCE)


def test_critic_loss_is_the_cross_entropy_to_returns_and_to_its_own_average() -> None:
    model, behaviour = configured(slow_critic_scale=0.7)(True)
    trajectory = trajectory_of(model, behaviour)
    found = behaviour.loss(trajectory).critic
    feature = trajectory.feature.detach()
    logits = behaviour.critic(feature)
    returns = returns_of(trajectory, behaviour.critic.mean(logits)).detach()
    slow = behaviour.slow_critic.mean(behaviour.slow_critic(feature)).detach()

    def cross_entropy(target: Tensor) -> Tensor:
        place = (target.sign() * (target.abs() + 1).log() + 20) / 2  # 21 bins, 2 apart
        distance = (place[..., None] - torch.arange(21)).abs()
        vector = (1 - distance).clamp(min=0)  # a tent over the two nearest bins
        return -(vector * logits[:, :-1].log_softmax(-1)).sum(-1)

    each = cross_entropy(returns) + 0.7 * cross_entropy(slow[:, :-1])
    expected = (trajectory.weight[:, :-1] * each).mean()
    assert_close(found.detach(), expected.detach(), HAND)
    parameters = list(behaviour.critic.parameters())
    ours = torch.autograd.grad(found, parameters, retain_graph=True)
    for a, b in zip(ours, torch.autograd.grad(expected, parameters), strict=True):
        assert_close(a, b, PLAIN_LOOP)


@pytest.mark.parametrize("continuous", [True, False])
def test_reinforce_sends_no_gradient_to_the_critic(continuous: bool) -> None:
    model, behaviour = configured(actor_gradient="reinforce")(continuous)
    trajectory = trajectory_of(model, behaviour, continuous, through_dynamics=False)
    loss = behaviour.loss(trajectory).actor
    critic = list(behaviour.critic.parameters())
    assert all(grad is None for grad in torch.autograd.grad(loss, critic, allow_unused=True))


def test_critic_loss_does_not_move_its_own_average() -> None:
    model, behaviour = configured()(True)
    behaviour.slow_critic.requires_grad_(True)
    loss = behaviour.loss(trajectory_of(model, behaviour)).critic
    slow = list(behaviour.slow_critic.parameters())
    assert all(grad is None for grad in torch.autograd.grad(loss, slow, allow_unused=True))


@pytest.mark.parametrize("continuous", [True, False])
def test_actor_loss_rewards_entropy(continuous: bool) -> None:
    losses = {}
    for scale in (0.0, 2.0):
        torch.manual_seed(3)
        model, behaviour = configured(entropy_scale=scale)(continuous)
        trajectory = trajectory_of(model, behaviour, continuous, behaviour.through_dynamics)
        losses[scale] = behaviour.loss(trajectory).actor.detach()
    entropy = behaviour.actor.distribution(trajectory.policy).entropy().detach()
    expected = losses[0.0] - 2.0 * (trajectory.weight[:, :-1] * entropy).mean()
    assert_close(losses[2.0], expected, HAND)


@pytest.mark.parametrize(
    ("gradient", "continuous", "through_dynamics"),
    [
        ("auto", True, True),
        ("auto", False, False),
        ("dynamics", False, True),
        ("reinforce", True, False),
    ],
)
def test_actor_gradient_is_chosen_by_name_or_by_the_kind_of_action(
    gradient: str, continuous: bool, through_dynamics: bool
) -> None:
    _, behaviour = configured(actor_gradient=gradient)(continuous)
    assert behaviour.through_dynamics is through_dynamics


def test_behaviour_learns_nothing_from_where_the_episode_has_ended() -> None:
    model, behaviour = configured()(True)
    trajectory = trajectory_of(model, behaviour)
    loss = behaviour.loss(trajectory)
    policy = torch.autograd.grad(loss.actor, trajectory.policy)[0]
    ended = starts()["is_terminal"]
    assert ended.sum() == 1
    # A policy's own entropy is its only direct gradient here: none of it where the weight is 0.
    assert (policy[ended] == 0).all()
    assert (policy[~ended] != 0).any()


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=F64)


def test_return_scale_averages_the_percentiles_by_hand() -> None:
    scale = ReturnScale(decay=0.99).double()
    # The percentiles of 0, 10, ..., 1000 are 50 and 950.
    returns = 10 * torch.arange(101, dtype=F64)
    shuffled = returns[torch.randperm(101)]
    assert_close(scale.update(shuffled), scalar(0.01 * 900), HAND)
    assert_close(scale.low, scalar(0.5), HAND)
    assert_close(scale.high, scalar(9.5), HAND)
    scale.update(-shuffled[None])
    assert_close(scale.low, scalar(0.99 * 0.5 - 0.01 * 950), HAND)
    assert_close(scale.high, scalar(0.99 * 9.5 - 0.01 * 50), HAND)
    assert_close(scale.scale, scale.high - scale.low, HAND)


def test_return_scale_never_scales_small_returns_up() -> None:
    scale = ReturnScale(decay=0.0)
    assert scale.update(torch.linspace(-0.1, 0.1, 33)).item() == 1.0
    assert scale.update(torch.full((1, 1), 7.0)).item() == 1.0
    assert scale.update(torch.linspace(0, 100, 101)).item() == 90.0


def test_return_scale_passes_over_returns_that_are_not_finite() -> None:
    scale = ReturnScale(decay=0.5)
    before = scale.update(torch.linspace(0.0, 100.0, 50)).clone()
    assert torch.equal(scale.update(torch.full((50,), torch.nan)), before)
    assert scale.update(torch.linspace(0.0, 200.0, 50)) > before


def test_return_scale_carries_no_gradient_and_is_saved() -> None:
    scale = ReturnScale(decay=0.5)
    assert not scale.update(torch.randn(3, 5, requires_grad=True)).requires_grad
    assert list(scale.state_dict()) == ["low", "high"]
    assert list(scale.parameters()) == []
