from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mudreamer_fast.reference import two_hot_loss, two_hot_mean
from tests.tolerances import HAND, REORDERED, ZERO_HEAD, assert_close

F64 = torch.float64

# Five bins at -20, -10, 0, 10, 20, with these probabilities.
PROBS = (0.1, 0.2, 0.3, 0.15, 0.25)
LOGITS = torch.tensor([math.log(p) + 1.7 for p in PROBS], dtype=F64)


def two_hot(target: float, bins: int) -> np.ndarray:
    """The target's vector, found by searching the bins."""
    places = [-20 + 40 * k / (bins - 1) for k in range(bins)]
    y = math.copysign(math.log(abs(target) + 1), target)
    vector = np.zeros(bins)
    if y <= -20 or y >= 20:
        vector[0 if y < 0 else -1] = 1.0
        return vector
    above = next(k for k, place in enumerate(places) if place > y)
    share = (y - places[above - 1]) / (places[above] - places[above - 1])
    vector[above], vector[above - 1] = share, 1 - share
    return vector


def test_two_hot_loss_matches_hand_worked_numbers() -> None:
    # symlog(e^5 - 1) = 5, half way between the bins at 0 and 10.
    half = two_hot_loss(LOGITS, torch.tensor(math.exp(5) - 1, dtype=F64)).item()
    assert half == pytest.approx(-0.5 * math.log(0.3) - 0.5 * math.log(0.15), abs=1e-12)
    # symlog = -17.5: a quarter of the way from the bin at -20 to that at -10.
    left = two_hot_loss(LOGITS, torch.tensor(1 - math.exp(17.5), dtype=F64)).item()
    assert left == pytest.approx(-0.75 * math.log(0.1) - 0.25 * math.log(0.2), abs=1e-12)
    zero = two_hot_loss(LOGITS, torch.tensor(0.0, dtype=F64)).item()
    assert zero == pytest.approx(-math.log(0.3), abs=1e-12)


@pytest.mark.parametrize("bins", [3, 41, 255])
def test_two_hot_loss_equals_the_cross_entropy_to_a_built_vector(bins: int) -> None:
    edge = math.exp(20) - 1
    targets = [0.0, 1.0, -1.0, 1e-9, 0.37, -1e3, 12345.6, edge, -edge, 1e12, -1e12]
    logits = torch.randn(len(targets), bins, dtype=F64)
    vectors = torch.tensor(np.stack([two_hot(target, bins) for target in targets]))
    expected = -(vectors * (logits - logits.exp().sum(-1, keepdim=True).log())).sum(-1)
    assert_close(two_hot_loss(logits, torch.tensor(targets, dtype=F64)), expected, HAND)


def test_two_hot_loss_of_a_target_that_is_no_number_is_none_and_leaves_others_alone() -> None:
    targets = torch.tensor([math.exp(5) - 1, math.nan], dtype=F64)
    loss = two_hot_loss(LOGITS.expand(2, 5), targets)
    assert loss[0].item() == pytest.approx(-0.5 * math.log(0.3) - 0.5 * math.log(0.15), abs=1e-12)
    assert loss[1].isnan()


def test_two_hot_mean_matches_hand_worked_numbers() -> None:
    # -2 - 2 + 0 + 1.5 + 5 = 2.5 in symlog space.
    assert two_hot_mean(LOGITS).item() == pytest.approx(math.exp(2.5) - 1, rel=1e-13)
    assert two_hot_mean(LOGITS.flip(0)).item() == pytest.approx(1 - math.exp(2.5), rel=1e-13)


def test_two_hot_mean_of_a_target_vector_is_the_target() -> None:
    targets = torch.tensor([0.0, 1.0, -0.4, 31.0, -950.0, 1e7], dtype=F64)
    vectors = torch.tensor(np.stack([two_hot(target, 255) for target in targets.tolist()]))
    assert_close(two_hot_mean(vectors.log()), targets, HAND)


@pytest.mark.parametrize("bins", [3, 41, 255])
def test_two_hot_mean_of_equal_logits_is_zero(bins: int) -> None:
    mean = two_hot_mean(torch.full((5, 3, bins), -0.7))
    assert_close(mean, torch.zeros(5, 3), ZERO_HEAD)


def test_two_hot_loss_sends_no_gradient_to_the_target() -> None:
    logits = torch.randn(5, 41, requires_grad=True)
    target = torch.zeros(5, requires_grad=True)
    loss = two_hot_loss(logits, target).sum()
    gradients = torch.autograd.grad(loss, (logits, target), allow_unused=True)
    expected = logits.softmax(-1).detach()
    expected[:, 20] -= 1.0  # the bin of zero
    assert_close(gradients[0], expected, REORDERED)
    assert gradients[1] is None


def test_two_hot_gradients_match_finite_differences() -> None:
    logits = torch.randn(3, 7, dtype=F64, requires_grad=True)
    target = torch.tensor([0.0, 5e6, -2.0], dtype=F64)
    assert torch.autograd.gradcheck(lambda logits: two_hot_loss(logits, target), (logits,))
    # Small logits keep the mean of order one, where differences are exact enough.
    assert torch.autograd.gradcheck(lambda logits: two_hot_mean(logits * 0.1), (logits,))
