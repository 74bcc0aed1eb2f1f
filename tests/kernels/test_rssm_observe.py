from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from mudreamer_fast import kernels, reference
from mudreamer_fast.ops.signatures import BatchNormState, Linear, NormLinear, RssmWeights
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
from tests.tolerances import FUSED_SINGLE_ROW, FUSED_TF32, Agreement

DETER, HIDDEN, EMBED, ACTION, GROUPS, CLASSES = 9, 12, 7, 2, 3, 5
NORMS = ["batch", "running", "layer"]
UNIMIX = 0.01
OPS = {"by step": kernels.rssm_observe, "at once": kernels.rssm_observe_persistent}
every_op = pytest.mark.parametrize("op", OPS.values(), ids=OPS.keys())


def inputs(rows: int, steps: int) -> dict[str, Tensor]:
    """Embeddings, noise, a state to start from, and weights by `tiny.named_tensors`'s names."""
    weights = tiny.rssm_weights(DETER, HIDDEN, EMBED, ACTION, GROUPS, CLASSES)
    first = torch.zeros(rows, steps, dtype=torch.bool)
    first[0, 0] = True
    if steps > 2:
        first[-1, 2] = True
    return {
        "embed": torch.randn(rows, steps, EMBED, dtype=torch.float64),
        "action": 1.5 * torch.randn(rows, steps, ACTION, dtype=torch.float64),
        "is_first": first,
        "uniforms": torch.rand(rows, steps, GROUPS, dtype=torch.float64),
        "deter": torch.randn(rows, DETER, dtype=torch.float64).tanh(),
        "stoch": torch.eye(CLASSES, dtype=torch.float64)[torch.randint(CLASSES, (rows, GROUPS))],
        **tiny.named_tensors(weights, "model"),
    }


def rssm_weights(given: dict[str, Tensor]) -> RssmWeights:
    initial, *model = [tensor for name, tensor in given.items() if name.startswith("model.")]
    return RssmWeights(
        initial,
        NormLinear(*model[0:3]),
        NormLinear(*model[3:6]),
        NormLinear(*model[6:9]),
        Linear(*model[9:11]),
        NormLinear(*model[11:14]),
        Linear(*model[14:16]),
    )


def statistics(norm: str, like: Tensor) -> BatchNormState | None:
    if norm == "layer":
        return None
    draw = torch.Generator().manual_seed(3)
    mean, var = (torch.rand(HIDDEN, generator=draw).to(like) for _ in range(2))
    return BatchNormState(mean, 0.5 + var, norm == "batch")


def call(op: Any, given: dict[str, Tensor], norm: str) -> dict[str, Tensor]:
    return observe(op, given, statistics(norm, given["embed"]))


def observe(
    op: Any, given: dict[str, Tensor], batch_norm: BatchNormState | None
) -> dict[str, Tensor]:
    out = op(
        given["embed"],
        given["action"].detach(),
        given["is_first"],
        given["uniforms"],
        (given["deter"], given["stoch"]),
        rssm_weights(given),
        batch_norm,
        UNIMIX,
        1e-3,
    )
    return dict(out._asdict())


def agree(
    op: Any,
    given: dict[str, Tensor],
    norm: str,
    dtype: torch.dtype = torch.float32,
    limits: Agreement | None = None,
) -> None:
    assert_agrees(
        lambda given: call(op, given, norm),
        lambda given: call(reference.rssm_observe, given, norm),
        given,
        dtype,
        limits,
    )


@every_op
@pytest.mark.parametrize("norm", NORMS)
# Not two rows: there batch norm's gradient is a difference of nearly equal numbers, which PyTorch
# takes in double precision on the CPU.
@pytest.mark.parametrize(("rows", "steps"), [(3, 5), (1, 1), (5, 1), (4, 4), (18, 2)])
def test_rssm_observe_agrees(op: Any, rows: int, steps: int, norm: str) -> None:
    limits = FUSED_SINGLE_ROW if (rows, norm) == (1, "batch") else None
    agree(op, inputs(rows, steps), norm, limits=limits)


