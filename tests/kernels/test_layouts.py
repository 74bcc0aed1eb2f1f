"""Autograd hands a gradient on in any memory layout; what it holds must be all that counts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mudreamer_fast.backend import load, selfcheck
from tests.kernels.agreement import DEVICE
from tests.tolerances import REORDERED, assert_close


def expanded(tensor: Tensor) -> Tensor:
    """One number for all elements, as the gradient of a sum is."""
    return torch.full((), 0.7, device=tensor.device).expand(tensor.shape)


def spread(tensor: Tensor) -> Tensor:
    """Every second element of memory, the last axis striding furthest."""
    room = torch.full((*reversed(tensor.shape), 2), float("nan"), device=tensor.device)
    return room[..., 1].permute(*reversed(range(tensor.ndim))).copy_(torch.randn(tensor.shape))


@pytest.mark.parametrize("name", ["fused", "persistent"])
def test_gradients_do_not_depend_on_the_layout_of_those_that_come_in(name: str) -> None:
    ops = load.load_ops(name)
    for case in selfcheck.cases():
        if name == "persistent" and case.op != "rssm_observe":
            continue
        leaves: dict[str, Tensor] = {}
        given = selfcheck._given(case.arguments, torch.float32, DEVICE, leaves)
        results = selfcheck._named(getattr(ops, case.op)(**given)).values()
        outputs = [tensor for tensor in results if tensor.requires_grad]
        for first in (0, 1):
            layouts = [(expanded, spread)[(first + i) % 2] for i in range(len(outputs))]
            incoming = [layout(tensor) for layout, tensor in zip(layouts, outputs, strict=True)]
            dense = [grad.clone(memory_format=torch.contiguous_format) for grad in incoming]
            found, expected = (
                torch.autograd.grad(
                    outputs, list(leaves.values()), grads, retain_graph=True, allow_unused=True
                )
                for grads in (incoming, dense)
            )
            for leaf, grad, twin in zip(leaves, found, expected, strict=True):
                where = f"{case.name}, {layouts[0].__name__} first: gradient of {leaf}"
                assert (grad is None) == (twin is None), where
                if grad is not None and twin is not None:
                    assert_close(grad, twin, REORDERED, where)
            assert any(grad is not None and grad.any() for grad in found)
