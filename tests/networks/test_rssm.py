from __future__ import annotations

import pytest
import torch

from mudreamer_fast import reference
from mudreamer_fast.networks import Rssm
from mudreamer_fast.ops.signatures import Observed, State
from tests import tiny
from tests.tolerances import HAND, assert_close

EMBED, ACTION, ROWS, STEPS = 6, 2, 3, 5


def made_rssm(**overrides: object) -> Rssm:
    return Rssm(tiny.model_config(**overrides), EMBED, ACTION, reference).double()


def observe(rssm: Rssm) -> Observed:
    """The same sequences every time."""
    draw = torch.Generator().manual_seed(3)
    is_first = torch.zeros(ROWS, STEPS, dtype=torch.bool)
    is_first[:, 0] = True
    return rssm.observe(
        torch.randn(ROWS, STEPS, EMBED, generator=draw, dtype=torch.float64),
        torch.randn(ROWS, STEPS, ACTION, generator=draw, dtype=torch.float64),
        is_first,
        torch.rand(ROWS, STEPS, rssm.config.groups, generator=draw, dtype=torch.float64),
    )


def test_features_are_the_recurrent_state_then_the_latents() -> None:
    deter, stoch = torch.randn(4, 2, 3), torch.randn(4, 2, 5, 7)
    feature = State(deter, stoch).feature
    assert torch.equal(feature[..., :3], deter)
    assert torch.equal(feature[..., 3 + 7 * 2 : 3 + 7 * 3], stoch[..., 2, :])


def test_rssm_running_statistics_move_in_training_only() -> None:
    rssm = made_rssm()
    rssm.eval()
    observe(rssm)
    assert (rssm.running.mean == 0).all()
    assert (rssm.running.var == 1).all()
    rssm.train()
    seen = observe(rssm)
    # The law of total variance over steps of equally many rows, unbiased; momentum 0.1.
    pooled = seen.batch_var.mean(0) + seen.batch_mean.var(0, correction=0)
    pooled = pooled * (ROWS * STEPS) / (ROWS * STEPS - 1)
    assert_close(rssm.running.mean, 0.1 * seen.batch_mean.mean(0), HAND)
    assert_close(rssm.running.var, 0.9 + 0.1 * pooled, HAND)


def test_rssm_running_statistics_follow_each_step_when_asked() -> None:
    rssm = made_rssm(batch_norm_update="step")
    seen = observe(rssm)
    mean = torch.zeros(7, dtype=torch.float64)
    for step in seen.batch_mean:
        mean = 0.9 * mean + 0.1 * step
    assert_close(rssm.running.mean, mean, HAND)


def test_rssm_normalises_with_rows_in_training_and_averages_in_evaluation() -> None:
    rssm = made_rssm()
    training = observe(rssm).posterior
    first_eval = observe(rssm.eval()).posterior
    assert not torch.allclose(training, first_eval)
    # Training does not read the averages: they have moved, its posterior has not.
    assert torch.equal(observe(rssm.train()).posterior, training)


@pytest.mark.parametrize("update", ["pooled", "step"])
def test_rssm_trains_with_running_statistics_when_asked(update: str) -> None:
    rssm = made_rssm(batch_norm_statistics="running", batch_norm_update=update)
    training = observe(rssm)
    # It normalises with the averages of before the batch, which then move.
    fresh = made_rssm(batch_norm_statistics="running")
    fresh.load_state_dict(rssm.state_dict() | {
        "running.mean": torch.zeros(7), "running.var": torch.ones(7),
    })  # fmt: skip
    evaluation = observe(fresh.eval())
    assert torch.equal(training.posterior, evaluation.posterior)
    assert (rssm.running.mean != 0).all()
    ours = torch.autograd.grad(training.posterior.square().sum(), rssm.posterior_hidden.weight)
    expected = torch.autograd.grad(
        evaluation.posterior.square().sum(), fresh.posterior_hidden.weight
    )
    assert_close(ours[0], expected[0], HAND)


@pytest.mark.parametrize(
    ("placement", "batch_norm"),
    [("posterior", True), ("both", True), ("encoder", False), ("none", False)],
)
def test_rssm_has_batch_norm_only_where_it_is_asked_for(placement: str, batch_norm: bool) -> None:
    rssm = made_rssm(batch_norm=placement)
    assert (rssm.running is not None) is batch_norm
    assert observe(rssm).batch_mean.shape == (STEPS, 7 if batch_norm else 0)