@every_op
@pytest.mark.parametrize("norm", NORMS)
def test_rssm_observe_agrees_in_bfloat16(
    op: Any, norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = of_real_scale(norm, torch.bfloat16, monkeypatch)
    agree(op, given, norm, torch.bfloat16)


@pytest.mark.gpu
@every_op
def test_rssm_observe_agrees_in_tf32(op: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given = of_real_scale("batch", torch.float32, monkeypatch)
    with tf32():
        agree(op, given, "batch", limits=FUSED_TF32)


def scaled(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with matrices as layers begin with them: outputs of order one."""
    matrices = {name: t for name, t in given.items() if name.endswith(".weight")}
    return given | {name: m.detach() / m.shape[1] ** 0.5 for name, m in matrices.items()}


def of_real_scale(
    norm: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Tensor]:
    """Layers wide enough for rounding errors to cancel, logits of order one, draws that hold."""
    for name, size in {"DETER": 45, "HIDDEN": 50}.items():
        monkeypatch.setattr(sys.modules[__name__], name, size)
    given = rounded(scaled(inputs(8, 4)), dtype)
    out = evaluate(
        lambda given: call(reference.rssm_observe, given, norm),
        given, torch.float64, torch.device("cpu"),
    )  # fmt: skip
    return given | {"uniforms": settled(out["posterior"], out["stoch"], UNIMIX)}


@every_op
def test_rssm_observe_agrees_where_a_column_of_the_batch_is_constant(op: Any) -> None:
    given = inputs(4, 3)
    weight = given["model.posterior_hidden.weight"].detach().clone()
    weight[0] = 0.0
    weight[1] *= 0.03  # a variance about that of the norm's eps
    given["model.posterior_hidden.weight"] = weight
    agree(op, given, "batch")


@every_op
def test_rssm_observe_draws_the_reference_latents_over_a_long_sequence(op: Any) -> None:
    given = inputs(4, 16)
    mine, other = (
        evaluate(lambda given, op=op: call(op, given, "batch"), given, torch.float32, DEVICE)
        for op in (op, reference.rssm_observe)
    )
    assert torch.equal(mine["stoch"], other["stoch"])


@every_op
def test_rssm_observe_reads_resets_that_lie_by_step(op: Any) -> None:
    given = inputs(3, 4)
    agree(op, given | {"is_first": given["is_first"].t().contiguous().t()}, "batch")


@every_op
def test_rssm_observe_gives_the_same_twice(op: Any) -> None:
    given = inputs(3, 4)
    first, second = (
        evaluate(lambda given: call(op, given, "batch"), given, torch.float32, DEVICE)
        for _ in range(2)
    )
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@every_op
@pytest.mark.parametrize(
    "name", ["deter", "stoch", "posterior", "previous_deter", "previous_stoch"]
)
def test_rssm_observe_takes_a_gradient_of_one_output_alone(op: Any, name: str) -> None:
    assert_agrees(
        lambda given: {name: call(op, given, "batch")[name]},
        lambda given: {name: call(reference.rssm_observe, given, "batch")[name]},
        inputs(3, 4),
    )


def test_rssm_initial_agrees() -> None:
    given = {name: t for name, t in inputs(2, 2).items() if name.startswith("model.")}

    def start(op: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(zip(("deter", "stoch"), op(rssm_weights(given), GROUPS, 1e-3), strict=True))

    assert_agrees(
        lambda given: start(kernels.rssm_initial, given),
        lambda given: start(reference.rssm_initial, given),
        given,
    )


def test_rssm_observe_refuses_what_it_would_misread() -> None:
    given = {
        name: on_device(tensor.float() if tensor.is_floating_point() else tensor)
        for name, tensor in inputs(3, 4).items()
    }
    short = given["uniforms"][:, :3].contiguous()
    with pytest.raises(ValueError, match=r"uniforms must end in shape \(3, 4, 3\), got"):
        call(kernels.rssm_observe, given | {"uniforms": short}, "batch")
    with pytest.raises(ValueError, match=r"is_first must be bool of shape \(3, 4\), got"):
        call(kernels.rssm_observe, given | {"is_first": given["is_first"].int()}, "batch")
    with pytest.raises(ValueError, match="embed must be contiguous"):
        call(kernels.rssm_observe, given | {"embed": given["embed"].mT.contiguous().mT}, "batch")
