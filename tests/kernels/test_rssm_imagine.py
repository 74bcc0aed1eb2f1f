from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mudreamer_fast import kernels, reference
from mudreamer_fast.ops.signatures import Linear, MlpWeights, NormLinear, RssmWeights
from tests import tiny
from tests.kernels.agreement import (
    DEVICE,
    assert_agrees,
    evaluate,
    on_device,
    rounded,
    settled,
    tf32,
)
from tests.tolerances import FUSED_TF32, Agreement

DETER, HIDDEN, GROUPS, CLASSES = 9, 12, 3, 5
UNIMIX = 0.01
PRIOR = (
    "prior_hidden.weight", "prior_hidden.norm_weight", "prior_hidden.norm_bias", "prior_out.weight",
    "prior_out.bias",
)  # fmt: skip


def inputs(
    rows: int, horizon: int, actions: int, continuous: bool, layers: int = 2
) -> dict[str, Tensor]:
    """Starts, noise and weights by name; the weights' names are `tiny.named_tensors`'s."""
    outputs = 2 * actions if continuous else actions
    weights = tiny.rssm_weights(DETER, HIDDEN, 1, actions, GROUPS, CLASSES)
    actor = tiny.mlp_weights(DETER + GROUPS * CLASSES, HIDDEN, layers, outputs)
    noise = torch.randn if continuous else torch.rand
    return {
        "deter": torch.randn(rows, DETER, dtype=torch.float64).tanh(),
        "stoch": torch.eye(CLASSES, dtype=torch.float64)[torch.randint(CLASSES, (rows, GROUPS))],
        "uniforms": torch.rand(rows, horizon, GROUPS, dtype=torch.float64),
        noise_name(continuous): noise(
            rows, horizon, actions if continuous else 1, dtype=torch.float64
        ),
        **tiny.named_tensors(weights, "model"),
        **tiny.named_tensors(actor, "actor"),
    }


def noise_name(continuous: bool) -> str:
    return "noise" if continuous else "uniforms of actions"


def regroup(given: dict[str, Tensor], prefix: str) -> list[Tensor]:
    return [tensor for name, tensor in given.items() if name.startswith(prefix)]


def call(op: Any, given: dict[str, Tensor], continuous: bool, dynamics: bool) -> dict[str, Tensor]:
    initial, *model = regroup(given, "model.")
    weights = RssmWeights(
        initial,
        NormLinear(*model[0:3]),
        NormLinear(*model[3:6]),
        NormLinear(*model[6:9]),
        Linear(*model[9:11]),
        NormLinear(*model[11:14]),
        Linear(*model[14:16]),
    )
    actor = regroup(given, "actor.")
    layers = [NormLinear(*actor[i : i + 3]) for i in range(0, len(actor) - 2, 3)]
    out = op(
        given["deter"],
        given["stoch"],
        weights,
        MlpWeights(tuple(layers), Linear(*actor[-2:])),
        given["uniforms"],
        given[noise_name(continuous)],
        continuous,
        dynamics,
        UNIMIX,
        1e-3,
    )
    return dict(out._asdict())


@pytest.mark.parametrize("dynamics", [True, False])
@pytest.mark.parametrize("continuous", [True, False])
@pytest.mark.parametrize(
    ("rows", "horizon", "actions", "layers"), [(5, 3, 2, 2), (3, 1, 1, 1), (2, 15, 3, 1)]
)
def test_rssm_imagine_agrees(
    rows: int, horizon: int, actions: int, layers: int, continuous: bool, dynamics: bool
) -> None:
    given = inputs(rows, horizon, actions, continuous, layers)
    assert_agrees(
        lambda given: call(kernels.rssm_imagine, given, continuous, dynamics),
        lambda given: call(reference.rssm_imagine, given, continuous, dynamics),
        given,
    )


