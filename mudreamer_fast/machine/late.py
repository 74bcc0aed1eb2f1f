"""What a device is still at work on when the host goes on: moments in its work, and numbers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor


class Moment:
    """The moment at which a device has done all that it has been given so far.

    On a GPU that is the work of the current stream, which the host need not wait for. On the CPU it
    is the present.

    Args:
        device: what works.
    """

    def __init__(self, device: torch.device) -> None:
        self._clock = time.monotonic()
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(device))

    @property
    def past(self) -> bool:
        """Whether it has come; asking waits for nothing."""
        return self._event is None or bool(self._event.query())  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        """Return once it has come."""
        if self._event is not None:
            self._event.synchronize()

    def seconds_until(self, later: Moment) -> float:
        """Time between two moments of a device, both of them past."""
        if self._event is None or later._event is None:
            return later._clock - self._clock
        return float(self._event.elapsed_time(later._event)) / 1e3


class LateValues(Mapping[str, float]):
    """Numbers by name that a device may still have to work out.

    They are sent to the host as soon as they are there. Whoever looks at the first of them waits
    for that, and nobody before.

    Args:
        names: of the numbers.
        values: (len(names),), on any device; may be written over by what is launched later.
    """

    def __init__(self, names: Sequence[str], values: Tensor) -> None:
        self._names = tuple(names)
        # Memory that is not pinned could not be written to without the host.
        pinned = values.device.type == "cuda"
        self._sent = torch.empty(values.shape, dtype=values.dtype, pin_memory=pinned)
        self._sent.copy_(values, non_blocking=True)
        self._there = Moment(values.device)
        self._read: dict[str, float] | None = None

    def read(self) -> dict[str, float]:
        """All of them, waited for where need be."""
        if self._read is None:
            self._there.wait()
            self._read = dict(zip(self._names, self._sent.tolist(), strict=True))
        return self._read

    def __getitem__(self, name: str) -> float:
        return self.read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
