from __future__ import annotations

import math

import pytest
import torch

from mudreamer_fast.ops.distributions import sample_index, unimix_probs
from mudreamer_fast.reference import categorical_entropy, categorical_kl, categorical_sample
from tests.tolerances import HAND, assert_close

F64 = torch.float64
BELOW_ONE = 1 - 2**-24
"""The largest float32 below one, and the largest that torch.rand can draw."""

# softmax(0, ln 3) = (1/4, 3/4); a tenth of the uniform (1/2, 1/2) mixed in: 0.225 + 0.05 and
# 0.675 + 0.05.
LOGITS = torch.tensor([0.0, math.log(3)], dtype=F64)
MIXED = (0.275, 0.725)


def test_unimix_probs_match_hand_worked_numbers() -> None:
    assert_close(unimix_probs(LOGITS, 0.1), torch.tensor(MIXED, dtype=F64), HAND)
    assert_close(unimix_probs(LOGITS, 0.0), torch.tensor([0.25, 0.75], dtype=F64), HAND)


@pytest.mark.parametrize(
    ("uniform", "index"),
    [(0.0, 0), (0.25 - 2**-26, 0), (0.25, 1), (0.5 - 2**-25, 1), (0.5, 2), (BELOW_ONE, 2)],
)
def test_sample_index_inverts_the_cumulative_distribution(uniform: float, index: int) -> None:
    probs = torch.tensor([0.25, 0.25, 0.5])
    assert sample_index(probs, torch.tensor(uniform)).item() == index


@pytest.mark.parametrize("uniform", [0.0, 0.5, BELOW_ONE])
def test_sample_index_never_draws_a_class_without_probability(uniform: float) -> None:
    probs = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0])
    assert sample_index(probs, torch.tensor(uniform)).item() in (1, 3)


def test_sample_index_never_draws_an_impossible_last_class_where_probabilities_round() -> None:
    probs = torch.tensor([0.25, 0.75 - 2**-20, 0.0])  # sum below one
    assert sample_index(probs, torch.tensor(BELOW_ONE)).item() == 1


def test_sample_index_stays_in_range_where_probabilities_round() -> None:
    probs = torch.rand(1000, 33).softmax(-1) * (1 - 2**-20)  # sums below one
    index = sample_index(probs, torch.full((1000,), BELOW_ONE))
    assert index.dtype == torch.int64
    assert index.max() == 32


def test_sample_index_draws_each_class_as_often_as_its_probability() -> None:
    probs = torch.tensor([0.1, 0.35, 0.05, 0.5], dtype=F64)
    grid = (torch.arange(1000, dtype=F64) + 0.5) / 1000
    counts = torch.bincount(sample_index(probs.expand(1000, 4), grid))
    assert counts.tolist() == [100, 350, 50, 500]


def test_categorical_sample_is_exactly_one_hot() -> None:
    sample = categorical_sample(torch.randn(5, 3, 7), torch.rand(5, 3), 0.01)
    assert ((sample == 0) | (sample == 1)).all()
    assert (sample.sum(-1) == 1).all()


def test_categorical_sample_has_the_gradient_of_the_probabilities() -> None:
    logits = torch.randn(5, 3, 7, dtype=F64, requires_grad=True)
    direction = torch.randn(5, 3, 7, dtype=F64)
    sample = categorical_sample(logits, torch.rand(5, 3, dtype=F64), 0.1)
    (gradient,) = torch.autograd.grad((sample * direction).sum(), logits)
    # d softmax_i / d l_j = p_i (1[i = j] - p_j), and 0.9 of it is mixed in.
    p = logits.detach().exp() / logits.detach().exp().sum(-1, keepdim=True)
    expected = 0.9 * p * (direction - (p * direction).sum(-1, keepdim=True))
    assert_close(gradient, expected, HAND)


def test_categorical_entropy_matches_hand_worked_numbers() -> None:
    mixed = -sum(p * math.log(p) for p in MIXED)
    assert categorical_entropy(LOGITS, 0.1).item() == pytest.approx(mixed, abs=1e-14)
    plain = 0.25 * math.log(4) + 0.75 * math.log(4 / 3)
    assert categorical_entropy(LOGITS, 0.0).item() == pytest.approx(plain, abs=1e-14)
    assert categorical_entropy(torch.zeros(5), 0.01).item() == pytest.approx(math.log(5))


def test_categorical_kl_matches_hand_worked_numbers() -> None:
    even = torch.zeros(2, dtype=F64)
    # KL((0.275, 0.725) || (1/2, 1/2)), and the other way round, summed over the two groups.
    forward = sum(p * math.log(p / 0.5) for p in MIXED)
    backward = sum(0.5 * math.log(0.5 / p) for p in MIXED)
    divergence = categorical_kl(torch.stack([LOGITS, even]), torch.stack([even, LOGITS]), 0.1)
    assert divergence.shape == ()
    assert divergence.item() == pytest.approx(forward + backward, abs=1e-14)


def test_categorical_kl_of_a_distribution_to_itself_is_zero() -> None:
    logits = torch.randn(3, 5, 7)
    assert (categorical_kl(logits, logits + 2.5, 0.01).abs() < 1e-6).all()


@pytest.mark.parametrize("unimix", [0.0, 0.01])
def test_categorical_kl_agrees_with_torch_distributions(unimix: float) -> None:
    q, p = torch.randn(2, 3, 5, 7, dtype=F64).unbind(0)
    mixed = [
        torch.distributions.Categorical(probs=(1 - unimix) * x.softmax(-1) + unimix / 7)
        for x in (q, p)
    ]
    expected = torch.distributions.kl_divergence(*mixed).sum(-1)
    assert_close(categorical_kl(q, p, unimix), expected, HAND)


@pytest.mark.parametrize("unimix", [0.0, 0.01])
def test_categorical_stays_finite_at_extreme_logits(unimix: float) -> None:
    # The softmax of a difference of 200 underflows to zero in float32.
    sharp = torch.tensor([[0.0, 200.0]], requires_grad=True)
    other = torch.tensor([[200.0, 0.0]], requires_grad=True)
    divergence, entropy = categorical_kl(sharp, other, unimix), categorical_entropy(sharp, unimix)
    gradients = torch.autograd.grad(divergence + entropy.sum(), (sharp, other))
    # Each knows its class but for half the uniform share, which no logit changes any more.
    rare, usual = unimix / 2, 1 - unimix / 2
    if unimix:
        expected = (usual - rare) * math.log(usual / rare)
        assert entropy.item() == pytest.approx(-rare * math.log(rare) - usual * math.log(usual))
        assert [gradient.tolist() for gradient in gradients] == [[[0, 0]], [[0, 0]]]
    else:
        expected = 200.0
        assert entropy.item() == 0
        assert [gradient.tolist() for gradient in gradients] == [[[0, 0]], [[1, -1]]]
    assert divergence.item() == pytest.approx(expected)


@pytest.mark.parametrize("unimix", [0.0, 0.1])
def test_categorical_gradients_match_finite_differences(unimix: float) -> None:
    q = torch.randn(2, 3, 5, dtype=F64, requires_grad=True)
    p = torch.randn(2, 3, 5, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q, p: categorical_kl(q, p, unimix), (q, p))
    assert torch.autograd.gradcheck(lambda q: categorical_entropy(q, unimix), (q,))
