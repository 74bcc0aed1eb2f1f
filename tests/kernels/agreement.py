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

VANISHED = 1e-12
"""What float64 may leave of a zero."""

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


def largest(x: Tensor) -> float:
    """The largest size of any element, NaN where one is NaN."""
    return x.abs().max().item() if x.numel() else 0.0


def disagreement(
    actual: Tensor, truth: Tensor, theirs: float, limit: float, floor: float
) -> str | None:
    """What is wrong with a tensor, if anything.

    Args:
        actual: what a kernel gave.
        truth: in float64.
        theirs: the largest error of the reference.
        limit: of the relative error of the whole.
        floor: error of an element that is never too large, as a share of the largest element;
            as it is, where the truth is zero.
    """
    if not torch.isfinite(actual).all():
        return "has elements that are not finite"
    ours, scale = largest(actual.cpu().double() - truth), largest(truth)
    floor *= scale if scale > VANISHED else 1.0
    error = relative_error(actual, truth)
    if error > limit and ours > floor:
        return f"relative error {error:.2e} above {limit:.0e}"
    if ours > 2 * theirs + floor:
        return f"largest error {ours:.2e}, the reference's {theirs:.2e}"
    return None


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
        limit = limits.gradient if name.startswith("grad ") else limits.output
        theirs = largest(own[name].cpu().double() - expected)
        found = disagreement(actual[name], expected, theirs, limit, limits.floor)
        if found:
            problems.append(f"{name}: {found}")
    assert not problems, "; ".join(problems)


def on_device(value: Any) -> Any:
    """Move a tensor, or tuples of them, to where the kernels run."""
    if isinstance(value, Tensor):
        return value.to(DEVICE)
    return type(value)(*(on_device(part) for part in value))
