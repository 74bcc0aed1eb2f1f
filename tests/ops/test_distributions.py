from __future__ import annotations

import pytest
import torch

from mudreamer_fast.ops.distributions import (
    OneHotCategorical,
    ScaledNormal,
    bound_action,
    entropy_range,
    policy_distribution,
)
from tests.tolerances import HAND, assert_close

F64 = torch.float64


def independent_normal(out: torch.Tensor) -> torch.distributions.Distribution:
    mean, std = out[..., :3], out[..., 3:]
    std = 0.9 / (1 + torch.exp(-(std + 2))) + 0.1
    return torch.distributions.Independent(torch.distributions.Normal(torch.tanh(mean), std), 1)


def independent_one_hot(out: torch.Tensor) -> torch.distributions.Distribution:
    probs = 0.9 * out.softmax(-1) + 0.1 / out.shape[-1]
    return torch.distributions.OneHotCategorical(probs=probs)


def test_scaled_normal_agrees_with_torch_distributions() -> None:
    out = torch.randn(5, 2, 6, dtype=F64)
    ours, yardstick = ScaledNormal(out), independent_normal(out)
    action = torch.randn(5, 2, 3, dtype=F64)
    assert_close(ours.log_prob(action), yardstick.log_prob(action), HAND)
    assert_close(ours.entropy(), yardstick.entropy(), HAND)
    assert_close(ours.mode, yardstick.mean, HAND)


def test_scaled_normal_sample_is_mean_plus_std_times_noise_with_a_gradient_to_both() -> None:
    out = torch.randn(5, 6, dtype=F64, requires_grad=True)
    noise = torch.randn(5, 3, dtype=F64)
    sample = ScaledNormal(out).sample(noise)
    yardstick = independent_normal(out.detach()).base_dist
    assert_close(sample.detach(), yardstick.loc + yardstick.scale * noise, HAND)
    assert torch.autograd.gradcheck(lambda out: ScaledNormal(out).sample(noise), (out,))


def test_scaled_normal_std_stays_between_a_tenth_and_one() -> None:
    out = torch.tensor([0.0, -1e4]), torch.tensor([0.0, 1e4]), torch.tensor([0.0, 0.0])
    stds = [ScaledNormal(each).std.item() for each in out]
    # Untrained: 0.9 sigmoid(2) + 0.1.
    assert stds == pytest.approx([0.1, 1.0, 0.8927174])


def test_one_hot_categorical_agrees_with_torch_distributions() -> None:
    out = torch.randn(5, 2, 4, dtype=F64)
    ours, yardstick = OneHotCategorical(out, unimix=0.1), independent_one_hot(out)
    action = yardstick.sample()
    assert_close(ours.log_prob(action), yardstick.log_prob(action), HAND)
    assert_close(ours.entropy(), yardstick.entropy(), HAND)
    assert torch.equal(ours.mode, yardstick.mode)


def test_one_hot_categorical_draws_by_inversion_with_a_straight_through_gradient() -> None:
    out = torch.zeros(3, 4, dtype=F64, requires_grad=True)
    noise = torch.tensor([[0.0], [0.49], [0.999]], dtype=F64)
    policy = OneHotCategorical(out, unimix=0.1)
    sample = policy.sample(noise)
    assert sample.argmax(-1).tolist() == [0, 1, 3]
    direction = torch.randn(3, 4, dtype=F64)
    ours = torch.autograd.grad((sample * direction).sum(), out, retain_graph=True)
    expected = torch.autograd.grad((policy.probs * direction).sum(), out)
    assert torch.equal(ours[0], expected[0])


def test_one_hot_categorical_without_uniform_share_stays_finite_at_extreme_logits() -> None:
    out = torch.tensor([0.0, 200.0], requires_grad=True)
    policy = OneHotCategorical(out, unimix=0.0)
    loss = policy.log_prob(torch.tensor([1.0, 0.0])) + policy.entropy()
    assert loss.item() == pytest.approx(-200.0)
    # The log-probability of the class that never comes falls as the other's logit grows.
    assert torch.autograd.grad(loss, out)[0].tolist() == [1.0, -1.0]


@pytest.mark.parametrize("continuous", [True, False])
def test_entropy_range_is_that_of_extreme_policies(continuous: bool) -> None:
    low, high = entropy_range(3, continuous, unimix=0.1)
    extremes = torch.zeros(2, 6 if continuous else 3, dtype=F64)
    if continuous:
        extremes[0, 3:], extremes[1, 3:] = -1e3, 1e3
    else:
        extremes[0, 1] = 1e3
    entropy = policy_distribution(extremes, continuous, 0.1).entropy()
    assert_close(entropy, torch.tensor([low, high], dtype=F64), HAND)


def test_policy_distribution_follows_the_kind_of_action() -> None:
    out = torch.randn(5, 6)
    assert isinstance(policy_distribution(out, True, 0.01), ScaledNormal)
    assert isinstance(policy_distribution(out, False, 0.01), OneHotCategorical)


def test_bound_action_clips_with_no_gradient_through_the_scale() -> None:
    action = torch.tensor([0.5, -1.0, 4.0, -2.0, 0.0], dtype=F64, requires_grad=True)
    bounded = bound_action(action)
    assert bounded.tolist() == [0.5, -1.0, 1.0, -1.0, 0.0]
    # Inside a / 1, outside a / |a| with |a| held: gradient 1 / |a|, not 0.
    (gradient,) = torch.autograd.grad(bounded.sum(), action)
    assert gradient.tolist() == [1.0, 1.0, 0.25, 0.5, 1.0]
