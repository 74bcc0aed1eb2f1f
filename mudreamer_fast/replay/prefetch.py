"""Moves batches to the learner's device, the next one while the current one is in use."""

from __future__ import annotations

import time
from collections.abc import Mapping
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
    """A batch whose copy to the device was started; `copied` marks its end."""

    tensors: dict[str, Tensor]
    copied: torch.cuda.Event


class Prefetcher:
    """Provides the batches of a replay buffer as tensors on a device.

    On the CPU the tensors share memory with the arrays of the buffer's `BatchQueue`. On a GPU those
    arrays are pinned. `next` starts the copy of the following batch on a separate CUDA stream, into
    one of two sets of tensors, so that it overlaps with the update on the current batch.

    Args:
        replay: source of the batches.
        batch_size: B, sequences in each batch.
        length: T, steps in each sequence.
        ahead: pending batches of the queue while one is in use.
        device: device of the tensors.
    """

    def __init__(
        self, replay: ReplayBuffer, batch_size: int, length: int, ahead: int, device: torch.device
    ) -> None:
        self.waited_seconds = 0.0
        """Total wall time spent waiting for the queue."""
        self._device = device
        self._queue = replay.batches(batch_size, length, ahead, allocate=self._allocate)
        self._sent: _Sent | None = None
        self._in_use: dict[str, Tensor] | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def next(self) -> dict[str, Tensor]:
        """Return the oldest pending batch on the device; its tensors are valid until the next call.

        Raises:
            RuntimeError: no stream holds enough steps for a window, or the prefetcher is closed.
        """
        return self._next_sent() if self._device.type == "cuda" else self._next_of_the_queue()

    def hold_view(self) -> None:
        """See `BatchQueue.hold_view`; the view is handed over to the thread that learns."""
        self._queue.hold_view(handed_over=True)

    def release_view(self) -> None:
        """See `BatchQueue.release_view`."""
        self._queue.release_view()

    def pending(self) -> NDArray[np.uint64]:
        """Return the windows of the pending batches: those drawn that `next` has not returned.

        Returns:
            (batches, B, 2), for `resume`.
        """
        # On a GPU the batch that the queue returned last is on the device but still pending here.
        return self._queue.pending(with_last=self._sent is not None)

    def lost(self) -> dict[int, Batch]:
        """Return the pending batches with steps that are no longer held, see `BatchQueue.lost`."""
        return self._queue.lost(with_last=self._sent is not None)

    def resume(self, windows: NDArray[Any], lost: Mapping[int, Batch] | None = None) -> bool:
        """Take up pending batches, see `BatchQueue.resume`.

        Returns:
            Whether the batches are pending now; False if one of their steps is no longer held.
        """
        return self._queue.resume(windows, lost)

    def close(self) -> None:
        """Close the queue; a second call does nothing."""
        self._queue.close()

    def _allocate(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        if self._device.type != "cuda":
            return np.empty(shape, dtype)
        kind = torch.from_numpy(np.empty(0, dtype)).dtype
        return torch.empty(shape, dtype=kind, pin_memory=True).numpy()

    def _next_of_the_queue(self) -> dict[str, Tensor]:
        started = time.perf_counter()
        batch = self._queue.next()
        self.waited_seconds += time.perf_counter() - started
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def _next_sent(self) -> dict[str, Tensor]:
        sent = self._sent or self._send(None)
        torch.cuda.current_stream(self._device).wait_event(sent.copied)
        # The queue may overwrite the pinned arrays once it is asked for another batch. The copy
        # waits for the work on the batch before the last one, and not for that on the last.
        sent.copied.synchronize()
        self._sent = self._send(self._in_use)
        self._in_use = sent.tensors
        return sent.tensors

    def _send(self, target: dict[str, Tensor] | None) -> _Sent:
        """Start copying the next batch to `target`, or to new tensors if it is None."""
        host = self._next_of_the_queue()
        if target is None:
            target = {name: torch.empty_like(t, device=self._device) for name, t in host.items()}
        # Work that was queued on the tensors finishes before they are overwritten.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for name, tensor in host.items():
                target[name].copy_(tensor, non_blocking=True)
            return _Sent(target, self._stream.record_event())
