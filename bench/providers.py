"""One operation by every implementation, timed in turn on the same device and inputs.

A round times each provider once, in an order drawn anew, forward alone and forward with backward,
so that all see the same clocks; on a GPU each as a CUDA graph as well. `extra_info` holds the
median and the spread of each in microseconds, the share of the roofline that it reaches
(`bench/roofline.py`), what was left out and why, and the device. Without a GPU the reference and
what torch.compile makes of it are timed, at smaller sizes; BENCH_SHORT=1 takes the least of all,
once each, to show that the benchmarks work.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from bench.roofline import count, limits
from bench.surroundings import DEVICE, GPU, SHORT, sized, surroundings
from mudreamer_fast.backend.load import ON_TRITON, load_ops, missing_fused_ops
from mudreamer_fast.kernels.device import runs_on

ROUNDS = sized(20, 7, 1)
CALLS = sized(10, 1, 1)
"""Calls between two looks at the clock."""
WARM_UPS = sized(3, 2, 1)

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
        leaves: tensors on the device that the backward pass gives gradients of; none skips it.
        providers: backends. Of them only those that the environment's PROVIDERS lists, where it is
            set: to compile a rollout takes minutes.
        others: what else to time beside them, by name.
    """
    left_out = {name: why for name in providers if (why := missing(name))}
    runs: dict[str, Callable[[], object]] = {}
    for name in providers:
        if name in left_out:
            continue
        ops = load_ops(name)
        ways = {f"{name} forward": lambda ops=ops: call(ops)}
        if leaves:
            ways[f"{name} forward and backward"] = lambda ops=ops: backward(call(ops), leaves)
        for way, run in ways.items():
            keep_what_runs(runs, left_out, way, lambda run=run: run)
            if GPU:
                keep_what_runs(runs, left_out, f"{way}, graph", lambda run=run: captured(run))
    for name, run in others.items():
        keep_what_runs(runs, left_out, name, lambda run=run: run)
    for name, why in left_out.items():
        print(f"  {name:34} left out: {why}")
    times: dict[str, list[float]] = {name: [] for name in runs}
    rng = np.random.default_rng(0)

    def one_round() -> None:
        for name in rng.permutation(list(runs)).tolist():
            times[name].append(microseconds(runs[name]))

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
        "short": SHORT,
        "limits": device._asdict(),
        "work": {way: part._asdict() for way, part in work.items()},
        "left_out": left_out,
        "microseconds": {
            name: {"median": statistics.median(v), "min": min(v), "max": max(v)}
            for name, v in times.items()
        },
    }
    for name, row in benchmark.extra_info["microseconds"].items():
        line = f"  {name:34} {row['median']:9.1f}  ({row['min']:.1f} to {row['max']:.1f}) us"
        way = "forward and backward" if "backward" in name else "forward"
        if name not in others and way in work:  # others do other work
            row["of_roofline"] = work[way].microseconds(device) / row["median"]
            line += f", {row['of_roofline']:.3f} of the roofline"
        print(line)


def missing(provider: str) -> str:
    """Why a backend is not timed; nothing where it is."""
    if provider not in os.environ.get("PROVIDERS", provider).split():
        return "not among PROVIDERS"
    if provider in ON_TRITON and missing_fused_ops():
        return "needs Triton"
    if provider in ON_TRITON and not (GPU and runs_on(DEVICE)):
        return "needs a CUDA device"
    return ""


def keep_what_runs(
    runs: dict[str, Callable[[], object]],
    left_out: dict[str, str],
    name: str,
    make: Callable[[], Callable[[], object]],
) -> None:
    """Warm up a contender and note it in `runs`; one that fails in `left_out`, with its error."""
    try:
        run = make()
        for _ in range(WARM_UPS):
            run()
    except Exception as error:  # whatever a compiler or a capture raises: the others count
        said = str(error).strip().splitlines() or [""]
        left_out[name] = f"{type(error).__name__}: {said[0]}"
    else:
        runs[name] = run


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
    if not GPU:
        begun = time.perf_counter()
        for _ in range(CALLS):
            run()
        return (time.perf_counter() - begun) * 1e6 / CALLS
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(CALLS):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3 / CALLS


def draw(*shape: int, grad: bool = False) -> Tensor:
    """A standard normal tensor on the device."""
    return torch.randn(*shape, device=DEVICE, requires_grad=grad)
