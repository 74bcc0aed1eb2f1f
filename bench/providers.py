"""One operation by every implementation, timed in turn on the same GPU and inputs.

A round times each provider once, forward alone and forward with backward, so that all see the same
clocks; `extra_info` holds the median and the spread of each in microseconds, the share of the
roofline that it reaches (`bench/roofline.py`), and the device.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from bench.commit import commit
from bench.roofline import count, limits
from mudreamer_fast.backend.load import load_ops

ROUNDS = 20
CALLS = 10
"""Calls between two events."""

PROVIDERS = ("reference", "compiled", "fused")
Call = Callable[[Any], Tensor | Sequence[Tensor]]


def compare(
    benchmark: BenchmarkFixture,
    call: Call,
    leaves: Sequence[Tensor],
    providers: Sequence[str] = PROVIDERS,
    others: Mapping[str, Callable[[], object]] = MappingProxyType({}),
) -> None:
    """Time `call(ops)` under each backend.

    Args:
        benchmark: pytest-benchmark's fixture.
        call: calls an operation of the module it is handed.
        leaves: tensors on the GPU that the backward pass gives gradients of; none skips it.
        providers: backends; all but the reference are timed as a CUDA graph as well. Of them only
            those that the environment's PROVIDERS lists, where it is set: to compile a rollout
            takes minutes.
        others: what else to time beside them, by name.
    """
    runs: dict[str, Callable[[], object]] = {}
    if "PROVIDERS" in os.environ:
        providers = [name for name in providers if name in os.environ["PROVIDERS"].split()]
    for name in providers:
        ops = load_ops(name)
        runs[f"{name} forward"] = lambda ops=ops: call(ops)
        if leaves:
            runs[f"{name} forward and backward"] = lambda ops=ops: backward(call(ops), leaves)
    for name in providers:
        if name == "reference":
            continue
        runs[f"{name} forward, graph"] = captured(runs[f"{name} forward"])
        if leaves:
            whole = captured(runs[f"{name} forward and backward"])
            runs[f"{name} forward and backward, graph"] = whole
    runs |= others
    for run in runs.values():
        for _ in range(3):
            run()
    times: dict[str, list[float]] = {name: [] for name in runs}

    def one_round() -> None:
        for name, run in runs.items():
            times[name].append(microseconds(run))

    one_round()
    for values in times.values():
        values.clear()
    benchmark.pedantic(one_round, rounds=ROUNDS)
    device = limits(torch.backends.cuda.matmul.allow_tf32)
    work = {
        way: count(runs[f"reference {way}"])
        for way in ("forward", "forward and backward")
        if f"reference {way}" in runs
    }
    benchmark.extra_info |= surroundings() | {
        "limits": device._asdict(),
        "work": {way: part._asdict() for way, part in work.items()},
        "microseconds": {
            name: {"median": statistics.median(v), "min": min(v), "max": max(v)}
            for name, v in times.items()
        },
    }
    for name, row in benchmark.extra_info["microseconds"].items():
        line = f"  {name:34} {row['median']:9.1f}  ({row['min']:.1f} to {row['max']:.1f}) us"
        if name not in others:  # which do other work
            way = "forward and backward" if "backward" in name else "forward"
            row["of_roofline"] = work[way].microseconds(device) / row["median"]
            line += f", {row['of_roofline']:.3f} of the roofline"
        print(line)


def backward(outputs: Tensor | Sequence[Tensor], leaves: Sequence[Tensor]) -> Sequence[Tensor]:
    """Gradients of the sum of all outputs."""
    tensors = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    seeds = [torch.ones_like(tensor) for tensor in wanted]
    return torch.autograd.grad(wanted, list(leaves), seeds, allow_unused=True)


def captured(run: Callable[[], object]) -> Callable[[], object]:
    """`run` as one CUDA graph, replayed on the same memory."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def microseconds(run: Callable[[], object]) -> float:
    """Time of one call on the device, over `CALLS` of them."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(CALLS):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3 / CALLS


def surroundings() -> dict[str, str]:
    """Device, versions and commit."""
    import triton

    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": str(torch.version.cuda),
        "commit": commit(),
    }


def draw(*shape: int, grad: bool = False) -> Tensor:
    """A standard normal tensor on the GPU."""
    return torch.randn(*shape, device="cuda", requires_grad=grad)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
