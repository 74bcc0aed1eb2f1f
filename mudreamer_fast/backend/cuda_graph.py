"""Work on a GPU that is recorded once and then repeated by a single launch: CUDA graphs."""

from __future__ import annotations

import functools
import gc
import inspect
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mudreamer_fast.config import ConfigError

SETTLING_CALLS = 2
"""Calls that run as they are before the next one is recorded: in them kernels are compiled,
libraries take their workspaces and optimisers make their moments."""
KEPT_SHAPES = 4
"""Shapes of inputs whose recordings are kept: acting has some by mode and by environments."""

Tensors = dict[str, Tensor]
_Key = tuple[tuple[str, torch.Size, torch.dtype], ...]

_recording = threading.Lock()
"""A recording begins with a wait for the whole device, which another one would not allow."""


class Recorded(NamedTuple):
    """Work that was recorded."""

    replay: Callable[[], None]
    """Does it."""
    outputs: Tensors
    """Where it leaves its results, each time in the same memory; without meaning until then."""


class Capture(Protocol):
    """How work is recorded."""

    def settle(self, work: Callable[[], Tensors]) -> Tensors:
        """Do work as it is, on the stream where it will be recorded."""

    def record(self, work: Callable[[], Tensors]) -> Recorded:
        """Record work without doing it."""


class CudaCapture:
    """Records CUDA graphs, on a stream of its own.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def settle(self, work: Callable[[], Tensors]) -> Tensors:
        """See `Capture.settle`; what the current stream did comes before, what it does after."""
        here = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            outputs = work()
        here.wait_stream(self._stream)
        return outputs

    def record(self, work: Callable[[], Tensors]) -> Recorded:
        """See `Capture.record`; the replay goes to the stream that is then current."""
        gc.collect()  # a graph that is given up must not be found to be so in the middle
        graph = torch.cuda.CUDAGraph()
        # Threads that simulate and copy batches go on with calls that a global mode would forbid.
        captured = torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local")
        # A capture that fails leaves its own stream current, but not beyond the one around it.
        with _recording, torch.cuda.stream(self._stream), captured:
            outputs = work()
        return Recorded(graph.replay, outputs)


def capture_maker(setting: str, backend: str, device: torch.device) -> Callable[[], Capture] | None:
    """What makes captures for `train.cuda_graph`; None where work is done as it is.

    Args:
        setting: on, off, or auto, for the fused operations on a CUDA device.
        backend: the operations, as `resolve_backend` gave them.
        device: where they run.

    Raises:
        ConfigError: graphs were asked for on a device that has none.
    """
    if setting == "on" and device.type != "cuda":
        raise ConfigError(f"cuda_graph on needs a CUDA device, got {device}; use auto or off")
    if (
        setting == "off"
        or device.type != "cuda"
        or (setting == "auto" and backend not in ("fused", "persistent"))
    ):
        return None
    return lambda: CudaCapture(device)


@dataclass
class _Known:
    """What is known of inputs of one shape."""

    calls: int = 0
    inputs: Tensors | None = None
    recorded: Recorded | None = None


class Graphed:
    """A function from tensors to tensors that is recorded, and from then on only repeated.

    The first calls with inputs of given names, shapes and dtypes run as they are. The next one
    records the function on inputs of its own; it and all later ones copy what they are given to
    those and repeat what was recorded, without running the function. So whatever changes from call
    to call must be among the inputs, or be a tensor that the function changes in place; and neither
    may the function draw random numbers nor look at the value of a tensor.

    The tensors that a call returns may be written over by the next one.

    Args:
        function: from inputs to outputs by name, on one device; the object of a method is not kept
            alive, so that it can own what records it and be freed with it.
        new_capture: makes what records it; None has every call run as it is.
        required: whether a function that can not be recorded is an error; if not, it is told once,
            and calls run as they are from then on. Nothing of a recording has been done by then.
    """

    def __init__(
        self,
        function: Callable[[Tensors], Tensors],
        new_capture: Callable[[], Capture] | None,
        required: bool = True,
    ) -> None:
        is_method = inspect.ismethod(function)
        self._of = weakref.WeakMethod(function) if is_method else lambda: function
        self._capture = new_capture() if new_capture is not None else None
        self._required = required
        self._known: dict[_Key, _Known] = {}

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensors:
        """What the function gives for `inputs`."""
        function = self._of()
        if function is None:
            raise ReferenceError("the object whose method this records is gone")
        if self._capture is None:
            return function(dict(inputs))
        key = tuple((name, tensor.shape, tensor.dtype) for name, tensor in inputs.items())
        known = self._known.setdefault(key, _Known())
        if len(self._known) > KEPT_SHAPES:
            del self._known[next(iter(self._known))]
        known.calls += 1
        if known.calls <= SETTLING_CALLS:
            return self._capture.settle(lambda: function(dict(inputs)))
        if known.inputs is None or known.recorded is None:
            own = {name: tensor.clone() for name, tensor in inputs.items()}
            try:
                known.recorded = self._capture.record(lambda: function(dict(own)))
            except RuntimeError as error:
                self._give_up(error)
                return function(dict(inputs))
            known.inputs = own
        for name, tensor in inputs.items():
            known.inputs[name].copy_(tensor)
        known.recorded.replay()
        return dict(known.recorded.outputs)

    def forget(self) -> None:
        """Begin anew: tensors that the function changes are others than before."""
        self._known.clear()

    def _give_up(self, error: RuntimeError) -> None:
        """Do without recordings, those of other shapes too, and free their memory."""
        if self._required:
            raise RuntimeError(
                f"this could not be recorded as a CUDA graph; train.cuda_graph off runs without: "
                f"{error}"
            ) from error
        self._capture = None
        self.forget()
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        _tell(f"warning: going on without CUDA graphs, as one could not be recorded: {said}")


@functools.cache  # of updates and of acting, for the same reason
def _tell(line: str) -> None:
    print(line, file=sys.stderr)
