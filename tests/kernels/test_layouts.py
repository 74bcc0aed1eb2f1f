"""Autograd hands a gradient on in any memory layout; what it holds must be all that counts."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from mudreamer_fast import backend, selfcheck
from mudreamer_fast.selfcheck import Case
from tests.kernels.agreement import DEVICE
from tests.tolerances import REORDERED, assert_close


def expanded(tensor: Tensor) -> Tensor:
    """One number for all elements, as the gradient of a sum is."""
    return torch.full((), 0.7, device=tensor.device).expand(tensor.shape)


def spread(tensor: Tensor) -> Tensor:
    """Every second element of memory."""
    room = torch.full((*tensor.shape, 2), float("nan"), device=tensor.device)
    return room[..., 1].copy_(torch.randn(tensor.shape))


def reversed_axes(tensor: Tensor) -> Tensor:
    """The last axis strides furthest."""
    return torch.randn(tensor.shape[::-1], device=tensor.device).permute(
        *reversed(range(tensor.ndim))
    )


def gradients(
    ops: ModuleType, case: Case, wanted: Callable[[Tensor], Tensor], dense: bool
) -> dict[str, Tensor]:
    """Of every argument that has one, from gradients of the outputs in a layout or made dense."""
    leaves: dict[str, Tensor] = {}
    given = selfcheck._given(case.arguments, torch.float32, DEVICE, leaves)
    outputs = [
        tensor
        for tensor in selfcheck._named(getattr(ops, case.op)(**given)).values()
        if tensor.requires_grad
    ]
    torch.manual_seed(2)
    incoming = [wanted(tensor) for tensor in outputs]
    if dense:
        incoming = [grad.clone(memory_format=torch.contiguous_format) for grad in incoming]
    found = torch.autograd.grad(outputs, list(leaves.values()), incoming, allow_unused=True)
    return {name: grad for name, grad in zip(leaves, found, strict=True) if grad is not None}


@pytest.mark.parametrize("wanted", [expanded, spread, reversed_axes])
@pytest.mark.parametrize("name", ["fused", "persistent"])
def test_gradients_do_not_depend_on_the_layout_of_those_that_come_in(
    name: str, wanted: Callable[[Tensor], Tensor]
) -> None:
    ops = backend.load_ops(name)
    for case in selfcheck.cases():
        if name == "persistent" and case.op != "rssm_observe":
            continue
        found = gradients(ops, case, wanted, dense=False)
        expected = gradients(ops, case, wanted, dense=True)
        assert found.keys() == expected.keys()
        assert found
        for key, grad in found.items():
            assert_close(grad, expected[key], REORDERED, f"{case.name}: {key}")
