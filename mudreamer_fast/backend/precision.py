"""How exactly an update multiplies: in float32, or from operands of fewer bits.

Sums are in float32 whatever the operands are, and so is everything that is no product of matrices
or convolution: weights, norms, softmax, losses, moments and averages.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mudreamer_fast.config import ConfigError, Precision

aten = torch.ops.aten

OPERANDS: dict[Any, tuple[int, ...]] = {
    aten.mm: (0, 1),
    aten.bmm: (0, 1),
    aten.addmm: (1, 2),
    aten.baddbmm: (1, 2),
    aten.convolution: (0, 1),
    aten.convolution_backward: (0, 1, 2),
}
"""Places of the operands among the arguments of PyTorch's products. A matrix times a vector, as in
the mean of a two-hot distribution, is none of them."""
LOST_BITS = 13
"""Of the 23 of a float32's mantissa, in TF32."""


def products_in(
    precision: Precision, device: torch.device, backend: str
) -> Callable[[], AbstractContextManager[object]]:
    """What makes a context in which products are taken as `train.precision` says.

    On the CPU operands are rounded and then multiplied in float32, which is no faster: it shows
    what the rounding does to learning. A GPU takes TF32 by PyTorch's own switches
    (`machine.device.settle_arithmetic`).

    Args:
        precision: of the operands.
        device: where products are taken.
        backend: the operations, as `resolve_backend` gave them.

    Raises:
        ConfigError: torch.compile, which passes by what rounds operands.
    """
    if precision == "float32" or (precision == "tf32" and device.type != "cpu"):
        return nullcontext
    if backend == "compiled":
        where = " on a CPU" if precision == "tf32" else ""
        raise ConfigError(
            f"precision {precision}{where} takes backend reference or fused, got compiled"
        )
    if device.type == "cpu":
        return lambda: _Rounded(to_bfloat16 if precision == "bfloat16" else to_tf32)
    return _Bfloat16


def to_bfloat16(x: Tensor) -> Tensor:
    """Float32 numbers with the 7 bits of a bfloat16's mantissa, to nearest, ties to even."""
    return _as(torch.float32, _as(torch.bfloat16, x))


def to_tf32(x: Tensor) -> Tensor:
    """Float32 numbers with the 10 bits of TF32's mantissa, to nearest, ties to even."""
    bits = x.contiguous().view(torch.int32)
    odd = (bits >> LOST_BITS) & 1
    rounded = ((bits + ((1 << (LOST_BITS - 1)) - 1) + odd) >> LOST_BITS) << LOST_BITS
    return torch.where(x.isfinite(), rounded.view(torch.float32).view_as(x), x)


class _Rounded(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Rounds the operands of products."""

    def __init__(self, rounding: Callable[[Tensor], Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rounding = rounding

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        places = OPERANDS.get(func._overloadpacket, ())
        if places and args[places[0]].dtype == torch.float32:
            args = tuple(
                self._rounding(arg) if place in places else arg for place, arg in enumerate(args)
            )
        return func(*args, **(kwargs or {}))


class _Bfloat16(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Has a GPU multiply operands of bfloat16, and give float32.

    The second matrix of a product, as a layer's weights at each step of a sequence, is cast the
    first time that it comes, and again once it has changed.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._cast: dict[Any, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, packet = kwargs or {}, func._overloadpacket
        places = OPERANDS.get(packet, ())
        if not places or args[places[0]].dtype != torch.float32:
            return func(*args, **kwargs)
        *first, last = places
        half = {place: _as(torch.bfloat16, args[place]) for place in first}
        half[last] = self._kept(args[last])
        args = tuple(half.get(place, arg) for place, arg in enumerate(args))
        if packet in (aten.convolution, aten.convolution_backward):
            # what it adds is of the operands' type, and what it gives
            given = func(*(_if_float(torch.bfloat16, arg) for arg in args), **kwargs)
            if isinstance(given, Tensor):
                return _as(torch.float32, given)
            return tuple(_if_float(torch.float32, part) for part in given)
        count = last + 1
        return packet(*args[:count], torch.float32, *args[count:], **kwargs)

    def _kept(self, x: Tensor) -> Tensor:
        storage = x.untyped_storage()._cdata
        key = storage, x.storage_offset(), x.shape, x.stride(), x._version
        if key not in self._cast:  # the original is kept, so that nothing else takes its memory
            self._cast[key] = x, _as(torch.bfloat16, x)
        return self._cast[key][1]


def _as(dtype: torch.dtype, x: Tensor) -> Tensor:
    """A copy: `Tensor.to` would be an operation that only may write memory."""
    copy: Tensor = aten._to_copy(x, dtype=dtype)
    return copy


def _if_float(dtype: torch.dtype, x: Any) -> Any:
    return _as(dtype, x) if isinstance(x, Tensor) and x.dtype.is_floating_point else x
