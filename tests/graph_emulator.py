"""CUDA graphs on the CPU: work is recorded as operations on tensors, and repeated on the same ones.

As on a GPU, recording does nothing: whatever the work changed is put back, and what it made holds
NaN until the first replay. A replay runs no Python of the work; each operation, in order, reads the
tensors that it read and leaves its results where it left them. What a capture forbids raises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._C import _AutoDispatchBelowAutograd
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from mudreamer_fast.backend.cuda_graph import Recorded, Tensors

aten = torch.ops.aten

WAITS = {
    aten._local_scalar_dense, aten.equal, aten.is_nonzero, aten.nonzero, aten.masked_select,
    aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.bincount, aten.lift_fresh,
    aten._pin_memory,
}  # fmt: skip
"""Operations whose results depend on values that the host must see, or that come from it."""
HOST_CALLS = {
    Tensor.cpu, Tensor.numpy, Tensor.tolist, Tensor.item, Tensor.__bool__, Tensor.__int__,
    Tensor.__float__, Tensor.__index__, Tensor.__array__, Tensor.cuda, Tensor.pin_memory,
    torch.tensor, torch.as_tensor, torch.from_numpy,
}  # fmt: skip
"""Calls that copy between host and device: on the CPU most of them leave no operation to see."""
CHECKED_ON_THE_CPU_ALONE = {torch.quantile}
"""Functions that look at a tensor's values on the CPU and not on a GPU."""


class CaptureError(RuntimeError):
    """What a CUDA graph can not hold."""


class EmulatedCapture:
    """Stands in for `graphs.CudaCapture`."""

    def __init__(self) -> None:
        self.settled, self.recorded, self.replayed = 0, 0, 0

    def settle(self, work: Callable[[], Tensors]) -> Tensors:
        self.settled += 1
        return work()

    def record(self, work: Callable[[], Tensors]) -> Recorded:
        self.recorded += 1
        tape = _Tape()
        try:
            with _launches(tape), tape, _HostCalls(tape):
                outputs = work()
        finally:
            tape.undo()  # a recording that fails has done nothing either

        def replay() -> None:
            self.replayed += 1
            tape.replay()

        return Recorded(replay, outputs)


class _Tape(TorchDispatchMode):
    """Every operation on tensors that is run under it."""

    def __init__(self) -> None:
        super().__init__()
        self.checking_on_the_cpu = False
        self._steps: list[Callable[[], None]] = []
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self._made: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "profiler":
            return func(*args, **kwargs)
        self._refuse(func, args, kwargs)
        given = _as_they_are((args, kwargs))
        self._save(given)
        result = func(*args, **kwargs)
        self._note(result)
        fresh = _fresh(func, result)
        if fresh or (func._schema.is_mutable and torch.Tag.inplace_view not in func.tags):
            self._steps.append(lambda: _repeat(func, *given, fresh))
        return result

    def launch(self, kernel: Callable[..., None], args: Any, kwargs: Any) -> None:
        """Run and record the launch of a kernel."""
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            args, kwargs = _as_they_are((args, kwargs))
            self._save((args, kwargs))
            kernel(*args, **kwargs)
        self._steps.append(lambda: kernel(*args, **kwargs))

    def undo(self) -> None:
        """Put back what was there before, and spoil what was not."""
        for storage, saved in self._before.values():
            storage.copy_(saved)
        for tensor in self._made.values():
            if tensor.is_floating_point():
                whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
                whole.fill_(math.nan)

    def replay(self) -> None:
        """Repeat all steps."""
        with _AutoDispatchBelowAutograd():
            for step in self._steps:
                step()

    def _refuse(self, func: Any, args: Any, kwargs: Any) -> None:
        waits = func.overloadpacket in WAITS and not self.checking_on_the_cpu
        masked = func.overloadpacket in (aten.index, aten.index_put, aten.index_put_) and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if waits or masked:
            raise CaptureError(f"{func} waits for the device")
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise CaptureError(f"{func} draws random numbers")
        devices = {tensor.device for tensor in _tensors((args, kwargs))}
        if kwargs.get("device") is not None:
            devices.add(torch.device(kwargs["device"]))
        if len(devices) > 1:
            raise CaptureError(f"{func} copies between {' and '.join(map(str, devices))}")

    def _save(self, arguments: Any) -> None:
        """Remember the contents of memory that was there before the recording."""
        for tensor in _tensors(arguments):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._made and storage._cdata not in self._before:
                self._before[storage._cdata] = storage, storage.clone()

    def _note(self, result: Any) -> None:
        """Remember memory that the recording made, which keeps it from being given away."""
        for tensor in _tensors(result):
            key = tensor.untyped_storage()._cdata
            if key not in self._before:
                self._made.setdefault(key, tensor)


class _HostCalls(TorchFunctionMode):
    """Refuses calls between host and device."""

    def __init__(self, tape: _Tape) -> None:
        super().__init__()
        self._tape = tape

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in HOST_CALLS:
            raise CaptureError(f"{func.__name__} copies between host and device")
        self._tape.checking_on_the_cpu = func in CHECKED_ON_THE_CPU_ALONE
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self._tape.checking_on_the_cpu = False


@contextmanager
def _launches(tape: _Tape) -> Iterator[None]:
    """Records launches of interpreted kernels, which are no operations of PyTorch."""
    from triton.runtime.interpreter import GridExecutor

    call = GridExecutor.__call__

    def recorded(executor: GridExecutor, *args: Any, **kwargs: Any) -> None:
        tape.launch(partial(call, executor), args, kwargs)

    GridExecutor.__call__ = recorded
    try:
        yield
    finally:
        GridExecutor.__call__ = call


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _as_they_are(tree: Any) -> Any:
    """The same memory under tensors of its own: the work's may be given another shape later."""
    return pytree.tree_map_only(Tensor, torch.Tensor.detach, tree)


def _fresh(func: Any, result: Any) -> list[tuple[int, Tensor]]:
    """Results in memory of their own, by place; the others are views, or were changed in place."""
    returns = func._schema.returns
    parts = (result,) if len(returns) == 1 else result or ()
    places: list[bool] = []
    for part, spec in zip(parts, returns, strict=True):
        places += [spec.alias_info is not None] * len(pytree.tree_leaves(part))
    leaves = pytree.tree_leaves(parts)
    return [
        (place, leaf.detach())
        for place, (leaf, alias) in enumerate(zip(leaves, places, strict=True))
        if isinstance(leaf, Tensor) and not alias
    ]


def _repeat(func: Any, args: Any, kwargs: Any, fresh: list[tuple[int, Tensor]]) -> None:
    leaves = pytree.tree_leaves(func(*args, **kwargs))
    for place, recorded in fresh:
        recorded.copy_(leaves[place])
