"""Holds a kernel's outputs and gradients, by name, against the float64 truth of the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mudreamer_fast.kernels.device import INTERPRETED
from tests.tolerances import FUSED, FUSED_FLOOR

DEVICE = torch.device("cpu" if INTERPRETED or not torch.cuda.is_available() else "cuda")

NOISE = ("uniforms", "noise")
"""Inputs that no operation needs a gradient of."""

Inputs = Mapping[str, Tensor]
Operation = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]


def evaluate(
    operation: Operation, inputs: Inputs, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """Outputs by name, and as `grad <name>` the gradient of each floating input but the noise.

    The gradients are those of `sum(w * output)` with fixed weights w for each output.
    """
    leaves = {
        name: tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)
        for name, tensor in inputs.items()
    }
    floats = {
        name: leaf.requires_grad_()
        for name, leaf in leaves.items()
        if leaf.is_floating_point() and name not in NOISE
    }
    outputs = dict(operation(leaves))
    draw = torch.Generator().manual_seed(1)
    cotangents = {
        name: torch.randn(tensor.shape, generator=draw, dtype=torch.float64).float()
        for name, tensor in outputs.items()
        if tensor.requires_grad
    }
    loss = sum((outputs[name] * w.to(device, dtype)).sum() for name, w in cotangents.items())
    if not isinstance(loss, Tensor):
        return {name: tensor.detach() for name, tensor in outputs.items()}
    grads = torch.autograd.grad(loss, list(floats.values()), allow_unused=True)
    named = zip(floats, grads, strict=True)
    found = outputs | {f"grad {name}": grad for name, grad in named if grad is not None}
    return {name: tensor.detach() for name, tensor in found.items()}


def relative_error(actual: Tensor, truth: Tensor) -> float:
    """Frobenius norm of the difference over that of the truth, which may be zero."""
    difference = (actual.cpu().double() - truth).norm().item()
    return difference / max(truth.norm().item(), 1e-30)


def assert_agrees(
    fused: Operation, reference: Operation, inputs: Inputs, dtype: torch.dtype = torch.float32
) -> None:
    """Every output and gradient: within the table, and at most twice the reference's own error.

    Args:
        fused: the kernel's operation, from inputs by name to outputs by name.
        reference: its twin.
        inputs: by name, in float64; rounded to `dtype` once, so that all see the same numbers.
        dtype: of the fused inputs and of the reference that it is compared with.
    """
    rounded = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in inputs.items()
    }
    truth = evaluate(reference, rounded, torch.float64, torch.device("cpu"))
    own = evaluate(reference, rounded, dtype, DEVICE)
    actual = evaluate(fused, rounded, dtype, DEVICE)
    assert actual.keys() == truth.keys()
    problems = []
    for name, expected in truth.items():
        assert actual[name].shape == expected.shape, name
        assert torch.isfinite(actual[name]).all(), f"{name} has elements that are not finite"
        error = relative_error(actual[name], expected)
        limit = FUSED[dtype].gradient if name.startswith("grad ") else FUSED[dtype].output
        ours = (
            (actual[name].cpu().double() - expected).abs().max().item() if expected.numel() else 0
        )
        theirs = (own[name].cpu().double() - expected).abs().max().item() if expected.numel() else 0
        scale = expected.abs().max().item() if expected.numel() else 0
        allowed = 2 * theirs + FUSED_FLOOR[dtype] * max(scale, 1.0)
        if error > limit and ours > FUSED_FLOOR[dtype]:
            problems.append(f"{name}: relative error {error:.2e} above {limit:.0e}")
        if ours > allowed:
            problems.append(f"{name}: largest error {ours:.2e}, the reference's {theirs:.2e}")
    assert not problems, "; ".join(problems)


def on_device(value: Any) -> Any:
    """Move a tensor, or tuples of them, to where the kernels run."""
    if isinstance(value, Tensor):
        return value.to(DEVICE)
    return type(value)(*(on_device(part) for part in value))
