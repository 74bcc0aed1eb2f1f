"""The world model learns a small world whose every answer is known."""

from __future__ import annotations

import functools
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mudreamer_fast import reference
from mudreamer_fast.ops.signatures import Observed
from mudreamer_fast.optim import move_average
from mudreamer_fast.world_model import WorldModel
from tests import tiny
from tests.learning.training import MARGIN, train
from tests.tolerances import KNOWS_WORLD

PLACES, STEPS, DISCOUNT = 5, 4, 0.8
UPDATES = 200
REWARD = torch.tensor([0.0, 2.0, -3.0, 0.0, 1.0])
"""Of arriving at each place."""
ENDS = PLACES - 1
"""The place where episodes end."""
Part = Literal["prior", "reward", "continue", "value", "action"]
PARTS: tuple[Part, ...] = ("prior", "reward", "continue", "value", "action")


def walks(rows: int) -> dict[str, Tensor]:
    """Walks from place to place, each to the last, with a lamp that an action turns on or off.

    Episodes begin anywhere, and may be cut short.
    """
    place = torch.randint(0, PLACES, (rows, STEPS))
    is_first = torch.rand(rows, STEPS) < 0.1
    is_first[:, 0] = True
    for t in range(1, STEPS):
        is_first[:, t] |= place[:, t - 1] == ENDS
        place[:, t] = torch.where(is_first[:, t], place[:, t], place[:, t - 1] + 1)
    action = (torch.randint(0, 2, (rows, STEPS, 1)) * 2.0 - 1).masked_fill(is_first[..., None], 0)
    shown = torch.cat([F.one_hot(place, PLACES), action], -1)
    return {
        "vector": shown + 0.05 * torch.randn_like(shown),
        "action": action,
        "reward": REWARD[place].masked_fill(is_first, 0.0),
        "is_first": is_first,
        "is_terminal": place == ENDS,
        "place": place,
    }


def true_values() -> Tensor:
    """What is still to come at each place but the last (4,)."""
    values = [REWARD[ENDS]]
    for place in reversed(range(1, ENDS)):
        values.insert(0, REWARD[place] + DISCOUNT * values[0])
    return torch.stack(values)


def shortfall(prediction: Tensor, target: Tensor) -> float:
    """Squared error as a share of the target's variance."""
    return (F.mse_loss(prediction, target) / target.var()).item()


@functools.cache
def errors(scrambled: Part | None = None) -> dict[Part, float]:
    """Train on walks, and see what is known of new ones: shares of what an ignorant guess misses.

    Args:
        scrambled: the part whose gradients are mixed up; what predicts is the prior and the
            recurrence before it, which would learn to serve any prior.
    """
    model = WorldModel(
        tiny.model_config(deter=16, hidden=32, bins=41, free_nats=0.0, representation_scale=0.0),
        tiny.behaviour_config(discount=DISCOUNT),
        {"vector": (PLACES + 1,)},
        1,
        True,
        reference,
    )
    assert model.action is not None
    parts: dict[Part, list[torch.nn.Module]] = {
        "prior": [model.rssm.input, model.rssm.gru, model.rssm.prior_hidden, model.rssm.prior_out],
        "reward": [model.reward],
        "continue": [model.cont],
        "value": [model.value],
        "action": [model.action],
    }
    groups = model.config.groups

    def loss() -> Tensor:
        move_average(model.slow_value, model.value, 0.9)
        return model.loss(walks(24), torch.rand(24, STEPS, groups)).total

    train(loss, [model], UPDATES, 1e-2, parts[scrambled] if scrambled else [])
    model.eval()
    with torch.no_grad():
        return known(model, walks(256))


def known(model: WorldModel, batch: dict[str, Tensor]) -> dict[Part, float]:
    """The errors of a model's parts on a batch."""
    is_first, place = batch["is_first"], batch["place"]
    embed = model.encoder(batch)
    seen: Observed = model.rssm.observe(
        embed, batch["action"], is_first, torch.rand(*is_first.shape, model.config.groups)
    )
    feature = seen.state.feature
    previous = seen.previous.feature
    later = ~is_first
    # An ignorant prior would give each latent's distribution over all walks.
    overall = seen.posterior.softmax(-1).flatten(0, 1).mean(0).log().expand_as(seen.prior)
    kl = functools.partial(reference.categorical_kl, unimix=model.config.unimix)
    goes_on = (~batch["is_terminal"]).float()
    assert model.action is not None
    guess = model.action(torch.cat([embed, previous], -1)).mode
    value = model.value.mean(model.value(feature))
    goes = place < ENDS
    return {
        "prior": (
            kl(seen.posterior, seen.prior)[later].mean() / kl(seen.posterior, overall)[later].mean()
        ).item(),
        "reward": shortfall(model.reward.mean(model.reward(feature)), batch["reward"]),
        "continue": shortfall(model.cont.probability(feature), goes_on),
        "value": shortfall(value[goes], true_values()[place[goes]]),
        "action": shortfall(guess[later], batch["action"][later]),
    }


@pytest.mark.parametrize("part", PARTS)
def test_world_model_learns_a_small_world(part: Part) -> None:
    assert errors()[part] < KNOWS_WORLD


def test_world_model_with_scrambled_gradients_of_what_predicts_foresees_nothing() -> None:
    assert errors("prior")["prior"] > MARGIN * KNOWS_WORLD
