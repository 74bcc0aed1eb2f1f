"""Batches as tensors on the learner's device, the next one copied while it learns."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mudreamer_fast.replay.batch import Batch
from mudreamer_fast.replay.buffer import ReplayBuffer


@dataclass(frozen=True)
class _Sent:
    """A batch on its way to the device."""

    tensors: dict[str, Tensor]
    copied: torch.cuda.Event


class Prefetcher:
    """Batches of a replay buffer for a learner on a device.

    On the CPU a batch's tensors are the arrays that the buffer copied to. On a GPU those arrays are
    pinned, and a stream of its own sends each batch one call before it is handed out, into one of
    two sets of tensors, while the update before is still at work.

    Args:
        replay: where the batches come from.
        batch_size: B, sequences in each.
        length: T, steps in each sequence.
        ahead: batches under way in the buffer while one is in use.
        device: of the tensors.
    """

    def __init__(
        self, replay: ReplayBuffer, batch_size: int, length: int, ahead: int, device: torch.device
    ) -> None:
        self.waited_seconds = 0.0
        """Wall time spent in `next` so far: what the learner waited for data."""
        self._device = device
        self._queue = replay.batches(batch_size, length, ahead, allocate=self._allocate)
        self._sent: _Sent | None = None
        self._in_use: dict[str, Tensor] | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def next(self) -> dict[str, Tensor]:
        """The oldest batch, on the device; its tensors are the caller's until the next call.

        Raises:
            RuntimeError: too few steps are held for a window, or this is closed.
        """
        started = time.perf_counter()
        batch = self._next_sent() if self._device.type == "cuda" else _tensors(self._queue.next())
        self.waited_seconds += time.perf_counter() - started
        return batch

    def hold_view(self) -> None:
        """See `BatchQueue.hold_view`."""
        self._queue.hold_view()

    def release_view(self) -> None:
        """See `BatchQueue.release_view`."""
        self._queue.release_view()

    def pending(self) -> NDArray[np.uint64]:
        """The windows of the batches that `next` will give, as far as they are drawn.

        Returns:
            (batches, B, 2), for `resume`.
        """
        # The batch that the buffer gave last is in use, or was only sent to the device.
        return self._queue.pending(with_last=self._sent is not None)

    def resume(self, windows: NDArray[Any]) -> bool:
        """Go on with what was under way in a buffer of the same contents, before all else.

        Returns:
            Whether it could be drawn again; not where steps are no longer held.
        """
        return self._queue.resume(windows)

    def close(self) -> None:
        """End the thread that copies; a second call does nothing."""
        self._queue.close()

    def _allocate(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        if self._device.type != "cuda":
            return np.empty(shape, dtype)
        kind = torch.from_numpy(np.empty(0, dtype)).dtype
        return torch.empty(shape, dtype=kind, pin_memory=True).numpy()

    def _next_sent(self) -> dict[str, Tensor]:
        sent = self._sent or self._send(None)
        torch.cuda.current_stream(self._device).wait_event(sent.copied)
        # The buffer fills the pinned arrays again as soon as it is asked for another batch.
        sent.copied.synchronize()
        self._sent = self._send(self._in_use)
        self._in_use = sent.tensors
        return sent.tensors

    def _send(self, target: dict[str, Tensor] | None) -> _Sent:
        """Start copying the next batch to `target`, or to new tensors."""
        host = _tensors(self._queue.next())
        if target is None:
            target = {name: torch.empty_like(t, device=self._device) for name, t in host.items()}
        # Whatever was asked of the tensors so far comes before they are written again.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for name, tensor in host.items():
                target[name].copy_(tensor, non_blocking=True)
            return _Sent(target, self._stream.record_event())


def _tensors(batch: Batch) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in batch.items()}
