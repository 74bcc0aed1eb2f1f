"""A row's results are its own: whatever stands in other rows, its bits stay the same."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from mudreamer_fast import kernels, reference
from mudreamer_fast.kernels import tiles
from tests.kernels import test_batchnorm_posterior as batch_norm
from tests.kernels import test_lambda_return as returns
from tests.kernels import test_layernorm_gru as cell
from tests.kernels import test_linear_norm_act as layers
from tests.kernels import test_rssm_imagine as rollouts
from tests.kernels import test_rssm_observe as sequences
from tests.kernels.agreement import DEVICE, evaluate

# Other rows overflow, and are no numbers.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

ROWS = 5
WILD, KEPT = [1, 3], [0, 2, 4]
NEIGHBOURS = [(1e6, 1e8), (float("inf"), float("nan"))]
"""How large the elements of the wild rows are."""
SHARED = ("mean", "var", "batch_mean", "batch_var")
"""Outputs that are made of all rows."""

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """An operation that treats rows apart."""

    inputs: Callable[[], Inputs]
    rows: tuple[str, ...]
    """Inputs that have the rows first, and can be of any size."""
    call: Callable[[Any, Inputs], Inputs]
    """Outputs of the operation of `kernels` or of `reference`, from the inputs."""
    only: tuple[ModuleType, ...] = (kernels, reference)


def logits(*names: str) -> Callable[[], Inputs]:
    def made() -> Inputs:
        return {
            "uniforms": torch.rand(ROWS, 3, dtype=torch.float64),
            **{name: 3 * torch.randn(ROWS, 3, 5, dtype=torch.float64) for name in names},
        }

    return made


def bins() -> Inputs:
    return {
        "logits": torch.randn(ROWS, 21, dtype=torch.float64),
        "target": torch.randn(ROWS, dtype=torch.float64),
    }


def lambda_return(ops: Any, given: Inputs) -> Inputs:
    first = torch.zeros(ROWS, 4, dtype=torch.bool, device=given["value"].device)
    first[2, 2] = True
    series = (given[name] for name in ("reward", "cont", "value"))
    return {"return": ops.lambda_return(*series, 0.9, 0.8, first)}


def observe(name: str, norm: str, *only: ModuleType) -> Case:
    return Case(
        lambda: sequences.inputs(ROWS, 2),
        ("embed", "action", "deter", "stoch"),
        lambda ops, given: sequences.call(getattr(ops, name), given, norm),
        only or (kernels, reference),
    )


def imagine(continuous: bool, *rows: str) -> Case:
    def call(ops: Any, given: Inputs) -> Inputs:
        out = rollouts.call(ops.rssm_imagine, given, continuous, False)
        # Only the actor's weights, which all rows share, have a gradient.
        return {name: tensor.detach() for name, tensor in out.items()}

    return Case(lambda: rollouts.inputs(ROWS, 2, 2, continuous, 1), ("deter", "stoch", *rows), call)


CASES = {
    "linear_norm_act": Case(
        lambda: layers.inputs((ROWS,), 7, 33),
        ("x",),
        lambda ops, given: {"y": ops.linear_norm_act(given["x"], layers.layer(given), 1e-3)},
    ),
    "layernorm_gru": Case(
        lambda: cell.inputs((ROWS,), 7, 19),
        ("u", "h"),
        lambda ops, given: {
            "h": ops.layernorm_gru(given["u"], given["h"], cell.layer(given), 1e-3)
        },
    ),
    "batchnorm_posterior, running": Case(
        lambda: batch_norm.inputs(ROWS, 33),
        ("x",),
        lambda ops, given: batch_norm.call(ops.batchnorm_posterior, given, False),
    ),
    "categorical_sample": Case(
        logits("logits"),
        ("logits",),
        lambda ops, given: {"z": ops.categorical_sample(given["logits"], given["uniforms"], 0.01)},
    ),
    "categorical_entropy": Case(
        logits("logits"),
        ("logits",),
        lambda ops, given: {"entropy": ops.categorical_entropy(given["logits"], 0.01)},
    ),
    "categorical_kl": Case(
        logits("q", "p"),
        ("q", "p"),
        lambda ops, given: {"kl": ops.categorical_kl(given["q"], given["p"], 0.01)},
    ),
    "two_hot_loss": Case(
        bins,
        ("logits", "target"),
        lambda ops, given: {"loss": ops.two_hot_loss(given["logits"], given["target"])},
    ),
    "two_hot_mean": Case(
        bins,
        ("logits",),
        lambda ops, given: {"scalar": ops.two_hot_mean(given["logits"])},
    ),
    "lambda_return": Case(
        lambda: returns.inputs(ROWS, 4), ("reward", "cont", "value"), lambda_return
    ),
    "rssm_observe, running": observe("rssm_observe", "running"),
    "rssm_observe, layer": observe("rssm_observe", "layer"),
    "rssm_observe_persistent, running": observe("rssm_observe_persistent", "running", kernels),
    "rssm_observe_persistent, layer": observe("rssm_observe_persistent", "layer", kernels),
    "rssm_imagine, continuous": imagine(True, "noise"),
    "rssm_imagine, discrete": imagine(False),
}


def beside(case: Case, ops: Any, given: Inputs, sizes: tuple[float, ...]) -> Inputs:
    """Outputs, and gradients of the inputs, beside rows of these sizes (none: as they are).

    Where rows are wild, so is what is asked of their outputs.
    """
    asked = torch.ones(ROWS, dtype=torch.float64)
    given = {name: t.detach().clone() for name, t in given.items()}
    for row, size in zip(WILD, sizes, strict=False):
        asked[row] = size
        for name in case.rows:
            given[name][row] = size * torch.randn_like(given[name][row])

    def call(given: Inputs) -> Inputs:
        outputs = case.call(ops, given)
        weight = given["asked"].detach()
        return {
            name: out * weight.view(-1, *[1] * (out.dim() - 1))
            for name, out in outputs.items()
            if name not in SHARED
        }

    found = evaluate(call, given | {"asked": asked}, torch.float32, DEVICE)
    of_weights = {f"grad {name}" for name in given if name not in case.rows}
    return {name: tensor[KEPT] for name, tensor in found.items() if name not in of_weights}


@pytest.mark.parametrize(
    ("name", "ops"),
    [
        pytest.param(name, ops, id=f"{name}, {ops.__name__.split('.')[-1]}")
        for name, case in CASES.items()
        for ops in case.only
    ],
)
def test_rows_do_not_depend_on_their_neighbours(
    name: str, ops: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Few enough that one takes several rows.
    monkeypatch.setattr(tiles, "REDUCTION_PROGRAMS", 2)
    case = CASES[name]
    run = functools.partial(beside, case, ops, case.inputs())
    alone = run(())
    moved = []
    for sizes in NEIGHBOURS:
        found = run(sizes)
        assert found.keys() == alone.keys()
        moved += [(sizes, name) for name in alone if not torch.equal(alone[name], found[name])]
    assert moved == []
