"""The check of the fused operations finds them right, and finds each that is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from mudreamer_fast import kernels, reference
from mudreamer_fast.backend import selfcheck
from mudreamer_fast.backend.selfcheck import (
    Agreement,
    Case,
    Sizes,
    cases,
    check_ops,
    evaluate,
    with_clear_draws,
)
from tests.kernels.agreement import DEVICE
from tests.tolerances import FUSED

CPU = torch.device("cpu")
MARGIN = 2e-3
"""How far every draw is from another class: a thousand times the rounding of its probabilities."""

OWN = Sizes(
    rows=2, steps=5, envs=1, starts=10, horizon=4, embed=6, actions=3, bins=7, deter=8, hidden=5,
    layers=1, groups=3, classes=4, batch_norm=True,
)  # fmt: skip
"""What a run might have; its actions are of either kind."""


def with_one_changed(op: str, change: Callable[[Any], Any]) -> ModuleType:
    """The reference's operations, with something done to what one of them gives."""
    ops = ModuleType("changed")
    for name in reference.__all__:
        setattr(ops, name, getattr(reference, name))
    setattr(ops, op, change(getattr(reference, op)))
    return ops


class ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 1.001 * grads[0]


def wrong(ops: ModuleType) -> list[Agreement]:
    return [found for found in check_ops(ops, reference, CPU) if not found.ok]


def test_fused_operations_agree_with_the_reference() -> None:
    ops = [*reference.__all__, "rssm_observe_persistent"]
    found = check_ops(kernels, reference, DEVICE, ops)
    assert [str(one) for one in found if not one.ok] == []
    assert {one.op.split(",")[0] for one in found} == set(ops)


def test_limits_are_those_of_the_kernels_own_tests() -> None:
    limits = FUSED[torch.float32]
    assert (limits.output, limits.gradient) == (selfcheck.OUTPUT_LIMIT, selfcheck.GRADIENT_LIMIT)
    assert limits.floor >= selfcheck.ROUNDING  # of numbers of order one


def test_reference_in_float32_agrees_with_itself() -> None:
    assert wrong(reference) == []


@pytest.mark.parametrize("op", reference.__all__)
def test_an_output_that_is_off_is_found(op: str) -> None:
    def change(real: Any) -> Any:
        def off(*args: Any, **kwargs: Any) -> Any:
            result = real(*args, **kwargs)
            if isinstance(result, Tensor):
                return result * 1.001
            parts = (result[0] * 1.001, *result[1:])
            return type(result)(*parts) if hasattr(result, "_fields") else parts

        return off

    found = wrong(with_one_changed(op, change))
    assert found
    assert {one.op.split(",")[0] for one in found} == {op}


@pytest.mark.parametrize("op", ["rssm_observe", "rssm_imagine", "mlp", "two_hot_loss"])
def test_a_gradient_that_is_off_is_found(op: str) -> None:
    def change(real: Any) -> Any:
        def off(*args: Any, **kwargs: Any) -> Any:
            result = real(*args, **kwargs)
            if isinstance(result, Tensor):
                return ScaledGradient.apply(result)
            last = ScaledGradient.apply(result[3])
            return result._replace(**{result._fields[3]: last})

        return off

    found = wrong(with_one_changed(op, change))
    assert {one.op.split(",")[0] for one in found} == {op}
    assert all(one.worst.startswith("gradient of ") for one in found)


@pytest.mark.parametrize("op", ["linear_norm_act", "layernorm_gru", "rssm_observe", "rssm_imagine"])
def test_another_epsilon_is_found(op: str) -> None:
    def change(real: Any) -> Any:
        return lambda **arguments: real(**(arguments | {"eps": 1.1 * arguments["eps"]}))

    assert {one.op.split(",")[0] for one in wrong(with_one_changed(op, change))} == {op}


def test_what_is_not_finite_or_raises_is_found_and_told() -> None:
    found = wrong(with_one_changed("two_hot_mean", lambda real: lambda logits: real(logits) / 0))
    assert [one.op for one in found] == ["two_hot_mean"]

    def no_compiler(logits: Tensor) -> Tensor:
        raise OSError("no C compiler\nfound anywhere")

    found = wrong(with_one_changed("two_hot_mean", lambda real: no_compiler))
    assert [str(one) for one in found] == ["two_hot_mean: OSError: no C compiler"]


def test_an_output_of_another_shape_is_found() -> None:
    found = wrong(with_one_changed("two_hot_mean", lambda real: lambda logits: real(logits)[:1]))
    assert [one.op for one in found] == ["two_hot_mean"]


@pytest.mark.parametrize("shift", [-MARGIN, MARGIN])
def test_no_draw_is_so_close_that_rounding_decides(shift: float) -> None:
    for case in cases():
        names = [name for name in ("uniforms", "action_noise") if name in case.arguments]
        if case.arguments.get("continuous"):
            names.remove("action_noise")
        if not names:
            continue
        shifted = Case(case.name, **case.arguments)
        shifted.arguments |= {name: case.arguments[name] + shift for name in names}
        drawn, other = (evaluate(reference, one, torch.float64, CPU) for one in (case, shifted))
        for name in ("the output", "stoch", "action"):
            if name in drawn and not (name == "action" and case.arguments["continuous"]):
                assert torch.equal(drawn[name], other[name]), f"{case.name}: {name}"


@pytest.mark.parametrize("shift", [-0.1, 0.1])
def test_draws_at_a_runs_sizes_lie_in_the_middle_of_large_shares(shift: float) -> None:
    for raw in cases(OWN):
        case = with_clear_draws(raw, reference, CPU)
        names = [name for name in ("uniforms", "action_noise") if name in case.arguments]
        if case.arguments.get("continuous"):
            names.remove("action_noise")
        shifted = Case(case.name, **case.arguments)
        shifted.arguments |= {name: case.arguments[name] + shift for name in names}
        drawn, other = (evaluate(reference, one, torch.float64, CPU) for one in (case, shifted))
        for name in drawn.keys() & {"stoch", "action"}:
            torch.testing.assert_close(drawn[name], other[name])
        if case.op == "categorical_sample":
            assert torch.equal(drawn["the output"], other["the output"])


@pytest.mark.parametrize("tf32", [False, True])
def test_a_fault_at_a_runs_rows_alone_is_found(tf32: bool) -> None:
    def change(real: Any) -> Any:
        def off(logits: Tensor) -> Tensor:
            imagined = logits.shape[:2] == (OWN.starts, OWN.horizon)
            return real(logits) * (1.05 if imagined else 1.0)

        return off

    ops, own = with_one_changed("two_hot_mean", change), replace(OWN, tf32=tf32)
    assert wrong(ops) == []
    found = [one for one in check_ops(ops, reference, CPU, sizes=own) if not one.ok]
    assert [one.op for one in found] == ["two_hot_mean, imagined, the run's sizes"]


def test_limits_follow_the_references_own_error_and_not_for_ever() -> None:
    limit = selfcheck.OUTPUT_LIMIT
    assert selfcheck._limit("stoch", False, 0.1 * limit) == limit
    assert selfcheck._limit("stoch", False, 2 * limit) == 6 * limit
    assert selfcheck._limit("stoch", False, 1.0) == 10 * limit


def test_the_check_leaves_precision_and_generators_alone() -> None:
    before = torch.random.get_rng_state()
    torch.set_float32_matmul_precision("high")
    check_ops(reference, reference, CPU)
    assert torch.get_float32_matmul_precision() == "high"
    torch.set_float32_matmul_precision("highest")
    assert torch.equal(torch.random.get_rng_state(), before)
