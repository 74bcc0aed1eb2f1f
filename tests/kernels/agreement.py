"""Holds a kernel's outputs and gradients, by name, against the float64 truth of the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mudreamer_fast.kernels.device import INTERPRETED
from tests.tolerances import FUSED, Agreement

DEVICE = torch.device("cpu" if INTERPRETED or not torch.cuda.is_available() else "cuda")

NOISE = ("uniforms", "uniforms of actions", "noise")
"""Inputs that no operation needs a gradient of."""

Inputs = Mapping[str, Tensor]
Operation = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]


def evaluate(
    operation: Operation, inputs: Inputs, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """Outputs by name, and as `grad <name>` the gradient of each floating input but the noise.

    The gradients are those of `sum(w * output)` with fixed weights w for each output.
    """
    leaves = {name: tensor.to(device) for name, tensor in rounded(inputs, dtype).items()}
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


def rounded(inputs: Inputs, dtype: torch.dtype) -> dict[str, Tensor]:
    """The inputs in `dtype`, but those that draw classes at least in float32, as agents do."""
    drawing = torch.promote_types(dtype, torch.float32)
    return {
        name: tensor.to(drawing if name.startswith("uniforms") else dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in inputs.items()
    }


def settled(logits: Tensor, drawn: Tensor, unimix: float) -> Tensor:
    """Uniform numbers (...) that draw the one-hot classes (..., C), as far from others as can be.

    With them, what rounds differently draws the same, and all see one sequence to its end.
    """
    probs = logits.softmax(-1) * (1.0 - unimix) + unimix / logits.shape[-1]
    return ((probs.cumsum(-1) - 0.5 * probs) * drawn).sum(-1)


@contextmanager
def tf32() -> Iterator[None]:
    """A GPU's products of float32 matrices in TF32."""
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


def relative_error(actual: Tensor, truth: Tensor) -> float:
    """Frobenius norm of the difference over that of the truth, which may be zero."""
    difference = (actual.cpu().double() - truth).norm().item()
    return difference / max(truth.norm().item(), 1e-30)


def assert_agrees(
    fused: Operation,
    reference: Operation,
    inputs: Inputs,
    dtype: torch.dtype = torch.float32,
    limits: Agreement | None = None,
) -> None:
    """Every output and gradient: within the table, and at most twice the reference's own error.

    Args:
        fused: the kernel's operation, from inputs by name to outputs by name.
        reference: its twin.
        inputs: by name, in float64; rounded to `dtype` once, so that all see the same numbers.
        dtype: of the fused inputs and of the reference that it is compared with.
        limits: another row of the table than that of the dtype.
    """
    limits = limits or FUSED[dtype]
    given = rounded(inputs, dtype)
    truth = evaluate(reference, given, torch.float64, torch.device("cpu"))
    own = evaluate(reference, given, dtype, DEVICE)
    actual = evaluate(fused, given, dtype, DEVICE)
    assert actual.keys() == truth.keys()
    problems = []
    for name, expected in truth.items():
        assert actual[name].shape == expected.shape, name
        assert torch.isfinite(actual[name]).all(), f"{name} has elements that are not finite"
        error = relative_error(actual[name], expected)
        limit = limits.gradient if name.startswith("grad ") else limits.output
        ours = (
            (actual[name].cpu().double() - expected).abs().max().item() if expected.numel() else 0
        )
        theirs = (own[name].cpu().double() - expected).abs().max().item() if expected.numel() else 0
        scale = expected.abs().max().item() if expected.numel() else 0
        allowed = 2 * theirs + limits.floor * max(scale, 1.0)
        if error > limit and ours > limits.floor:
            problems.append(f"{name}: relative error {error:.2e} above {limit:.0e}")
        if ours > allowed:
            problems.append(f"{name}: largest error {ours:.2e}, the reference's {theirs:.2e}")
    assert not problems, "; ".join(problems)


def on_device(value: Any) -> Any:
    """Move a tensor, or tuples of them, to where the kernels run."""
    if isinstance(value, Tensor):
        return value.to(DEVICE)
    return type(value)(*(on_device(part) for part in value))
