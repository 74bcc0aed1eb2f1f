"""Processes that train one agent together, each on its share of a batch's rows."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mudreamer_fast.config import ConfigError

PATIENCE = timedelta(days=7)
"""How long a rank waits for another one, which may be evaluating; one that has ended is known."""


class PeerLostError(ConnectionError):
    """Another rank has ended, so that this one cannot go on."""


class Ranks:
    """This process and its peers: what is to be one number over all rows goes through here.

    The rows of the joined batch are those of rank 0, then those of rank 1, and so on; all ranks
    have as many. Where gradients pass, a rank's loss is that of its own rows, and the gradient that
    counts is the mean over the ranks: `average` gives it. A collective must be called by all ranks
    in the same order, its backward pass too.

    Args:
        group: of `torch.distributed`; None for a process of its own, which waits for nobody.
        beside: another group of the same, for numbers on the CPU, at any time.
        gpu: which GPU of its machine is this process's.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        beside: dist.ProcessGroup | None = None,
        gpu: int = 0,
    ) -> None:
        self._group, self._beside, self._gpu = group, beside, gpu
        self.size = 1 if group is None else dist.get_world_size(group)
        """How many processes there are."""
        self.index = 0 if group is None else dist.get_rank(group)
        """Which of them this one is."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Ranks:
        return self  # a copy would be the same processes

    def device(self, chosen: torch.device) -> torch.device:
        """Where this rank computes, if the run does so on `chosen`."""
        if self._group is None or chosen.type == "cpu":
            return chosen
        return torch.device(chosen.type, self._gpu)

    def own(self, joined: Tensor) -> Tensor:
        """This rank's rows of the joined batch's (R N, ...)."""
        rows = len(joined) // self.size
        return joined[self.index * rows : (self.index + 1) * rows]

    def joined(self, rows: Tensor) -> Tensor:
        """The rows (R N, ...) of all ranks; a gradient goes back to whose row it is."""
        if self._group is None:
            return rows
        if rows.dtype == torch.bool:
            return self.joined(rows.byte()).bool()
        out: Tensor = _Joined.apply(rows, self._group, self.size, self.index)  # type: ignore[no-untyped-call]
        return out

    def total(self, x: Tensor) -> Tensor:
        """The sum over all ranks; every rank's loss may depend on it."""
        if self._group is None:
            return x
        out: Tensor = _Total.apply(x, self._group)  # type: ignore[no-untyped-call]
        return out

    def mean(self, x: Tensor) -> Tensor:
        """The mean over all ranks; every rank's loss may depend on it."""
        return x if self._group is None else self.total(x) / self.size

    def average(self, gradients: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        """The means of gradients over all ranks, in one message; None where all have None."""
        present = [gradient for gradient in gradients if gradient is not None]
        if self._group is None or not present:
            return tuple(gradients)
        message = torch.cat([gradient.reshape(-1) for gradient in present])
        _sum(message, self._group)
        message /= self.size
        parts = iter(torch.split(message, [gradient.numel() for gradient in present]))
        return tuple(None if x is None else next(parts).view(x.shape) for x in gradients)

    def tell(self, numbers: Sequence[float]) -> list[list[float]]:
        """The numbers that each rank tells, rank 0's first; all tell as many."""
        if self._beside is None:
            return [[*map(float, numbers)]]
        mine = torch.tensor(numbers, dtype=torch.float64)
        told = [torch.empty_like(mine) for _ in range(self.size)]
        with _peers_there():
            dist.all_gather(told, mine, group=self._beside)
        return [each.tolist() for each in told]

    def all_say(self, so: bool) -> bool:
        """Whether all ranks say so."""
        return all(said for (said,) in self.tell([so]))

    def firsts(self, word: str) -> str:
        """Rank 0's word."""
        if self._beside is None:
            return word
        words: list[Any] = [word]
        with _peers_there():
            dist.broadcast_object_list(words, group_src=0, group=self._beside)
        return str(words[0])


ALONE = Ranks()
"""One process that trains by itself."""


@contextmanager
def joined_ranks(device: torch.device) -> Iterator[Ranks]:
    """The processes that `torchrun` has started, for as long as they train together.

    Args:
        device: what the run computes on; each process of a machine takes a GPU of its own.

    Raises:
        ConfigError: some of what `torchrun` sets is missing, or there are fewer GPUs.
        PeerLostError: the others cannot be reached.
    """
    if _started() == 1:
        yield ALONE
        return
    missing = sorted({"RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} - os.environ.keys())
    if missing:
        raise ConfigError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']} and {', '.join(missing)} not set: start "
            "several processes with torchrun, or unset WORLD_SIZE"
        )
    cuda, gpu = device.type == "cuda", int(os.environ["LOCAL_RANK"])
    if cuda:
        if gpu >= torch.cuda.device_count():
            raise ConfigError(
                f"process {gpu} of this machine wants a GPU of its own, and there are "
                f"{torch.cuda.device_count()}"
            )
        torch.cuda.set_device(gpu)
    with _peers_there():
        dist.init_process_group("gloo", timeout=PATIENCE)
        # one for each thread: the updates' messages go on while others agree on what is due
        group = dist.new_group(backend="nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        yield Ranks(group, dist.group.WORLD, gpu)
    finally:
        dist.destroy_process_group()


def is_first() -> bool:
    """Whether this process is rank 0, or trains by itself: the one that speaks for all."""
    return _started() == 1 or os.environ.get("RANK", "0") == "0"


def _started() -> int:
    """How many processes `torchrun` has started together."""
    size = os.environ.get("WORLD_SIZE", "1")
    if not size.isdecimal() or not int(size):
        raise ConfigError(f"WORLD_SIZE must be a number of processes, got {size!r}")
    return int(size)


@contextmanager
def _peers_there() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        said = re.sub(r"^\[\S+\] ", "", str(error)).split(". ")[0]  # no path of a source file
        raise PeerLostError(
            f"another of the processes that train together has ended: {said}"
        ) from error


def _sum(x: Tensor, group: Any) -> None:
    """Adds what all ranks have, in place."""
    with _peers_there():
        dist.all_reduce(x, group=group)


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: Any, size: int, index: int) -> Tensor:
        ctx.group, ctx.index = group, index
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(size)]
        with _peers_there():
            dist.all_gather(parts, rows.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        _sum(gradient, ctx.group)
        rows = len(gradient) // dist.get_world_size(ctx.group)
        return gradient[ctx.index * rows : (ctx.index + 1) * rows], None, None, None


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        out = x.clone(memory_format=torch.contiguous_format)
        _sum(out, group)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        _sum(gradient, ctx.group)
        return gradient, None
