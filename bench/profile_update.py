"""Where an update of size S spends its time on a GPU, by backend; writes JSON.

`python -m bench.profile_update FILE`: seconds of a whole update, and the longest kernels of one.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from bench.providers import surroundings
from mudreamer_fast.agent import Agent
from mudreamer_fast.config import Config
from mudreamer_fast.envs import ActionSpec, ArraySpec

ACTIONS, UPDATES, KERNELS = 6, 10, 25


def batch(config: Config) -> dict[str, np.ndarray]:
    """Random replayed sequences."""
    rows, steps = config.replay.batch_size, config.replay.batch_length
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (rows, steps, 3, 64, 64), dtype=np.uint8),
        "action": rng.uniform(-1, 1, (rows, steps, ACTIONS)).astype(np.float32),
        "reward": rng.random((rows, steps), dtype=np.float32),
        "is_first": np.zeros((rows, steps), np.bool_),
        "is_terminal": np.zeros((rows, steps), np.bool_),
    }


def measure(backend: str) -> dict[str, Any]:
    """Milliseconds of an update and its longest kernels."""
    config = Config()
    config = replace(config, train=replace(config.train, backend=backend))  # type: ignore[arg-type]
    spec = {"image": ArraySpec((3, 64, 64), np.dtype(np.uint8))}
    agent = Agent(config, spec, ActionSpec(ACTIONS, continuous=True), torch.device("cuda"))
    data = batch(config)
    for _ in range(3):
        agent.update(data)
    times = []
    for _ in range(UPDATES):
        torch.cuda.synchronize()
        start = time.perf_counter()
        agent.update(data)
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e3)
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as trace:
        agent.update(data)
        torch.cuda.synchronize()
    events = [event for event in trace.key_averages() if event.self_device_time_total > 0]
    events.sort(key=lambda event: -event.self_device_time_total)
    return {
        "milliseconds": {
            "median": statistics.median(times), "min": min(times), "max": max(times),
        },
        "launches": sum(event.count for event in events),
        "kernels": [
            {"name": event.key, "calls": event.count, "microseconds": event.self_device_time_total}
            for event in events[:KERNELS]
        ],
    }  # fmt: skip


def main() -> int:
    """Measures the reference and the kernels, and writes the file named on the command line."""
    found = {backend: measure(backend) for backend in ("reference", "fused")}
    Path(sys.argv[1]).write_text(json.dumps(surroundings() | {"update": found}, indent=1))
    for backend, result in found.items():
        print(f"{backend}: {result['milliseconds']} ms, {result['launches']} launches")
    return 0


if __name__ == "__main__":
    sys.exit(main())
