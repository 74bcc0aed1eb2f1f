"""Runs the programs of one launch in turns on the CPU: a process each, over shared memory.

Triton's interpreter runs one program after another, and so never gets past a barrier between them.
Here every program is interpreted in a process of its own. One runs at a time, until it looks at the
barrier's counter; a schedule says which goes on. Nothing depends on how fast they run: what one
reads before another has written it is the same each time.
"""

from __future__ import annotations

import mmap
import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor
from triton.runtime import interpreter

from tests.patience import PATIENCE_SECONDS

Schedule = Callable[[Sequence[int]], int]
"""Picks whose turn it is, of the programs that can go on. `min` lets the first run ahead."""


class InTurns:
    """Stands in for a kernel, whatever grid it is launched with.

    Args:
        kernel: to be launched.
        programs: how many to run.
        schedule: their order.

    Raises:
        RuntimeError: at a launch whose programs all wait for one another.
    """

    def __init__(self, kernel: Any, programs: int, schedule: Schedule = min) -> None:
        self._kernel, self._programs, self._schedule = kernel, programs, schedule
        self.launches = 0

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return self._launch

    def _launch(self, *args: Any, **kwargs: Any) -> None:
        self.launches += 1
        shared: dict[int, tuple[Tensor, Tensor]] = {}
        moved = [_share(arg, shared) if isinstance(arg, Tensor) else arg for arg in args]
        programs = [
            _Program(self._kernel, i, self._programs, moved, kwargs) for i in range(self._programs)
        ]
        try:
            _take_turns(programs, self._schedule)
        finally:
            for program in programs:
                program.end()
        for original, copy in shared.values():
            original.copy_(copy)


class _Program:
    """A process that interprets one program while it has the turn."""

    def __init__(self, kernel: Any, index: int, programs: int, args: Any, kwargs: Any) -> None:
        fork = multiprocessing.get_context("fork")
        self._turn, turn = fork.Pipe()
        self._process = fork.Process(
            target=_run, args=(kernel, index, programs, args, kwargs, turn, self._turn), daemon=True
        )
        self._process.start()
        turn.close()  # the process has it alone, and its end is seen here

    def go_on(self) -> tuple[int, bool]:
        """Let it run until it looks; how often it arrived, and whether it ended instead."""
        self._turn.send(None)
        if not self._turn.poll(PATIENCE_SECONDS):
            raise RuntimeError("a program neither ends nor looks at the barrier")
        arrived, ended = self._turn.recv()
        return arrived, ended

    def end(self) -> None:
        """End the process wherever it is."""
        self._process.kill()
        self._process.join()
        self._turn.close()


def _take_turns(programs: Sequence[_Program], schedule: Schedule) -> None:
    """Run one at a time until all have ended; none looks twice at the same number of arrivals."""
    arrivals = 0
    seen: dict[int, int] = dict.fromkeys(range(len(programs)), -1)
    while seen:
        able = [i for i, number in seen.items() if number != arrivals]
        if not able:
            raise RuntimeError(f"programs {list(seen)} wait for one another")
        i = schedule(able)
        seen[i] = arrivals
        arrived, ended = programs[i].go_on()
        arrivals += arrived
        if ended:
            del seen[i]


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


def _run(
    kernel: Any, index: int, programs: int, args: Any, kwargs: Any, turn: Connection,
    others_end: Connection,
) -> None:  # fmt: skip
    """Interpret one program, as if it were one of many."""
    others_end.close()  # so that this process ends when the one that gives turns does
    builder = interpreter.interpreter_builder
    place, size, add = builder.set_grid_idx, builder.set_grid_dim, builder.create_atomic_rmw
    arrived = 0

    def add_in_turn(operation: Any, pointer: Any, number: Any, *rest: Any) -> Any:
        nonlocal arrived
        if number.data.any():
            arrived += 1
        else:
            turn.send((arrived, False))
            turn.recv()
            arrived = 0
        return add(operation, pointer, number, *rest)

    builder.create_atomic_rmw = add_in_turn
    builder.set_grid_idx = lambda x, y, z: place(index, y, z)
    builder.set_grid_dim = lambda x, y, z: size(programs, y, z)
    turn.recv()
    kernel[(1,)](*args, **kwargs)
    turn.send((arrived, True))
