"""Runs the programs of one launch side by side on the CPU: a process each, over shared memory.

Triton's interpreter runs one program after another, and so never gets past a barrier between them.
Here every program is interpreted in a process of its own, so that they wait for one another as they
do on a GPU, and what one reads before another has written it shows.
"""

from __future__ import annotations

import mmap
import multiprocessing
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from triton.runtime import interpreter

STORE_SECONDS = 0.02
"""How long the slow program waits before it stores anything."""
WAIT_SECONDS = 0.0005
"""How long a program lets others run between two looks at what it waits for."""


class SideBySide:
    """Stands in for a kernel, whatever grid it is launched with.

    Args:
        kernel: to be launched.
        programs: how many to run.
        slow: the one that stores late; None lets all run as they can.
        timeout_seconds: after which a launch that has not ended is given up.
    """

    def __init__(
        self, kernel: Any, programs: int, slow: int | None = None, timeout_seconds: float = 60.0
    ) -> None:
        self._kernel, self._programs, self._slow = kernel, programs, slow
        self._timeout = timeout_seconds
        self.launches = 0

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return self._launch

    def _launch(self, *args: Any, **kwargs: Any) -> None:
        self.launches += 1
        shared: dict[int, tuple[Tensor, Tensor]] = {}
        moved = [_share(arg, shared) if isinstance(arg, Tensor) else arg for arg in args]
        fork = multiprocessing.get_context("fork")
        processes = [
            fork.Process(
                target=_run, args=(self._kernel, i, self._programs, i == self._slow, moved, kwargs)
            )
            for i in range(self._programs)
        ]
        for process in processes:
            process.start()
        deadline = time.monotonic() + self._timeout
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
        codes = [process.exitcode for process in processes]
        for process in processes:
            process.kill()
            process.join()
        if codes != [0] * self._programs:
            raise RuntimeError(f"programs ended with {codes}; None is one that did not end")
        for original, copy in shared.values():
            original.copy_(copy)


def _share(tensor: Tensor, shared: dict[int, tuple[Tensor, Tensor]]) -> Tensor:
    """The same view of a copy that forked processes write to; one for each storage."""
    storage = tensor.untyped_storage()
    if storage.data_ptr() not in shared:
        original = torch.empty(0, dtype=torch.uint8).set_(storage)
        copy = torch.frombuffer(mmap.mmap(-1, max(1, len(original))), dtype=torch.uint8)
        copy = copy[: len(original)]
        copy.copy_(original)
        shared[storage.data_ptr()] = original, copy
    copy = shared[storage.data_ptr()][1].view(tensor.dtype)
    return copy.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _run(kernel: Any, index: int, programs: int, slow: bool, args: Any, kwargs: Any) -> None:
    """Interpret one program, as if it were one of many."""
    builder = interpreter.interpreter_builder
    place, size, store = builder.set_grid_idx, builder.set_grid_dim, builder.create_masked_store
    look = builder.create_atomic_rmw

    def look_and_wait(*given: Any) -> Any:
        found = look(*given)
        time.sleep(WAIT_SECONDS)
        return found

    def store_late(*given: Any) -> Any:
        time.sleep(STORE_SECONDS)
        return store(*given)

    builder.create_atomic_rmw = look_and_wait
    builder.set_grid_idx = lambda x, y, z: place(index, y, z)
    builder.set_grid_dim = lambda x, y, z: size(programs, y, z)
    if slow:
        builder.create_masked_store = store_late
    kernel[(1,)](*args, **kwargs)
