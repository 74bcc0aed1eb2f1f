from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mudreamer_fast.ops.signatures import BatchNormState
from mudreamer_fast.reference import rssm_initial, rssm_observe
from tests import tiny
from tests.reference import plain_rssm
from tests.tolerances import HAND, PLAIN_LOOP, assert_close

F64 = torch.float64
DETER, HIDDEN, EMBED, ACTION, GROUPS, CLASSES = 5, 7, 6, 2, 3, 4
UNIMIX, EPS = 0.01, 1e-3

NORMS = {
    "layer": None,
    "batch": BatchNormState(torch.zeros(HIDDEN), torch.ones(HIDDEN), True),
    "running": BatchNormState(
        torch.linspace(-1, 1, HIDDEN, dtype=F64), torch.linspace(0.5, 2, HIDDEN, dtype=F64), False
    ),
}


def observe_arguments(rows: int, steps: int, norm: str = "batch") -> dict[str, Any]:
    """Random sequences; row 0 starts an episode, and row 1 starts another mid-sequence."""
    is_first = torch.zeros(rows, steps, dtype=torch.bool)
    is_first[0, 0] = True
    is_first[-1, steps // 2] = True
    stoch = torch.eye(CLASSES, dtype=F64)[torch.randint(CLASSES, (rows, GROUPS))]
    return {
        "embed": torch.randn(rows, steps, EMBED, dtype=F64, requires_grad=True),
        # Some beyond [-1, 1], which the model bounds.
        "action": 1.5 * torch.randn(rows, steps, ACTION, dtype=F64),
        "is_first": is_first,
        "uniforms": torch.rand(rows, steps, GROUPS, dtype=F64),
        "state": (
            torch.randn(rows, DETER, dtype=F64, requires_grad=True),
            stoch.requires_grad_(True),
        ),
        "weights": tiny.rssm_weights(DETER, HIDDEN, EMBED, ACTION, GROUPS, CLASSES),
        "batch_norm": NORMS[norm],
        "unimix": UNIMIX,
        "eps": EPS,
    }


def projected(outputs: dict[str, Tensor], directions: dict[str, Tensor]) -> Tensor:
    return torch.stack([(outputs[name] * directions[name]).sum() for name in directions]).sum()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("rows", "steps"), [(3, 5), (1, 1), (1, 4), (2, 1)])
def test_rssm_observe_matches_the_plain_loop_in_every_output_and_gradient(
    norm: str, rows: int, steps: int
) -> None:
    arguments = observe_arguments(rows, steps, norm)
    plain = plain_rssm.observe(**arguments)
    ours = rssm_observe(**arguments)._asdict()
    assert ours.keys() == plain.keys()
    for name in plain:
        assert_close(ours[name].detach(), plain[name].detach(), PLAIN_LOOP, name)

    directions = {
        name: torch.randn_like(output) for name, output in plain.items() if output.requires_grad
    }
    assert {"deter", "stoch", "posterior", "prior"} <= directions.keys()
    inputs = tiny.named_tensors(arguments["weights"])
    inputs |= {"embed": arguments["embed"]}
    inputs |= {"state.deter": arguments["state"][0], "state.stoch": arguments["state"][1]}
    values = list(inputs.values())
    expected = torch.autograd.grad(projected(plain, directions), values, allow_unused=True)
    gradients = torch.autograd.grad(projected(ours, directions), values, allow_unused=True)
    for name, ours_grad, plain_grad in zip(inputs, gradients, expected, strict=True):
        if plain_grad is None:  # the state before a reset: no path, or one that carries zeros
            assert ours_grad is None or (ours_grad == 0).all(), name
        else:
            assert_close(ours_grad, plain_grad, PLAIN_LOOP, name)


def test_rssm_observe_latents_are_exactly_one_hot() -> None:
    stoch = rssm_observe(**observe_arguments(3, 5)).stoch
    assert ((stoch == 0) | (stoch == 1)).all()
    assert (stoch.sum(-1) == 1).all()


