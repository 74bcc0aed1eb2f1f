"""Where an update of size S spends its time on a GPU, and how long a step of acting takes.

`python -m bench.profile_update FILE` writes JSON: by backend, with and without CUDA graphs, the
milliseconds of a whole update, the longest kernels of one, and the milliseconds of acting in some
numbers of environments.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from bench.providers import surroundings
from mudreamer_fast.agent import Agent
from mudreamer_fast.backend.cuda_graph import SETTLING_CALLS
from mudreamer_fast.config import Config
from mudreamer_fast.envs import ActionSpec, ArraySpec
from mudreamer_fast.machine.device import settle_arithmetic

ACTIONS, UPDATES, KERNELS = 6, 10, 25
ACTING_STEPS, ENVIRONMENTS = 50, (1, 4, 16, 64)
WARM_UPS = SETTLING_CALLS + 2
"""Calls before the first that is timed: a graph is recorded and replayed once in them."""


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


def timed(work: Callable[[], object], times: int) -> dict[str, float]:
    """Milliseconds of a call, waiting included, after some that are not counted."""
    for _ in range(WARM_UPS):
        work()
    taken = []
    for _ in range(times):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        taken.append((time.perf_counter() - start) * 1e3)
    return {"median": statistics.median(taken), "min": min(taken), "max": max(taken)}


def acting(agent: Agent, rows: int) -> dict[str, float]:
    """Milliseconds of a step in a number of environments."""
    observation = {"image": np.zeros((rows, 3, 64, 64), np.uint8)}
    is_first = np.zeros(rows, np.bool_)
    state = agent.initial_state(rows)
    return timed(lambda: agent.act(observation, is_first, state), ACTING_STEPS)


def measure(backend: str, graph: str) -> dict[str, Any]:
    """Milliseconds of an update, its longest kernels, and milliseconds of acting."""
    config = Config()
    train = replace(config.train, backend=backend, cuda_graph=graph)  # type: ignore[arg-type]
    config = replace(config, train=train)
    spec = {"image": ArraySpec((3, 64, 64), np.dtype(np.uint8))}
    device = torch.device("cuda", torch.cuda.current_device())
    agent = Agent(config, spec, ActionSpec(ACTIONS, continuous=True), device)
    data = batch(config)
    milliseconds = timed(lambda: agent.update(data), UPDATES)
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as trace:
        agent.update(data)
        torch.cuda.synchronize()
    events = [event for event in trace.key_averages() if event.self_device_time_total > 0]
    events.sort(key=lambda event: -event.self_device_time_total)
    return {
        "milliseconds": milliseconds,
        "device_operations": sum(event.count for event in events),
        "kernels": [
            {"name": event.key, "calls": event.count, "microseconds": event.self_device_time_total}
            for event in events[:KERNELS]
        ],
        "acting_milliseconds": {rows: acting(agent, rows) for rows in ENVIRONMENTS},
    }


WAYS = [
    ("reference", "off", False),
    ("reference", "on", False),
    ("fused", "off", False),
    ("fused", "on", False),
    ("persistent", "on", False),
    ("reference", "off", True),
    ("fused", "on", True),
    ("persistent", "on", True),
]
"""Backends, with CUDA graphs or without, and in TF32 or float32."""


def main() -> int:
    """Measures the reference and the kernels, and writes the file named on the command line."""
    results: dict[str, dict[str, Any]] = {}
    for backend, graph, tf32 in WAYS:
        settle_arithmetic(None, tf32)
        way = f"{backend}, cuda_graph {graph}, {'tf32' if tf32 else 'float32'}"
        try:
            result = results[way] = measure(backend, graph)
        except Exception as error:  # the other ways are still worth their numbers
            results[way] = {"error": f"{type(error).__name__}: {error}"}
            print(f"{way}: {results[way]['error']}")
            continue
        finally:
            everything = surroundings() | {"update": results}
            Path(sys.argv[1]).write_text(json.dumps(everything, indent=1))
        acted = {rows: ms["median"] for rows, ms in result["acting_milliseconds"].items()}
        print(
            f"{way}: update {result['milliseconds']} ms, {result['device_operations']} operations; "
            f"acting by environments {acted} ms"
        )
    return int(any("error" in result for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
