"""The least time that an operation could take: its multiplications, or the bytes it must move.

What is counted is a call of the reference: the FLOPs of its matrix products, and each tensor that
it is given or gives once, whatever it writes and reads again on the way. The device's limits are
measured beside it: a product of large matrices, and a large copy.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from bench.surroundings import DEVICE

SIDE = {"cuda": 8192, "cpu": 1024}
"""Of the matrices whose product shows how fast the device multiplies."""
COPIED_BYTES = {"cuda": 2**30, "cpu": 2**27}
ROUNDS = 10


class Limits(NamedTuple):
    """What a device does at best."""

    flops_per_second: float
    bytes_per_second: float


class Work(NamedTuple):
    """What an operation can not do without."""

    flops: int
    """Of its matrix products, two for a multiplication with its sum."""
    bytes: int
    """Of what it is given and what it gives."""

    def microseconds(self, limits: Limits) -> float:
        """The least time for it."""
        return 1e6 * max(self.flops / limits.flops_per_second, self.bytes / limits.bytes_per_second)


class Card(NamedTuple):
    """What its maker says of a GPU: dense products per second, and bytes of memory."""

    float32: float
    tf32: float
    bytes_per_second: float

    def limits(self, precision: str) -> Limits:
        """What launches come to of that, by experience."""
        flops = REACHED_FLOPS * float(getattr(self, precision))
        return Limits(flops, REACHED_BYTES * self.bytes_per_second)


CARDS = {
    "RTX 3090": Card(35.6e12, 35.6e12, 936e9),
    "RTX 4090": Card(82.6e12, 82.6e12, 1008e9),
    "A100": Card(19.5e12, 156e12, 2039e9),
    "H100": Card(66.9e12, 494.7e12, 3352e9),
}
"""By NVIDIA's white papers of the architectures GA102, AD102, GA100 and GH100; A100 and H100 as SXM
with 80 GB."""
REACHED_FLOPS, REACHED_BYTES = 0.7, 0.85
LAUNCH_MICROSECONDS = 2.3
"""From one kernel of a CUDA graph to the next, published for an H200 (te42kyfo/gpu-benches)."""


def predicted_milliseconds(work: Iterable[Work], card: Card, precision: str) -> float:
    """Time of launches one after another, each as long as the scarcest of what it takes.

    Args:
        work: of each launch.
        card: GPU.
        precision: of its products: float32 or tf32.
    """
    limits = card.limits(precision)
    return sum(max(LAUNCH_MICROSECONDS, each.microseconds(limits)) for each in work) / 1e3


class _Given(TorchDispatchMode):
    """Finds the tensors that work is given: those that it reads and has not made."""

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[int, int] = {}
        self._made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tensors((args, kwargs or {})):
            if _place(tensor) not in self._made:
                self.given[_place(tensor)] = tensor.untyped_storage().nbytes()
        result = func(*args, **(kwargs or {}))
        self._made |= {_place(tensor) for tensor in tensors(result)} - self.given.keys()
        return result


def tensors(tree: Any) -> list[Tensor]:
    """The tensors in nested containers."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def count(call: Callable[[], object]) -> Work:
    """What `call` can not do without; calls it once."""
    inputs = _Given()
    with FlopCounterMode(display=False) as flops, inputs:
        outputs = tensors(call())
    made = {_place(tensor): tensor.untyped_storage().nbytes() for tensor in outputs}
    written = sum(size for place, size in made.items() if place not in inputs.given)
    return Work(flops.get_total_flops(), sum(inputs.given.values()) + written)


@functools.cache
def limits(tf32: bool) -> Limits:
    """What the device does at best in float32, with a GPU's products in TF32 or without."""
    assert torch.backends.cuda.matmul.allow_tf32 == tf32
    side, copied = SIDE[DEVICE.type], COPIED_BYTES[DEVICE.type]
    square = torch.randn(side, side, device=DEVICE)
    many = torch.zeros(copied // 4, device=DEVICE)
    target = torch.zeros_like(many)
    product = _seconds(lambda: square @ square)
    copy = _seconds(lambda: target.copy_(many))
    return Limits(2 * side**3 / product, 2 * copied / copy)


def _seconds(call: Callable[[], object]) -> float:
    """Median time of a call on the device."""
    times = []
    if DEVICE.type == "cpu":
        for _ in range(ROUNDS):
            begun = time.perf_counter()
            call()
            times.append(time.perf_counter() - begun)
        return statistics.median(times)
    for _ in range(ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)
