from __future__ import annotations

import math

import pytest
import torch

from mudreamer_fast import reference
from mudreamer_fast.networks import ActionHead, ContinueHead, ScalarHead
from mudreamer_fast.ops.distributions import OneHotCategorical, ScaledNormal
from tests import tiny
from tests.tolerances import HAND, ZERO_HEAD, assert_close

WIDTH = 11


def test_scalar_head_predicts_zero_before_it_is_trained() -> None:
    head = ScalarHead(tiny.model_config(bins=255), WIDTH, reference)
    logits = head(torch.randn(5, 3, WIDTH))
    assert (logits == 0).all()
    assert_close(head.mean(logits), torch.zeros(5, 3), ZERO_HEAD)
    # Every target is as surprising as any other: ln 255.
    loss = head.loss(logits, torch.randn(5, 3))
    assert_close(loss, torch.full((5, 3), math.log(255)), ZERO_HEAD)


def test_scalar_head_has_a_gradient_from_the_first_step_on() -> None:
    head = ScalarHead(tiny.model_config(), WIDTH, reference)
    head.loss(head(torch.randn(5, WIDTH)), torch.ones(5)).mean().backward()
    assert (head.mlp.out.weight.grad != 0).any()


def test_scalar_head_frozen_copy_has_its_own_untrained_weights() -> None:
    head = ScalarHead(tiny.model_config(), WIDTH, reference)
    tiny.randomise(head)
    copy = head.frozen_copy()
    x = torch.randn(5, WIDTH)
    assert torch.equal(copy(x), head(x))
    assert not any(parameter.requires_grad for parameter in copy.parameters())
    before = copy(x)
    tiny.randomise(head)
    assert torch.equal(copy(x), before)


def test_continue_head_is_a_bernoulli_of_not_ending() -> None:
    head = ContinueHead(tiny.model_config(), WIDTH, reference).double()
    x = torch.randn(2, WIDTH, dtype=torch.float64)
    p = head.probability(x)
    assert p.shape == (2,)
    assert_close(p, 1 / (1 + torch.exp(-head(x))), HAND)
    loss = head.loss(head(x), torch.tensor([True, False]))
    assert_close(loss, -torch.stack([(1 - p[0]).log(), p[1].log()]), HAND)


@pytest.mark.parametrize("continuous", [True, False])
def test_action_head_is_an_mlp_to_a_policy(continuous: bool) -> None:
    head = ActionHead(tiny.model_config(), WIDTH, 3, continuous, reference)
    policy = head(torch.randn(5, 2, WIDTH))
    assert isinstance(policy, ScaledNormal if continuous else OneHotCategorical)
    assert policy.mode.shape == (5, 2, 3)
    assert head.noise_size == (3 if continuous else 1)


def test_action_head_of_discrete_actions_mixes_in_the_uniform_distribution() -> None:
    head = ActionHead(tiny.model_config(unimix=0.1), WIDTH, 3, False, reference)
    policy = head.distribution(torch.tensor([50.0, 0.0, 0.0]))
    assert_close(policy.probs, torch.tensor([0.9 + 0.1 / 3, 0.1 / 3, 0.1 / 3]), ZERO_HEAD)