@pytest.mark.parametrize("norm", NORMS)
def test_rssm_observe_of_many_steps_equals_single_steps_with_carried_state(norm: str) -> None:
    arguments = observe_arguments(3, 7, norm)
    whole = rssm_observe(**arguments)
    state = arguments["state"]
    for t in range(7):
        now = {
            name: arguments[name][:, t : t + 1]
            for name in ("embed", "action", "is_first", "uniforms")
        }
        step = rssm_observe(**(arguments | now | {"state": state}))
        for name in ("deter", "stoch", "posterior", "prior", "previous_deter", "previous_stoch"):
            assert_close(getattr(step, name)[:, 0], getattr(whole, name)[:, t], HAND, name)
        assert_close(step.batch_mean[0], whole.batch_mean[t], HAND)
        assert_close(step.batch_var[0], whole.batch_var[t], HAND)
        state = step.deter[:, 0], step.stoch[:, 0]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("reset", [0, 2])
def test_rssm_observe_forgets_all_that_came_before_a_reset(norm: str, reset: int) -> None:
    arguments = observe_arguments(3, 5, norm)
    # All rows are reset at once, as batch norm mixes them.
    arguments["is_first"][:, reset] = True
    before = rssm_observe(**arguments)
    with torch.no_grad():
        for part in arguments["state"]:
            part.add_(1.0)
        arguments["embed"][:, :reset] += 1.0
        arguments["action"][:, : reset + 1] += 1.0  # the action that led to a first step as well
        arguments["uniforms"][:, :reset] = 0.0
    after = rssm_observe(**arguments)
    for name in before._fields:
        steps = slice(reset, None)
        old, new = getattr(before, name), getattr(after, name)
        if name.startswith("batch"):
            assert torch.equal(old[steps], new[steps]), name
        else:
            assert torch.equal(old[:, steps], new[:, steps]), name


@pytest.mark.parametrize("norm", ["layer", "running"])
def test_rssm_observe_resets_one_row_without_touching_the_others(norm: str) -> None:
    arguments = observe_arguments(3, 5, norm)
    before = rssm_observe(**arguments)
    arguments["is_first"][1, 3] = True
    after = rssm_observe(**arguments)
    for name in ("deter", "stoch", "posterior", "prior"):
        old, new = getattr(before, name), getattr(after, name)
        assert torch.equal(old[[0, 2]], new[[0, 2]]), name
        assert torch.equal(old[1, :3], new[1, :3]), name
    assert not torch.equal(before.deter[1, 3:], after.deter[1, 3:])


def test_rssm_observe_ignores_the_action_of_a_first_step_even_if_it_is_nan() -> None:
    arguments = observe_arguments(3, 5)
    arguments["action"][arguments["is_first"]] = 0.0
    expected = rssm_observe(**arguments)
    arguments["action"][arguments["is_first"]] = torch.nan
    for name, found in rssm_observe(**arguments)._asdict().items():
        assert torch.equal(found, getattr(expected, name)), name


def test_rssm_observe_starts_episodes_from_the_learned_state() -> None:
    arguments = observe_arguments(3, 5)
    seen = rssm_observe(**arguments)
    deter, stoch = rssm_initial(arguments["weights"], GROUPS, EPS)
    assert torch.equal(deter, torch.tanh(arguments["weights"].initial))
    logits = plain_rssm.prior_logits(deter, arguments["weights"], GROUPS, EPS)
    assert torch.equal(stoch.argmax(-1), logits.argmax(-1))
    for row, step in [(0, 0), (2, 2)]:
        assert torch.equal(seen.previous_deter[row, step], deter)
        assert torch.equal(seen.previous_stoch[row, step], stoch)
    assert torch.equal(seen.previous_deter[1, 1:], seen.deter[1, :-1])


def test_rssm_observe_uses_rows_running_or_layer_statistics_as_asked() -> None:
    arguments = observe_arguments(3, 5)
    posterior = {}
    for norm, state in NORMS.items():
        seen = rssm_observe(**(arguments | {"batch_norm": state}))
        posterior[norm] = seen.posterior[:, 0]
        assert seen.batch_mean.shape == (5, HIDDEN if state else 0)
        # The first step's h does not depend on the norm, so the prior does not either.
        assert torch.equal(seen.prior[:, 0], rssm_observe(**arguments).prior[:, 0])
    assert not torch.allclose(posterior["layer"], posterior["batch"])
    assert not torch.allclose(posterior["layer"], posterior["running"])
    assert not torch.allclose(posterior["batch"], posterior["running"])