def agree_on_draws_that_hold(
    continuous: bool, dynamics: bool, dtype: torch.dtype, limits: Agreement | None = None
) -> None:
    """As the test above, with noise that draws the same whatever is rounded on the way."""
    given = rounded(inputs(6, 5, 3, continuous), dtype)
    out = evaluate(
        lambda given: call(reference.rssm_imagine, given, continuous, dynamics),
        given, torch.float64, torch.device("cpu"),
    )  # fmt: skip
    prior = [given[f"model.{name}"].double() for name in PRIOR]
    hidden = reference.linear_norm_act(out["deter"][:, 1:], NormLinear(*prior[:3]), 1e-3)
    logits = (hidden @ prior[3].t() + prior[4]).unflatten(-1, (GROUPS, CLASSES))
    given["uniforms"] = settled(logits, out["stoch"][:, 1:], UNIMIX)
    if not continuous:
        given[noise_name(False)] = settled(out["policy"], out["action"], UNIMIX).unsqueeze(-1)
    assert_agrees(
        lambda given: call(kernels.rssm_imagine, given, continuous, dynamics),
        lambda given: call(reference.rssm_imagine, given, continuous, dynamics),
        given,
        dtype,
        limits,
    )


@pytest.mark.parametrize("dynamics", [True, False])
@pytest.mark.parametrize("continuous", [True, False])
def test_rssm_imagine_agrees_in_bfloat16(continuous: bool, dynamics: bool) -> None:
    agree_on_draws_that_hold(continuous, dynamics, torch.bfloat16)


@pytest.mark.gpu
def test_rssm_imagine_agrees_in_tf32() -> None:
    with tf32():
        agree_on_draws_that_hold(True, True, torch.float32, FUSED_TF32)


def test_rssm_imagine_draws_the_reference_latents_over_a_whole_rollout() -> None:
    given = inputs(16, 15, 2, True)
    mine = evaluate(
        lambda given: call(kernels.rssm_imagine, given, True, True), given, torch.float32, DEVICE
    )
    other = evaluate(
        lambda given: call(reference.rssm_imagine, given, True, True), given, torch.float32, DEVICE
    )
    assert torch.equal(mine["stoch"], other["stoch"])
    assert set(mine["stoch"].unique().tolist()) == {0.0, 1.0}


def test_rssm_imagine_gives_the_same_twice() -> None:
    given = inputs(5, 4, 2, True)
    first, second = (
        evaluate(
            lambda given: call(kernels.rssm_imagine, given, True, True),
            given, torch.float32, DEVICE,
        )
        for _ in range(2)
    )  # fmt: skip
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_rssm_imagine_takes_a_gradient_of_one_output_alone() -> None:
    given = inputs(4, 3, 2, True)
    for name in ("deter", "stoch", "action", "policy"):
        assert_agrees(
            lambda given, name=name: {name: call(kernels.rssm_imagine, given, True, True)[name]},
            lambda given, name=name: {name: call(reference.rssm_imagine, given, True, True)[name]},
            given,
        )


def test_rssm_imagine_refuses_what_it_would_misread() -> None:
    given = on_device_floats(inputs(4, 3, 2, True))
    with pytest.raises(ValueError, match=r"action_noise must end in shape \(4, 3, 2\), got"):
        call(
            kernels.rssm_imagine, given | {"noise": given["noise"][:, :2].contiguous()}, True, True
        )
    short = given | {"model.input.weight": given["model.input.weight"][:, 1:].contiguous()}
    with pytest.raises(ValueError, match=r"weights\.input must end in shape \(12, 17\), got"):
        call(kernels.rssm_imagine, short, True, True)
    with pytest.raises(ValueError, match="uniforms must be contiguous"):
        call(kernels.rssm_imagine, given | {"uniforms": given["uniforms"].mT.contiguous().mT},
             True, True)  # fmt: skip


def on_device_floats(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: on_device(tensor.float()) for name, tensor in given.items()}
